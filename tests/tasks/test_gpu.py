"""What only a GPU shows: every path that runs take on CUDA, as they take it, in the workers of a
pool.

The same spec on the CPU is what values are held against, in float32 to rounding. `pytest -m gpu` on
a CUDA machine.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.workers import Pool, kind_of
from tests.wind.pairwise_case import pairrm_folder
from tests.wind.policy_case import save_random_policy
from tests.wind.rollouts_case import prompts_of, rollouts_spec, write_reward
from tests.wind.test_reward_models import job, llama_reward_model
from tests.wind.training_case import DEEPSPEED_WARNINGS, Inputs, distance, make_inputs, make_spec
from wind.config.models import InferenceConfig
from wind.config.rewards import ClassifierRewardConfig, PairwiseRewardConfig
from wind.config.runs import WorkersConfig
from wind.config.sampling import SamplingConfig
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.machine import devices
from wind.machine.processes import environment
from wind.rewards import resolve_reward
from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.pairwise import Pairwise
from wind.stages import Job, Place, Spec
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model

pytestmark = [pytest.mark.gpu, *DEEPSPEED_WARNINGS]

GPU = "cuda"
Compute = Callable[..., Dataset]
BFLOAT16_GAP = 0.02  # nats per token between two ways to the same log-probability
FLOAT32_GAP = 1e-3


@pytest.fixture
def compute(store: Store, tmp_path: Path) -> Iterator[Compute]:
    """Computes a job, or a stage of a spec, on a device; what is computed again is not looked up."""
    pools: dict[str, Pool] = {}

    def computed(device: str, what: Job | Spec, stage: str = "", **place: Any) -> Dataset:
        given = (
            what
            if isinstance(what, Job)
            else Job(stage=stage, spec=what.model_dump(mode="json"), place=Place(root=""))
        )
        placed = given.model_copy(
            update={"place": Place(root=store.address, device=device, **place)}
        )
        pool = pools.setdefault(
            device, Pool(WorkersConfig(), device, tmp_path / f"logs of {device}")
        )
        kind = kind_of(placed)
        assert kind is not None
        return pool.compute(placed, kind, lambda done, total: None)

    yield computed
    for pool in pools.values():
        pool.close()


def said(script: str, *arguments: str, **changes: str) -> str:
    """What a process with `script` prints: this one stays without CUDA."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, env=environment(**changes), stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


# ------------------------------------------------------------------------------------------ devices

NAMES = (
    "import torch; print([torch.cuda.get_device_name(number) for number in "
    "range(torch.cuda.device_count())])"
)


def test_the_driver_names_the_gpus_as_torch_does() -> None:
    assert said(NAMES) == str(list(devices.gpus()))


@pytest.mark.gpu(devices=2)
def test_samplers_have_a_gpu_each_and_a_training_has_all(store: Store) -> None:
    pool = Pool(WorkersConfig(processes=2), GPU, store.root / "logs")
    uuid = (
        "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid)"
    )
    first, second = (
        said(uuid, **pool._environment("vllm", index, sys.executable)) for index in (0, 1)
    )
    assert (first.split()[0], second.split()[0]) == ("1", "1")
    assert first != second
    count = "import torch; print(torch.cuda.device_count())"
    assert said(count, **pool._environment("training", 0, sys.executable)) == str(
        len(devices.gpus())
    )


USED = "import torch; free, total = torch.cuda.mem_get_info(); print(total - free)"


# ------------------------------------------------------------------------------------------ scoring


def logps(store: Store, dataset: Dataset) -> list[float]:
    values: list[float] = (
        store.frame(dataset).sort("prompt_id", "sample_index")["logp_policy"].to_list()
    )
    return values


def logps_spec(inputs: Inputs, **inference: Any) -> LogpsSpec:
    policy = inputs["policy"]
    given = {
        "prompts": inputs["prompts"],
        "generations": inputs["generations"],
        "policy": policy,
        "reference": policy,
    }
    return LogpsSpec(**given, inference=InferenceConfig(**inference))


def test_log_probabilities_are_those_of_a_cpu(
    store: Store, tiny_model: Path, compute: Compute
) -> None:
    inputs = make_inputs(store, tiny_model)
    expected = logps(store, compute("cpu", logps_spec(inputs), "logps"))
    assert logps(store, compute(GPU, logps_spec(inputs), "logps")) == pytest.approx(
        expected, abs=FLOAT32_GAP
    )
    coarse = logps(store, compute(GPU, logps_spec(inputs, dtype="bfloat16"), "logps"))
    gap = sum(abs(one - other) for one, other in zip(coarse, expected, strict=True))
    assert gap < BFLOAT16_GAP * tokens_of(store, inputs["generations"])


def tokens_of(store: Store, generations: Dataset) -> int:
    """How many tokens all responses have."""
    return int(store.frame(generations)["response_token_ids"].list.len().sum())


