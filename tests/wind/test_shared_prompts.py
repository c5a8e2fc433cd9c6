"""Responses that share their prompt against rows of their own: the same log-probabilities and
gradients, or a model that is said not to share.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.masking_utils import create_chunked_causal_mask
from transformers.models.mistral import modeling_mistral

from tests.wind.architecture_case import model_of
from tests.wind.objective_case import CASES, config_of
from tests.wind.training_case import make_inputs, make_spec
from wind.logps import padded
from wind.machine.environment import variables
from wind.models import shared_prompts
from wind.models.sequence_logps import SequenceLogps, share_prompts
from wind.models.shared_prompts import SharedPrompts
from wind.objectives import objective_for
from wind.store.datasets import Store
from wind.training.batches import load_rows, micro_batch
from wind.training.policies import load_policy

SHARING = [
    "llama",
    "qwen3",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt2",
    "gpt_neox",
    "cohere",
    "mixtral",
]
NOT_SHARING = {
    "gemma2": "its attention is eager, and only sdpa shares prompts",
    "bloom": "its attention is eager, and only sdpa shares prompts",
    "mamba": "its attention is eager, and only sdpa shares prompts",
    "falcon": "its family has an attention of its own",
}
# prompts and responses longer and shorter than a window of 6
PROMPTS = [[7, 9, 11, 13, 8, 21, 22, 23, 31], [8], [40, 41, 42]]
RESPONSES = [
    [[10, 20, 21, 22, 23, 24, 25, 2], [30, 2], [2]],
    [[5, 6, 7, 2], [8, 9, 10, 2]],
    [[50, 51, 52, 53, 54, 55, 56, 57, 58, 2]],
]
# of the responses, so that no gradient cancels
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.7], dtype=torch.float64)


def in_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = [
        (prompt, response)
        for prompt, answers in zip(PROMPTS, RESPONSES, strict=True)
        for response in answers
    ]
    return padded([prompt for prompt, _ in pairs], [response for _, response in pairs])


def shared(
    responses: Sequence[Sequence[Sequence[int]]] = RESPONSES, device: str = "cpu"
) -> SharedPrompts:
    return SharedPrompts.of(PROMPTS, responses, device)


def outcome(wrapped: SequenceLogps, *rows: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The log-probabilities, and the gradient of their weighted sum in every parameter."""
    wrapped.zero_grad()
    logps = wrapped(*rows)
    (logps * WEIGHTS.to(logps.device)).sum().backward()
    return logps.detach(), [
        parameter.grad.clone() for parameter in wrapped.parameters() if parameter.grad is not None
    ]


def assert_same(
    ours: tuple[torch.Tensor, list[torch.Tensor]],
    theirs: tuple[torch.Tensor, list[torch.Tensor]],
    tolerance: float = 1e-5,
) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    # Some parameters have no influence, and gradients of rounding errors: biases of keys.
    scale = max(float(gradient.norm()) for gradient in theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert float((one - other).norm()) <= tolerance * max(float(other.norm()), 1e-2 * scale)


def test_a_row_by_hand() -> None:
    row = SharedPrompts.of([[1, 2], [3]], [[[4, 5], [6]], [[7, 8, 9]]], "cpu")
    assert row.input_ids.tolist() == [1, 2, 4, 5, 6, 3, 7, 8, 9]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]
    assert row.predicting.tolist() == [1, 2, 1, 5, 6, 7]
    assert row.targets.tolist() == [4, 5, 6, 7, 8, 9]
    assert row.response_mask.tolist() == [[True, True, False], [True, False, False], [True] * 3]
    assert row.prompt_end.tolist() == [1, 1, 5]


