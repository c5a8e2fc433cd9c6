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

How metrics are titled and where they are shown is in `wind.metric_table`: a new one needs a row
there and its formula here.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError
from wind.fingerprints import digest
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
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import Column, Declaration

LEVEL = 0.95
# Sums of e^600 still fit a float64: one absurd response must not make a whole metric infinite.
MAX_EXPONENT = 600.0
# prompts times resamples drawn at once: 32 MiB of indices
BLOCK = 2**22

Floats = npt.NDArray[np.float64]


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
    benchmarks: Dataset | None = None
    evaluation_config: EvaluationConfig
    seed: int
    iteration: int  # from 1; 0 is the policy that the run starts from


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
        "kl_k3": LOG_RATIO.map_batches(
            lambda log_ratios: pl.Series(kl_k3(log_ratios.to_numpy())), return_dtype=pl.Float64
        ),
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


def estimate(
    values: pl.DataFrame, samples: int, generator: np.random.Generator
) -> tuple[float, float | None, float | None]:
    """Estimate the mean of `values` and its 95% bootstrap interval.

    Returns the mean and the two ends of the interval. `values` has the columns prompt_id and value;
    the percentile bootstrap draws `samples` resamples of prompts. A resample's mean is the ratio of
    its summed values to its summed counts, so prompts with more rows weigh more, as in the mean
    itself. The interval is widened if need be to hold the mean, which percentiles of a skewed or
    constant sample can miss. Fewer than two prompts have no interval: both ends are None.
    """
    prompts = (
        values.group_by("prompt_id")
        .agg(sum=pl.col("value").sum(), count=pl.len())
        .sort("prompt_id")
    )
    sums_P, counts_P = prompts["sum"].to_numpy(), prompts["count"].to_numpy()
    mean = float(sums_P.sum() / counts_P.sum())
    if len(prompts) < 2:
        return mean, None, None
    means = np.empty(samples)
    block = max(1, BLOCK // len(prompts))
    for start in range(0, samples, block):
        chosen_B_P = generator.integers(
            len(prompts), size=(min(block, samples - start), len(prompts))
        )
        means[start : start + block] = sums_P[chosen_B_P].sum(axis=1) / counts_P[chosen_B_P].sum(
            axis=1
        )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return mean, min(low, mean), max(high, mean)


def generator_for(seed: int, iteration: int, metric: str) -> np.random.Generator:
    """Return the random generator of one metric's interval.

    Each metric has its own, so that adding a metric changes no other interval.
    """
    return np.random.default_rng(int(digest([seed, iteration, metric]), 16))


def _shards(spec: MetricsSpec, store: Store) -> int:
    return 1


def _compute(
    spec: MetricsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    values = row_metrics(store.frame(spec.evaluation))
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
    rows = []
    for name, frame in values.items():
        # without gold answers there is no accuracy
        if len(frame):
            generator = generator_for(spec.seed, spec.iteration, name)
            rows.append(
                (
                    name,
                    *estimate(frame, spec.evaluation_config.bootstrap_samples, generator),
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
