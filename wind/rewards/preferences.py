"""Preferences between the responses to a prompt, of whatever origin."""

import math
from collections.abc import Sequence

from wind.errors import InputError
from wind.rewards.functions import Responses


def by_prompt(rows: Responses) -> dict[str, list[int]]:
    """Return the row numbers of each prompt, ordered by sample_index."""
    indexes: dict[str, list[int]] = {}
    for row in sorted(range(len(rows)), key=lambda row: rows.sample_indexes[row]):
        indexes.setdefault(rows.prompt_ids[row], []).append(row)
    return indexes


def refuse_alone(rows: Responses, opponents: Responses | None) -> None:
    """Raise InputError for a response that has nothing to be compared with.

    It is compared with its siblings, or with `opponents` if given.
    """
    theirs = by_prompt(rows if opponents is None else opponents)
    for prompt_id, indexes in by_prompt(rows).items():
        if len(theirs.get(prompt_id, ())) <= (opponents is None):
            raise InputError(
                f"{rows.where(indexes[0])} has no other response to be compared with: "
                "sample two or more"
            )


def mean_preference(preferences_M: Sequence[float], *, is_self: bool) -> float:
    """Return the mean preference over the other responses.

    `is_self` says that one entry, 1/2, is the response itself, which is left out. The sum is exact
    before it is rounded, so that the order of the others does not matter.
    """
    return math.fsum([*preferences_M, -0.5] if is_self else preferences_M) / (
        len(preferences_M) - is_self
    )