@pytest.mark.parametrize("architecture", SHARING)
def test_shared_rows_equal_rows_of_their_own(architecture: str) -> None:
    wrapped = SequenceLogps(model_of(architecture), chunk_tokens=7)
    theirs = outcome(wrapped, *in_rows())
    assert share_prompts(wrapped) is None
    assert wrapped.shares_prompts
    assert share_prompts(SequenceLogps(wrapped.model)) is None
    assert_same(outcome(wrapped, shared()), theirs)
    # and rows of their own are still what they were
    again = outcome(wrapped, *in_rows())
    assert torch.equal(again[0], theirs[0])
    assert all(torch.equal(one, other) for one, other in zip(again[1], theirs[1], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_shared_rows_on_a_gpu(architecture: str) -> None:
    wrapped = SequenceLogps(model_of(architecture).cuda())
    theirs = outcome(wrapped, *(tensor.cuda() for tensor in in_rows()))
    assert share_prompts(wrapped) is None
    assert_same(outcome(wrapped, shared(device="cuda")), theirs, tolerance=1e-4)


def test_layers_recomputed_in_the_backward_pass() -> None:
    model = model_of("mistral")
    wrapped = SequenceLogps(model)
    theirs = outcome(wrapped, *in_rows())
    assert share_prompts(wrapped) is None
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_same(outcome(wrapped, shared()), theirs)


def test_a_response_does_not_see_the_others() -> None:
    wrapped = SequenceLogps(model_of("llama"))
    assert share_prompts(wrapped) is None
    others = [[[30] * 8, *RESPONSES[0][1:]], *RESPONSES[1:]]
    with torch.no_grad():
        before, after = wrapped(shared()), wrapped(shared(others))
    assert torch.equal(before[1:], after[1:])
    assert before[0] != after[0]


@pytest.mark.parametrize("architecture", NOT_SHARING)
def test_a_model_that_cannot_share_says_why_and_stays_as_it_was(architecture: str) -> None:
    wrapped = SequenceLogps(model_of(architecture))
    before = wrapped.model.config._attn_implementation
    assert share_prompts(wrapped) == NOT_SHARING[architecture]
    assert not wrapped.shares_prompts
    assert wrapped.model.config._attn_implementation == before


def test_a_soft_cap_is_not_left_out() -> None:
    model = model_of("gemma2")
    model.set_attn_implementation("sdpa")
    assert share_prompts(SequenceLogps(model)) == "it has softcap"


def test_chunked_attention_is_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that see the chunk they are in are told apart from those that see a window back."""
    monkeypatch.setattr(
        modeling_mistral, "create_sliding_window_causal_mask", create_chunked_causal_mask
    )
    model = model_of("mistral", attention_chunk_size=64)
    assert share_prompts(SequenceLogps(model)) == "it has local attention of its own kind"


def test_a_probe_finds_a_response_that_sees_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(mask: Any, length: int, before: int) -> torch.Tensor:
        return torch.ones(length, before + length, dtype=torch.bool)

    monkeypatch.setattr(shared_prompts._Mask, "_visible", everything)
    reason = share_prompts(SequenceLogps(model_of("llama")))
    assert reason is not None
    assert reason.startswith("log-probabilities differ by ")


def test_a_probe_finds_positions_that_go_on_from_the_sibling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = SharedPrompts.of

    def wrong(*arguments: Any) -> SharedPrompts:
        row = right(*arguments)
        row.position_ids.copy_(torch.arange(len(row.position_ids)))
        return row

    monkeypatch.setattr(SharedPrompts, "of", wrong)
    reason = share_prompts(SequenceLogps(model_of("llama")))
    assert reason is not None
    assert reason.startswith("log-probabilities differ by ")


def test_every_objective_has_the_same_gradient(store: Store, tiny_model: Path) -> None:
    rows = load_rows(make_spec(make_inputs(store, tiny_model, groups=3)), store)
    groups = torch.arange(rows.groups).numpy()
    theirs, ours = (micro_batch(rows, groups, "cpu", is_shared=shared) for shared in (False, True))
    wrapped = SequenceLogps(load_policy(tiny_model, "float32"))
    assert share_prompts(wrapped) is None
    logps = [wrapped(*batch.inputs) for batch in (theirs, ours)]
    for name, settings in CASES.items():
        if settings.get("shift") == "learned":  # its intercept is the engine's
            continue
        gradients = []
        for logps_B, batch in zip(logps, (theirs, ours), strict=True):
            loss, _ = objective_for(config_of(**settings))(logps_B, batch.batch)
            wrapped.zero_grad()
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            gradients.append(
                torch.cat(
                    [
                        parameter.grad.ravel()
                        for parameter in wrapped.parameters()
                        if parameter.grad is not None
                    ]
                )
            )
        assert gradients[0].norm() > 0, name
        torch.testing.assert_close(
            gradients[1],
            gradients[0],
            rtol=1e-5,
            atol=1e-5 * float(gradients[0].abs().max()),
            msg=name,
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed")
def test_a_training_says_why_prompts_are_not_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with variables({"DS_ACCELERATOR": "cpu"}):
        from wind.training.engine import _share_prompts
    wrapped = SequenceLogps(model_of("bloom"))
    for rank in (0, 1):
        _share_prompts(SimpleNamespace(module=wrapped, global_rank=rank))
    assert capsys.readouterr().err == (
        "training.prompt_sharing: the policy cannot share prompts: "
        "its attention is eager, and only sdpa shares prompts\n"
    )
