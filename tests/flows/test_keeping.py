"""Tags, rollback and garbage collection on real runs: the same versions come out, and nothing that is needed goes."""

import threading
from collections.abc import Callable

import pytest

from flows.distill import distill
from flows.plan import planned
from tasks.running import start
from wind.config import DistillConfig
from wind.datasets import Store
from wind.errors import ConfigError, DatasetError
from wind.garbage import collect
from wind.versions import Version, find, history, verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Recipe = Callable[..., DistillConfig]


def run(config: DistillConfig, base: Version | None = None) -> tuple[Version, list[str]]:
    """The last version, and the tasks that computed something."""
    with start(config, quiet=True) as here:
        made = distill(here.config, base)
        return made[-1], [event.task for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("warm_workers")
def test_a_run_goes_on_from_any_version_and_through_collections(finished_recipe: Recipe) -> None:
    """Iterations 2 and 3 while another thread does nothing but collect; then back to 1 and 2, and all weights but one gone."""
    store = Store("store")
    first = find(store, "tiny@1")
    ended = threading.Event()
    freed: list[str] = []

    def sweep() -> None:
        while not ended.is_set():
            freed.extend(item.name for item in collect(store, weights=1).items)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        third, _ = run(finished_recipe("iterations=3"))
    finally:
        ended.set()
        sweeper.join()
    assert third.content.iteration == 3
    second = find(store, "tiny@2")
    assert all(verify(store, version) > 0 for version in (first, second, third))
    collect(store)  # without a policy: what the sweeper found, while the run went on, is all that there was
    assert run(finished_recipe("iterations=3")) == (third, [])

    again, computed = run(finished_recipe("iterations=3", "run=branch"), second)
    assert (again.id, again.run, again.number, computed) == (third.id, "branch", 1, [])
    other, computed = run(finished_recipe("iterations=3", "run=branch", "training.lr=2e-3"), second)
    assert other.content.previous == second.id
    assert other.content.iteration == 3
    assert other.content.model_in == second.content.model_out
    assert other.content.reference == first.content.model_in
    assert computed[0] == "train_policy"
    assert [version.id for version in history(store, other)] == [first.id, second.id, other.id]
    with pytest.raises(ConfigError, match=r"tiny@2 is iteration 2, and iterations is 2: .* --iterations 3"):
        run(finished_recipe("iterations=2"), second)

    collect(store, weights=1)
    assert [store.is_dropped(version.content.model_out) for version in (first, second, third, other)] == [
        True,
        True,
        False,
        False,
    ]
    assert run(finished_recipe("iterations=3"))[1] == []  # nothing asks for the weights
    with pytest.raises(DatasetError, match="tiny@2 cannot be continued: its models/.* was dropped by a retention policy"):
        run(finished_recipe("iterations=3"), second)
    hotter = finished_recipe("iterations=2", "sampling.temperature=2.0", "training.lr=1e-9")
    assert [
        step["stage"]
        for step in planned(finished_recipe("iterations=3", "evaluation.samples_per_prompt=3"))
        if step["outcome"] == "run"
    ][:3]
    fourth, computed = run(finished_recipe("iterations=4"))
    assert fourth.content.model_in == third.content.model_out
    assert computed.count("train_policy") == 1
    more, computed = run(finished_recipe("iterations=3", "evaluation.samples_per_prompt=3"))
    assert computed.count("train_policy") == 2  # the two whose weights are needed to sample more, and were dropped
    assert more.content.model_out == third.content.model_out
    assert all(verify(store, version) > 0 for version in (first, second, third, fourth, more))
