"""Selections: every response has a role, a prompt's roles are one of the choices, and only chosen
rows train.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    finite,
    is_finite,
    is_known,
    is_present,
    known,
    present,
    unique,
)
from wind.config.checks import ChecksConfig
from wind.selections import TRAINED

ROLES = (*TRAINED, "unused", "below_margin")
# by choice, a prompt's roles
CHOSEN = {"all": "all", "best": "best", "best_worst": "best worst", "best_random": "best random"}


def rows(selections: Subject) -> pl.DataFrame:
    """One row per response: its role and label, and those of its win rate."""
    parent = selections.parent("win_rates").rows(*GENERATION, "rank")
    frame = selections.rows(*GENERATION, "role", "label").select(
        *GENERATION, "role", finite("label")
    )
    return known(frame, parent, GENERATION).with_columns(
        best_rank=pl.when(pl.col("role") == "best").then("rank")
    )


def rows_expectations(selections: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the win rates"),
        is_finite("label"),
        gxe.ExpectColumnValuesToBeBetween(
            column="label", min_value=0, max_value=1, description="labels lie in [0, 1]"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="role", value_set=list(ROLES), description=f"a role is one of {', '.join(ROLES)}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="best_rank", value_set=[1], description="the best row has rank 1"
        ),
    ]


def win_rates(selections: Subject) -> pl.DataFrame:
    """One row per win rate: whether it has a role."""
    return present(
        selections.parent("win_rates").rows(*GENERATION), selections.rows(*GENERATION), GENERATION
    )


def win_rates_expectations(selections: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [is_present("the win rates")]


def prompts(selections: Subject) -> pl.DataFrame:
    """One row per prompt that trains and whose rows are all there, once each: the roles that train,
    in order.
    """
    parent = selections.parent("win_rates").rows(*GENERATION)
    marked = parent.with_columns(samples=pl.len().over("prompt_id"))
    roles = pl.col("role")
    return (
        known(selections.rows(*GENERATION, "role"), marked, GENERATION)
        .group_by("prompt_id", maintain_order=True)
        .agg(
            is_whole=(pl.col("sample_index").n_unique() == pl.len())
            & (pl.len() == pl.col("samples").max()),
            is_close=(roles == "below_margin").all(),
            roles=roles.filter(roles.is_in(TRAINED)).sort().str.join(" "),
            is_partly_close=(roles == "below_margin").any(),
            is_all=(roles == "all").all(),
        )
        .filter(pl.col("is_whole") & ~pl.col("is_close"))
        .with_columns(roles=pl.when("is_all").then(pl.lit("all")).otherwise("roles"))
    )


def prompts_expectations(selections: Subject, checks: ChecksConfig) -> list[Expectation]:
    chosen = CHOSEN[selections.setting("selection", "rows")]
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="roles", value_set=[chosen], description=f"a prompt trains on its {chosen}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_partly_close",
            value_set=[False],
            description="a prompt is below the margin as a whole",
        ),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("win_rates", GENERATION, win_rates, win_rates_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)
