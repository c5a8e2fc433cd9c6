"""vLLM's column of the matrix of architectures: a warm worker samples two policies of each, and
says the logps of an eager pass.

The second policy enters the engine of the first where that is exact, and a new engine otherwise. On
a CPU vLLM asks for heads of 32, so the models are wider than elsewhere. What its CPU build cannot
do: Mamba (no kernel for the scan), GPT-Neo and MPT (no such model). BLOOM is another function by
some thousandths of a nat: vLLM has the exact GELU, BLOOM's own is the approximation by tanh.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.workers import Pool
from tests.wind.architecture_case import ARCHITECTURES, SHAPES, eager_logps, save_model
from tests.wind.policy_case import stored_prompts
from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.runs import WorkersConfig
from wind.config.sampling import SamplingConfig
from wind.errors import InputError
from wind.generations import GenerationsSpec
from wind.generations.vllm import EXACT_IN_PLACE
from wind.models import import_policy
from wind.stages import Job, Place
from wind.store.datasets import Store

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TOLERANCE = 1e-4  # nats, of a whole response
GELU = 1e-2  # of BLOOM's
NOT_IN_VLLM = ("gpt_neo", "mpt")  # its line is tested beside the engine
PROMPTS = [[7, 9, 11], [7], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [30, 31]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One warm worker for all of them."""
    pool = Pool(WorkersConfig(), "cpu", tmp_path_factory.mktemp("logs"))
    yield pool
    pool.close()


def differences(store: Store, pool: Pool, folder: Path) -> list[float]:
    """By how many nats each response's logp of the sampler differs from that of an eager forward
    pass.
    """
    spec = GenerationsSpec(
        policy=import_policy(store, PolicyConfig(path=str(folder))),
        prompts=stored_prompts(store, PROMPTS),
        split="train",
        sampling=SamplingConfig(backend="vllm", samples_per_prompt=3, max_new_tokens=8),
        inference=InferenceConfig(),
        seed=0,
        iteration=1,
    )
    job = Job(
        stage="generations", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )
    rows = store.read(pool.compute(job, "vllm", lambda done, total: None)).to_pylist()
    assert len(rows) == 3 * len(PROMPTS)
    asked = [PROMPTS[int(row["prompt_id"], 16)] for row in rows]
    theirs = eager_logps(folder, asked, [row["response_token_ids"] for row in rows])
    return [abs(row["logp_sampler"] - logp) for row, logp in zip(rows, theirs, strict=True)]


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name not in ("mamba", *NOT_IN_VLLM)]
)
def test_two_policies_are_what_an_eager_forward_pass_says(
    store: Store, tmp_path: Path, pool: Pool, architecture: str
) -> None:
    for seed in (0, 1):
        folder = save_model(
            tmp_path / f"model-{seed}", architecture, SHAPES["bos first"], seed=seed, is_wide=True
        )
        assert np.max(differences(store, pool, folder)) < (
            GELU if architecture == "bloom" else TOLERANCE
        )


def test_whatever_takes_weights_in_place_is_in_the_matrix() -> None:
    assert {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in ARCHITECTURES} >= EXACT_IN_PLACE


def test_a_recurrent_model_that_a_cpu_cannot_sample_is_said_in_a_line(
    store: Store, tmp_path: Path, pool: Pool
) -> None:
    folder = save_model(tmp_path / "model", "mamba", SHAPES["bos first"], is_wide=True)
    with pytest.raises(
        InputError, match=r" does not load in vLLM: .*mamba.*; try sampling.backend: transformers$"
    ):
        differences(store, pool, folder)
