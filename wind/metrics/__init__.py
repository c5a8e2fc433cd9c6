"""The metrics of one iteration, each with its 95% bootstrap interval.

One row is one number. Intervals are percentile bootstraps that resample *prompts*, not responses:
the responses to a prompt are not independent, and treating them as if they were would make every
interval too short. What an iteration does not have (gold answers, a training) gives no row. The
training loss, and numbers over a single prompt, have no interval.

Where the health of the responses was examined, its columns, quantiles of rewards and lengths, and
the reliability of the training win rates are measured, too. A quantile is the smallest value that
at least its share of the rows do not exceed.

Formulas are in `wind.metrics.values`; how metrics are titled and where they are shown is in
`wind.metric_table`. A new metric needs a row there.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from wind.config.evaluation import EvaluationConfig
from wind.metric_table import shown_in
from wind.metrics.values import (
    benchmark_metrics,
    distinct_n,
    distinct_responses,
    health_metrics,
    last_loss,
    match_metrics,
    reliability,
    row_metrics,
    tied_prompts,
)
from wind.quantities import TIE_SHARE
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
