"""The index, slices by key, and details of a small store, checked by hand."""

import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.wind.reading_case import PROMPTS, key, make_versions, publish
from wind.audit.verification import Verification
from wind.errors import ConfigError, DatasetError
from wind.inspection.fields import FIELDS
from wind.inspection.index import rank_flips
from wind.inspection.notes import Note
from wind.inspection.query import Query
from wind.inspection.reader import Reader
from wind.inspection.slices import Slices
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.versions import Content, Version, Versions


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> list[Version]:
    return make_versions(store, tmp_path / "outside")


def evaluated(store: Store, version: Version, **columns: list[float | None]) -> Version:
    """A third version with an evaluation of its held-out prompt."""
    told = {
        "reward_policy": [2.0, 4.0],
        "reward_reference": [1.0, 1.0],
        "win_rate": [1.0, 0.5],
        "tie_share": [0.0, 0.5],
        "response_tokens_policy": pa.array([2, 3], pa.int32()),
        "response_tokens_reference": pa.array([2, 3], pa.int32()),
        "is_truncated_policy": [False, False],
        "is_truncated_reference": [False, False],
        "logp_policy": [-1.0, -1.0],
        "logp_reference": [-1.0, -1.0],
        "accuracy_policy": [0.0, 1.0],
        "accuracy_reference": [1.0, 1.0],
    } | columns
    parents = {"generations_reference": version.content.datasets["eval_generations"]}
    made = {"stage": "evaluation", "code": "0" * 64, "spec": {}}
    table = {**key(PROMPTS[2:]), **told}
    rows = publish(store, "evaluation", table, parents=parents, computed_by=made)
    fields = dict(version.content) | {
        "iteration": 3,
        "datasets": {**version.content.datasets, "evaluation": rows},
        "previous": version.id,
    }
    return Versions(store, "demo").publish(Content(**fields), checks={}, metrics={}, seconds={})


def test_the_index_by_hand(store: Store, versions: list[Version]) -> None:
    frame = Reader(store).frame(versions[1])
    assert frame.columns == list(FIELDS)
    assert frame.select("text", "split", "reward_mean", "reward_best").rows() == [
        ("say a", "train", 3.0, 4.0),
        ("say b", "train", 4.0, 5.0),
        ("say c", "eval", None, None),
    ]
    # [1, 3] became [2, 4], and [2, 0] became [3, 5], whose order is the opposite
    assert frame.select("reward_change", "rank_flips").rows()[:2] == [(1.0, 0.0), (3.0, 1.0)]
    assert (
        frame.select("samples", "tokens_mean", "tokens_max", "truncated", "distinct").rows()
        == [(2.0, 2.5, 3.0, 0.0, 2.0)] * 3
    )
    assert frame.select("win_rate", "tie_share").rows()[:2] == [(1.0, 0.0)] * 2
    first = Reader(store).frame(versions[0])
    assert first["reward_change"].null_count() == first["rank_flips"].null_count() == 3


def test_held_out_prompts_gain_and_judges_disagree(store: Store, versions: list[Version]) -> None:
    frame = Reader(store).frame(evaluated(store, versions[1]))
    # mean rewards 3 and 1; training says 3/4, and the gold answer (1 + 1/2 - 1) / 2 = 1/4
    told = frame.select("reward_mean", "reward_gain", "win_rate", "tie_share", "disagreement")
    assert told.row(2) == (3.0, 2.0, 0.75, 0.25, 0.5)
    assert told["reward_gain"].null_count() == told["disagreement"].null_count() == 2


