"""Garbage collection on hand-built stores: what is freed to the byte, what is kept and why, and
what a crash leaves.
"""

import json
import os
import shutil
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.wind.versions_case import (
    Listing,
    dataset,
    listing,
    model,
    three_iterations,
    verify,
)
from wind.config.runs import RetentionConfig
from wind.errors import DatasetError
from wind.files import lock, unfinished_name
from wind.store import computations, pins, studies
from wind.store.computations import Computation
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.garbage import collect
from wind.store.handles import AnyHandle, folder_of
from wind.store.layout import CHECKPOINTS, FINISHED
from wind.store.storage import LocalStorage
from wind.store.versions import Content, Version, Versions


@pytest.fixture
def chain(store: Store) -> list[Version]:
    """Three iterations of a run."""
    return three_iterations(store)


def lost(store: Store, before: Listing) -> Listing:
    after = listing(store)
    return {name: size for name, size in before.items() if name not in after}


def record(store: Store, name: str, handle: AnyHandle) -> str:
    """A record of Prefect's cache."""
    content = {"result": json.dumps(handle.model_dump(mode="json")), "metadata": {}}
    store.storage.write(f"results/{name}", json.dumps(content).encode())
    return f"results/{name}"


# ------------------------------------------------------------------------------------ what is freed


def test_only_what_nothing_reaches_goes_and_its_bytes_are_told(
    store: Store, chain: list[Version]
) -> None:
    orphan_parent = dataset(store, "orphan parent")
    orphan = dataset(
        store, "orphan", {"base": orphan_parent, "rewards": chain[0].content.datasets["training"]}
    )
    unused = model(store, 9.0)
    kept = chain[2].content.datasets["training"]
    record(store, "kept", kept)
    gone_record = record(store, "gone", orphan)
    for handle in (orphan, kept):
        store.storage.write(f"checks/training/{handle.fingerprint}.json", b"{}")
        computations.record(
            store, made_by_hand := Computation(dataset=handle, stage="training", spec={})
        )
    store.storage.write("partial/logps/unfinished-key/part-00000.arrow", b"12345")
    before = listing(store)
    orphans = {folder_of(handle) for handle in (orphan, orphan_parent, unused)}
    garbage = {name for name in before if any(name.startswith(folder) for folder in orphans)}
    garbage |= {gone_record, f"checks/training/{orphan.fingerprint}.json"}
    garbage |= {f"computations/training/{orphan.fingerprint}/{made_by_hand.key()}.json"}
    garbage |= {"partial/logps/unfinished-key/part-00000.arrow"}

    told = collect(store, dry_run=True)
    assert listing(store) == before
    done = collect(store)
    assert done.items == told.items
    assert set(lost(store, before)) == garbage
    assert done.bytes() == sum(before[name] for name in garbage)
    assert done.kinds()["unfinished"] == (1, 5)
    assert done.kinds()["datasets"][0] == 2
    assert done.kinds()["models"] == (
        1,
        sum(size for name, size in before.items() if name.startswith(folder_of(unused))),
    )
    assert all(verify(store, each) > 0 for each in chain)
    assert collect(store).items == ()


def test_what_a_version_reaches_through_parents_and_outputs_stays(store: Store) -> None:
    source = dataset(store, "source")
    dropped = dataset(store, "dropped rows")
    middle = dataset(store, "middle", {"source": source}, {"dropped": dropped})
    top = dataset(store, "top", {"middle": middle})
    policy = model(store, 0.0)
    content = Content(
        iteration=1,
        recipe={},
        datasets={"training": top},
        model_in=policy,
        model_out=policy,
        reference=policy,
        previous=None,
    )
    published = Versions(store, "demo").publish(content, checks={}, metrics={}, seconds={})
    assert collect(store).items == ()
    forget(store, "demo", [published])
    freed = [item.name for item in collect(store).items]
    assert sorted(freed) == sorted(
        folder_of(handle) for handle in (source, dropped, middle, top, policy)
    )
    datasets = [name for name in freed if name.startswith("datasets/")]
    assert (
        datasets.index(folder_of(top))
        < datasets.index(folder_of(middle))
        < datasets.index(folder_of(source))
    )
    assert datasets.index(folder_of(middle)) < datasets.index(folder_of(dropped))


