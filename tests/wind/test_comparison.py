"""The comparison stage: every number of every run, and what each run had spent."""

from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from wind.comparison import ComparisonSpec, Iteration
from wind.fingerprints import digest
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import SCHEMAS, preferences_schema


def published(store: Store, name: str, rows: list[Mapping[str, Any]]) -> Dataset:
    with store.partial(name, digest(rows)) as partial:
        partial.write(
            0,
            pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64}).to_arrow(),
        )
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def metrics(store: Store, iteration: int, win_rate: float) -> Dataset:
    row = {
        "iteration": iteration,
        "metric": "win_rate",
        "value": win_rate,
        "low": win_rate - 0.1,
        "high": win_rate + 0.1,
    }
    return published(store, "metrics", [row | {"n": 8}])


def rewards(store: Store, count: int) -> Dataset:
    return published(
        store,
        "rewards",
        [{"prompt_id": "a", "sample_index": i, "reward": float(i)} for i in range(count)],
    )


def generations(store: Store, count: int) -> Dataset:
    row = {
        "policy": "f",
        "response": "2",
        "response_token_ids": [1],
        "logp_sampler": -1.0,
        "finish_reason": "stop",
        "seed": 0,
    }
    return published(
        store, "generations", [{"prompt_id": "a", "sample_index": i} | row for i in range(count)]
    )


def test_numbers_and_costs_of_two_runs(store: Store) -> None:
    """Costs add up from iteration to iteration; what two runs share counts for both."""
    start, shared, first_rewards = metrics(store, 0, 0.5), generations(store, 4), rewards(store, 4)
    dpo = {"recipe": "dpo", "setting": "lr=1", "seed": 0}
    raft = {"recipe": "raft", "setting": "", "seed": 0}
    one = {"iteration": 1, "generations": shared, "rewards": first_rewards}
    spec = ComparisonSpec(
        iterations=(
            Iteration(**raft, **one, metrics=metrics(store, 1, 0.6)),
            Iteration(**raft, iteration=0, metrics=start),
            Iteration(**dpo, iteration=0, metrics=start),
            Iteration(
                **dpo,
                iteration=2,
                metrics=metrics(store, 2, 0.8),
                generations=generations(store, 3),
                rewards=rewards(store, 6),
            ),
            Iteration(**dpo, **one, metrics=metrics(store, 1, 0.7)),
        )
    )
    job = Job(
        stage="comparison", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )
    made = run(job, lambda done, total: None)
    found = store.frame(made)
    assert found.columns == SCHEMAS["comparison"].names
    assert found.select("recipe", "setting", "iteration", "metric", "value").rows() == [
        ("dpo", "lr=1", 0, "reward_calls", 0.0),
        ("dpo", "lr=1", 0, "samples", 0.0),
        ("dpo", "lr=1", 0, "win_rate", 0.5),
        ("dpo", "lr=1", 1, "reward_calls", 4.0),
        ("dpo", "lr=1", 1, "samples", 4.0),
        ("dpo", "lr=1", 1, "win_rate", 0.7),
        ("dpo", "lr=1", 2, "reward_calls", 10.0),
        ("dpo", "lr=1", 2, "samples", 7.0),
        ("dpo", "lr=1", 2, "win_rate", 0.8),
        ("raft", "", 0, "reward_calls", 0.0),
        ("raft", "", 0, "samples", 0.0),
        ("raft", "", 0, "win_rate", 0.5),
        ("raft", "", 1, "reward_calls", 4.0),
        ("raft", "", 1, "samples", 4.0),
        ("raft", "", 1, "win_rate", 0.6),
    ]
    assert found.row(5, named=True)["low"] == 0.7 - 0.1
    assert store.manifest(made).numbers == {"runs": 2, "iterations": 2}
    assert store.manifest(made).parents["dpo lr=1 s0@1:generations"] == shared
    assert store.manifest(made).parents["raft s0@0:metrics"] == start


def test_a_pairwise_reward_is_charged_for_both_orders_of_every_two(store: Store) -> None:
    # Three responses to one prompt: 3 pairs, 6 calls.
    rows = [
        {
            "prompt_id": "a",
            "sample_index": i,
            "reward": 0.5,
            "preferences": [0.5, 0.5, 0.5],
            "cut_share": 0.0,
        }
        for i in range(3)
    ]
    schema = preferences_schema()
    with store.partial("rewards", "pairwise") as partial:
        partial.write(0, pa.Table.from_pylist(rows, schema), schema)
        compared = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    only = Iteration(
        recipe="wind",
        setting="",
        seed=0,
        iteration=1,
        metrics=metrics(store, 1, 0.6),
        rewards=compared,
    )
    spec = ComparisonSpec(iterations=(only,))
    job = Job(
        stage="comparison", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )
    made = store.frame(run(job, lambda done, total: None))
    assert made.filter(metric="reward_calls")["value"].to_list() == [6]
