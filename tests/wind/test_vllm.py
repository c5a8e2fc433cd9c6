"""The vLLM sampler with the real engine on a CPU: seeds, stop tokens, log-probabilities, and new
weights in place.

Starting an engine takes half a minute, so one serves the whole module; the last test starts a
second one.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.wind.architecture_case import SHAPES, save_model
from tests.wind.policy_case import STOP, save_random_policy, stored_prompts
from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.sampling import SamplingConfig
from wind.errors import ConfigError, InputError
from wind.generations import GenerationsSpec, Request, Sample
from wind.models import import_policy, stop_token_ids
from wind.models.sequence_logps import SequenceLogps
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model

vllm = pytest.importorskip("wind.generations.vllm")
# vLLM and what it imports warn on their own account
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROMPTS = [[1, 5], [1, 6, 7, 8, 9, 10], [1, 11, 12], [1, 20, 21, 22], [1, 30]]
REQUESTS = [Request(str(number), ids, 2**61 + 1000 * number) for number, ids in enumerate(PROMPTS)]
SAMPLING = SamplingConfig(backend="vllm", samples_per_prompt=4, max_new_tokens=24)
MAX_MODEL_LEN = 6 + 24


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two random policies of one architecture that stop on several tokens."""
    root = tmp_path_factory.mktemp("policies")
    return [
        save_random_policy(root / name, tiny_model, seed=seed)
        for seed, name in enumerate(["first", "second"])
    ]


def spec(**inference: Any) -> GenerationsSpec:
    return GenerationsSpec(
        policy=Model(fingerprint="0" * 64, parameters=1),
        prompts=Dataset(name="prompts", fingerprint="0" * 64, rows=5),
        split="train",
        sampling=SAMPLING,
        # a step takes no more tokens than vLLM must have
        inference=InferenceConfig(**{"batch_tokens": 1} | inference),
        seed=0,
        iteration=1,
    )


def sample(
    folder: Path, requests: Sequence[Request] = REQUESTS, sampling: SamplingConfig = SAMPLING
) -> list[list[Sample]]:
    sampler = vllm.load(folder, spec(), MAX_MODEL_LEN, "cpu")
    samples: list[list[Sample]] = sampler.sample(requests, sampling, lambda done, total: None)
    return samples


def tokens(samples_P_N: Sequence[Sequence[Sample]]) -> list[list[list[int]]]:
    return [[sample.token_ids for sample in samples_N] for samples_N in samples_P_N]


@pytest.fixture(scope="module")
def first(folders: list[Path]) -> Iterator[list[list[Sample]]]:
    """The samples of the first call of the module's engine."""
    threads = torch.set_num_threads
    yield sample(folders[0])
    assert torch.set_num_threads is threads
    vllm.close()
    assert not torch.distributed.is_initialized()


