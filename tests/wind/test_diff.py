"""Differences by hand: rows, distributions, and why something was computed anew."""

import math
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.wind.audit_case import Run, key, publish
from wind.audit.changes import Change, changes, setting_changes
from wind.audit.diff import difference, row_changes
from wind.audit.recomputation import newest, reasons
from wind.code.observed import Observed
from wind.fingerprints import digest
from wind.stages import Job, Place
from wind.store.computations import Computation, computation_of
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.versions import Versions


def rewards(store: Store, rows: dict[tuple[str, int], float], code: str = "a") -> Dataset:
    columns = {
        "prompt_id": [prompt for prompt, _ in rows],
        "sample_index": pa.array([index for _, index in rows], pa.int32()),
        "reward": list(rows.values()),
    }
    return publish(store, "rewards", columns, code=code)[0]


def test_rows_are_told_apart_by_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = rewards(store, {("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 3.0, ("b", 1): 4.0})
    after = rewards(
        store,
        {("a", 1): 2.5, ("b", 0): 3.0, ("b", 1): 5.0, ("c", 0): 1.0, ("c", 1): 1.0, ("d", 0): 1.0},
    )
    found = row_changes(store, "rewards", before, after)
    assert (found.added, found.removed, found.changed) == (3, 1, 2)
    assert found.columns == {"reward": 2}
    assert not found.same
    back = row_changes(store, "rewards", after, before)
    assert (back.added, back.removed, back.changed) == (1, 3, 2)


def test_long_columns_and_nulls_are_compared_too(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def prompts(tokens: list[list[int]], answers: list[str | None], words: str) -> Dataset:
        columns = {
            "prompt_id": ["a", "b", "c"],
            "prompt": ["x", "y", "z"],
            "messages": [[{"role": "user", "content": words}]] * 3,
            "prompt_token_ids": pa.array(tokens, pa.list_(pa.int32())),
            "split": ["train"] * 3,
            "answer": pa.array(answers, pa.string()),
            "meta": ["{}"] * 3,
        }
        return publish(store, "prompts", columns)[0]

    before = prompts([[1], [1, 2], [1, 2, 3]], [None, None, "3"], "words")
    after = prompts([[1], [1, 2, 2], [1, 2, 3]], [None, "2", "3"], "words")
    assert row_changes(store, "prompts", before, after).columns == {
        "prompt_token_ids": 1,
        "answer": 1,
    }
    assert row_changes(store, "prompts", before, after).changed == 1
    other = prompts([[1], [1, 2], [1, 2, 3]], [None, None, "3"], "other words")
    assert row_changes(store, "prompts", before, other).columns == {"messages": 3}


def test_a_shift_by_hand(tmp_path: Path) -> None:
    """0 0 1 1 and 1 1 1 3: the distribution functions are 1/2 apart at 0; means 1/2 and 3/2;
    sums of squares 1 and 3 over 4 + 4 - 2 degrees of freedom.
    """
    store = Store(tmp_path)
    keys = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    before = rewards(store, dict(zip(keys, (0.0, 0.0, 1.0, 1.0), strict=True)))
    after = rewards(store, dict(zip(keys, (1.0, 1.0, 1.0, 3.0), strict=True)))
    (shift,) = row_changes(store, "rewards", before, after).shifts
    assert (shift.quantity, shift.before, shift.after, shift.statistic) == ("reward", 0.5, 1.5, 0.5)
    assert shift.effect == pytest.approx(1 / math.sqrt(4 / 6))
    # Two prompts on each side count, not four rows: Kolmogorov's Q(1/2) = 2 sum (-1)^(j-1) exp(-2
    # j^2 (1/2)^2).
    expected = 2 * sum((-1) ** (j - 1) * math.exp(-2 * j * j * 0.25) for j in range(1, 50))
    assert shift.p_value == pytest.approx(expected)
    (back,) = row_changes(store, "rewards", after, before).shifts
    assert back.effect == -shift.effect
    (none,) = row_changes(store, "rewards", before, before).shifts
    assert (none.statistic, none.p_value, none.effect) == (0.0, 1.0, 0.0)


def test_ties_and_lengths_of_rollouts_are_of_the_policy(tmp_path: Path) -> None:
    """Rewards 1 1 2 of the policy: of 3 x 2 ordered pairs 2 are ties. The anchor's rows are not
    compared.
    """
    store = Store(tmp_path)
    row = {
        "step": pa.array([1] * 4, pa.int32()),
        **key("a", 4),
        "drawn_from": ["policy"] * 3 + ["anchor"],
        "response": ["x"] * 4,
        "response_token_ids": pa.array([[1], [1, 2], [1, 2, 3], [1] * 9], pa.list_(pa.int32())),
        "finish_reason": ["stop"] * 4,
        "seed": [0] * 4,
        "reward": [1.0, 1.0, 2.0, 1.0],
        "win_rate": [0.25, 0.25, 1.0, 0.5],
        "rank": [2, 3, 1, 1],
        "logp_policy": [-1.0] * 4,
        "logp_reference": [-2.0] * 4,
    }
    made, _ = publish(store, "rollouts", row)
    means = {
        shift.quantity: shift.before for shift in row_changes(store, "rollouts", made, made).shifts
    }
    assert means == pytest.approx(
        {
            "reward": 4 / 3,
            "response_tokens": 2.0,
            "win_rate": 0.5,
            "tie_share": 1 / 3,
            "log_ratio": 1.0,
        }
    )


def test_changes_go_down_to_the_field() -> None:
    before = {"a": 1, "b": {"c": [1], "d": None}, "m": {"fingerprint": "1"}, "gone": {"x": 1}}
    after = {"a": 1, "b": {"c": [2], "d": None, "e": False}, "m": {"fingerprint": "2"}}
    assert list(changes(before, after)) == [
        Change(name="b.c", before=[1], after=[2]),
        Change(name="b.e", before=None, after=False),
        Change(name="m", before={"fingerprint": "1"}, after={"fingerprint": "2"}),
        Change(name="gone", before={"x": 1}, after=None),
    ]


def test_a_setting_that_another_release_has_at_its_default_is_no_change() -> None:
    old = {"training": {"lr": 1.0}, "evaluation": {"match": None}}, ["evaluation"]
    new = {
        "training": {"lr": 1.0, "jitter": 0.0},
        "evaluation": {"match": None, "every": 1},
        "gate": {"at": 0.5},
    }
    defaults = ["training.jitter", "evaluation", "gate"]
    assert (
        list(setting_changes(old, (new, defaults)))
        == list(setting_changes((new, defaults), old))
        == []
    )
    chosen = setting_changes(old, (new, ["evaluation"]))
    assert [change.name for change in chosen] == ["training.jitter", "gate"]
    lower = {**new, "training": {"lr": 0.5, "jitter": 0.0}}
    assert list(setting_changes(old, (lower, ["training.lr", *defaults]))) == [
        Change(name="training.lr", before=1.0, after=0.5)
    ]
    moved = {**new, "evaluation": {"match": None, "every": 2}}
    assert [change.name for change in setting_changes(old, (moved, defaults[::2]))] == [
        "evaluation.every"
    ]


def test_reasons_name_the_part_of_the_key() -> None:
    handle = {"name": "rewards", "fingerprint": digest(1), "rows": 1}
    spec = {
        "rewards": handle,
        "reward": {"source_digest": digest(2)},
        "training": {"lr": 0.001},
        "limit": None,
    }
    modules = {"wind.rewards": "1", "wind.rewards.rules": "2", "tasks.rewards.score_rewards": "3"}
    dataset = Dataset(name="rewards", fingerprint=digest(3), rows=1)
    before = Computation(dataset=dataset, stage="rewards", spec=spec, code="old", modules=modules)

    def job(code: str = "old", changed: dict[str, str] | None = None, **fields: object) -> Job:
        return Job(
            stage="rewards",
            spec=spec | fields,
            code=code,
            modules=modules | (changed or {}),
            place=Place(root="anywhere"),
        )

    assert reasons(before, job()) == []
    assert reasons(None, job()) == ["never computed"]
    assert reasons(before, job(training={"lr": 0.003})) == ["training.lr 0.001 -> 0.003"]
    assert reasons(before, job(limit=5)) == ["limit nothing -> 5"]
    assert reasons(before, job(rewards={**handle, "fingerprint": digest(9)})) == [
        "input rewards changed"
    ]
    assert reasons(before, job(reward={"source_digest": digest(8)})) == [
        f"reward.source_digest {digest(2)[:12]} -> {digest(8)[:12]}"
    ]
    assert reasons(before, job("new", {"wind.rewards.rules": "5", "wind.rewards.new": "6"})) == [
        "code of wind.rewards.rules changed",
        "code of wind.rewards.new added",
    ]
    assert reasons(before.model_copy(update={"modules": {}}), job("new")) == ["code changed"]
    both = job(
        "new",
        {"wind.rewards": "9"},
        rewards={**handle, "fingerprint": digest(9)},
        training={"lr": 1},
    )
    assert reasons(before, both) == [
        "training.lr 0.001 -> 1",
        "code of wind.rewards changed",
        "input rewards changed",
    ]
    read = before.model_copy(
        update={"observed": Observed(files={"a.txt": "1", "b.txt": "1"}, variables={"MODE": "1"})}
    )
    later = before.model_copy(
        update={"observed": Observed(files={"a.txt": "2", "c.txt": None}, variables={"MODE": "2"})}
    )
    assert reasons(read, read) == []
    assert reasons(read, later) == ["a.txt changed", "b.txt removed", "variable MODE changed"]


def test_two_versions_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    found = difference(run.store, *run.versions)
    assert (found.before, found.after, found.config, found.packages, found.git_revision) == (
        "tiny@1",
        "tiny@2",
        [],
        [],
        None,
    )
    assert {each.name: each.same for each in found.datasets} == {
        "prompts": True,
        "generations": False,
        "rewards": False,
        "win_rates": False,
        "training": False,
        "eval_generations": False,
    }
    assert {each.dataset: each.why for each in found.recomputed} == {
        "generations": ["input policy changed"],
        "rewards": ["input generations changed"],
        "win_rates": ["input rewards changed"],
        "training": ["input policy changed", "input win_rates changed"],
        "eval_generations": ["input policy changed"],
    }
    (rewards,) = (each for each in found.datasets if each.name == "rewards")
    assert rewards.changed == 2  # 0 2 2 5 became 3 2 2 6
    assert [change.before == change.after for change in found.models] == [False, False, True]
    (metric,) = found.metrics
    assert metric.after["value"] - metric.before["value"] == pytest.approx(0.1)


def test_two_runs_are_aligned_by_iteration(tmp_path: Path) -> None:
    slow = Run(tmp_path, run="slow")
    fast = Run(tmp_path, run="fast", lr=0.2)
    found = difference(slow.store, slow.versions[1], fast.versions[1], aligned=True)
    assert found.config == [Change(name="training.lr", before=0.1, after=0.2)]
    assert [(each.iteration, each.before, each.after) for each in found.iterations] == [
        (1, "slow@1", "fast@1"),
        (2, "slow@2", "fast@2"),
    ]
    of_first = difference(slow.store, slow.versions[0], fast.versions[0])
    why = {each.dataset: each.why for each in of_first.recomputed}
    assert "prompts" not in why  # the same computation, in another run
    assert "training.lr 0.1 -> 0.2" in why["training"]


def test_what_is_lost_is_told_and_the_rest_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    lost = run.versions[0].content.datasets["rewards"]
    shutil.rmtree(run.store.path(lost))
    found = difference(run.store, *run.versions)
    damage = {each.name: each.damage for each in found.datasets if each.damage}
    assert set(damage) == {"rewards"}
    assert "is not in the store" in str(damage["rewards"])
    # the records tell
    assert {each.dataset for each in found.recomputed} >= {"rewards", "training"}


def test_versions_older_than_records_differ_by_their_manifests(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.store.storage.delete("computations")
    older = [version.model_copy(update={"computations": {}}) for version in run.versions]
    found = difference(run.store, *older)
    assert {each.dataset: each.why for each in found.recomputed}["win_rates"] == [
        "input rewards changed"
    ]


def test_a_plan_is_compared_with_what_latest_goes_on_from(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert newest(run.store, "tiny", 3) is None
    assert newest(run.store, "nobody", None) is None
    first = newest(run.store, "tiny", 1)
    assert first is not None
    assert first.datasets == run.versions[0].content.datasets
    again = run.versions[0].content.model_copy(update={"recipe": {"seed": 1}})
    third = Versions(run.store, "tiny").publish(again, checks={}, metrics={}, seconds={})
    Versions(run.store, "tiny").set_latest(run.versions[1])
    assert third.number == 3
    back = newest(run.store, "tiny", 1)
    assert back is not None
    assert back.computations["rewards"] == computation_of(
        run.store,
        run.versions[0].content.datasets["rewards"],
        run.versions[0].computations["rewards"],
    )
