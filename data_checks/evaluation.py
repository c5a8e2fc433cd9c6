"""Evaluation: N responses for every eval prompt and for no other, each with finite numbers in their
ranges.
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
    is_logp,
    is_present,
    known,
    present,
    unique,
)
from wind.config.checks import ChecksConfig

SIDES = ("policy", "reference")
REWARDS = tuple(f"reward_{side}" for side in SIDES)
LENGTHS = tuple(f"response_tokens_{side}" for side in SIDES)
ACCURACIES = tuple(f"accuracy_{side}" for side in SIDES)
SHARES = ("win_rate", "tie_share")
LOGPS = tuple(f"logp_{side}" for side in SIDES)


def rows(evaluation: Subject) -> pl.DataFrame:
    """One row per response of the policy, with the split of its prompt."""
    numbers = (*REWARDS, *LOGPS, *SHARES)
    # A missing gold answer is null; NaN is no accuracy, and must not pass for one.
    accuracies = pl.col(*ACCURACIES).fill_nan(-1)
    frame = evaluation.rows(*GENERATION, *numbers, *LENGTHS, *ACCURACIES).select(
        *GENERATION, finite(*numbers), *LENGTHS, accuracies
    )
    return known(frame, evaluation.parent("prompts").rows("prompt_id", "split"), ["prompt_id"])


def rows_expectations(evaluation: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples = evaluation.setting("evaluation", "samples_per_prompt")
    return [
        unique(GENERATION),
        is_known("the prompts"),
        gxe.ExpectColumnValuesToBeInSet(
            column="split",
            value_set=["eval"],
            description="no prompt of the train split is measured",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="sample_index",
            min_value=0,
            max_value=samples - 1,
            description=f"sample_index is 0 .. {samples - 1}",
        ),
        *(is_finite(column) for column in SHARES),
        gxe.ExpectColumnValuesToBeBetween(
            column="win_rate", min_value=0, max_value=1, description="win rates lie in [0, 1]"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="tie_share", min_value=0, max_value=1, description="tie shares lie in [0, 1]"
        ),
        *(is_finite(column) for column in REWARDS),
        *(expectation for column in LOGPS for expectation in is_logp(column)),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column, min_value=1, description="every response has a token"
            )
            for column in LENGTHS
        ),
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=column, value_set=[0, 1], description="an answer is right or wrong"
            )
            for column in ACCURACIES
        ),
    ]


def prompts(evaluation: Subject) -> pl.DataFrame:
    """One row per eval prompt: how many different samples it has, null where it was lost."""
    frame = evaluation.rows(*GENERATION)
    held_out = (
        evaluation.parent("prompts").rows("prompt_id", "split").filter(pl.col("split") == "eval")
    )
    samples = frame.group_by("prompt_id").agg(samples=pl.col("sample_index").n_unique())
    return present(held_out, frame, ["prompt_id"]).join(
        samples, on="prompt_id", how="left", maintain_order="left"
    )


def prompts_expectations(evaluation: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples = evaluation.setting("evaluation", "samples_per_prompt")
    return [
        is_present("the eval prompts"),
        gxe.ExpectColumnValuesToBeInSet(
            column="samples", value_set=[samples], description=f"every prompt has {samples} samples"
        ),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)
