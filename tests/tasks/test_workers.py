"""Workers as real processes: they compute, they report, and nothing of them outlives the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.workers import Pool, kind_of
from wind.config.models import InferenceConfig
from wind.config.rewards import WinRateConfig
from wind.config.runs import WorkersConfig
from wind.config.sampling import Backend, SamplingConfig
from wind.errors import InputError, StageError
from wind.generations import GenerationsSpec
from wind.stages import Job, Place
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.win_rates import WinRatesSpec


def rewards(store: Store, table: dict[str, list[object]], shards: int = 1) -> Dataset:
    """A rewards dataset with the same rows in each shard, under other prompts."""
    with store.partial("rewards", "given") as partial:
        for shard in range(shards):
            rows = table | {"prompt_id": [f"{shard}-{name}" for name in table["prompt_id"]]}
            partial.write(shard, pa.table(rows))
        return partial.publish(shards, parents={}, computed_by={}, numbers={}, provenance={})


def job(store: Store, given: Dataset) -> Job:
    spec = WinRatesSpec(rewards=given, win_rate=WinRateConfig())
    return Job(
        stage="win_rates", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_generations_run_in_the_workers_of_their_sampler(backend: Backend) -> None:
    spec = GenerationsSpec(
        policy=Model(fingerprint="0" * 64, parameters=1),
        prompts=Dataset(name="prompts", fingerprint="0" * 64, rows=1),
        split="train",
        sampling=SamplingConfig(backend=backend),
        inference=InferenceConfig(),
        seed=0,
        iteration=1,
    )
    sampled = spec.model_dump(mode="json")
    assert kind_of(Job(stage="generations", spec=sampled, place=Place(root="anywhere"))) == backend


def pool_of(store: Store, processes: int) -> Pool:
    return Pool(WorkersConfig(processes=processes), "cpu", store.root / "logs")


PAIR: dict[str, list[object]] = {
    "prompt_id": ["a", "a"],
    "sample_index": [0, 1],
    "reward": [1.0, 3.0],
}


@pytest.fixture
def pool(store: Store) -> Iterator[Pool]:
    pool = pool_of(store, 1)
    yield pool
    pool.close()


def is_running(pid: int) -> bool:
    """Whether the process computes: a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_workers_give_what_one_gives(store: Store, tmp_path: Path) -> None:
    """The fingerprint does not know how many processes computed the shards."""
    given = rewards(store, PAIR, shards=3)
    one = pool_of(store, 1)
    two = pool_of(Store(tmp_path / "other"), 2)
    other = Store(tmp_path / "other")
    try:
        first = one.compute(job(store, given), "transformers", lambda done, total: None)
        second = two.compute(
            job(other, rewards(other, PAIR, shards=3)), "transformers", lambda done, total: None
        )
    finally:
        one.close()
        two.close()
    assert first == second
    assert store.frame(first)["win_rate"].to_list() == [0.0, 1.0] * 3


@pytest.mark.slow
def test_an_error_crosses_as_itself(store: Store, pool: Pool) -> None:
    lonely = rewards(store, {"prompt_id": ["a"], "sample_index": [0], "reward": [1.0]})
    with pytest.raises(InputError, match="0-a"):
        pool.compute(job(store, lonely), "transformers", lambda done, total: None)


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_replaced(store: Store, pool: Pool) -> None:
    given = rewards(store, PAIR)
    computed = pool.compute(job(store, given), "transformers", lambda done, total: None)
    (worker,) = pool._workers.values()
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    again = rewards(store, PAIR | {"reward": [2.0, 3.0]})
    assert (
        pool.compute(job(store, again), "transformers", lambda done, total: None).rows
        == computed.rows
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "how"),
    [("KILL", "SIGKILL, as the system does when memory runs out;"), ("TERM", "SIGTERM;")],
)
def test_a_worker_that_is_killed_says_by_what(
    store: Store, tmp_path: Path, signum: str, how: str
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nkill -{signum} $$\n")
    interpreter.chmod(0o755)
    pool = Pool(
        WorkersConfig(python={"transformers": str(interpreter)}), "cpu", store.root / "logs"
    )
    with pytest.raises(StageError, match=f"the worker of win_rates was killed by {how} rerun"):
        pool.compute(job(store, rewards(store, PAIR)), "transformers", lambda done, total: None)
    pool.close()


@pytest.mark.slow
def test_an_interpreter_that_cannot_serve_is_named(store: Store) -> None:
    pool = Pool(WorkersConfig(python={"transformers": "/bin/false"}), "cpu", store.root / "logs")
    with pytest.raises(StageError, match="worker of win_rates ended with exit code 1"):
        pool.compute(job(store, rewards(store, PAIR)), "transformers", lambda done, total: None)
    pool.close()


@pytest.mark.parametrize(
    ("visible", "sampling", "training"),
    [
        (None, ["0", "1", "2"], None),
        ("4,5,7", ["4", "5", "7"], "4,5,7"),
        ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a", "GPU-b", "GPU-c"], "GPU-a,GPU-b,GPU-c,GPU-d"),
    ],
)
def test_a_sampler_has_a_device_of_its_own_and_a_training_has_all(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    sampling: list[str],
    training: str | None,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = Pool(WorkersConfig(processes=3), "cuda", store.root / "logs")
    for kind in ("transformers", "vllm"):
        given = [
            pool._environment(kind, index, "/envs/x/bin/python")["CUDA_VISIBLE_DEVICES"]
            for index in range(3)
        ]
        assert given == sampling
    assert (
        pool._environment("training", 0, "/envs/x/bin/python").get("CUDA_VISIBLE_DEVICES")
        == training
    )


def test_the_tools_beside_an_interpreter_come_first(store: Store) -> None:
    path = Pool(WorkersConfig(), "cuda", store.root / "logs")._environment(
        "vllm", 0, "/envs/vllm/bin/python"
    )["PATH"]
    assert path.split(os.pathsep)[0] == "/envs/vllm/bin"


def test_no_process_at_all_is_one_line(store: Store) -> None:
    pool = Pool(
        WorkersConfig(python={"transformers": "/no/such/python"}), "cpu", store.root / "logs"
    )
    with pytest.raises(
        StageError,
        match=r"no worker can be started by /no/such/python \(No such program\): set workers.python",
    ):
        pool.compute(job(store, rewards(store, PAIR)), "transformers", lambda done, total: None)


ORPHAN = """
import sys, time
from pathlib import Path
from tasks.workers import Worker
from wind.machine.processes import environment
worker = Worker(sys.executable, Path(sys.argv[1]) / "log", environment(OMP_NUM_THREADS="1"))
print(worker._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    assert is_running(worker)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


@pytest.mark.slow
def test_on_a_cpu_training_shares_the_process_that_samples(store: Store) -> None:
    """Importing an engine takes longer than many a stage; another interpreter for training is
    another process all the same.
    """
    given = rewards(store, PAIR)
    # the same, under a name that is not
    other = f"{Path(sys.executable).parent}/./{Path(sys.executable).name}"
    for python, log in (({}, "transformers-0.log"), ({"training": other}, "training-0.log")):
        logs = store.root / f"logs-{len(python)}"
        pool = Pool(WorkersConfig(python=python), "cpu", logs)
        try:
            for kind in ("transformers", "training"):
                pool.compute(job(store, given), kind, lambda done, total: None)
            assert {path.name for path in logs.iterdir()} == {"transformers-0.log", log}
        finally:
            pool.close()
