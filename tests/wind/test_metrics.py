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
from wind.config.rewards import WinRateConfig
from wind.errors import DatasetError
from wind.metric_table import METRICS, metric_named
from wind.metrics.values import (
    distinct_n,
    distinct_responses,
    health_metrics,
    kl_k3,
    last_loss,
    match_metrics,
    reliability,
    row_metrics,
    tied_prompts,
)
from wind.stages import Job, Place, run
from wind.statistics.bootstrap import (
    estimate,
    estimate_quantile,
    estimate_ratio,
    generator_for,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.win_rates import win_rates

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


def health_rows(**columns: list[Any]) -> pl.DataFrame:
    """The health of the responses of `evaluation_rows`."""
    rows: dict[str, list[Any]] = {
        "prompt_id": ["a", "a", "b", "b"],
        "sample_index": [0, 1, 0, 1],
        "is_empty": [False, True, False, False],
        "is_refusal": [True, False, True, True],
        "is_eos": [True, False, False, False],
        "repetition": [0.0, 0.0, 0.5, 0.75],
        "self_bleu": [0.25, None, 0.5, 0.75],
        "logp_previous": [-2.0, -2.0, -3.0, -3.0],
        "logp_reference": [-3.0, -4.0, -3.0, -4.0],
        "logp_gap": [0.25, -0.75, 0.0, 0.5],
    }
    return pl.DataFrame(rows | columns)


def test_each_metric_of_health_by_hand() -> None:
    """The policy's log-probabilities are -1, -2, -3 and -4."""
    means = {
        name: mean(frame)
        for name, frame in health_metrics(health_rows(), evaluation_rows()).items()
    }
    assert means == pytest.approx(
        {
            "kl_previous_k1": (1 + 0 + 0 - 1) / 4,
            "kl_previous_k3": (math.exp(-1) - 1 + 1 + 0 + 0 + math.e - 1 - 1) / 4,
            "kl_reference_k1": (2 + 2 + 0 + 0) / 4,
            "kl_reference_k3": 2 * (math.exp(-2) - 1 + 2) / 4,
            "logp_gap": (0.25 + 0.75 + 0 + 0.5) / 4,
            "self_bleu": 1.5 / 3,
            "repetition": 1.25 / 4,
            "eos_share": 1 / 4,
            "empty_share": 1 / 4,
            "refusal_share": 3 / 4,
        }
    )


def test_the_health_of_other_responses_is_refused() -> None:
    with pytest.raises(DatasetError, match="the health of 3 responses and an evaluation of 4"):
        health_metrics(health_rows()[:3], evaluation_rows())


def test_prompts_whose_responses_all_tie() -> None:
    rows = pl.DataFrame(
        {"prompt_id": ["b", "a", "b", "a", "c", "a"], "reward": [1.0, 2.0, 1.0, 2.0, 5.0, 3.0]}
    )
    # c has nothing to tie with
    assert tied_prompts(rows).rows() == [("a", 0.0), ("b", 1.0)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_quantile_is_a_value_that_its_share_does_not_exceed(share: float) -> None:
    numbers = np.random.default_rng(0).normal(size=101)
    frame = values([[number] for number in numbers])
    value, low, high = estimate_quantile(frame, SAMPLES, generator_for(0, 1, "x"), share=share)
    assert value == np.quantile(numbers, share, method="inverted_cdf")
    assert low is not None
    assert high is not None
    # how many of the 101 do not exceed a quantile is binomial
    half = 1.96 * math.sqrt(101 * share * (1 - share))
    below = [int((numbers <= end).sum()) for end in (low, high)]
    assert below == pytest.approx([101 * share - half, 101 * share + half], abs=2.5)


def test_a_quantile_of_a_single_prompt_has_no_interval() -> None:
    frame = values([[3.0, 1.0, 2.0, 4.0]])
    for share, value in ((0.1, 1.0), (0.25, 1.0), (0.5, 2.0), (0.9, 4.0)):
        assert estimate_quantile(frame, 100, generator_for(0, 1, "x"), share=share) == (
            value,
            None,
            None,
        )


def test_the_interval_of_a_median_resamples_prompts() -> None:
    """Eight equal rows a prompt tell no more than one."""
    numbers = np.random.default_rng(1).normal(size=60)
    once, eightfold = (
        estimate_quantile(
            values([[number] * n for number in numbers]),
            SAMPLES,
            generator_for(0, 1, "x"),
            share=0.5,
        )
        for n in (1, 8)
    )
    assert once == eightfold


def compared(rewards_P_N: list[list[float]] | Any) -> pl.DataFrame:
    """Win rates and rewards of scalar rewards, and what their reliability is the ratio of."""
    rewards = rewards_of(rewards_P_N)
    return reliability(win_rates(rewards, WinRateConfig()), rewards)


def rewards_of(rewards_P_N: Any) -> pl.DataFrame:
    rows = [
        (f"p{prompt:05d}", sample, float(reward))
        for prompt, rewards_N in enumerate(rewards_P_N)
        for sample, reward in enumerate(rewards_N)
    ]
    schema = {"prompt_id": pl.String, "sample_index": pl.Int64, "reward": pl.Float64}
    return pl.DataFrame(rows, schema, orient="row")


def ratio(prompts: pl.DataFrame) -> float:
    return estimate_ratio(prompts, 100, generator_for(0, 1, "x"))[0]


@pytest.mark.parametrize("n", [2, 3, 7])
def test_reliability_without_ties_follows_from_the_siblings(n: int) -> None:
    """P(y) is uniform: its variance is 1/12, and P(1 - P)/n on average 1/(6 n)."""
    rewards = np.random.default_rng(n).normal(size=(5, n + 1))
    assert ratio(compared(rewards)) == pytest.approx(n / (n + 2))


def test_reliability_by_hand() -> None:
    # Of 1 1 2: win rates 1/4 1/4 1, comparisons (1/2, 0) (0, 1/2) (1, 1), so (u - 1/2)^2 is
    # 1/16 1/16 1/4, and s^2 / 2 is 1/16 1/16 0. A prompt that all ties says nothing.
    frame = compared([[1, 1, 2], [5, 5, 5]])
    assert frame.rows() == [("p00000", 1 / 4, 3 / 8)]
    assert ratio(frame) == pytest.approx(2 / 3)
    assert compared([[1, 2], [2, 1]]).is_empty()


def test_reliability_is_the_share_of_variance_that_is_no_noise() -> None:
    """Rewards 0 .. 3 with probabilities of their own on every prompt: what P(y) is, and what one
    comparison varies, is known.
    """
    generator, n = np.random.default_rng(0), 5
    laws_P_V = generator.dirichlet(np.ones(4), size=20_000)
    drawn = (generator.random((20_000, n + 1, 1)) > laws_P_V.cumsum(axis=1)[:, None, :]).sum(axis=2)
    below_P_V = laws_P_V.cumsum(axis=1) - laws_P_V
    true_P_V = below_P_V + laws_P_V / 2
    noise_P_V = below_P_V + laws_P_V / 4 - true_P_V**2
    signal = (laws_P_V * (true_P_V - 0.5) ** 2).sum(axis=1).mean()
    noise = (laws_P_V * noise_P_V).sum(axis=1).mean() / n
    assert ratio(compared(drawn)) == pytest.approx(signal / (signal + noise), abs=0.01)


def test_reliability_is_the_split_half_correlation_stepped_up() -> None:
    """Of preferences by Bradley-Terry: the win rates over two halves of the siblings correlate, and
    2 r / (1 + r), by Spearman and Brown, is the reliability of both together.
    """
    generator, n = np.random.default_rng(0), 6
    scores_P_N = 2 * generator.normal(size=(5_000, n + 1))
    preferences = 1 / (1 + np.exp(scores_P_N[:, None, :] - scores_P_N[:, :, None]))
    first = preferences[:, 0, 1 : 1 + n // 2].mean(axis=1)
    second = preferences[:, 0, 1 + n // 2 :].mean(axis=1)
    # both average 1/2 exactly
    half = ((first - 0.5) * (second - 0.5)).mean() / (
        ((first - 0.5) ** 2).mean() * ((second - 0.5) ** 2).mean()
    ) ** 0.5
    rewards = rewards_of(scores_P_N).with_columns(
        preferences=pl.Series(preferences.reshape(-1, n + 1).tolist())
    )
    found = ratio(reliability(pl.DataFrame(), rewards))
    assert found == pytest.approx(2 * half / (1 + half), abs=0.01)


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
    train_rewards = rewards_of([[1, 2, 3], [3, 3, 3]])
    train_win_rates = win_rates(train_rewards, WinRateConfig())
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
        "health": publish(store, "health", health_rows()).model_dump(),
        "evaluation_config": EvaluationConfig().model_dump(),
        "seed": 0,
        "iteration": 2,
    }
    job = Job(stage="metrics", spec=spec, place=Place(root=str(store.root)))
    made = run(job, lambda done, total: None)
    rows = {row["metric"]: row for row in store.frame(made).to_dicts()}
    assert list(rows) == sorted(rows)
    assert rows.keys() == METRICS.keys(), (
        "a metric needs a row in wind/metric_table.py and a formula in wind/metrics/values.py"
    )
    assert {row["iteration"] for row in rows.values()} == {2}
    assert (rows["train_reward"]["value"], rows["train_tie_share"]["value"]) == (2.5, 0.5)
    tied = [rows[f"{side}tied_prompts_share"] for side in ("", "train_")]
    assert [(row["value"], row["n"]) for row in tied] == [(0.5, 2)] * 2
    quantiles = [rows[f"response_tokens_{name}"]["value"] for name in ("p10", "p50", "p90")]
    assert quantiles == [2, 4, 8]
    assert [rows[f"reward_{name}"]["value"] for name in ("p10", "p50", "p90")] == [1, 2, 3]
    # of the one prompt whose responses do not all tie
    reliability = rows["win_rate_reliability"]
    assert (reliability["value"], reliability["low"], reliability["n"]) == (0.5, None, 1)
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


def match_rows() -> pl.DataFrame:
    """Two judges and two opponents; the held-out judge was asked twice."""
    key = {"prompt_id": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1]}
    pairings: list[tuple[str, str, list[float], list[float | None]]] = [
        ("gold", "gpt", [1.0, 0.5, 0.5, 0.0], [None] * 4),
        ("held_out", "gpt", [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]),
        ("held_out", "initial", [0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 0.0]),
    ]
    frames = [
        pl.DataFrame(
            {"judge": [judge] * 4, "opponent": [opponent] * 4, **key}
            | {"reward_policy": [1.0] * 4, "reward_opponent": [0.0] * 4, "win_rate": win_rates}
            | {"tie_share": [float(each == 0.5) for each in win_rates]}
            | {"response_tokens_policy": [2, 2, 2, 2], "response_tokens_opponent": [2, 2, 2, 2]}
            | {"mean_tokens_opponent": [2.0] * 4, "repeat_difference": repeated}
        )
        for judge, opponent, win_rates, repeated in pairings
    ]
    return pl.concat(frames, how="vertical_relaxed")


def test_metrics_of_matches_by_hand() -> None:
    means = {name: mean(frame) for name, frame in match_metrics(match_rows()).items()}
    assert means == {
        "win_rate.gold.gpt": 0.5,
        "win_rate.held_out.gpt": 0.75,
        "win_rate.held_out.initial": 0.5,
        "tie_share.gold.gpt": 0.5,
        "tie_share.held_out.gpt": 0.0,
        "tie_share.held_out.initial": 1.0,
        "repeat_difference.held_out": 1.5 / 8,
    }


def test_matches_add_metrics_and_change_no_other(store: Store) -> None:
    spec = {
        "evaluation": publish(store, "evaluation", evaluation_rows()).model_dump(),
        "generations": publish(store, "generations", generations()).model_dump(),
        "evaluation_config": EvaluationConfig().model_dump(),
        "seed": 0,
        "iteration": 1,
    }

    def measured(**further: Any) -> dict[str, dict[str, Any]]:
        job = Job(stage="metrics", spec=spec | further, place=Place(root=str(store.root)))
        made = run(job, lambda done, total: None)
        return {row["metric"]: row for row in store.frame(made).to_dicts()}

    without = measured()
    matches = publish(store, "matches", match_rows().cast({"repeat_difference": pl.Float64}))
    rows = measured(matches=matches.model_dump())
    assert {name: rows[name] for name in without} == without
    added = rows.keys() - without.keys()
    judged = {"lc_win_rate.held_out.gpt", "lc_win_rate.held_out.initial"}
    assert added == {*match_metrics(match_rows()), *judged}
    assert all(metric_named(name).better for name in judged)
    # all lengths are equal: the length-controlled win rate is the plain one, but for the prior
    controlled = rows["lc_win_rate.held_out.gpt"]
    assert controlled["value"] == pytest.approx(0.75, abs=0.01)
    assert controlled["low"] < 0.75 <= controlled["high"]
    assert controlled["n"] == 4

    alone = measured(is_alone=True)
    assert without.keys() - alone.keys() == {
        *("win_rate", "tie_share", "mean_reward_reference", "kl_k1", "kl_k3"),
        *("accuracy_reference", "accuracy_gain"),
    }