def test_the_same_seeds_give_the_same_tokens_in_any_company(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    assert sample(folders[0]) == first
    assert tokens(sample(folders[0], REQUESTS[::-1])) == tokens(first)[::-1]
    assert tokens(sample(folders[0], REQUESTS[2:3])) == tokens(first)[2:3]
    fewer = sample(folders[0], REQUESTS, SAMPLING.model_copy(update={"samples_per_prompt": 2}))
    assert tokens(fewer) == [row[:2] for row in tokens(first)]
    shifted = [
        Request(request.prompt_id, request.prompt_token_ids, request.seed + 1)
        for request in REQUESTS
    ]
    # child i has seed + i
    assert [row[:3] for row in tokens(sample(folders[0], shifted))] == [
        row[1:] for row in tokens(first)
    ]


def test_more_prompts_than_a_step_takes_wait_whole(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    many = [
        Request(f"{copy}-{request.prompt_id}", request.prompt_token_ids, request.seed)
        for copy in range(6)
        for request in REQUESTS
    ]
    assert sum(4 * len(request.prompt_token_ids) for request in many) > 256
    assert sample(folders[0], many) == first * 6


class Steps:
    """How often an engine takes a step."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self._step = engine.step
        monkeypatch.setattr(engine, "step", self._counted)

    def _counted(self) -> Any:
        self.taken += 1
        return self._step()


def test_calls_that_begin_ahead_give_the_same_bits_in_fewer_steps(
    folders: list[Path], first: list[list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [REQUESTS[:2], REQUESTS[2:4], REQUESTS[4:]]
    sampler = vllm.load(folders[0], spec(), MAX_MODEL_LEN, "cpu")
    steps = Steps(sampler._engine.llm.llm_engine, monkeypatch)
    one_by_one = [sample(folders[0], requests) for requests in calls]
    alone, steps.taken = steps.taken, 0
    ahead = []
    for place, requests in enumerate(calls, 1):
        sampler = vllm.load(folders[0], spec(), MAX_MODEL_LEN, "cpu")
        ahead.append(
            sampler.sample(requests, SAMPLING, lambda done, total: None, calls[place : place + 4])
        )
        assert len(sampler._engine.calls) == len(calls) - place
    assert ahead == one_by_one
    assert steps.taken < 0.75 * alone


def test_what_began_ahead_is_abandoned_for_another_call_or_other_weights(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    sampler = vllm.load(folders[0], spec(), MAX_MODEL_LEN, "cpu")

    def begin() -> None:
        sampler.sample(REQUESTS[:1], SAMPLING, lambda done, total: None, [REQUESTS[1:4]])

    begin()
    assert sample(folders[0]) == first
    assert not sampler._engine.llm.llm_engine.has_unfinished_requests()
    begin()
    other = sample(folders[1], REQUESTS[1:4])
    assert tokens(other) != tokens(first)[1:4]
    assert sample(folders[1], REQUESTS[1:4]) == other
    assert sample(folders[0]) == first


def test_every_stop_token_ends_a_response_and_is_part_of_it(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    assert stop_token_ids(folders[0]) == tuple(STOP)
    samples = [sample for samples_N in first for sample in samples_N]
    for sample in samples:
        assert not set(sample.token_ids[:-1]) & set(STOP)
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] in STOP)
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 24
    assert len({sample.token_ids[-1] for sample in samples if sample.finish_reason == "stop"}) >= 2
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}


def policy_logps(folder: Path, samples_P_N: Sequence[Sequence[Sample]]) -> list[float]:
    scorer = SequenceLogps(AutoModelForCausalLM.from_pretrained(folder))
    logps = []
    for request, samples_N in zip(REQUESTS, samples_P_N, strict=True):
        for sample in samples_N:
            ids = torch.tensor([[*request.prompt_token_ids, *sample.token_ids]])
            response = torch.arange(ids.shape[1])[None] >= len(request.prompt_token_ids)
            with torch.no_grad():
                logps.append(float(scorer(ids, torch.ones_like(ids), response)))
    return logps


def test_log_probabilities_are_the_models_at_temperature_one(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    assert [sample.logp for row in first for sample in row] == pytest.approx(
        policy_logps(folders[0], first), abs=1e-3
    )
    filtered = sample(
        folders[0],
        REQUESTS,
        SAMPLING.model_copy(update={"temperature": 0.5, "top_k": 5, "top_p": 0.8}),
    )
    assert [sample.logp for row in filtered for sample in row] == pytest.approx(
        policy_logps(folders[0], filtered), abs=1e-3
    )
    assert tokens(filtered) != tokens(first)


def test_the_engine_has_no_child_processes(first: list[list[Sample]]) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert [
        child for child in children if "vllm" in Path(f"/proc/{child}/cmdline").read_text().lower()
    ] == []


def test_nothing_of_flashinfer_is_compiled_to_be_timed(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    engine = vllm.load(folders[0], spec(), MAX_MODEL_LEN, "cpu")._engine.llm.llm_engine
    assert engine.vllm_config.kernel_config.enable_flashinfer_autotune is False


def test_a_temperature_vllm_would_change_is_refused(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    with pytest.raises(ConfigError, match="vLLM's lowest"):
        sample(folders[0], REQUESTS, SAMPLING.model_copy(update={"temperature": 0.001}))


def test_runs_as_a_stage(store: Store, folders: list[Path], first: list[list[Sample]]) -> None:
    policy = import_policy(store, PolicyConfig(path=str(folders[0])))
    prompts = stored_prompts(store, PROMPTS)
    fields = spec().model_copy(update={"policy": policy, "prompts": prompts}).model_dump()
    told: list[tuple[int, int]] = []
    handle = run(
        Job(stage="generations", spec=fields, place=Place(root=str(store.root))),
        lambda done, total: told.append((done, total)),
    )
    table = store.read(handle).to_pylist()
    assert [row["sample_index"] for row in table] == [0, 1, 2, 3] * 5
    assert {row["seed"] - row["sample_index"] for row in table[:4]} == {table[0]["seed"]}
    assert told[-1] == (5, 5)
    # in shards of two prompts, each with the following ones ahead
    fields["sampling"]["shard_prompts"] = 2
    by_two = run(
        Job(stage="generations", spec=fields, place=Place(root=str(store.root))),
        lambda done, total: None,
    )
    assert store.read(by_two).to_pylist() == table


def test_new_weights_of_the_same_shape_enter_in_place_and_equal_a_fresh_engine(
    folders: list[Path], first: list[list[Sample]]
) -> None:
    engine = vllm.load(folders[0], spec(), MAX_MODEL_LEN, "cpu")._engine.llm
    reloaded = sample(folders[1])
    assert vllm.load(folders[1], spec(), MAX_MODEL_LEN, "cpu")._engine.llm is engine
    assert tokens(reloaded) != tokens(first)
    assert [sample.logp for row in reloaded for sample in row] == pytest.approx(
        policy_logps(folders[1], reloaded), abs=1e-3
    )
    assert sample(folders[0]) == first  # and back again
    vllm.load(folders[0], spec(), MAX_MODEL_LEN + 1, "cpu")  # another shape: the engine restarts
    fresh = vllm.load(folders[1], spec(), MAX_MODEL_LEN, "cpu")
    assert fresh._engine.llm is not engine
    assert fresh.sample(REQUESTS, SAMPLING, lambda done, total: None) == reloaded


def test_a_head_that_is_the_table_of_embeddings_is_new_too(
    tiny_model: Path, tmp_path: Path, first: list[list[Sample]]
) -> None:
    old, new = (
        save_random_policy(tmp_path / str(seed), tiny_model, seed=seed, is_tied=True)
        for seed in (0, 1)
    )
    for folder in (old, new):
        samples = sample(folder)
        assert [each.logp for row in samples for each in row] == pytest.approx(
            policy_logps(folder, samples), abs=1e-3
        )


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3_moe"])
def test_in_place_a_head_or_experts_would_stay_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[list[Sample]], architecture: str
) -> None:
    """A planted fault: if this fails for an architecture, vLLM has mended it, and `EXACT_IN_PLACE`
    may name it.
    """
    monkeypatch.setattr(vllm, "_is_exact_in_place", lambda folder: True)
    shape = SHAPES["bos first"]
    old, new = (
        save_model(tmp_path / str(seed), architecture, shape, seed=seed, is_wide=True)
        for seed in (0, 1)
    )
    samples = sample(old)
    assert [each.logp for row in samples for each in row] == pytest.approx(
        policy_logps(old, samples), abs=1e-3
    )
    samples = sample(new)
    assert [each.logp for row in samples for each in row] != pytest.approx(
        policy_logps(new, samples), abs=0.1
    )
    vllm.close()


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("gpt_neo", "Model architectures ['GPTNeoForCausalLM'] are not supported for now."),
        ("mpt", "Model architecture MptForCausalLM was supported in vLLM until v0.28.0"),
    ],
)
def test_an_architecture_that_vllm_has_not_is_named(
    tmp_path: Path, first: list[list[Sample]], architecture: str, reason: str
) -> None:
    """Not by the first line of pydantic's report, which says how many errors there are, nor with
    the 300 that vLLM has.
    """
    folder = save_model(tmp_path / "model", architecture, SHAPES["bos first"], is_wide=True)
    with pytest.raises(
        InputError, match=f"^{re.escape(f'{folder} does not load in vLLM: {reason}')}"
    ) as caught:
        sample(folder)
    assert len(str(caught.value)) < 600
