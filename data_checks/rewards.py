"""Rewards: one finite reward for every generation, and on the train split more than one value: something to learn from."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import GENERATION, Frame, Subject, finite, is_finite, is_known, is_present, known, present, unique
from wind.config import ChecksConfig


def rows(rewards: Subject) -> pl.DataFrame:
    """One row per response: its reward and the components of the reward."""
    frame = rewards.rows(*rewards.columns()).select(*GENERATION, finite(*numbers_of(rewards)))
    return known(frame, rewards.parent("generations").rows(*GENERATION), GENERATION)


def rows_expectations(rewards: Subject, checks: ChecksConfig) -> list[Expectation]:
    differs = gxe.ExpectColumnUniqueValueCountToBeBetween(
        column="reward", min_value=2, description="rewards differ: with a single value there is nothing to learn"
    )
    is_train = rewards.parent("generations").setting("split") == "train"
    return [
        unique(GENERATION),
        is_known("the generations"),
        *(is_finite(column) for column in numbers_of(rewards)),
        *[differs] * is_train,
    ]


def generations(rewards: Subject) -> pl.DataFrame:
    """One row per generation: whether it has a reward."""
    return present(rewards.parent("generations").rows(*GENERATION), rewards.rows(*GENERATION), GENERATION)


def generations_expectations(rewards: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [is_present("the generations")]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("generations", GENERATION, generations, generations_expectations),
)


def numbers_of(rewards: Subject) -> list[str]:
    """`reward` and the names of its components."""
    return [column for column in rewards.columns() if column not in GENERATION]
