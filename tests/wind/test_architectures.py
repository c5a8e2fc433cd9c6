"""Real architectures and template shapes: ids are the template's, every log-probability is that of
a plain eager forward pass.

Each architecture goes through sampling, scoring, one step of training, export and reload, with a
template shape in turn. What transformers cannot do: RWKV and RecurrentGemma keep their state in no
cache of its own, so the transformers sampler refuses them.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import wind.generations.hf
import wind.models
import wind.models.sequence_logps
import wind.training.export
import wind.training.policies
import wind.training.runs
from tests.wind.architecture_case import (
    ARCHITECTURES,
    SHAPES,
    Shape,
    eager_logps,
    save_model,
    tokenizer_of,
)
from tests.wind.training_case import make_inputs, make_spec, train
from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.sampling import SamplingConfig
from wind.config.templates import TODAY
from wind.errors import ConfigError, InputError
from wind.generations import Request, Sample
from wind.generations.hf import TransformersSampler
from wind.logps import padded
from wind.models import import_policy, load_policy, stop_token_ids
from wind.models.sequence_logps import SequenceLogps
from wind.models.templates import Template
from wind.prompts import rendering
from wind.prompts.rows import Row
from wind.store.datasets import Store
from wind.training.policies import load_policy as load_for_training

TOLERANCE = 1e-4  # nats, of a whole response
CHATS = [
    [{"role": "user", "content": "What is 2+3?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a color."}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Count to 3"},
    ],
]
SAMPLING = SamplingConfig(samples_per_prompt=3, max_new_tokens=8)


def prompt_ids(shape: Shape) -> list[list[int]]:
    """The ids of CHATS as this project renders them."""
    rows = [Row(f"line {number}", {}) for number in range(len(CHATS))]
    tokenizer = tokenizer_of(shape)
    return [
        ids
        for _, ids in rendering.render(tokenizer, Template(tokenizer, "chat", TODAY), rows, CHATS)
    ]


def check_ids(shape: Shape) -> None:
    """Prompt ids are those of the tokenizer's own template, on the day that prompts are rendered
    for.
    """
    tokenizer = tokenizer_of(shape)
    for chat, ours in zip(CHATS, prompt_ids(shape), strict=True):
        theirs = tokenizer.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            strftime_now=TODAY.strftime,
        )
        assert ours == theirs


def sampled(store: Store, folder: Path, shape: Shape) -> tuple[list[list[int]], list[list[Sample]]]:
    """Prompts of different lengths and samples of the stored model."""
    policy = load_policy(
        store, import_policy(store, PolicyConfig(path=str(folder))), InferenceConfig(), "cpu"
    )
    prompts = prompt_ids(shape)
    requests = [Request(f"{number:032x}", ids, 1000 * number) for number, ids in enumerate(prompts)]
    sampler = TransformersSampler(policy, stop_token_ids(folder), batch_tokens=4096)
    return prompts, sampler.sample(requests, SAMPLING, lambda done, total: None)


def flat(
    prompts: list[list[int]], samples: list[list[Sample]]
) -> tuple[list[list[int]], list[list[int]]]:
    pairs = [
        (prompt, sample.token_ids)
        for prompt, samples_N in zip(prompts, samples, strict=True)
        for sample in samples_N
    ]
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def assert_close(ours: Sequence[float], theirs: Sequence[float]) -> None:
    assert np.abs(np.array(ours) - theirs).max() < TOLERANCE


def check_sampling(store: Store, folder: Path, shape: Shape) -> None:
    """What the sampler says of its samples is what an eager forward pass says."""
    prompts, samples = sampled(store, folder, shape)
    assert_close(
        [sample.logp for samples_N in samples for sample in samples_N],
        eager_logps(folder, *flat(prompts, samples)),
    )


def check_scoring(store: Store, folder: Path, shape: Shape) -> None:
    """So is what scoring says, in one padded batch."""
    prompts, responses = flat(*sampled(store, folder, shape))
    policy = load_policy(
        store, import_policy(store, PolicyConfig(path=str(folder))), InferenceConfig(), "cpu"
    )
    wind.models.sequence_logps.verify_head(policy)
    with torch.inference_mode():
        ours = SequenceLogps(policy)(*padded(prompts, responses)).tolist()
    assert_close(ours, eager_logps(folder, prompts, responses))


def check_training(store: Store, folder: Path, shape: Shape) -> None:
    """So is what training starts from, with gradients that reach the weights."""
    prompts, responses = flat(*sampled(store, folder, shape))
    policy = load_for_training(folder, "float32")
    logps = SequenceLogps(policy)(*padded(prompts, responses))
    assert_close(logps.tolist(), eager_logps(folder, prompts, responses))
    logps.sum().backward()
    embedding: Any = policy.get_input_embeddings()  # type: ignore[operator]
    assert embedding.weight.grad.abs().sum() > 0


def check_export(store: Store, folder: Path, shape: Shape) -> None:
    """One step of training ends in a folder that transformers opens, whose eager logps are those of
    the trained weights.
    """
    shard = train(make_spec(make_inputs(store, folder, groups=4), epochs=1), store)
    exported = store.path(shard.outputs["model"])
    prompts, responses = [[7, 9, 11], [8]], [[10, 20, 2], [30, 31, 32, 33]]
    after, before = (
        eager_logps(exported, prompts, responses),
        eager_logps(folder, prompts, responses),
    )
    assert np.abs(np.array(after) - before).min() > TOLERANCE
    with torch.no_grad():
        assert_close(
            SequenceLogps(load_for_training(exported, "float32"))(
                *padded(prompts, responses)
            ).tolist(),
            after,
        )


CHECKS: dict[str, Callable[[Store, Path, Shape], None]] = {
    "sampling": check_sampling,
    "scoring": check_scoring,
    "training": check_training,
    "export": check_export,
}
PAIRS = [(name, list(SHAPES)[index % len(SHAPES)]) for index, name in enumerate(ARCHITECTURES)]


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_ids_are_those_of_the_template(shape: str) -> None:
    check_ids(SHAPES[shape])


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "shape"), PAIRS)
def test_an_architecture_is_what_an_eager_forward_pass_says(
    store: Store, tmp_path: Path, architecture: str, shape: str
) -> None:
    folder = save_model(tmp_path / "model", architecture, SHAPES[shape])
    for check in CHECKS.values():
        check(store, folder, SHAPES[shape])


# ----------------------------------------------------------------------------------- planted faults


def bos_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rendering.render

    def wrong(tokenizer: Any, *arguments: Any) -> Any:
        return (
            (text, [tokenizer.bos_token_id, *ids]) for text, ids in right(tokenizer, *arguments)
        )

    monkeypatch.setattr(rendering, "render", wrong)


def sdpa_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, "sdpa")


def eager_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, "eager")


def always(monkeypatch: pytest.MonkeyPatch, implementation: str) -> None:
    for module in (wind.models, wind.training.policies):
        monkeypatch.setattr(module, "attention_of", lambda folder, attention: implementation)


def padding_in_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def unequal(*arguments: Any, equal: bool) -> Any:
        return batched(*arguments)

    batched = wind.generations.hf.batched
    monkeypatch.setattr(wind.generations.hf, "batched", unequal)


def positions_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = wind.models.sequence_logps.position_ids
    for module in (wind.models.sequence_logps, wind.generations.hf):
        monkeypatch.setattr(module, "position_ids", lambda mask: right(mask) + 1)


def head_without_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wind.models.sequence_logps, "postprocess", lambda model, logits: logits)


def weights_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmoved(model: Any, weights: Any, start: Path, folder: Path, precision: str) -> None:
        shutil.copytree(start, folder, ignore=shutil.ignore_patterns("manifest.json"))

    monkeypatch.setattr(wind.training.export, "save_weights", unmoved)
    monkeypatch.setattr(wind.training.export, "verify_export", lambda *arguments: None)
    monkeypatch.setattr(wind.training.runs, "verify_export", lambda *arguments: None, raising=False)


FAULTS = [
    (sdpa_anyway, "gemma2", "sampling"),
    (sdpa_anyway, "gemma2", "scoring"),
    (sdpa_anyway, "gemma2", "training"),
    (eager_anyway, "falcon", "sampling"),
    (eager_anyway, "falcon", "scoring"),
    (eager_anyway, "falcon", "training"),
    (padding_in_state, "mamba", "sampling"),
    (positions_from_one, "gpt2", "sampling"),
    (positions_from_one, "gpt2", "scoring"),
    (positions_from_one, "opt", "training"),
    (head_without_scaling, "granite", "training"),
    (head_without_scaling, "gemma2", "training"),
    (weights_of_the_start, "llama", "export"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "architecture", "check"), FAULTS)
def test_a_planted_fault_is_found(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    architecture: str,
    check: str,
) -> None:
    folder = save_model(tmp_path / "model", architecture, SHAPES["bos first"])
    CHECKS[check](store, folder, SHAPES["bos first"])
    wind.models._resident.clear()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check](store, folder, SHAPES["bos first"])
    wind.models._resident.clear()


@pytest.mark.parametrize("shape", ["no bos", "bos is the turn mark", "thinking"])
def test_a_bos_put_in_front_is_found(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    bos_in_front(monkeypatch)
    with pytest.raises(AssertionError):
        check_ids(SHAPES[shape])


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("architecture", "wrong", "right", "message"),
    [
        (
            "gemma2",
            "sdpa",
            "eager",
            "attention sdpa computes a different function from this gemma2 model's, which "
            "caps its attention logits: set auto or eager",
        ),
        (
            "falcon",
            "eager",
            "sdpa",
            "attention eager computes a different function from this falcon model's, which "
            "has ALiBi biases: set auto or sdpa",
        ),
    ],
)
def test_an_attention_that_computes_another_function_is_refused(
    store: Store, tmp_path: Path, architecture: str, wrong: Any, right: Any, message: str
) -> None:
    model = import_policy(
        store,
        PolicyConfig(path=str(save_model(tmp_path / "model", architecture, SHAPES["bos first"]))),
    )
    with pytest.raises(ConfigError, match=message):
        load_policy(store, model, InferenceConfig(attention=wrong), "cpu")
    config: Any = load_policy(store, model, InferenceConfig(attention=right), "cpu").config
    assert config._attn_implementation == right


def test_a_model_without_a_known_cache_is_refused() -> None:
    class Rwkv(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, state: Any = None) -> None: ...

    with pytest.raises(
        InputError, match="Rwkv keeps its state in no cache of transformers': sample it with vllm"
    ):
        TransformersSampler(Rwkv(), [2], 64)


def test_a_state_within_the_model_is_refused() -> None:
    """RecurrentGemma takes a cache, for its attention only: the samples of a prompt would share and
    mix their states.
    """
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("recurrent_gemma", **sizes))
    with pytest.raises(
        InputError, match="RecurrentGemmaForCausalLM keeps its state in no cache of transformers'"
    ):
        TransformersSampler(model, [2], 64)
