"""Checks of rewards: one finite reward for every generation.

On the train split the rewards must not all be equal: there would be nothing to learn. The
preferences of a pairwise reward must also satisfy the identities of a preference matrix: one
preference in [0, 1] for each other response, 1/2 for itself, P_ij + P_ji = 1, and the reward is
their mean. A row is judged by them only if it has as many preferences as there are responses to
compare it with, so a row that is too long is one fault and not four.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from data_checks.base import (
    GENERATION,
    TOLERANCE,
    Frame,
    Subject,
    finite,
    is_finite,
    is_known,
    no_row_lost,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.rewards.columns import UNPARSED_SHARE


def rows(rewards: Subject) -> pl.DataFrame:
    """One row per response: its reward, components and preference identities."""
    frame = rewards.rows(*rewards.columns()).select(*GENERATION, finite(*numbers_of(rewards)))
    if is_pairwise(rewards):
        frame = frame.join(identities(rewards), on=GENERATION, how="left", maintain_order="left")
    return with_parent(frame, rewards.parent("generations").rows(*GENERATION), GENERATION)


def rows_expectations(rewards: Subject, checks: ChecksConfig) -> list[Expectation]:
    differs = gxe.ExpectColumnUniqueValueCountToBeBetween(
        column="reward",
        min_value=2,
        description="rewards differ: with a single value there is nothing to learn",
    )
    is_train = rewards.parent("generations").setting("split") == "train"
    return [
        unique(GENERATION),
        is_known("the generations"),
        *(is_finite(column) for column in numbers_of(rewards)),
        *[differs] * is_train,
        *(identities_expectations(rewards) if is_pairwise(rewards) else ()),
        *(verdicts_expectations(checks) if UNPARSED_SHARE in rewards.columns() else ()),
    ]


def verdicts_expectations(checks: ChecksConfig) -> list[Expectation]:
    most = checks.max_unparsed_share
    return [
        gxe.ExpectColumnMeanToBeBetween(
            column=UNPARSED_SHARE,
            max_value=most,
            description=f"at most {most:.3g} of the comparisons have no verdict to be parsed",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column=UNPARSED_SHARE,
            max_value=0,
            severity=FailureSeverity.WARNING,
            description="every comparison has a verdict that could be parsed",
        ),
    ]


def identities(rewards: Subject) -> pl.DataFrame:
    """Measure by how much each identity of a pairwise reward fails.

    There is one row per response.
    The identities of a row with the wrong number of preferences are null.
    """
    others = rewards.parent(compared_with(rewards)).rows(*GENERATION).unique().sort(GENERATION)
    places = others.with_columns(
        place=pl.int_range(pl.len()).over("prompt_id"), others=pl.len().over("prompt_id")
    )
    frame = rewards.rows(*GENERATION, "reward", "preferences").unique(
        GENERATION, maintain_order=True
    )
    if is_among_siblings(rewards):
        frame = frame.join(places, on=GENERATION, how="left", maintain_order="left")
    else:
        counts = places.select("prompt_id", "others").unique()
        frame = frame.join(counts, on="prompt_id", how="left", maintain_order="left").with_columns(
            place=pl.lit(None, pl.Int64)
        )
    entries = (
        frame.filter(pl.col("preferences").list.len() == pl.col("others"))
        .select(
            *GENERATION, "reward", "place", "preferences", other=pl.int_ranges(pl.col("others"))
        )
        .explode("preferences", "other")
        .with_columns(preference=finite("preferences"))
    )
    mirrored = entries.select("prompt_id", place="other", other="place", mirrored="preference")
    is_other = pl.col("place").is_null() | (pl.col("place") != pl.col("other"))
    preference = pl.col("preference")
    judged = (
        entries.join(mirrored, on=["prompt_id", "place", "other"], how="left")
        .group_by(GENERATION)
        .agg(
            unknown=preference.null_count(),
            lowest=preference.min(),
            highest=preference.max(),
            itself=preference.filter(pl.col("place") == pl.col("other")).first(),
            asymmetry=(preference + pl.col("mirrored") - 1).abs().max(),
            reward_gap=(pl.col("reward").first() - preference.filter(is_other).mean()).abs(),
        )
    )
    surplus = frame.select(
        *GENERATION, surplus=pl.col("preferences").list.len().cast(pl.Int64) - pl.col("others")
    )
    return surplus.join(judged, on=GENERATION, how="left", maintain_order="left")


def identities_expectations(rewards: Subject) -> list[Expectation]:
    bounds: list[tuple[str, float | None, float | None, str]] = [
        (
            "surplus",
            0,
            0,
            "a row has one preference for each of its prompt's " + compared_with(rewards),
        ),
        ("unknown", 0, 0, "preferences are finite numbers"),
        ("lowest", 0, None, "preferences are at least 0"),
        ("highest", None, 1, "preferences are at most 1"),
        ("itself", 0.5, 0.5, "a response beats itself half the time"),
        ("asymmetry", 0, TOLERANCE, "P_ij + P_ji = 1"),
        ("reward_gap", 0, TOLERANCE, "the reward is the mean preference over the others"),
    ]
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, description=description
        )
        for column, low, high, description in bounds
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    no_row_lost("generations"),
)


def numbers_of(rewards: Subject) -> list[str]:
    """Return `reward` and the names of its components."""
    return [column for column in rewards.columns() if column not in (*GENERATION, "preferences")]


def is_pairwise(rewards: Subject) -> bool:
    """Return true for the rewards of a pairwise model."""
    return "preferences" in rewards.columns()


def is_among_siblings(rewards: Subject) -> bool:
    """Return true if a pairwise reward compared the responses with each other.

    Otherwise it compared them with another policy's.
    """
    return "opponents" not in rewards.manifest.parents


def compared_with(rewards: Subject) -> str:
    """Return the parent whose responses a pairwise reward compared these with."""
    return "generations" if is_among_siblings(rewards) else "opponents"