def test_the_lowest_judge_disagrees(store: Store, versions: list[Version]) -> None:
    version = evaluated(store, versions[1])
    judged = {"gold": [0.0, 0.5], "llm": [0.5, 0.5], "training": [1.0, 0.5]}
    pairs = [(judge, opponent) for judge in judged for opponent in ("initial", "other")]
    count = 2 * len(pairs)
    matches = publish(
        store,
        "matches",
        {
            "judge": [judge for judge, _ in pairs for _ in range(2)],
            "opponent": [opponent for _, opponent in pairs for _ in range(2)],
            "prompt_id": [PROMPTS[2]] * count,
            "sample_index": pa.array([0, 1] * len(pairs), pa.int32()),
            "reward_policy": [1.0] * count,
            "reward_opponent": [None if place % 2 else 0.0 for place in range(count)],
            "win_rate": [
                value if opponent == "initial" else 0.0
                for judge, opponent in pairs
                for value in judged[judge]
            ],
            "tie_share": [0.0] * count,
            "response_tokens_policy": pa.array([2] * count, pa.int32()),
            "response_tokens_opponent": pa.array([2] * count, pa.int32()),
            "mean_tokens_opponent": [2.0] * count,
            "repeat_difference": pa.nulls(count, pa.float64()),
        },
    )
    fields = dict(version.content)
    fields["datasets"] = {**version.content.datasets, "matches": matches}
    fields["iteration"], fields["previous"] = 4, version.id
    content = Content(**fields)
    version = Versions(store, "demo").publish(content, checks={}, metrics={}, seconds={})
    # against the initial policy: training 3/4, gold 1/4, llm 1/2
    assert Reader(store).frame(version)["disagreement"].to_list() == [None, None, 0.5]
    verdicts = Reader(store).detail(version, PROMPTS[2]).verdicts
    assert [(each.judge, each.opponent, each.sample_index) for each in verdicts] == [
        (judge, opponent, sample) for judge, opponent in pairs for sample in (0, 1)
    ]
    assert [each.reward_opponent for each in verdicts] == [0.0, None] * len(pairs)


def test_rollouts_are_read_step_by_step(store: Store, versions: list[Version]) -> None:
    asked = [PROMPTS[0], PROMPTS[1]] * 2
    rewards = [1.0, 2.0, 3.0, 9.0]
    rollouts = publish(
        store,
        "rollouts",
        {
            "step": pa.array([1, 1, 2, 2], pa.int32()),
            "prompt_id": asked,
            "sample_index": pa.array([0, 0, 0, 1], pa.int32()),
            "drawn_from": ["policy", "policy", "policy", "anchor"],
            "response": ["x", "y", "z", "w"],
            "response_token_ids": [[1], [1, 2], [1, 2, 3], [1]],
            "finish_reason": ["stop", "stop", "length", "stop"],
            "seed": [0] * 4,
            "reward": rewards,
            "win_rate": [0.5] * 4,
            "rank": pa.array([1] * 4, pa.int32()),
            "logp_policy": [-1.0] * 4,
            "logp_reference": [-1.0] * 4,
        },
    )
    fields = dict(versions[1].content) | {"iteration": 3, "previous": versions[1].id}
    gone = ("generations", "rewards", "win_rates")
    datasets = {name: each for name, each in fields["datasets"].items() if name not in gone}
    fields["datasets"] = {**datasets, "rollouts": rollouts}
    content = Content(**fields)
    version = Versions(store, "demo").publish(content, checks={}, metrics={}, seconds={})
    reader = Reader(store)
    frame = reader.frame(version)
    # the anchor's response says nothing about the policy
    told = frame.select("samples", "reward_mean", "tokens_max", "truncated", "rank_flips").rows()
    assert told[:2] == [(2.0, 2.0, 3.0, 0.5, None), (1.0, 2.0, 2.0, 0.0, None)]
    found = reader.detail(version, PROMPTS[1]).responses
    assert [(each.step, each.response, each.drawn_from) for each in found] == [
        (1, "y", "policy"),
        (2, "w", "anchor"),
    ]


def test_without_gold_answers_nobody_disagrees(store: Store, versions: list[Version]) -> None:
    none: list[float | None] = [None, None]
    version = evaluated(store, versions[1], accuracy_policy=none, accuracy_reference=none)
    assert Reader(store).frame(version)["disagreement"].null_count() == 3


def test_the_index_is_kept_and_made_again(store: Store, versions: list[Version]) -> None:
    frame = Reader(store).frame(versions[1])
    views = sorted((store.root / "views").iterdir())
    assert len(views) == 2
    verification = Verification(store)
    verification.everything()
    assert not any("views" in str(each) for each in verification.findings)
    assert not any("views" in item.name for item in collect(store, dry_run=True).items)
    kept = [path.stat().st_mtime_ns for path in views]
    assert Reader(store).frame(versions[1]).equals(frame)
    assert [path.stat().st_mtime_ns for path in views] == kept
    views[0].write_bytes(b"damaged")
    views[1].unlink()
    assert Reader(store).frame(versions[1]).equals(frame)


