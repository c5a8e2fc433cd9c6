"""Tags, rollback and garbage collection on real runs: the same versions come out, and nothing that
is needed goes.
"""

import json
import threading
from collections.abc import Callable

import pytest

from flows.distill import distill
from flows.plan import planned
from tasks.run import open_run
from tests.wind.versions_case import dataset, three_iterations, verify
from wind.config.recipe import DistillConfig
from wind.errors import DatasetError
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.references import find_version
from wind.store.versions import Version, Versions, history

Recipe = Callable[..., DistillConfig]
Wind = Callable[..., tuple[int, str, str]]


def run(config: DistillConfig, base: Version | None = None) -> tuple[Version, list[str]]:
    """The last version, and the tasks that computed something."""
    with open_run(config, quiet=True) as here:
        made = distill(here.config, base)
        return made[-1], [event.task for event in here.events if event.outcome == "computed"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_a_run_goes_on_from_any_version_and_through_collections(
    finished_recipe: Recipe, wind: Wind
) -> None:
    store = Store("store")
    first = find_version(store, "tiny@1")
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(0.2):
            collect(store)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        second, _ = run(finished_recipe("iterations=2"))
    finally:
        ended.set()
        sweeper.join()
    assert verify(store, first) > 0
    assert verify(store, second) > 0
    collect(store)
    assert run(finished_recipe("iterations=2")) == (second, [])

    again, computed = run(finished_recipe("iterations=2", "run=branch"), first)
    assert (again.id, again.run, again.number, computed) == (second.id, "branch", 1, [])
    # its drift is that since the version that it continues
    assert again.check_results == second.check_results
    found = json.loads(wind("check", "branch@1", "--set", "checks.max_empty_share=1", "--json")[1])
    assert {name: result["key"] for name, result in found.items()} == again.check_results
    other = finished_recipe("iterations=2", "run=branch", "training.lr=2e-3")
    assert (
        next(step["stage"] for step in planned(other, first) if step["outcome"] == "run")
        == "training"
    )
    assert history(store, again) == [first, again]

    collect(store, weights=1)
    trained = [version.content.model_out for version in (first, second)]
    assert [store.is_dropped(model) for model in trained] == [True, False]
    assert run(finished_recipe("iterations=2")) == (second, [])  # nothing asks for the weights
    with pytest.raises(
        DatasetError,
        match=r"tiny@1 cannot be continued: its models/.* was dropped by a retention policy",
    ):
        run(other, first)
    asks = finished_recipe("iterations=1", "evaluation.samples_per_prompt=3")
    assert "training" in [step["stage"] for step in planned(asks) if step["outcome"] == "run"]
    assert run(asks)[1].count("train_policy") == 1  # to sample from them
    assert [store.is_whole(model) for model in trained] == [True, True]
    assert verify(store, first) > 0


def test_tags_forgetting_and_collecting_from_the_command_line(wind: Wind) -> None:
    store = Store("store")
    versions = three_iterations(store)
    assert wind("tag", "demo@2", "best")[0] == 0
    assert wind("show", "demo@best", "--json")[1] == wind("show", "demo@2", "--json")[1]
    tags = json.loads(wind("tags", "--json")[1])
    assert [(each["tag"], each["number"], each["id"]) for each in tags] == [
        ("best", 2, versions[1].id),
        ("latest", 3, versions[2].id),
    ]
    assert "demo@2" in wind("tags", "demo")[1]
    orphan = dataset(store, "orphan")
    size = sum(path.stat().st_size for path in store.path(orphan).iterdir())
    told = json.loads(wind("gc", "--dry-run", "--json")[1])
    assert (told["bytes"], told["kinds"]) == (size, {"datasets": {"items": 1, "bytes": size}})
    assert store.is_whole(orphan)
    assert f"{size} bytes would be freed" in wind("gc", "--dry-run")[1]
    assert f"{size} bytes freed" in wind("gc")[1]
    assert not store.is_whole(orphan)
    assert [
        item["kind"]
        for item in json.loads(wind("gc", "--keep-weights", "tagged", "--json")[1])["items"]
    ] == ["weights"]
    assert (
        "the weights of model_out were dropped by a retention policy" in wind("show", "demo@1")[1]
    )
    code, out, _ = wind("verify", "demo@1")
    assert code == 0
    assert "model.safetensors was removed, as a retention policy says" in out
    assert wind("tag", "demo", "best", "--delete")[0] == 0
    assert wind("forget", "demo")[0] == 0
    assert json.loads(wind("gc", "--json")[1])["kinds"].keys() == {"datasets", "models"}
    assert list(store.handles("models")) == []


def test_what_cannot_be_kept_so_is_one_line_and_2(wind: Wind) -> None:
    store = Store("store")
    Versions(store, "demo").tag("best", three_iterations(store)[0])
    refused = [
        (("tag", "demo@2", "latest"), "always points to the version published last"),
        (("tag", "demo@2", "7"), "RUN@7 is the version with that number"),
        (("tag", "demo@2", "../x"), "cannot be a tag"),
        (("tag", "demo@2", "best"), "demo@best points to demo@1: give --force"),
        (("tag", "demo", "worst", "--delete"), "demo has no tag 'worst': it has best, latest"),
        (("tag", "nobody", "best"), "no version is called 'nobody'"),
        (("tags", "nobody"), "no run is called 'nobody'"),
        (("forget", "demo@2"), "demo@3 continues demo@2"),
        (("forget", "demo"), "demo@1 has the tag 'best'"),
        (("forget", "nobody"), "no version is called 'nobody'"),
        (("gc", "--keep-weights", "0"), "--keep-weights '0' must be all, tagged, or a number"),
        (("gc", "--keep-states", "-1"), "--keep-states"),
        (("run", "tiny.yaml", "--from", "nobody@1"), "no version is called 'nobody@1'"),
    ]
    for arguments, message in refused:
        code, _, line = wind(*arguments)
        assert code == 2
        assert line.startswith("error: ")
        assert message in line
