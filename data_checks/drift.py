"""Drift: by how much a dataset moved since the iteration before, in rewards, lengths, shares and
KL.

One row is one quantity of the config's section `checks.drift`, before and now. A mean moves in
standard deviations (Cohen's d: pooled over both datasets), a distribution by the Kolmogorov-Smirnov
distance, the largest gap between the two cumulative shares; both have the size of the effect in
their value, whatever the number of rows. Shares and the KL move by their difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import great_expectations.expectations as gxe
import numpy as np
import polars as pl
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column
from numpy.typing import NDArray

from data_checks.base import Frame, Subject
from wind.config.checks import ChecksConfig

Values = NDArray[np.float64]

NAME = "shifts"
KEY = ("quantity", "previous", "current")
SCHEMA = {"quantity": pl.String, "previous": pl.Float64, "current": pl.Float64, "shift": pl.Float64}


@dataclass(frozen=True)
class Quantity:
    """A quantity of a dataset: the values it is the mean of, and what its move is measured by."""

    values: Callable[[Subject], pl.Series]
    shift: Callable[[Values, Values], float]
    unit: str  # after a number


def standardised(previous: Values, current: Values) -> float:
    """The difference of the means in pooled standard deviations; infinite where two constants
    differ.
    """
    difference = float(current.mean() - previous.mean())
    freedom = len(previous) + len(current) - 2
    squares = ((previous - previous.mean()) ** 2).sum() + ((current - current.mean()) ** 2).sum()
    deviation = float(np.sqrt(squares / freedom)) if freedom > 0 else 0.0
    if deviation == 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
    return difference / deviation


def distance(previous: Values, current: Values) -> float:
    """The Kolmogorov-Smirnov distance: the largest gap between the two cumulative distributions, in
    [0, 1].
    """
    places = np.union1d(previous, current)
    shares = [
        np.searchsorted(np.sort(values), places, side="right") / len(values)
        for values in (previous, current)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def difference(previous: Values, current: Values) -> float:
    """The difference of the means."""
    return float(current.mean() - previous.mean())


def reward(subject: Subject) -> pl.Series:
    return policy_rows(subject, "reward")["reward"]


def response_tokens(subject: Subject) -> pl.Series:
    return policy_rows(subject, "response_token_ids")["response_token_ids"].list.len()


def is_truncated(subject: Subject) -> pl.Series:
    return policy_rows(subject, "finish_reason")["finish_reason"] == "length"


def is_duplicate(subject: Subject) -> pl.Series:
    group = [name for name in ("step", "prompt_id") if name in subject.columns()]
    rows = policy_rows(subject, *group, "response")
    return rows.select(duplicate=~pl.struct(*group, "response").is_first_distinct())["duplicate"]


def tie_share(subject: Subject) -> pl.Series:
    if "tie_share" in subject.columns():
        return subject.rows("tie_share")["tie_share"]
    compared = pl.sum_horizontal("wins", "ties", "losses")
    return subject.rows("wins", "ties", "losses").select(share=pl.col("ties") / compared)["share"]


def kl(subject: Subject) -> pl.Series:
    return subject.rows("metric", "value").filter(pl.col("metric") == "kl_k1")["value"]


def policy_rows(subject: Subject, *columns: str) -> pl.DataFrame:
    """Those columns, of the policy's own responses where some are its anchor's."""
    if "drawn_from" not in subject.columns():
        return subject.rows(*columns)
    return subject.rows(*columns, "drawn_from").filter(pl.col("drawn_from") == "policy")


RESPONSES: Final = {
    "mean_response_tokens": Quantity(response_tokens, standardised, " standard deviations"),
    "response_tokens_distribution": Quantity(
        response_tokens, distance, " in Kolmogorov-Smirnov distance"
    ),
    "truncated_share": Quantity(is_truncated, difference, ""),
    "duplicate_share": Quantity(is_duplicate, difference, ""),
}
REWARDS: Final = {
    "mean_reward": Quantity(reward, standardised, " standard deviations"),
    "reward_distribution": Quantity(reward, distance, " in Kolmogorov-Smirnov distance"),
}
TIES: Final = {"tie_share": Quantity(tie_share, difference, "")}
QUANTITIES: Final[Mapping[str, Mapping[str, Quantity]]] = {  # by dataset; names as in the config
    "generations": RESPONSES,
    "rewards": REWARDS,
    "win_rates": TIES,
    "evaluation": TIES,
    "rollouts": {**RESPONSES, **REWARDS},
    "metrics": {"kl": Quantity(kl, difference, " nats")},
}


def shifts(subject: Subject, previous: Subject) -> pl.DataFrame:
    """One row per quantity: its mean before and now, and its shift; without those that one of the
    two has no values of.
    """
    rows = []
    for name, quantity in QUANTITIES.get(subject.handle.name, {}).items():
        before, now = (
            quantity.values(each).drop_nulls().cast(pl.Float64).to_numpy()
            for each in (previous, subject)
        )
        if len(before) and len(now):
            rows.append(
                (name, float(before.mean()), float(now.mean()), quantity.shift(before, now))
            )
    return pl.DataFrame(rows, SCHEMA, orient="row")


def frame(moved: pl.DataFrame) -> Frame:
    """What must hold of `shifts`: nothing further than `fail`, and nothing further than `warn`
    without a warning.
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
    """What is said of a row of `shifts` that moved too far."""
    unit = QUANTITIES[noun][row["quantity"]].unit
    moved = f"{row['quantity']} moved by {_number(shift)}{unit}, more than {bound:g}, since the iteration before"
    return f"{moved}: from {_number(row['previous'])} to {_number(row['current'])}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
