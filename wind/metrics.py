"""The metrics of one iteration, each with its 95% bootstrap interval.

One row is one number. Intervals are percentile bootstraps that resample *prompts*, not responses:
the responses to a prompt are not independent, and treating them as if they were would make every
interval too short. What an iteration does not have (gold answers, a training) gives no row. The
training loss, and numbers over a single prompt, have no interval.

distinct_n is the mean over prompts of the share of distinct n-grams of words, separated by white
space, among all n-grams in the prompt's responses (Li et al., arXiv 1510.03055); a response of
fewer than n words counts as one n-gram, itself. distinct_responses is the number of different texts
among a prompt's samples. entropy is the mean of -log pi(y) over samples y of pi, in nats; where
`temperature`, `top_p` or `top_k` narrow the sampler it is a cross-entropy instead.

Where the health of the responses was examined, its columns, quantiles of rewards and lengths, and
the reliability of the training win rates are measured, too. A quantile is the smallest value that
at least its share of the rows do not exceed.

How metrics are titled and where they are shown is in `wind.metric_table`: a new one needs a row
there and its formula here.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError
from wind.metric_table import shown_in
from wind.quantities import LOG_RATIO, TIE_SHARE
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    light,
    no_function,
    one_side,
    unforeseen,
)
from wind.statistics.bootstrap import (
    Estimate,
    estimate,
    estimate_quantile,
    estimate_ratio,
    generator_for,
)
from wind.statistics.length_control import length_controlled_win_rate
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import Column, Declaration

# Sums of e^600 still fit a float64: one absurd response must not make a whole metric infinite.
MAX_EXPONENT = 600.0
QUANTILES: Final = {"p10": 0.1, "p50": 0.5, "p90": 0.9}

# What compares the policy with the reference.
OF_BOTH: Final = (
    "win_rate",
    "tie_share",
    "mean_reward_reference",
    "kl_k1",
    "kl_k3",
    "accuracy_reference",
    "accuracy_gain",
)

Floats = npt.NDArray[np.float64]
# Makes one of values, a number of resamples and a random generator.
Estimator = Callable[[pl.DataFrame, int, np.random.Generator], Estimate]


DATASET = Declaration(
    row="one number of one iteration",
    columns=(
        Column("iteration", pa.int32(), "1-based; 0 is the policy that the run began with"),
        Column("metric", pa.string(), "what is measured"),
        Column("value", pa.float64(), "of the metric"),
        Column("low", pa.float64(), "95% interval, null where none is estimated", is_nullable=True),
        Column("high", pa.float64(), "the upper end of that interval", is_nullable=True),
        Column("n", pa.int64(), "rows behind the value"),
    ),
    key=("iteration", "metric"),
    foreign_keys=(),
)


class MetricsSpec(Spec):
    """The datasets to measure, and the seed of the intervals.

    An evaluation without a training has no `training`, `win_rates` and `rewards`, and no metrics of
    these three datasets.
    """

    evaluation: Dataset
    generations: Dataset  # the policy's responses to the eval prompts
    training: Dataset | None = None
    win_rates: Dataset | None = None  # of the training prompts
    rewards: Dataset | None = None  # of the training prompts
    # against further opponents, and under further judges
    matches: Dataset | None = None
    health: Dataset | None = None  # of the policy's responses to the eval prompts
    benchmarks: Dataset | None = None
    evaluation_config: EvaluationConfig
    seed: int
    iteration: int  # from 1; 0 is the policy that the run starts from
    # the policy was evaluated against itself, which says nothing of it: no metric compares the two
    is_alone: bool = False


def row_metrics(evaluation: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the evaluation: prompt_id, value.

    The metric is the mean of its values. With l = log pi(y) - log pi_ref(y) on samples y of the
    policy, kl_k1 is the mean of l and kl_k3 that of e^-l - 1 + l: both estimate KL(pi || pi_ref)
    without bias, the second never below zero (MATH 7). tie_share is the share of ties among all
    comparisons of a policy's response with a reference's, and accuracy_gain is policy minus
    reference. entropy is in nats per response; entropy_per_token divides each response's by its
    tokens.
    """
    values = {
        "win_rate": pl.col("win_rate"),
        "tie_share": pl.col("tie_share"),
        "mean_reward": pl.col("reward_policy"),
        "mean_reward_reference": pl.col("reward_reference"),
        "kl_k1": LOG_RATIO,
        "kl_k3": _k3(LOG_RATIO),
        "entropy": -pl.col("logp_policy"),
        "entropy_per_token": -pl.col("logp_policy") / pl.col("response_tokens_policy"),
        "response_tokens": pl.col("response_tokens_policy"),
        "truncated_share": pl.col("is_truncated_policy"),
        "accuracy": pl.col("accuracy_policy"),
        "accuracy_reference": pl.col("accuracy_reference"),
        "accuracy_gain": pl.col("accuracy_policy") - pl.col("accuracy_reference"),
    }
    return {
        name: evaluation.select("prompt_id", value=value.cast(pl.Float64)).drop_nulls()
        for name, value in values.items()
    }


