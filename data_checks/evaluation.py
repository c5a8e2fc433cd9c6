"""Checks of an evaluation: N responses to every eval prompt.

No other prompt is answered, and every number is finite and in its range.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    finite,
    has_samples,
    is_finite,
    is_known,
    is_logp,
    is_sample_index,
    is_within_0_and_1,
    prompt_samples,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig

SIDES = ("policy", "reference")
REWARDS = tuple(f"reward_{side}" for side in SIDES)
LENGTHS = tuple(f"response_tokens_{side}" for side in SIDES)
ACCURACIES = tuple(f"accuracy_{side}" for side in SIDES)
SHARES = ("win_rate", "tie_share")
LOGPS = tuple(f"logp_{side}" for side in SIDES)


def rows(evaluation: Subject) -> pl.DataFrame:
    """One row per response of the policy, with its prompt's split."""
    numbers = (*REWARDS, *LOGPS, *SHARES)
    # Null stands for a missing gold answer; NaN would pass for one.
    accuracies = pl.col(*ACCURACIES).fill_nan(-1)
    frame = evaluation.rows(*GENERATION, *numbers, *LENGTHS, *ACCURACIES).select(
        *GENERATION, finite(*numbers), *LENGTHS, accuracies
    )
    return with_parent(
        frame, evaluation.parent("prompts").rows("prompt_id", "split"), ["prompt_id"]
    )


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
        is_sample_index(samples),
        *(is_finite(column) for column in SHARES),
        is_within_0_and_1("win_rate", "win rates"),
        is_within_0_and_1("tie_share", "tie shares"),
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
    """One row per eval prompt, with its number of different samples."""
    asked = evaluation.parent("prompts").rows("prompt_id", "split")
    return prompt_samples(asked.filter(pl.col("split") == "eval"), evaluation.rows(*GENERATION))


def prompts_expectations(evaluation: Subject, checks: ChecksConfig) -> list[Expectation]:
    return has_samples("the eval prompts", evaluation.setting("evaluation", "samples_per_prompt"))


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)
