"""Stages that several runs need at once are computed once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

import wind.stages
import wind.win_rates
from wind.config.recipe import DistillConfig
from wind.config.rewards import WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.stages import Job, Place, Shard, Spec, published, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, folder_of
from wind.store.shards import shard_name
from wind.win_rates import STAGE, WinRatesSpec

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys, time
from pathlib import Path
import wind.stages
import wind.win_rates
compute = wind.stages.compute_shard
def counted(job, index, progress):
    with open(sys.argv[2], "a") as file:
        file.write("computed\\n")
    time.sleep(1)
    compute(job, index, progress)
wind.stages.compute_shard = counted
job = wind.stages.Job.model_validate_json(Path(sys.argv[1]).read_bytes())
sys.stdin.read()
print(wind.stages.run(job, lambda done, total: None, wind.stages.published).fingerprint)
"""


def make_job(store: Store) -> Job:
    with store.partial("rewards", "given") as partial:
        partial.write(
            0, pa.table({"prompt_id": ["a", "a"], "sample_index": [0, 1], "reward": [1.0, 3.0]})
        )
        given = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    spec = WinRatesSpec(rewards=given, win_rate=WinRateConfig()).model_dump(mode="json")
    return Job(stage="win_rates", spec=spec, place=Place(root=store.address))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards that were computed in this process."""
    shards: list[int] = []
    compute = wind.stages.compute_shard

    def counted(job: Job, index: int, progress: Any) -> None:
        shards.append(index)
        compute(job, index, progress)

    monkeypatch.setattr(wind.stages, "compute_shard", counted)
    return shards


def take(job: Job) -> Dataset:
    return run(job, lambda done, total: None, published)


@pytest.mark.slow
class OneOfEach(Spec):
    """A field from each place that `Spec.of` looks in, and one that may be left out."""

    prompts: Dataset
    sampling: SamplingConfig
    seed: int
    iteration: int
    parts: int = 1


def test_a_spec_is_filled_by_name_from_what_is_given_then_inputs_then_config() -> None:
    config = DistillConfig.model_validate(
        {
            "run": "tiny",
            "policy": {"path": "base"},
            "prompts": {"source": "prompts.jsonl"},
            "reward": {"kind": "rule", "function": "rules:reward"},
            "objective": {"name": "wind"},
            "seed": 5,
            "sampling": {"top_k": 3},
        }
    )
    prompts = Dataset(name="prompts", fingerprint="0" * 64, rows=2)
    inputs: dict[str, Any] = {
        "prompts": prompts,
        "iteration": 2,
        "policy": "no field of this spec",
        "parts": 4,
    }
    spec = OneOfEach.of(config, inputs)
    assert spec == OneOfEach(
        prompts=prompts, sampling=config.sampling, seed=5, iteration=2, parts=4
    )
    other = config.sampling.model_copy(update={"top_k": 7})
    assert OneOfEach.of(config, inputs, sampling=other, iteration=3) == spec.model_copy(
        update={"sampling": other, "iteration": 3}
    )
    del inputs["prompts"]  # the config's section of that name is no dataset
    with pytest.raises(ValidationError, match="prompts"):
        OneOfEach.of(config, inputs)
    del inputs["iteration"]
    with pytest.raises(ValidationError, match="iteration\n  Field required"):
        OneOfEach.of(config, inputs | {"prompts": prompts})


def test_two_processes_that_need_the_same_compute_it_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(make_job(store).model_dump_json())
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "job.json"), str(tmp_path / "count")]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in processes]  # closing stdin is the starting gun
    assert (tmp_path / "count").read_text() == "computed\n"
    (handle,) = store.handles("win_rates")
    assert said == [f"{handle.fingerprint}\n"] * 2


@pytest.mark.slow
def test_on_an_object_store_it_is_computed_once_too(s3: str, computed: list[int]) -> None:
    job = make_job(Store(s3))
    with ThreadPoolExecutor(3) as threads:
        (handle,) = set(threads.map(take, [job] * 3))
    assert computed == [0]
    assert Store(s3).verify(handle).rows == 2


def test_what_is_published_is_taken_unless_damaged_or_asked_for_anew(
    store: Store, computed: list[int]
) -> None:
    job = make_job(store)
    handle = take(job)
    assert take(job) == handle
    assert len(computed) == 1
    assert run(job, lambda done, total: None) == handle
    assert len(computed) == 2
    (store.root / folder_of(handle) / shard_name(0)).unlink()
    assert take(job) == handle
    assert len(computed) == 3
    assert store.verify(handle).rows == 2


def test_the_last_of_what_one_computation_has_made_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a GPU does not repeat itself."""
    job = make_job(store)
    estimators = iter(("unbiased", "self_counting"))

    def unsteady(spec: WinRatesSpec, *others: Any) -> Shard:
        return STAGE.compute(
            spec.model_copy(update={"win_rate": WinRateConfig(estimator=next(estimators))}), *others
        )

    monkeypatch.setattr(wind.win_rates, "STAGE", replace(STAGE, compute=unsteady))
    first, last = (run(job, lambda done, total: None) for _ in range(2))
    assert first != last
    assert take(job) == last
    (store.root / folder_of(last) / shard_name(0)).unlink()
    assert take(job) == first
