"""Metrics: every number by hand, and intervals that know that responses to one prompt are not
independent.
"""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError
from wind.metric_table import METRICS
from wind.metrics import (
    distinct_n,
    distinct_responses,
    kl_k3,
    last_loss,
    row_metrics,
)
from wind.stages import Job, Place, run
from wind.statistics.bootstrap import estimate, generator_for
from wind.store.datasets import Store
from wind.store.handles import Dataset

SAMPLES = 4000


def evaluation_rows(**columns: list[Any]) -> pl.DataFrame:
    """Two prompts with two samples each, and `columns` instead of the made-up ones."""
    rows: dict[str, list[Any]] = {
        "prompt_id": ["a", "a", "b", "b"],
        "sample_index": [0, 1, 0, 1],
        "reward_policy": [3.0, 1.0, 2.0, 2.0],
        "reward_reference": [1.0, 2.0, 2.0, 2.0],
        "win_rate": [1.0, 0.25, 0.5, 0.5],
        "tie_share": [0.0, 0.5, 1.0, 1.0],
        "response_tokens_policy": [2, 4, 6, 8],
        "response_tokens_reference": [1, 1, 1, 1],
        "is_truncated_policy": [False, True, False, False],
        "is_truncated_reference": [True, True, True, True],
        "logp_policy": [-1.0, -2.0, -3.0, -4.0],
        "logp_reference": [-3.0, -2.0, -2.0, -4.0],
        "accuracy_policy": [1.0, 0.0, 1.0, 1.0],
        "accuracy_reference": [0.0, 0.0, 1.0, 0.0],
    }
    return pl.DataFrame(rows | columns)


def mean(values: pl.DataFrame) -> float:
    return estimate(values, 100, generator_for(0, 1, "mean"))[0]


def values(values_P_N: list[list[float]]) -> pl.DataFrame:
    rows = [
        (f"p{index:04d}", value) for index, values_N in enumerate(values_P_N) for value in values_N
    ]
    return pl.DataFrame(rows, schema={"prompt_id": pl.String, "value": pl.Float64}, orient="row")


def test_each_row_metric_by_hand() -> None:
    means = {name: mean(frame) for name, frame in row_metrics(evaluation_rows()).items()}
    assert means == pytest.approx(
        {
            "win_rate": 2.25 / 4,
            # of a: 3 ties nothing, 1 ties one of two; of b: all ties
            "tie_share": (0 + 1 / 2 + 1 + 1) / 4,
            "mean_reward": 2.0,
            "mean_reward_reference": 1.75,
            "kl_k1": (2 + 0 - 1 + 0) / 4,  # l = logp_policy - logp_reference
            "kl_k3": (math.exp(-2) - 1 + 2 + 0 + math.e - 1 - 1 + 0) / 4,
            "entropy": 2.5,
            "entropy_per_token": (1 / 2 + 2 / 4 + 3 / 6 + 4 / 8) / 4,
            "response_tokens": 5.0,
            "truncated_share": 0.25,
            "accuracy": 0.75,
            "accuracy_reference": 0.25,
            "accuracy_gain": 0.5,
        }
    )


def test_without_gold_answers_there_is_no_accuracy() -> None:
    unknown: list[Any] = [None] * 4
    frames = row_metrics(evaluation_rows(accuracy_policy=unknown, accuracy_reference=unknown))
    assert {name for name, frame in frames.items() if frame.is_empty()} == {
        "accuracy",
        "accuracy_reference",
        "accuracy_gain",
    }


def test_accuracy_counts_only_prompts_with_a_gold_answer() -> None:
    frames = row_metrics(
        evaluation_rows(
            accuracy_policy=[1.0, 0.0, None, None], accuracy_reference=[0.0, 0.0, None, None]
        )
    )
    assert (len(frames["accuracy"]), mean(frames["accuracy"]), mean(frames["accuracy_gain"])) == (
        2,
        0.5,
        0.5,
    )


@given(st.floats(-1e4, 1e4))
def test_kl_k3_is_never_negative_nor_infinite(log_ratio: float) -> None:
    value = float(kl_k3(np.array([log_ratio]))[0])
    assert value >= 0
    assert math.isfinite(value)


