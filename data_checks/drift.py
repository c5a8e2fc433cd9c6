"""Drift: how far a dataset moved since the previous iteration.

One row is one quantity of the `checks.drift` section, with its mean before and now. A mean moves in
pooled standard deviations (Cohen's d) and a distribution by its Kolmogorov-Smirnov distance, the
largest gap between the two cumulative distribution functions; both measure the size of the effect
and do not grow with the number of rows. Shares and the KL move by their difference. The formulas
are in `wind.quantities`, where `wind diff` takes them from as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column

from data_checks.base import Frame, Subject
from wind.config.checks import ChecksConfig
from wind.quantities import (
    IS_TRUNCATED,
    OF_POLICY,
    RESPONSE_TOKENS,
    TIE_SHARE,
    Floats,
    effect_size,
    floats,
    is_duplicate,
    ks_distance,
    mean_difference,
)

NAME = "shifts"
KEY = ("quantity", "previous", "current")
SCHEMA = {"quantity": pl.String, "previous": pl.Float64, "current": pl.Float64, "shift": pl.Float64}


@dataclass(frozen=True)
class Quantity:
    """A quantity of a dataset and the measure of its shift."""

    values: pl.Expr  # of the stored columns
    shift: Callable[[Floats, Floats], float]
    unit: str  # printed after a number

    def of(self, subject: Subject) -> Floats:
        """Return its values; in rollouts, those of the policy's own responses."""
        names = dict.fromkeys(self.values.meta.root_names())
        if "drawn_from" not in subject.columns():
            return floats(subject.rows(*names).select(value=self.values)["value"])
        rows = subject.rows(*names, "drawn_from").filter(OF_POLICY)
        return floats(rows.select(value=self.values)["value"])


def _mean(values: pl.Expr) -> Quantity:
    return Quantity(values, effect_size, " standard deviations")


def _distribution(values: pl.Expr) -> Quantity:
    return Quantity(values, ks_distance, " in Kolmogorov-Smirnov distance")


def _share(values: pl.Expr) -> Quantity:
    return Quantity(values, mean_difference, "")


def _of_responses(*group: str) -> dict[str, Quantity]:
    return {
        "mean_response_tokens": _mean(RESPONSE_TOKENS),
        "response_tokens_distribution": _distribution(RESPONSE_TOKENS),
        "truncated_share": _share(IS_TRUNCATED),
        "duplicate_share": _share(is_duplicate(*group)),
    }


KL: Final = pl.col("value").filter(pl.col("metric") == "kl_k1")
REWARDS: Final = {
    "mean_reward": _mean(pl.col("reward")),
    "reward_distribution": _distribution(pl.col("reward")),
}
# By dataset; the names are those of the config.
QUANTITIES: Final[Mapping[str, Mapping[str, Quantity]]] = {
    "generations": _of_responses("prompt_id"),
    "rewards": REWARDS,
    "win_rates": {"tie_share": _share(TIE_SHARE)},
    "evaluation": {"tie_share": _share(pl.col("tie_share"))},
    "rollouts": {**_of_responses("step", "prompt_id"), **REWARDS},
    "metrics": {"kl": Quantity(KL, mean_difference, " nats")},
}


def shifts(subject: Subject, previous: Subject) -> pl.DataFrame:
    """Tabulate each quantity of `subject` with its means and its shift.

    A quantity without values in one of the two datasets has no row.
    """
    rows = []
    for name, quantity in QUANTITIES.get(subject.handle.name, {}).items():
        before, now = quantity.of(previous), quantity.of(subject)
        if len(before) and len(now):
            rows.append(
                (name, float(before.mean()), float(now.mean()), quantity.shift(before, now))
            )
    return pl.DataFrame(rows, SCHEMA, orient="row")


def frame(moved: pl.DataFrame) -> Frame:
    """Build the frame that judges `shifts` by the bounds of the config.

    A shift beyond `fail` fails the check; one beyond `warn` is a warning.
    """
    return Frame(
        NAME,
        KEY,
        lambda subject: moved,
        lambda subject, checks: _expectations(moved, subject, checks),
    )


def _expectations(moved: pl.DataFrame, subject: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        _within(name, QUANTITIES[subject.handle.name][name].unit, bound, severity)
        for name in moved["quantity"]
        for severity, bound in (
            (FailureSeverity.CRITICAL, getattr(checks.drift, name).fail),
            (FailureSeverity.WARNING, getattr(checks.drift, name).warn),
        )
        if bound is not None
    ]


def _within(name: str, unit: str, bound: float, severity: FailureSeverity) -> Expectation:
    return gxe.ExpectColumnValuesToBeBetween(
        column="shift",
        min_value=-bound,
        max_value=bound,
        row_condition=Column("quantity") == name,
        severity=severity,
        description=f"{name} moved by at most {bound:g}{unit} since the iteration before",
    )


def finding(noun: str, row: Mapping[str, Any], shift: Any, bound: float) -> str:
    """Describe a row of `shifts` that moved too far."""
    unit = QUANTITIES[noun][row["quantity"]].unit
    return (
        f"{row['quantity']} moved by {_number(shift)}{unit}, more than {bound:g}, "
        "since the iteration before: "
        f"from {_number(row['previous'])} to {_number(row['current'])}"
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