def test_rank_flips_count_pairs_that_both_have() -> None:
    before = pl.Series([[1.0, 2.0, 3.0], [1.0, 1.0], None, [1.0, 2.0], [1.0]])
    after = pl.Series([[3.0, 2.0, 4.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0, 0.0], [5.0]])
    assert rank_flips(before, after).to_list() == [1 / 3, 0.0, None, 1.0, None]


def test_slices_are_the_rows_under_a_key(store: Store) -> None:
    prompts = sorted({f"{random.randrange(300):032x}" for _ in range(120)})
    shards = [prompts[:1], prompts[1:50], [], prompts[50:51], prompts[51:]]
    told = [{**key(some), "reward": np.arange(2.0 * len(some))} for some in shards if some]
    handle = publish(store, "rewards", *told)
    slices, rows = Slices(store), store.frame(handle)
    for number in range(0, 301, 3):
        prompt_id = f"{number:032x}" if number < 300 else "f" * 32
        found = pl.from_arrow(slices.under(handle, ["prompt_id"], [prompt_id]))
        assert isinstance(found, pl.DataFrame)
        assert found.equals(rows.filter(prompt_id=prompt_id))
    both = slices.under(handle, ["prompt_id", "sample_index"], [prompts[70], 1], ["reward"])
    assert (
        both.to_pylist()
        == rows.filter(prompt_id=prompts[70], sample_index=1).select("reward").to_dicts()
    )
    assert slices.values(handle, ["prompt_id"]) == [(name,) for name in prompts]


def test_details_by_hand(store: Store, versions: list[Version]) -> None:
    reader = Reader(store)
    found = reader.detail(versions[1], PROMPTS[1])
    assert (found.prompt, found.split, found.version) == ("say b", "train", "demo@2")
    assert found.messages == [{"role": "user", "content": "say b"}]
    first, second = found.responses
    assert (first.response, first.reward, first.rank, first.wins) == ("b20", 3.0, 2, 0)
    assert (second.response, second.reward, second.rank, second.tokens) == ("b21", 5.0, 1, 3)
    held_out = reader.detail(evaluated(store, versions[1]), PROMPTS[2])
    assert [each.rank for each in held_out.responses] == [2, 1]
    assert [each.accuracy for each in held_out.responses] == [0.0, 1.0]
    assert [each.response for each in held_out.against] == ["c20", "c21"]
    with pytest.raises(ConfigError, match="demo@2 has no prompt 'ffff'"):
        reader.detail(versions[1], "ffff")
    steps = reader.over_iterations(versions[1], PROMPTS[1], 1)
    assert [(step.iteration, step.response and step.response.response) for step in steps] == [
        (1, "b11"),
        (2, "b21"),
    ]
    assert steps[1].difference == [("-", "b11"), ("+", "b21")]


def test_notes_and_failures_are_fields(store: Store, versions: list[Version]) -> None:
    reader = Reader(store, lambda store, version: {PROMPTS[0]: version.number})
    reader.frame(versions[1])
    reader.notes("demo").write(Note(prompt_id=PROMPTS[1], flag=True, note="odd"))
    found = reader.answer(versions[1], Query(where="flag or check_failures = 2"))
    assert found.rows.select("check_failures", "flag", "note").rows() == [
        (2.0, False, None),
        (0.0, True, "odd"),
    ]
    assert [(note["prompt"], note["note"]) for note in reader.noted("demo")] == [("say b", "odd")]


def test_a_damaged_shard_is_named(store: Store, versions: list[Version]) -> None:
    handle = versions[1].content.datasets["win_rates"]
    for path in store.path(handle).glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-40])
    found = Reader(store).detail(versions[1], PROMPTS[0])
    assert [each.rank for each in found.responses] == [None, None]
    assert len(found.damage) == 1
    assert found.damage[0].startswith(f"win_rates/{handle.fingerprint[:12]} cannot be read: ")
    with pytest.raises(DatasetError, match="run `wind verify`"):
        Reader(store).frame(versions[1])
