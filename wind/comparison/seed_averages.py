"""Metrics and costs of each recipe and setting, averaged over seeds.

A recipe under one setting is run with several seeds; the seed decides the split of the prompts, the
samples and the order of training. Its curve is the mean over seeds with the Student t interval
between them. That interval says where the mean over other seeds would fall, which an interval over
the prompts of one run does not. A single seed has no interval.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import polars as pl

from wind.errors import InputError
from wind.records import Record

LEVEL = 0.95
CELL = ("recipe", "setting")


class Estimate(Record):
    """A mean over seeds, with its 95% interval.

    A single seed has no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None


class SeedAverage(Record):
    """One recipe under one setting, averaged over its seeds."""

    recipe: str
    setting: str
    seeds: tuple[int, ...]
    # by metric, one entry per iteration from 0 on; None where it was not measured
    curves: dict[str, tuple[Estimate | None, ...]]
    # by cost, what had been spent when the win rate reached the target; None if it never did
    to_target: dict[str, float | None] = {}

    def name(self) -> str:
        """Return the recipe and its setting, as tables show them."""
        return f"{self.recipe} {self.setting}".strip()

    def last(self, metric: str) -> Estimate | None:
        """Return `metric` after the last iteration.

        None if it was not measured.
        """
        return self.curves.get(metric, (None,))[-1]


def seed_averages(numbers: pl.DataFrame, target: float, costs: Sequence[str]) -> list[SeedAverage]:
    """Average `numbers` over seeds, for each recipe and setting.

    `numbers` has the columns of a comparison, and the result the order of its first rows.
    `to_target` has those of `costs`, which are cumulative metrics, that `numbers` has; see
    `spent_at`.
    """
    made = []
    for (recipe, setting), rows in numbers.group_by(CELL, maintain_order=True):
        last = int(rows.select(pl.col("iteration").max()).item())
        curves = {
            str(metric): _curve(of_metric, last)
            for (metric,), of_metric in rows.sort("metric").group_by("metric")
        }
        win_rates = _measured(curves["win_rate"])
        reached = {
            cost: spent_at(win_rates, _measured(curves[cost]), target)
            for cost in costs
            if cost in curves
        }
        made.append(
            SeedAverage(
                recipe=str(recipe),
                setting=str(setting),
                seeds=tuple(rows["seed"].unique().sort().to_list()),
                curves=dict(sorted(curves.items())),
                to_target=reached,
            )
        )
    return made


def mean_interval(values: Sequence[float]) -> Estimate:
    """Estimate the mean of `values`, one per seed.

    The interval is mean -+ t s / sqrt(n), with Student's t of n - 1 degrees of freedom and the
    sample standard deviation s.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value=mean)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def t_quantile(degrees: int) -> float:
    """Return the two-sided 95% quantile of Student's t.

    It is the t with P(|T| < t) = 95% for `degrees` >= 1 degrees of freedom.
    """
    from scipy import stats  # most of a second to import

    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def spent_at(win_rates: Sequence[float], spent: Sequence[float], target: float) -> float | None:
    """Return what had been spent when the win rate first reached `target`.

    Entry t of both sequences holds after iteration t; entry 0 is the policy that the run starts
    from. Between iterations the curve is a straight line. None if the target was never reached.
    """
    if win_rates[0] >= target:
        return spent[0]
    for t in range(1, len(win_rates)):
        if win_rates[t] >= target:
            share = (target - win_rates[t - 1]) / (win_rates[t] - win_rates[t - 1])
            return spent[t - 1] + share * (spent[t] - spent[t - 1])
    return None


def best_setting(win_rates: Mapping[str, float]) -> str:
    """Return the setting with the highest win rate, the first of equals.

    Raises InputError if there is no setting.
    """
    if not win_rates:
        raise InputError("no setting was tried: there is none to choose")
    return max(win_rates, key=lambda setting: win_rates[setting])


def _curve(rows: pl.DataFrame, last: int) -> tuple[Estimate | None, ...]:
    by_iteration = {
        int(iteration): values
        for iteration, values in rows.group_by("iteration").agg("value").rows()
    }
    return tuple(
        mean_interval(by_iteration[t]) if t in by_iteration else None for t in range(last + 1)
    )


def _measured(curve: Sequence[Estimate | None]) -> list[float]:
    return [entry.value for entry in curve if entry is not None]
