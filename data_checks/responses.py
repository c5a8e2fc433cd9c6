"""Checks of stored responses: every held-out prompt has one, and no other prompt has."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    is_known,
    is_present,
    prompt_samples,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig


def rows(responses: Subject) -> pl.DataFrame:
    """One row per response, with its prompt's split."""
    frame = responses.rows(*GENERATION, "response").with_columns(
        is_empty=pl.col("response").str.strip_chars() == ""
    )
    asked = responses.parent("prompts").rows("prompt_id", "split")
    return with_parent(frame.drop("response"), asked, ["prompt_id"])


def rows_expectations(responses: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the prompts"),
        gxe.ExpectColumnValuesToBeInSet(
            column="split", value_set=["eval"], description="only held-out prompts are answered"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_empty",
            value_set=[False],
            mostly=1 - checks.max_empty_share,
            description=f"at most {checks.max_empty_share:.1%} of responses are empty",
        ),
    ]


def prompts(responses: Subject) -> pl.DataFrame:
    """One row per eval prompt, with its number of different samples."""
    asked = responses.parent("prompts").rows("prompt_id", "split")
    return prompt_samples(asked.filter(pl.col("split") == "eval"), responses.rows(*GENERATION))


def prompts_expectations(responses: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [is_present("the eval prompts")]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)
