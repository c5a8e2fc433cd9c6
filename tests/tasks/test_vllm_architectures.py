"""vLLM's column of the matrix of architectures: a warm worker samples two policies of each, and says the logps of an eager pass.

The second policy enters the engine of the first where that is exact, and a new engine otherwise. On a CPU vLLM asks for heads of
32, so the models are wider than elsewhere. What its CPU build cannot do: Mamba (no kernel for the scan), GPT-Neo and MPT (no such
model). BLOOM is another function by some thousandths of a nat: vLLM has the exact GELU, BLOOM's own is the approximation by tanh.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.workers import Pool
from tests.wind.architecture_case import ARCHITECTURES, SHAPES, eager_logps, save_model
from wind.config import InferenceConfig, PolicyConfig, SamplingConfig, WorkersConfig
from wind.datasets import Store
from wind.errors import StageError
from wind.generations import GenerationsSpec
from wind.handles import Dataset
from wind.models import import_policy
from wind.schemas import SCHEMAS
from wind.stages import Job, Place

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


def prompts(store: Store) -> Dataset:
    rest: dict[str, Any] = {"prompt": "", "messages": [], "split": "train", "answer": None, "meta": "{}"}
    rows = [{"prompt_id": f"{row:032x}", "prompt_token_ids": ids, **rest} for row, ids in enumerate(PROMPTS)]
    with store.partial("prompts", "given") as partial:
        partial.write(0, pa.Table.from_pylist(rows, schema=SCHEMAS["prompts"]))
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def differences(store: Store, pool: Pool, folder: Path) -> list[float]:
    """By how many nats each response's logp of the sampler differs from that of an eager forward pass."""
    spec = GenerationsSpec(
        policy=import_policy(store, PolicyConfig(path=str(folder))),
        prompts=prompts(store),
        split="train",
        sampling=SamplingConfig(backend="vllm", samples_per_prompt=3, max_new_tokens=8),
        inference=InferenceConfig(),
        seed=0,
        iteration=1,
    )
    job = Job(stage="generations", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root)))
    rows = store.read(pool.compute(job, "vllm", lambda done, total: None)).to_pylist()
    assert len(rows) == 3 * len(PROMPTS)
    asked = [PROMPTS[int(row["prompt_id"], 16)] for row in rows]
    theirs = eager_logps(folder, asked, [row["response_token_ids"] for row in rows])
    return [abs(row["logp_sampler"] - logp) for row, logp in zip(rows, theirs, strict=True)]


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("mamba", *NOT_IN_VLLM)])
def test_two_policies_are_what_an_eager_forward_pass_says(store: Store, tmp_path: Path, pool: Pool, architecture: str) -> None:
    for seed in (0, 1):
        folder = save_model(tmp_path / f"model-{seed}", architecture, SHAPES["bos first"], seed=seed, is_wide=True)
        assert np.max(differences(store, pool, folder)) < (GELU if architecture == "bloom" else TOLERANCE)


def test_a_kernel_that_a_cpu_lacks_is_said_in_a_line(store: Store, tmp_path: Path, pool: Pool) -> None:
    folder = save_model(tmp_path / "model", "mamba", SHAPES["bos first"], is_wide=True)
    with pytest.raises(StageError, match=r"^vLLM failed: .*selective_scan_fwd.*; try sampling.backend: transformers$"):
        differences(store, pool, folder)
