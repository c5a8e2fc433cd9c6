"""Standings: what the runs of a comparison amount to, once seeds are averaged.

A recipe under one setting is run with several seeds; the seed decides the split of the prompts, the
samples and the order of training. Its curve is the mean over seeds with the Student t interval
between them: it says where another seed would fall on average, which an interval over the prompts
of one run does not. One seed has no interval.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import polars as pl

from wind.errors import InputError
from wind.records import Record

LEVEL = 0.95
CELL = ("recipe", "setting")
HALVINGS = 60


class Estimate(Record):
    """A mean over seeds, and its 95% interval where there are two or more."""

    value: float
    low: float | None = None
    high: float | None = None


class Standing(Record):
    """One recipe under one setting."""

    recipe: str
    setting: str
    seeds: tuple[int, ...]
    # by metric, one entry per iteration from 0 on; None: not measured there
    curves: dict[str, tuple[Estimate | None, ...]]
    # what had been spent when the win rate reached the target; None: it did not
    to_target: dict[str, float | None] = {}

    def name(self) -> str:
        """What tells it from others in a table."""
        return f"{self.recipe} {self.setting}".strip()

    def last(self, metric: str) -> Estimate | None:
        """The metric after the last iteration, None if it is not measured."""
        return self.curves.get(metric, (None,))[-1]


def standings(numbers: pl.DataFrame, target: float, costs: Sequence[str]) -> list[Standing]:
    """One standing per recipe and setting of `numbers` (the columns of a comparison), in order of
    their first rows.

    `costs` are the cumulative metrics of which `to_target` is told, see `spent_at`.
    """
    made = []
    for (recipe, setting), rows in numbers.group_by(CELL, maintain_order=True):
        last = int(rows.select(pl.col("iteration").max()).item())
        curves = {
            str(metric): _curve(of_metric, last)
            for (metric,), of_metric in rows.sort("metric").group_by("metric")
        }
        win_rates = [entry.value for entry in curves["win_rate"] if entry is not None]
        reached = {
            cost: spent_at(
                win_rates, [entry.value for entry in curves[cost] if entry is not None], target
            )
            for cost in costs
            if cost in curves
        }
        seeds = tuple(rows["seed"].unique().sort().to_list())
        made.append(
            Standing(
                recipe=str(recipe),
                setting=str(setting),
                seeds=seeds,
                curves=dict(sorted(curves.items())),
                to_target=reached,
            )
        )
    return made


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of `values`, one per seed, -+ t s / sqrt(n) with Student's t of n - 1 degrees of
    freedom.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value=mean)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def t_quantile(degrees: int) -> float:
    """The t that Student's distribution with `degrees` >= 1 degrees of freedom stays within, on
    both sides, 95% of the time.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, degrees) < LEVEL else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def spent_at(win_rates: Sequence[float], spent: Sequence[float], target: float) -> float | None:
    """What had been spent when the win rate first reached `target`, by straight lines between
    iterations; None if it never did.

    Entry t of both is what holds after iteration t; entry 0 is the policy that the run began with.
    """
    if win_rates[0] >= target:
        return spent[0]
    for t in range(1, len(win_rates)):
        if win_rates[t] >= target:
            share = (target - win_rates[t - 1]) / (win_rates[t] - win_rates[t - 1])
            return spent[t - 1] + share * (spent[t] - spent[t - 1])
    return None


def best_setting(win_rates: Mapping[str, float]) -> str:
    """The setting of the highest win rate; of equal ones the first. Raises InputError if there is
    none.
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


def _t_within(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle)): the finite sums of Abramowitz and Stegun, 26.7.3 and
    26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    first = 2 if degrees % 2 == 0 else 3
    term = total = 1.0 if degrees % 2 == 0 else cosine
    for j in range(first, degrees, 2):
        term *= cosine**2 * (j - 1) / j
        total += term
    if degrees % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
