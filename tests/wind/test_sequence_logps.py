"""The chunked log-probabilities against the plain log-softmax, forward and backward, whatever the
padding and the chunks.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.wind.architecture_case import ARCHITECTURES as ARCHITECTURES_OF_TESTS
from tests.wind.architecture_case import MIXTURES, model_of
from wind.errors import InputError
from wind.models.sequence_logps import SequenceLogps, position_ids, verify_head

VOCABULARY = 60
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# prompt lengths 3, 1, 5 and response lengths 4, 6, 1
PROMPTS = [[1, 7, 9], [1], [1, 3, 5, 8, 13]]
RESPONSES = [[11, 4, 6, 2], [9, 9, 8, 30, 59, 2], [2]]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))


def batch(side: str, width: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, attention, response = (
        torch.zeros(3, width).long(),
        torch.zeros(3, width).long(),
        torch.zeros(3, width).bool(),
    )
    for row, (prompt, answer) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        length = len(prompt) + len(answer)
        start = width - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor(prompt + answer)
        attention[row, start : start + length] = 1
        response[row, start + len(prompt) : start + length] = True
    return ids, attention, response


def naive(model: Any) -> torch.Tensor:
    """Row by row, no padding, the whole log-softmax."""
    sums = []
    for prompt, answer in zip(PROMPTS, RESPONSES, strict=True):
        logps_T_V = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        sums.append(
            sum(logps_T_V[len(prompt) - 1 + step, token] for step, token in enumerate(answer))
        )
    return torch.stack(sums)


def test_a_uniform_model_gives_minus_log_vocabulary_per_token() -> None:
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    logps = SequenceLogps(model)(*batch("right"))
    assert logps.dtype == torch.float64
    assert logps.tolist() == pytest.approx(
        [-4 * math.log(VOCABULARY), -6 * math.log(VOCABULARY), -math.log(VOCABULARY)]
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 11, 1024])
def test_equals_the_plain_log_softmax_for_any_padding_and_chunk(
    side: str, chunk_tokens: int
) -> None:
    model = llama()
    logps = SequenceLogps(model, chunk_tokens)(*batch(side))
    torch.testing.assert_close(logps.float(), naive(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_behind_needs_no_mask_to_the_last_bit(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    model.set_attn_implementation(attention)
    ids, mask, response = batch("right")
    given: list[Any] = []
    decoder = model.get_decoder()

    def forward(**inputs: Any) -> Any:
        given.append(inputs)
        return type(decoder).forward(decoder, **inputs)

    monkeypatch.setattr(decoder, "forward", forward)

    def outcome(states: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        logps = SequenceLogps(model).response_logps(states(), ids, response)
        logps.sum().backward()  # type: ignore[no-untyped-call]
        return [logps, *(parameter.grad.clone() for parameter in model.parameters())]

    ours = outcome(lambda: SequenceLogps(model).states(ids, mask))
    assert given[0]["attention_mask"] is None
    assert given[0]["position_ids"].tolist() == [list(range(9))] * 3
    masked = outcome(
        lambda: (
            decoder(
                input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
            ).last_hidden_state
        )
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, masked, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES_OF_TESTS)
def test_padding_behind_needs_no_mask_in_any_architecture(architecture: str) -> None:
    model = model_of(architecture)
    ids, mask, response = batch("right")

    def outcome(states: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        logps = SequenceLogps(model).response_logps(states, ids, response)
        logps.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.parameters()]
        kept = (gradient.clone() for gradient in gradients if gradient is not None)
        return [logps.detach(), *kept]

    ours = outcome(SequenceLogps(model).states(ids, mask))
    masked = outcome(
        model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state
    )
    for one, other in zip(ours, masked, strict=True):
        if architecture in MIXTURES:
            assert float((one - other).norm()) <= 1e-6 * float(other.norm())
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_the_plain_ones(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (naive(model) * weights).sum().backward()  # type: ignore[no-untyped-call]
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for side in ("left", "right"):
        model.zero_grad()
        (SequenceLogps(model, chunk_tokens=3)(*batch(side)) * weights).sum().backward()
        for name, parameter in model.named_parameters():
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(
                parameter.grad, expected[name], atol=1e-5 * scale, rtol=1e-5, msg=name
            )


def test_gradient_checkpointing_of_the_layers_changes_nothing() -> None:
    model = llama()
    plain = SequenceLogps(model)(*batch("left"))
    plain.sum().backward()
    expected = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = SequenceLogps(model)(*batch("left"))
    again.sum().backward()
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements of any floating tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tokens_by_vocabulary_tensor_exists_forward_or_backward() -> None:
    # 4 rows x 100 response tokens x 3000 words = 1.2 M; a chunk of 20 is 60 k, the head's weight
    # 3000 x 16 = 48 k
    model = llama(vocab_size=3000)
    ids = torch.randint(3, 3000, (4, 101))
    response = torch.ones_like(ids).bool()
    response[:, 0] = False
    with LargestTensor() as chunked:  # type: ignore[no-untyped-call]
        SequenceLogps(model, chunk_tokens=20)(ids, torch.ones_like(ids), response).sum().backward()
    with LargestTensor() as whole:  # type: ignore[no-untyped-call]
        SequenceLogps(model, chunk_tokens=400)(ids, torch.ones_like(ids), response).sum().backward()
    assert chunked.numel == 20 * 3000
    assert whole.numel == 400 * 3000


def test_positions_count_real_tokens_on_either_side() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "gemma": lambda: Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    "granite": lambda: GraniteConfig(**SMALL, logits_scaling=8.0),
    "cohere": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scaled_and_capped_heads_are_reproduced(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).eval()
    verify_head(model)
    torch.testing.assert_close(
        SequenceLogps(model, 4)(*batch("right")).float(), naive(model), atol=1e-4, rtol=1e-5
    )


class ShiftedHead(LlamaForCausalLM):  # type: ignore[misc]
    """A head that does something no config field tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 1.5
        return outputs


def test_an_unknown_head_is_refused_and_the_training_mode_kept() -> None:
    torch.manual_seed(0)
    model: Any = ShiftedHead(LlamaConfig(**SMALL))
    model.train()
    with pytest.raises(InputError, match="ShiftedHead does more to its logits"):
        verify_head(model)
    assert model.training
    verify_head(llama().train())


def test_the_stored_tiny_model_verifies(tiny_model: Path) -> None:
    verify_head(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16))