def health_metrics(health: pl.DataFrame, evaluation: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the health of responses: prompt_id, value.

    The metric is the mean of its values. logp_gap is in nats per token, without its sign. The KL to
    the policy before and to the reference are estimated as in `row_metrics`.
    """
    rows = health.join(
        evaluation.select("prompt_id", "sample_index", "logp_policy"),
        on=["prompt_id", "sample_index"],
        how="inner",
        validate="1:1",
        maintain_order="left",
    )
    if not len(rows) == len(health) == len(evaluation):
        raise DatasetError(
            f"the health of {len(health)} responses and an evaluation of {len(evaluation)} are not "
            "about the same: rerun health"
        )
    previous = pl.col("logp_policy") - pl.col("logp_previous")
    reference = pl.col("logp_policy") - pl.col("logp_reference")
    values = {
        "kl_previous_k1": previous,
        "kl_previous_k3": _k3(previous),
        "kl_reference_k1": reference,
        "kl_reference_k3": _k3(reference),
        "logp_gap": pl.col("logp_gap").abs(),
        "self_bleu": pl.col("self_bleu"),
        "repetition": pl.col("repetition"),
        "eos_share": pl.col("is_eos"),
        "empty_share": pl.col("is_empty"),
        "refusal_share": pl.col("is_refusal"),
    }
    return {
        name: rows.select("prompt_id", value=value.cast(pl.Float64)).drop_nulls()
        for name, value in values.items()
    }


def tied_prompts(rewards: pl.DataFrame) -> pl.DataFrame:
    """Tabulate which prompts' rewards are all equal: prompt_id, value 0 or 1.

    Such a prompt teaches nothing. `rewards` has prompt_id and reward; a prompt with a single
    response is left out.
    """
    return (
        rewards.group_by("prompt_id")
        .agg(count=pl.len(), value=(pl.col("reward").n_unique() == 1).cast(pl.Float64))
        .filter(pl.col("count") > 1)
        .select("prompt_id", "value")
        .sort("prompt_id")
    )


def reliability(win_rates: pl.DataFrame, rewards: pl.DataFrame) -> pl.DataFrame:
    """Tabulate what the reliability of win rates is the ratio of: prompt_id, sum, count.

    A response's win rate u over its n = N-1 siblings estimates P(y), with which it beats a fresh
    response; both average 1/2 on every prompt. Given y, u has the variance of one comparison
    divided by n (MATH 0.2), whose unbiased estimate is s^2 / n with the sample variance s^2 of its n
    comparisons. So (u - 1/2)^2 - s^2 / n estimates the variance of P(y) without bias, and divided
    by the mean of (u - 1/2)^2, that of u, it is the share of the variance of win rates that is no
    sampling noise: the reliability of test theory, which the correlation of the win rates over two
    halves of the siblings gives after the Spearman-Brown correction. Without ties and with a scalar
    reward it is n / (n + 2), whatever the reward; ties raise it.

    `sum` and `count` have one row for each prompt with three or more responses that do not all tie.
    With preferences, a comparison is the preference itself; otherwise 1, 1/2 or 0.
    """
    if "preferences" in rewards.columns:
        preferences = pl.col("preferences")
        points = preferences.list.sum() - 0.5
        squares = preferences.list.eval(pl.element() ** 2).list.sum() - 0.25
        rows = rewards.select("prompt_id", points=points, squares=squares)
    else:
        points, squares = (pl.col("wins") + pl.col("ties") / each for each in (2, 4))
        rows = win_rates.select("prompt_id", points=points, squares=squares)
    n, rate = pl.len().over("prompt_id") - 1, pl.col("points") / pl.col("n")
    variance = (pl.col("squares") - pl.col("n") * rate**2) / (pl.col("n") - 1)
    observed = (rate - 0.5) ** 2
    return (
        rows.with_columns(n=n)
        .filter(pl.col("n") > 1)
        .group_by("prompt_id")
        .agg(sum=(observed - variance / pl.col("n")).sum(), count=observed.sum())
        .filter(pl.col("count") > 0)
        .sort("prompt_id")
    )


def _k3(log_ratio: pl.Expr) -> pl.Expr:
    return log_ratio.map_batches(
        lambda log_ratios: pl.Series(kl_k3(log_ratios.to_numpy())), return_dtype=pl.Float64
    )


def benchmark_metrics(benchmarks: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of each benchmark: prompt_id, value.

    What is resampled are questions, which take the place of prompts.
    """
    metrics = benchmarks.partition_by("benchmark", "metric", as_dict=True)
    return {
        f"benchmark.{benchmark}.{metric}": rows.select(prompt_id="item", value="value").drop_nulls()
        for (benchmark, metric), rows in metrics.items()
    }


def kl_k3(log_ratios: Floats) -> Floats:
    """Compute e^-l - 1 + l, the k3 estimate of the KL.

    l is the log-ratio log pi(y) - log pi_ref(y). The estimate is never negative, and its mean over
    samples y of pi is KL(pi || pi_ref).
    """
    values: Floats = np.expm1(np.minimum(-log_ratios, MAX_EXPONENT)) + log_ratios
    return values.clip(min=0.0)  # rounding can leave -1e-17


def distinct_n(generations: pl.DataFrame, n: int) -> pl.DataFrame:
    """Tabulate each prompt's share of distinct n-grams among its responses.

    Returns one row per prompt: prompt_id, value in (0, 1].
    """
    grams = (
        generations.select(
            "prompt_id", "sample_index", word=pl.col("response").str.extract_all(r"\S+")
        )
        .explode("word", empty_as_null=True)
        .with_columns(
            *(
                pl.col("word").shift(-ahead).over("prompt_id", "sample_index").alias(f"word{ahead}")
                for ahead in range(1, n)
            ),
            left=pl.len().over("prompt_id", "sample_index")
            - pl.int_range(pl.len()).over("prompt_id", "sample_index"),
            is_first=pl.int_range(pl.len()).over("prompt_id", "sample_index") == 0,
        )
        .filter((pl.col("left") >= n) | pl.col("is_first"))
    )
    gram = pl.struct("word", *(f"word{ahead}" for ahead in range(1, n)))
    return grams.group_by("prompt_id").agg(value=gram.n_unique() / pl.len()).sort("prompt_id")


def distinct_responses(generations: pl.DataFrame) -> pl.DataFrame:
    """Count the distinct responses of each prompt: prompt_id, value >= 1."""
    return (
        generations.group_by("prompt_id")
        .agg(value=pl.col("response").n_unique().cast(pl.Float64))
        .sort("prompt_id")
    )


def last_loss(training: pl.DataFrame) -> tuple[float, int]:
    """Return the mean loss over the last tenth of the steps.

    The second value is the number of those steps. Raises DatasetError if no loss is recorded.
    """
    losses = training.filter(pl.col("metric") == "loss").sort("step")["value"]
    if not len(losses):
        raise DatasetError("the training has no metric called loss: rerun training")
    last = losses.tail(-(-len(losses) // 10)).to_numpy()
    return float(last.mean()), len(last)


def match_metrics(matches: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the matches: prompt_id, value.

    Each is named by the judge, and but for repeated verdicts by the opponent.
    """
    found = {}
    for (judge, opponent), rows in matches.group_by("judge", "opponent", maintain_order=True):
        for name in ("win_rate", "tie_share"):
            found[f"{name}.{judge}.{opponent}"] = rows.select("prompt_id", value=name)
    repeated = matches.drop_nulls("repeat_difference")
    for (judge,), rows in repeated.group_by("judge", maintain_order=True):
        found[f"repeat_difference.{judge}"] = rows.select("prompt_id", value="repeat_difference")
    return found


def length_controlled(
    matches: pl.DataFrame, spec: MetricsSpec
) -> list[tuple[str, float, float | None, float | None, int]]:
    """Return the length-controlled win rate under each judge against each opponent.

    Each comes with its interval and the number of rows behind it. Gold answers are no judge who may
    like length.
    """
    found = []
    judged = matches.filter(pl.col("judge") != "gold").with_columns(
        longer=pl.col("response_tokens_policy") - pl.col("mean_tokens_opponent")
    )
    for (judge, opponent), rows in judged.group_by("judge", "opponent", maintain_order=True):
        name = f"lc_win_rate.{judge}.{opponent}"
        estimated = length_controlled_win_rate(
            rows["win_rate"].to_numpy(),
            rows["longer"].to_numpy(),
            rows["prompt_id"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            spec.evaluation_config.bootstrap_samples,
            generator_for(spec.seed, spec.iteration, name),
        )
        found.append((name, *estimated, len(rows)))
    return found


def _shards(spec: MetricsSpec, store: Store) -> int:
    return 1


def _compute(
    spec: MetricsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    values = row_metrics(store.frame(spec.evaluation))
    if spec.is_alone:
        values = {name: frame for name, frame in values.items() if name not in OF_BOTH}
    generations = store.frame(spec.generations, ["prompt_id", "sample_index", "response"])
    values |= {f"distinct_{n}": distinct_n(generations, n) for n in (1, 2, 3)}
    values["distinct_responses"] = distinct_responses(generations)
    if spec.rewards is not None:
        values["train_reward"] = store.frame(spec.rewards, ["prompt_id", "reward"]).rename(
            {"reward": "value"}
        )
    if spec.win_rates is not None:
        values["train_tie_share"] = store.frame(spec.win_rates).select("prompt_id", value=TIE_SHARE)
    if spec.benchmarks is not None:
        values |= benchmark_metrics(store.frame(spec.benchmarks))
    measured: dict[str, tuple[pl.DataFrame, Estimator]] = {
        name: (frame, estimate) for name, frame in values.items()
    }
    rows: list[tuple[str, float, float | None, float | None, int]] = []
    if spec.matches is not None:
        matches = store.frame(spec.matches)
        measured |= {name: (frame, estimate) for name, frame in match_metrics(matches).items()}
        rows += length_controlled(matches, spec)
    if spec.health is not None:
        measured |= _measured_health(spec, store, spec.health)
    for name, (frame, estimator) in measured.items():
        # without gold answers there is no accuracy
        if len(frame):
            generator = generator_for(spec.seed, spec.iteration, name)
            rows.append(
                (
                    name,
                    *estimator(frame, spec.evaluation_config.bootstrap_samples, generator),
                    len(frame),
                )
            )
    if spec.training is not None:
        loss, steps = last_loss(store.frame(spec.training))
        rows.append(("loss", loss, None, None, steps))
    progress(len(rows), len(rows))
    columns = zip(*sorted(rows), strict=True)
    table = pa.table(
        [[spec.iteration] * len(rows), *map(list, columns)], names=DATASET.schema.names
    )
    return Shard(table)


def _measured_health(
    spec: MetricsSpec, store: Store, health: Dataset
) -> dict[str, tuple[pl.DataFrame, Estimator]]:
    """Tabulate the values of the metrics of health, each with its estimator."""
    evaluation = store.frame(spec.evaluation)
    values = health_metrics(store.frame(health), evaluation)
    rewards = evaluation.select("prompt_id", reward="reward_policy")
    values["tied_prompts_share"] = tied_prompts(rewards)
    if spec.rewards is not None:
        trained = store.frame(spec.rewards)
        values["train_tied_prompts_share"] = tied_prompts(trained)
    measured: dict[str, tuple[pl.DataFrame, Estimator]] = {
        name: (frame, estimate) for name, frame in values.items()
    }
    for of, column in (("reward", "reward_policy"), ("response_tokens", "response_tokens_policy")):
        frame = evaluation.select("prompt_id", value=pl.col(column).cast(pl.Float64))
        for name, share in QUANTILES.items():
            measured[f"{of}_{name}"] = (frame, partial(estimate_quantile, share=share))
    if spec.rewards is not None and spec.win_rates is not None:
        compared = reliability(store.frame(spec.win_rates), trained)
        measured["win_rate_reliability"] = (compared, estimate_ratio)
    return measured


def _numbers(spec: MetricsSpec, table: pa.Table) -> dict[str, float]:
    values = dict(zip(table["metric"].to_pylist(), table["value"].to_pylist(), strict=True))
    noted = [metric.name for metric in shown_in("manifest")]
    return {name: values[name] for name in noted if name in values}


STAGE: Final[Stage[MetricsSpec]] = Stage(
    name="metrics",
    spec=MetricsSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=light,
    role=Role(
        phase=None,
        sides=("",),
        side=one_side,
        history=(),
        is_timed=False,
        has_drift=True,
        expected=unforeseen,
        related_parents={},
        function_seconds=no_function,
    ),
)
