"""Checks of the bandit study: ranges, complete runs, the proven rate.

Exact WIND must converge at least as fast as is proved.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, unique
from wind.config.checks import ChecksConfig
from wind.store.schemas import KEYS

KEY = KEYS["bandit"]
RUN = ("samples", "algorithm", "instance", "prompts", "seed", "metric")
STEP = (*RUN[:-1], "iteration")
ROUNDING = 1e-12  # nats: the rounding error of a KL near zero


def rows(bandit: Subject) -> pl.DataFrame:
    """One row per number.

    `share` is its value if it is a win rate, else null.
    """
    share = pl.when(pl.col("metric") == "win_rate").then(pl.col("value"))
    return bandit.rows(*KEY, "value").select(*KEY, finite("value")).with_columns(share=share)


def rows_expectations(bandit: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        is_finite("value"),
        gxe.ExpectColumnValuesToBeBetween(
            column="value", min_value=0, description="no divergence, share or count is negative"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="share", max_value=1, description="win rates are at most 1"
        ),
    ]


def runs(bandit: Subject) -> pl.DataFrame:
    """One row per run and metric.

    `is_whole` is true if its iterations are 0, 1, ... to the last.
    """
    iteration = pl.col("iteration")
    whole = (iteration.min() == 0) & (iteration.n_unique() == iteration.max() + 1)
    return bandit.rows(*RUN, "iteration").group_by(*RUN).agg(is_whole=whole).sort(*RUN)


def runs_expectations(bandit: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="is_whole",
            value_set=[True],
            description="iterations go from 0 to the last, none left out",
        )
    ]


def steps(bandit: Subject) -> pl.DataFrame:
    """One row per exact iteration with a proven factor.

    `excess` is the KL(pi* || pi) minus its proven bound, which is the factor times the KL of the
    iteration before.
    """
    # imports torch, which takes seconds and which no other suite needs
    from wind.bandit.algorithms import proven_factor

    beta, eta = bandit.setting("bandit", "beta"), bandit.setting("bandit", "eta")
    frame = (
        bandit.rows(*RUN, "iteration", "value")
        .filter((pl.col("samples") == 0) & (pl.col("metric") == "kl"))
        .sort(*STEP)
    )
    factors = {name: proven_factor(name, beta, eta) for name in frame["algorithm"].unique()}
    factor = pl.col("algorithm").replace_strict(factors, return_dtype=pl.Float64)
    before = pl.col("value").shift(1).over(*RUN)
    return frame.select(*STEP, excess=pl.col("value") - factor * before).drop_nulls()


def steps_expectations(bandit: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="excess",
            max_value=ROUNDING,
            description="exact WIND contracts by 1 / (1 + beta eta) at least",
        )
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("runs", RUN, runs, runs_expectations),
    Frame("steps", STEP, steps, steps_expectations),
)
