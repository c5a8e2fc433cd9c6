"""Checks of selections: every response has a role, only chosen rows train.

The roles of a prompt are one of the choices of `selection.rows`.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    IS_WHOLE,
    Frame,
    Subject,
    finite,
    is_finite,
    is_known,
    is_within_0_and_1,
    no_row_lost,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.selections import TRAINED

ROLES = (*TRAINED, "unused", "below_margin")
# the roles of a prompt that train, by `selection.rows`
CHOSEN = {"all": "all", "best": "best", "best_worst": "best worst", "best_random": "best random"}


def rows(selections: Subject) -> pl.DataFrame:
    """One row per response: its role and label.

    `best_rank` is the rank of a row with the role best, else null.
    """
    parent = selections.parent("win_rates").rows(*GENERATION, "rank")
    frame = selections.rows(*GENERATION, "role", "label").select(
        *GENERATION, "role", finite("label")
    )
    return with_parent(frame, parent, GENERATION).with_columns(
        best_rank=pl.when(pl.col("role") == "best").then("rank")
    )


def rows_expectations(selections: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the win rates"),
        is_finite("label"),
        is_within_0_and_1("label", "labels"),
        gxe.ExpectColumnValuesToBeInSet(
            column="role", value_set=list(ROLES), description=f"a role is one of {', '.join(ROLES)}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="best_rank", value_set=[1], description="the best row has rank 1"
        ),
    ]


def prompts(selections: Subject) -> pl.DataFrame:
    """One row per complete prompt that trains: its roles that train, sorted.

    A prompt is complete if all of its rows are there, once each.
    """
    parent = selections.parent("win_rates").rows(*GENERATION)
    marked = parent.with_columns(samples=pl.len().over("prompt_id"))
    roles = pl.col("role")
    return (
        with_parent(selections.rows(*GENERATION, "role"), marked, GENERATION)
        .group_by("prompt_id", maintain_order=True)
        .agg(
            is_whole=IS_WHOLE,
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
    no_row_lost("win_rates"),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)
