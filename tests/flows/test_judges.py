"""Whole iterations whose rewards come over HTTP from a real server on loopback."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.distill import distill
from tasks.run import keep_config, open_run
from tests.wind.endpoint_case import Fake, Server, enclosed, longer
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.errors import DataCheckError, StageError
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.references import find_version

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Recipe = Callable[..., DistillConfig]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def server(fake: Fake) -> Iterator[Server]:
    with Server(fake) as server:
        yield server


def ran(config: DistillConfig) -> list[str]:
    with open_run(config, quiet=True) as here:
        keep_config(here.store, config)
        distill(here.config)
        return [event.task for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("own_workers")
def test_an_iteration_with_a_judge_that_is_killed_and_restarted(
    recipe: Recipe, server: Server, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan asks the judge nothing but what it is; the run goes on when the server is back; a
    rerun asks nothing, though datasets are gone; the key is nowhere on disk.
    """
    fake.key = uuid.uuid4().hex
    monkeypatch.setenv("JUDGE_API_KEY", fake.key)
    reward: dict[str, Any] = {
        "kind": "judge",
        "url": server.url,
        "api_key_variable": "JUDGE_API_KEY",
    }
    reward |= {"concurrency": 4, "retry_seconds": 60}
    config = recipe(f"reward={json.dumps(reward)}", "workers.processes=2")
    with open_run(config, planning=True, quiet=True) as here:
        distill.fn(here.config)
        planned = [event.task for event in here.events]
    assert (fake.posts, {*fake.gets}) == ([], {"/v1/models"})

    fake.seconds = 0.02

    def restart() -> None:
        while fake.answered < 20:
            time.sleep(0.01)
        server.stop()
        time.sleep(1)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert ran(config) == planned
    thread.join()

    store = Store(tmp_path / "store")
    version = find_version(store, "tiny")
    assert verify(store, version) > 0
    datasets = version.content.datasets
    frame = store.frame(datasets["rewards"]).join(
        store.frame(datasets["generations"], ["prompt_id", "sample_index", "response"]),
        on=["prompt_id", "sample_index"],
    )
    for _, group in frame.sort("sample_index").group_by("prompt_id"):
        lengths = np.array([len(response) for response in group["response"]])
        expected = (np.sign(lengths[:, None] - lengths) + 1) / 2
        equal = np.array(group["response"])[:, None] == np.array(group["response"])
        assert (
            np.array(group["preferences"].to_list()).tolist()
            == np.where(equal, 0.5, expected).tolist()
        )
    provenance = store.manifest(datasets["rewards"]).provenance
    assert provenance["counts"]["retries"] > 0

    asked = len(fake.posts)
    assert ran(config) == []
    for noun in ("rewards", "eval_rewards"):
        handle = datasets[noun]
        store.storage.delete(f"datasets/rewards/{handle.fingerprint}")
    assert ran(config) == ["score_rewards", "score_rewards"]
    assert len(fake.posts) == asked

    kept = {path for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert any("verdicts" in path.parts for path in kept)
    for path in kept:
        assert fake.key.encode() not in path.read_bytes()
    assert server.url not in json.dumps(version.content.model_dump(mode="json"))
    collect(store)
    assert all(path.exists() for path in kept if "verdicts" in path.parts)


@pytest.mark.usefixtures("warm_workers")
def test_a_judge_that_says_little_fails_the_check(
    recipe: Recipe, server: Server, fake: Fake
) -> None:

    def answer(text: str) -> str:
        first, second = enclosed(text, "response A"), enclosed(text, "response B")
        return longer(first, second) if "1" in first else "hm"

    fake.answer = answer
    reward: dict[str, Any] = {"kind": "judge", "url": server.url, "attempts": 1}
    override = f"reward={json.dumps(reward)}"
    with pytest.raises(DataCheckError, match=r"at most 0\.05 of the comparisons have no verdict"):
        ran(recipe(override))


@pytest.mark.usefixtures("warm_workers")
def test_a_judge_that_scores_and_a_server_in_rollouts(
    recipe: Recipe, server: Server, fake: Fake, tmp_path: Path
) -> None:
    fake.answer = lambda text: str(min(10, 1 + len(enclosed(text, "response"))))
    on_policy = "objective={name: rloo, refresh_steps: 1}"
    reward: dict[str, Any] = {"kind": "judge", "url": server.url, "mode": "scalar"}
    assert "train_on_rollouts" in ran(recipe(f"reward={json.dumps(reward)}", on_policy))
    store = Store(tmp_path / "store")
    rollouts = store.frame(find_version(store, "tiny").content.datasets["rollouts"])
    expected = [float(min(10, 1 + len(response))) for response in rollouts["response"]]
    assert rollouts["reward"].to_list() == expected

    reward = {"kind": "remote", "url": server.url}
    ran(recipe(f"reward={json.dumps(reward)}", on_policy, "run=other"))
    rollouts = store.frame(find_version(store, "other").content.datasets["rollouts"])
    assert rollouts["reward"].to_list() == [float(len(each)) for each in rollouts["response"]]


@pytest.mark.usefixtures("warm_workers")
def test_the_cap_of_a_run_is_one_line_and_is_raised(
    recipe: Recipe, server: Server, fake: Fake
) -> None:
    reward: dict[str, Any] = {"kind": "judge", "url": server.url, "concurrency": 4}
    reward |= {"input_price": 1e6, "output_price": 1e6, "max_cost": 6000}
    with pytest.raises(
        StageError, match=r"reward\.max_cost holds the judge judge-1 back"
    ) as raised:
        ran(recipe(f"reward={json.dumps(reward)}"))
    assert "\n" not in str(raised.value)
    asked = len(fake.posts)
    assert 0 < asked * 110 <= 6000
    ran(recipe(f"reward={json.dumps(reward | {'max_cost': 1e9})}"))
    texts = [(each["messages"][0]["content"], each["seed"]) for each in fake.posts]
    assert len(texts) == len(set(texts)) > asked