def test_both_kl_estimators_are_unbiased() -> None:
    """On samples of pi = (.7, .3) against pi_ref = (.5, .5), weighted as they fall, both average to
    KL(pi || pi_ref).
    """
    pi, ref = np.array([0.7, 0.3]), np.array([0.5, 0.5])
    log_ratios = np.log(pi / ref)
    kl = float((pi * log_ratios).sum())
    assert kl == pytest.approx(0.7 * math.log(1.4) + 0.3 * math.log(0.6))
    assert float((pi * kl_k3(log_ratios)).sum()) == pytest.approx(kl)


def test_distinct_2_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b", "c", "c", "c", "d"],
            "sample_index": [0, 1, 0, 1, 0, 1, 2, 0],
            "response": ["x y  x y", "y x\tz", "x", "y x", "7", "7", "12", " "],
        }
    )
    assert distinct_n(rows, 2).rows() == [
        # xy yx xy | yx xz: three of five; no bigram reaches from one response into the next
        ("a", 3 / 5),
        ("b", 1.0),  # x | yx: the single word counts as itself
        ("c", 2 / 3),  # 7 7 12
        ("d", 1.0),  # an empty response counts as one
    ]


def test_distinct_1_and_3_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b"],
            "sample_index": [0, 1, 0, 1],
            "response": ["x y x y", "y x", "", "7"],
        }
    )
    assert distinct_n(rows, 1).rows() == [("a", 2 / 6), ("b", 1.0)]
    # xyx yxy | yx, too short, counts as itself
    assert distinct_n(rows, 3).rows() == [("a", 1.0), ("b", 1.0)]


def test_distinct_responses_are_counted_by_prompt() -> None:
    rows = pl.DataFrame(
        {"prompt_id": ["b", "a", "a", "b", "a"], "response": ["7", "x", "x ", "7", "x"]}
    )
    assert distinct_responses(rows).rows() == [("a", 2.0), ("b", 1.0)]


def test_last_loss_is_the_mean_over_the_last_tenth() -> None:
    steps = list(range(11))
    training = pl.DataFrame(
        {
            "step": steps * 2,
            "metric": ["loss"] * 11 + ["lr"] * 11,
            "value": [float(s) for s in steps] + [9.0] * 11,
        }
    )
    assert last_loss(training.sample(fraction=1.0, shuffle=True, seed=1)) == (9.5, 2)
    with pytest.raises(DatasetError, match="no metric called loss"):
        last_loss(training.filter(pl.col("metric") == "lr"))


def test_interval_of_a_share_is_the_normal_approximation() -> None:
    """400 prompts, one 0/1 value each, 0.3 on average: 0.3 -+ 1.96 sqrt(0.3 * 0.7 / 400)."""
    value, low, high = estimate(
        values([[float(i % 10 < 3)] for i in range(400)]), SAMPLES, generator_for(0, 1, "x")
    )
    half = 1.959964 * math.sqrt(0.3 * 0.7 / 400)
    assert value == pytest.approx(0.3)
    assert [low, high] == pytest.approx([0.3 - half, 0.3 + half], abs=0.003)


def test_more_samples_of_the_same_prompts_do_not_shorten_the_interval() -> None:
    shares = [[float(i % 10 < 3)] for i in range(100)]
    once, eightfold = (
        estimate(values([row * n for row in shares]), SAMPLES, generator_for(0, 1, "x"))
        for n in (1, 8)
    )
    assert eightfold == pytest.approx(once)
    _, low, high = estimate(
        values([row for row in shares for _ in range(8)]), SAMPLES, generator_for(0, 1, "x")
    )
    assert once[1] is not None
    assert once[2] is not None
    assert low is not None
    assert high is not None
    # eight times the prompts do
    assert high - low == pytest.approx((once[2] - once[1]) / math.sqrt(8), rel=0.1)


def test_prompts_with_more_rows_weigh_more() -> None:
    assert mean(values([[0.0], [1.0, 1.0, 1.0]])) == 0.75


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3), min_size=2, max_size=5))
def test_the_interval_holds_the_mean(values_P_N: list[list[float]]) -> None:
    value, low, high = estimate(values(values_P_N), 100, generator_for(0, 1, "x"))
    assert low is not None
    assert high is not None
    assert low <= value <= high


def test_a_constant_has_an_interval_of_no_width() -> None:
    value, low, high = estimate(values([[0.1, 0.1]] * 7), 200, generator_for(0, 1, "x"))
    assert [low, high] == pytest.approx([value, value])


def test_a_single_prompt_has_no_interval() -> None:
    assert estimate(values([[1.0, 2.0]]), 100, generator_for(0, 1, "x")) == (1.5, None, None)