def test_a_study_keeps_what_it_computed_until_the_next(store: Store) -> None:
    parent = dataset(store, "metrics")
    first, second = dataset(store, "first", {"metrics": parent}), dataset(store, "second")
    studies.record(store, "compare", {"comparison": first})
    collect(store)
    assert store.is_whole(first)
    assert store.is_whole(parent)
    assert not store.is_whole(second)
    second = dataset(store, "second")
    studies.record(store, "compare", {"comparison": second})
    assert {item.name for item in collect(store).items} == {folder_of(first), folder_of(parent)}
    studies.forget(store, "compare")
    assert {item.name for item in collect(store).items} == {folder_of(second)}


def test_unfinished_work_is_left_while_somebody_works_or_where_it_is_asked_for(
    store: Store,
) -> None:
    with store.partial("training", "key") as partial:
        partial.write(0, pa.table({"step": [1], "metric": ["loss"], "value": [1.0]}))
        assert collect(store).items == ()
        assert partial.missing(1) == []
    assert collect(store, keep_unfinished=True).items == ()
    assert [item.name for item in collect(store).items] == ["partial/training/key"]
    assert store.storage.names("partial/training") == []


def test_weights_that_no_version_gives_again_stay(store: Store, chain: list[Version]) -> None:
    """The version before was forgotten: what the next begins with is all that is left of it."""
    forget(store, "demo", [chain[1]], force=True)
    collect(store, weights=1)
    assert [store.is_dropped(each.content.model_in) for each in chain] == [False, True, False]
    assert store.is_whole(chain[2].content.model_in)


def test_an_environment_goes_with_the_last_record_that_names_it(
    store: Store, chain: list[Version]
) -> None:
    kept, orphan = chain[0].content.datasets["training"], dataset(store, "orphan")
    names = [f"environments/{each * 64}.json" for each in "abc"] + [f"patches/{'d' * 64}.patch"]
    for name in names:
        store.storage.write(name, b"{}")
    made = Computation(
        dataset=kept,
        stage="training",
        spec={},
        provenance={"environments": ["a" * 64], "git_patch": "d" * 64},
    )
    computations.record(store, made)
    gone = Computation(
        dataset=orphan, stage="training", spec={}, provenance={"environments": ["a" * 64, "b" * 64]}
    )
    computations.record(store, gone)
    with store.partial("training", "key") as partial:  # whose shards may name one
        partial.write(0, pa.table({"step": [1], "metric": ["loss"], "value": [1.0]}))
        collect(store)
        assert [store.storage.size(name) for name in names] == [2] * 4
    assert collect(store, keep_unfinished=True).items == ()
    with pins.open_pin_set(store.storage) as name:
        assert Store(store.root, name).pin_if_whole(kept)
        collect(store)
        assert [store.storage.size(name) for name in names] == [2] * 4
    assert {item.name for item in collect(store).items} == {names[1], names[2]}
    record = f"computations/training/{kept.fingerprint}/{made.key()}.json"
    store.storage.write(record, b"damaged")
    assert collect(store).items == ()
    store.storage.delete(record)
    assert {item.name for item in collect(store).items} == {names[0], names[3]}


def test_temporary_files_and_locks_of_the_dead_go(store: Store, chain: list[Version]) -> None:
    dead = 2**22 + 1  # above the highest process number there is
    ours, process = unfinished_name("0004.json"), f".{os.getpid()}-"
    left = [
        f"runs/demo/versions/{ours.replace(process, f'.{dead}-')}",
        f"results/{unfinished_name('key').replace(process, f'.{dead}-')}",
        f"datasets/training/{'0' * 64}.lock",
        f"partial/models/scratch-{dead}-x/model.safetensors",
    ]
    stays = [
        f"runs/demo/versions/{ours}",
        f"results/{unfinished_name('key')}",
        f"partial/models/scratch-{os.getpid()}-x/config.json",
        "runs/demo/lock",
    ]
    for name in (*left, *stays):
        store.storage.write(name, b"")
    held = store.root / "datasets" / "training" / f"{'1' * 64}.lock"
    with lock(held):
        collect(store)
        assert held.exists()
    assert all(store.storage.size(name) is None for name in left)
    assert all(store.storage.size(name) == 0 for name in stays)


def test_what_cannot_be_followed_stops_the_collection(store: Store, chain: list[Version]) -> None:
    orphan = dataset(store, "orphan")
    manifest = store.path(chain[0].content.datasets["training"]) / "manifest.json"
    content = manifest.read_bytes()
    for damage in (b"{", None):
        if damage is None:
            manifest.unlink()
        else:
            manifest.write_bytes(damage)
        with pytest.raises(DatasetError, match="demo@1 needs datasets/training/"):
            collect(store)
        assert store.is_whole(orphan)
    manifest.write_bytes(content)
    assert len(collect(store).items) == 1