FLASH = """
import sys, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM
from wind.models.sequence_logps import SequenceLogps
scorer = SequenceLogps(AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").cuda())
ids = torch.arange(5, 25, device="cuda").view(2, 10)
padded_behind = torch.arange(10, device="cuda") < torch.tensor([[10], [7]], device="cuda")
response = padded_behind & (torch.arange(10, device="cuda") >= 3)
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where a mask, or repeated keys, keep attention off it
    scorer(ids, padded_behind, response).sum().backward()
print("flash")
"""


def test_padding_behind_leaves_attention_on_its_fast_path(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_random_policy(tmp_path / "policy", tiny_model, seed=0, head_dim=64)
    assert said(FLASH, str(folder)) == "flash"


def test_a_classifier_rewards_as_on_a_cpu(
    store: Store, tiny_model: Path, tmp_path: Path, compute: Compute
) -> None:
    path = llama_reward_model(tmp_path / "classifier", tiny_model)
    reward = resolve_reward(store, ClassifierRewardConfig(kind="classifier", path=str(path)))
    assert isinstance(reward, Classifier)
    here, there = (
        store.frame(compute(device, job(store, reward)))["reward"].to_list()
        for device in ("cpu", GPU)
    )
    assert there == pytest.approx(here, abs=FLOAT32_GAP)


def test_pairrm_prefers_as_on_a_cpu(store: Store, tmp_path: Path, compute: Compute) -> None:
    path = pairrm_folder(tmp_path / "pairrm")
    reward = resolve_reward(store, PairwiseRewardConfig(kind="pairwise", path=str(path)))
    assert isinstance(reward, Pairwise)
    here, there = (
        store.frame(compute(device, job(store, reward)))["preferences"].explode()
        for device in ("cpu", GPU)
    )
    assert there.to_list() == pytest.approx(here.to_list(), abs=FLOAT32_GAP)


# ----------------------------------------------------------------------------------------- sampling


def generations_spec(policy: Model, prompts: Dataset, backend: Any, dtype: Any) -> GenerationsSpec:
    return GenerationsSpec(
        policy=policy,
        prompts=prompts,
        split="train",
        sampling=SamplingConfig(backend=backend, samples_per_prompt=4, max_new_tokens=24),
        inference=InferenceConfig(dtype=dtype),
        seed=7,
        iteration=1,
    )


def gap_to_the_policy(
    store: Store, compute: Compute, spec: GenerationsSpec, sampled: Dataset
) -> float:
    """How far the sampler's log-probabilities are from the policy's, in nats per token."""
    scored = compute(
        GPU,
        LogpsSpec(
            prompts=spec.prompts,
            generations=sampled,
            policy=spec.policy,
            reference=spec.policy,
            inference=spec.inference,
        ),
        "logps",
    )
    rows = store.frame(sampled).join(
        store.frame(scored), on=["prompt_id", "sample_index"], validate="1:1"
    )
    return float((rows["logp_sampler"] - rows["logp_policy"]).abs().sum()) / tokens_of(
        store, sampled
    )


@pytest.mark.parametrize(
    ("backend", "dtype"), [("transformers", "float32"), ("vllm", "float32"), ("vllm", "bfloat16")]
)
def test_samples_are_the_policys_and_new_weights_take_effect(
    store: Store, tiny_model: Path, tmp_path: Path, compute: Compute, backend: str, dtype: str
) -> None:
    """One worker samples two policies of one shape: weights that stayed would give the second one
    the first one's values.
    """
    bound = {"float32": FLOAT32_GAP, "bfloat16": BFLOAT16_GAP}[dtype]
    prompts = prompts_of(store)
    for seed in (0, 1, 0):
        policy = import_model(
            store, save_random_policy(tmp_path / f"{backend}-{seed}", tiny_model, seed=seed)
        )
        spec = generations_spec(policy, prompts, backend, dtype)
        sampled = compute(GPU, spec, "generations")
        assert gap_to_the_policy(store, compute, spec, sampled) < bound


def test_a_sampler_of_transformers_repeats_itself(
    store: Store, tiny_model: Path, compute: Compute
) -> None:
    spec = generations_spec(
        import_model(store, tiny_model), prompts_of(store), "transformers", "float32"
    )
    assert compute(GPU, spec, "generations") == compute(GPU, spec, "generations")


def test_vllm_starts_without_a_toolkit_and_gives_its_memory_back(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    compute: Compute,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FlashInfer compiles nothing, and needs no nvcc to find out that it need not."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "there is no toolkit"))
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path / "flashinfer"))
    before = int(said(USED))
    policy = import_model(store, save_random_policy(tmp_path / "policy", tiny_model, seed=0))
    sampled = compute(
        GPU, generations_spec(policy, prompts_of(store), "vllm", "bfloat16"), "generations"
    )
    assert not list((tmp_path / "flashinfer").rglob("*.so"))
    assert int(said(USED)) > before + 2**30  # the engine is warm, and has taken most of the GPU
    inputs = {"policy": policy, "prompts": prompts_of(store), "generations": sampled}
    compute(GPU, logps_spec(inputs), "logps")
    # workers of another kind took its place, and hold a tiny policy
    assert int(said(USED)) < before + 2**30