def test_intervals_do_not_depend_on_the_order_of_rows_or_on_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = values([[float(i), float(i % 3)] for i in range(50)])
    expected = estimate(rows, 1000, generator_for(3, 2, "x"))
    assert estimate(rows.reverse(), 1000, generator_for(3, 2, "x")) == pytest.approx(expected)
    monkeypatch.setattr("wind.statistics.bootstrap.BLOCK", 50 * 7)
    assert estimate(rows, 1000, generator_for(3, 2, "x")) == expected


@pytest.mark.parametrize("other", [(4, 2, "x"), (3, 1, "x"), (3, 2, "y")])
def test_each_metric_has_its_own_generator(other: tuple[int, int, str]) -> None:
    rows = values([[float(i)] for i in range(50)])
    assert estimate(rows, 500, generator_for(3, 2, "x")) != estimate(
        rows, 500, generator_for(*other)
    )


def publish(store: Store, name: str, frame: pl.DataFrame) -> Dataset:
    with store.partial(name, "made") as partial:
        partial.write(0, frame.to_arrow())
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def generations() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b"],
            "sample_index": [0, 1, 0, 1],
            "policy": ["f"] * 4,
            "response": ["1", "2", "3", "3"],
            "response_token_ids": [[1], [1], [1], [1]],
            "logp_sampler": [-1.0] * 4,
            "finish_reason": ["stop"] * 4,
            "seed": [1, 2, 3, 4],
        }
    )


def test_the_stage_writes_one_row_per_metric(store: Store) -> None:
    key = {"prompt_id": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1]}
    train_rewards = pl.DataFrame(key | {"reward": [1.0, 2.0, 3.0, 3.0]})
    train_win_rates = pl.DataFrame(
        key
        | {"win_rate": [0.0, 1.0, 0.5, 0.5], "wins": [0, 1, 0, 0], "ties": [0, 0, 1, 1]}
        | {"losses": [1, 0, 0, 0], "rank": [2, 1, 1, 2]}
    )
    spec = {
        "evaluation": publish(store, "evaluation", evaluation_rows()).model_dump(),
        "generations": publish(store, "generations", generations()).model_dump(),
        "training": publish(
            store,
            "training",
            pl.DataFrame({"step": [0, 1], "metric": ["loss", "loss"], "value": [2.0, 1.0]}),
        ).model_dump(),
        "win_rates": publish(store, "win_rates", train_win_rates).model_dump(),
        "rewards": publish(store, "rewards", train_rewards).model_dump(),
        "evaluation_config": EvaluationConfig().model_dump(),
        "seed": 0,
        "iteration": 2,
    }
    job = Job(stage="metrics", spec=spec, place=Place(root=str(store.root)))
    made = run(job, lambda done, total: None)
    rows = {row["metric"]: row for row in store.frame(made).to_dicts()}
    assert list(rows) == sorted(rows)
    assert rows.keys() == METRICS.keys(), (
        "a metric needs a row in wind/metric_table.py and a formula in wind/metrics.py"
    )
    assert {row["iteration"] for row in rows.values()} == {2}
    assert (rows["train_reward"]["value"], rows["train_tie_share"]["value"]) == (2.25, 0.5)
    assert rows["loss"] == {
        "iteration": 2,
        "metric": "loss",
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert [(rows[f"distinct_{n}"]["value"], rows[f"distinct_{n}"]["n"]) for n in (1, 2, 3)] == [
        (0.75, 2)
    ] * 3
    assert (rows["distinct_responses"]["value"], rows["entropy"]["value"]) == (1.5, 2.5)
    assert (rows["win_rate"]["n"], rows["accuracy_gain"]["value"]) == (4, 0.5)
    assert store.manifest(made).numbers.keys() == {
        "win_rate",
        "mean_reward",
        "kl_k1",
        "accuracy_gain",
    }
    assert run(job, lambda done, total: None) == made


def test_without_a_training_only_the_evaluation_is_measured(store: Store) -> None:
    spec = {
        "evaluation": publish(store, "evaluation", evaluation_rows()).model_dump(),
        "generations": publish(store, "generations", generations()).model_dump(),
        "evaluation_config": EvaluationConfig().model_dump(),
        "seed": 0,
        "iteration": 1,
    }
    made = run(
        Job(stage="metrics", spec=spec, place=Place(root=str(store.root))), lambda done, total: None
    )
    assert set(store.frame(made)["metric"]) == {
        *row_metrics(evaluation_rows()),
        *("distinct_1", "distinct_2", "distinct_3", "distinct_responses"),
    }