def test_manifests_edited_into_a_circle_do_not_hang_it(store: Store) -> None:
    one, two = dataset(store, "one"), dataset(store, "two")
    for handle, other in ((one, two), (two, one)):
        path = store.path(handle) / "manifest.json"
        content = json.loads(path.read_bytes()) | {"parents": {"other": other.model_dump()}}
        path.write_text(json.dumps(content))
    assert len(collect(store).items) == 2


# ------------------------------------------------------------------------------------------ crashes


def assert_sound(store: Store, chain: list[Version]) -> None:
    """Every version verifies, and so does everything that is visible, parents and outputs included."""
    for each in chain:
        assert verify(store, each) > 0
    waiting: list[AnyHandle] = [
        handle for kind in ("training", "models") for handle in store.handles(kind)
    ]
    while waiting:
        manifest = store.verify(waiting.pop())
        waiting += [*manifest.parents.values(), *manifest.outputs.values()]


@pytest.mark.slow
def test_killed_at_any_removal_it_leaves_a_sound_store_and_the_next_finishes(
    store: Store, chain: list[Version], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parent = dataset(store, "parent")
    output = model(store, 8.0, parents={"parent": parent}, computed_by={"stage": "training"})
    child = dataset(store, "child", {"parent": parent}, {"model": output})
    record(store, "child", dataset(store, "grandchild", {"child": child}))
    store.storage.write(f"checks/training/{child.fingerprint}.json", b"{}")
    store.storage.write("partial/logps/key/part-00000.arrow", b"12345")
    shutil.copytree(store.root, tmp_path / "before")
    delete = LocalStorage.delete
    told = {item.name for item in collect(store, dry_run=True, weights=1).items}
    crashes = 0
    while True:
        shutil.rmtree(store.root)
        shutil.copytree(tmp_path / "before", store.root)
        left = crashes

        def fail_in_time(self: LocalStorage, name: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            delete(self, name)

        monkeypatch.setattr(LocalStorage, "delete", fail_in_time)
        try:
            collect(store, weights=1)
        except KeyboardInterrupt:
            crashes += 1
        else:
            break
        finally:
            monkeypatch.setattr(LocalStorage, "delete", delete)
        assert_sound(store, chain)
        collect(store, weights=1)
        assert_sound(store, chain)
        assert collect(store, weights=1).items == ()
        assert not any(
            list(store.storage.files(name)) for name in told if not name.startswith("models/")
        )
    assert crashes >= len(told)


# ------------------------------------------------------------------------------------- beside a run


@pytest.fixture
def held(store: Store) -> Iterator[Store]:
    """The same store, as a run that is going on has it."""
    with pins.open_pin_set(store.storage) as name:
        yield Store(store.root, name)


def test_a_run_keeps_what_it_found_and_what_it_made(store: Store, held: Store) -> None:
    parent = dataset(store, "parent")
    found = dataset(store, "found", {"parent": parent})
    unknown = dataset(store, "unknown")
    assert held.pin_if_whole(found)
    made = model(held, 1.0)
    assert {item.name for item in collect(store).items} == {folder_of(unknown)}
    assert all(held.verify(handle) for handle in (parent, found, made))
    assert not held.pin_if_whole(unknown)


def test_pins_end_with_their_run_however_that_ends(store: Store) -> None:
    with pins.open_pin_set(store.storage) as name:
        found = dataset(Store(store.root, name), "found")
        assert collect(store).items == ()
    assert list(store.storage.files("holds")) == []
    assert [item.name for item in collect(store).items] == [folder_of(found)]
    # no lock: its holder is dead
    pins.pin(store.storage, "killed", folder_of(found := dataset(store, "found")))
    assert {item.kind for item in collect(store).items} == {"datasets", "holds of dead runs"}
    assert not store.is_whole(found)
    assert list(store.storage.files("holds")) == []


@pytest.mark.slow
def test_collections_beside_a_run_lose_nothing_of_it(store: Store) -> None:
    """Eight runs find or make the same datasets, each from the one before, while two threads do
    nothing but collect.
    """
    ended = threading.Event()
    broken: list[str] = []

    def work(number: int) -> None:
        with pins.open_pin_set(store.storage) as name:
            mine, before = Store(store.root, name), None
            for step in range(6):
                key = f"{number % 3} {step}"
                if before is not None and not mine.pin_if_whole(before):
                    raise AssertionError(f"{before} was held and is gone")
                before = dataset(mine, key, {"before": before} if before else {})
                mine.verify(before)

    def run(task: Any, *arguments: Any) -> None:
        try:
            task(*arguments)
        except Exception:
            broken.append(traceback.format_exc())

    def sweep() -> None:
        while not ended.is_set():
            collect(store)

    sweepers = [threading.Thread(target=run, args=(sweep,)) for _ in range(2)]
    workers = [threading.Thread(target=run, args=(work, number)) for number in range(8)]
    for thread in (*sweepers, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    ended.set()
    for thread in sweepers:
        thread.join()
    assert not broken, "".join(broken)
    collect(store)
    assert list(store.handles("training")) == []
    assert [name for name in listing(store) if name != pins.COLLECTION_LOCK] == []


# ---------------------------------------------------------------------------------------- retention


def weights_of(store: Store, chain: list[Version]) -> list[bool]:
    return [store.is_whole(each.content.model_out) for each in chain]


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ("all", [True, True, True]),
        (2, [False, True, True]),
        (1, [False, False, True]),
        ("tagged", [True, False, True]),
    ],
)
def test_weights_beyond_the_policy_go_and_nothing_else(
    store: Store, chain: list[Version], weights: str | int, kept: list[bool]
) -> None:
    if weights == "tagged":
        Versions(store, "demo").tag("best", chain[0])
    config = {"retention": RetentionConfig(weights=weights).model_dump()}
    store.storage.write("runs/demo/config.json", json.dumps(config).encode())
    before = listing(store)
    done = collect(store)
    assert weights_of(store, chain) == kept
    assert store.is_whole(chain[0].content.model_in)  # it came from outside
    assert done.kinds().get("weights", (0, 0))[0] == kept.count(False)
    assert set(lost(store, before)) == {f"{item.name}/model.safetensors" for item in done.items}
    assert [store.is_dropped(each.content.model_out) for each in chain] == [
        not each for each in kept
    ]
    assert all(verify(store, each) > 0 for each in chain)
    assert all(store.is_whole(each.content.datasets["training"]) for each in chain)
    assert collect(store).items == ()


def test_dropped_weights_come_back_when_they_are_published_again(
    store: Store, chain: list[Version]
) -> None:
    collect(store, weights=1)
    lost = chain[0].content.model_out
    assert not store.is_whole(lost)
    assert model(store, 1.04, computed_by={"stage": "training"}) == lost
    assert store.is_whole(lost)
    assert not store.is_dropped(lost)


def test_a_run_in_progress_keeps_the_weights_it_found(
    store: Store, held: Store, chain: list[Version]
) -> None:
    held.pin_if_whole(chain[0].content.datasets["training"])
    collect(store, weights=1)
    assert weights_of(store, chain) == [True, False, True]


def test_another_run_keeps_what_both_made(store: Store, chain: list[Version]) -> None:
    Versions(store, "other").publish(chain[0].content, checks={}, metrics={}, seconds={})
    store.storage.write("runs/demo/config.json", json.dumps({"retention": {"weights": 1}}).encode())
    collect(store)
    assert weights_of(store, chain) == [True, False, True]


def test_states_of_the_last_trainings_are_kept(store: Store, chain: list[Version]) -> None:
    for number, each in enumerate(chain):
        folder = f"{CHECKPOINTS}/key{number}"
        store.storage.write(f"{folder}/step-00000004/engine", b"state")
        store.storage.write(
            f"{folder}/{FINISHED}",
            json.dumps({"model": each.content.model_out.fingerprint}).encode(),
        )
    store.storage.write(f"{CHECKPOINTS}/interrupted/step-00000001/engine", b"state")
    config = {"retention": {"optimizer_states": 2}}
    store.storage.write("runs/demo/config.json", json.dumps(config).encode())
    assert [item.name for item in collect(store, keep_unfinished=True).items] == [
        f"{CHECKPOINTS}/key0"
    ]
    assert [item.name for item in collect(store).items] == [f"{CHECKPOINTS}/interrupted"]
    assert store.storage.names(CHECKPOINTS) == ["key1", "key2"]
    collect(store, optimizer_states=0)
    assert store.storage.names(CHECKPOINTS) == []