# ----------------------------------------------------------------------------------------- training


def weights(store: Store, trained: Dataset, output: str = "model") -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(
        store.path(store.manifest(trained).outputs[output]) / "model.safetensors"
    )
    return tensors


def training_of(store: Store, rollouts: Dataset) -> Dataset:
    """The training within an on-policy stage."""
    training = store.manifest(rollouts).outputs["training"]
    assert isinstance(training, Dataset)
    return training


def first(store: Store, trained: Dataset, metric: str) -> float:
    return float(
        store.frame(trained)
        .filter((pl.col("step") == 1) & (pl.col("metric") == metric))["value"]
        .item()
    )


SHARDED: list[dict[str, Any]] = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "optimizer_and_parameters"},
    {"zero_stage": 2, "gradient_checkpointing": True},
    {"zero_stage": 2, "optimizer": "rmsprop"},
    {"zero_stage": 2, "lora": {"rank": 4, "alpha": 6}},
]


@pytest.mark.parametrize(
    "settings", SHARDED, ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_a_gpu_trains_the_weights_that_a_cpu_does(
    store: Store, tiny_model: Path, compute: Compute, settings: dict[str, Any]
) -> None:
    spec = make_spec(make_inputs(store, tiny_model), lr=1e-4, **settings)
    same = {name: value for name, value in settings.items() if name in ("optimizer", "lora")}
    plain = compute("cpu", make_spec(make_inputs(store, tiny_model), lr=1e-4, **same), "training")
    assert distance(weights(store, compute(GPU, spec, "training")), weights(store, plain)) < 1e-3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_first_step_in_bfloat16_starts_at_the_policy(
    store: Store, tiny_model: Path, compute: Compute, stage: int
) -> None:
    """Trainer and scorer see the same policy: the ratio that clipping bounds is 1 before the first
    update.
    """
    inputs = make_inputs(store, tiny_model)
    inputs["logps"] = compute(GPU, logps_spec(inputs, dtype="bfloat16"), "logps")
    spec = make_spec(inputs, precision="bfloat16", zero_stage=stage)
    trained = compute(GPU, spec, "training")
    tokens = tokens_of(store, inputs["generations"]) / inputs["generations"].rows
    assert abs(first(store, trained, "log_ratio_policy")) < BFLOAT16_GAP * tokens
    assert {str(tensor.dtype) for tensor in weights(store, trained).values()} == {"torch.bfloat16"}


@pytest.mark.gpu(devices=2)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_what_one_does(
    store: Store, tiny_model: Path, compute: Compute, stage: int
) -> None:
    """NCCL, and every rank's files in the checkpoints on the way."""
    settings: dict[str, Any] = {"lr": 1e-4, "micro_prompts": 1, "checkpoint_steps": 2}
    inputs = make_inputs(store, tiny_model)
    alone = compute(GPU, make_spec(inputs, zero_stage=0, **settings), "training")
    spec = make_spec(inputs, ranks=2, zero_stage=stage, **settings)
    together = compute(GPU, spec, "training", keep_state=True)
    assert distance(weights(store, together), weights(store, alone)) < 1e-4
    # The last checkpoint gives the same weights again: it is whole, and each rank takes up what it
    # wrote.
    assert weights_equal(weights(store, compute(GPU, spec, "training")), weights(store, together))


def weights_equal(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(
        bool((some[name] == others[name]).all()) for name in some
    )


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_state_that_is_kept_gives_the_model_again(
    store: Store, tiny_model: Path, compute: Compute, stage: int
) -> None:
    spec = make_spec(make_inputs(store, tiny_model), zero_stage=stage)
    trained = compute(GPU, spec, "training", keep_state=True)
    assert weights_equal(weights(store, compute(GPU, spec, "training")), weights(store, trained))


@pytest.mark.parametrize("stage", [0, 3])
def test_an_on_policy_training_draws_from_the_policy(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    compute: Compute,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    write_reward(tmp_path, monkeypatch)
    policy = import_model(store, tiny_model)
    objective = {"name": "jbond", "refresh_steps": 2}
    spec = rollouts_spec(store, policy, objective, rate=0.5, zero_stage=stage, lr=3e-4)
    here, there = (training_of(store, compute(device, spec, "rollouts")) for device in ("cpu", GPU))
    for name in ("model", "anchor"):
        # A draw between two tokens that are almost equally likely may differ.
        assert distance(weights(store, there, name), weights(store, here, name)) < 1e-2
