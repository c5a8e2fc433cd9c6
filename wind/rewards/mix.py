"""How a mix combines its rewards.

`sum` is the weighted sum, `min` the least of the weighted rewards, so that none can make up for
another. `standardized` first gives each reward mean 0 and standard deviation 1 among the responses
to a prompt, and then sums: a weight means the same whatever the scale of its reward, and a prompt
on which a reward says little by little differences counts as much as any other. It is done per
prompt, never over a shard or all prompts, because a reward must not depend on how prompts are
divided into shards, or on which of them were scored before.

So a standardized mix is relative to the responses it is given with, and the mixes of two policies'
responses cannot be compared if each was standardized among its own: both would have the mean 0.
Against opponents, all responses of both sides to a prompt are standardized together, which treats
both alike. What that says, who beats whom, are the rows' preferences over the opponents.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wind.errors import InputError
from wind.rewards.functions import Floats, Responses, refuse_non_finite
from wind.rewards.kinds.base import Judge
from wind.stages import Progress

# to which standardized sums are rounded: equal ones, of other terms, may differ by rounding
DECIMALS = 12


def combined(
    rewards: Mapping[str, Floats], combine: str, weights: Mapping[str, float], groups: Sequence[str]
) -> Floats:
    """Return one reward [B] for the `rewards` [B] by name, as `combine` says.

    `groups` [B] are the prompts. A reward without a weight has the weight 1. The order of rewards
    and of rows does not matter: sums are exact before they are rounded.
    """
    weights = {name: weights.get(name, 1.0) for name in sorted(rewards)}
    if combine == "standardized":
        rewards = {name: standardized(rewards[name], groups) for name in weights}
    terms_R_B = np.array([weight * rewards[name] for name, weight in weights.items()])
    if combine == "min":
        least: Floats = terms_R_B.min(axis=0)
        return least
    totals_B: Floats = np.array([math.fsum(terms) for terms in terms_R_B.T])
    if combine == "standardized":
        # no standardized sum is larger than this, up to the square root of N
        scale = math.fsum(map(abs, weights.values())) or 1.0
        totals_B = np.round(totals_B / scale, DECIMALS) * scale
    return totals_B


def standardized(rewards_B: Floats, groups: Sequence[str]) -> Floats:
    """Return rewards [B] with mean 0 and standard deviation 1 within each group.

    The deviation is that of the N rewards themselves, with N and not N - 1 in the denominator.
    Where all are equal, they are 0.
    """
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    made = np.zeros(len(rewards_B))
    for rows in rows_of.values():
        values_N = rewards_B[rows]
        if values_N.min() == values_N.max():
            continue
        deviations_N = values_N - math.fsum(values_N) / len(rows)
        # squares of tiny deviations would be 0
        deviations_N /= np.abs(deviations_N).max()
        made[rows] = deviations_N / math.sqrt(math.fsum(deviations_N**2) / len(rows))
    return made


def preferences(
    rows: Responses, rewards: Floats, opponents: Responses, theirs: Floats
) -> list[list[float]]:
    """Return each row's preferences over its prompt's opponents.

    A preference is 1 over a lower reward, 1/2 over an equal one and over the same response, else 0.
    Opponents are ordered by sample_index. Raises InputError for a row without opponents.
    """
    places: dict[str, list[int]] = {}
    for place in sorted(range(len(opponents)), key=lambda place: opponents.sample_indexes[place]):
        places.setdefault(opponents.prompt_ids[place], []).append(place)
    made = []
    for row, prompt_id in enumerate(rows.prompt_ids):
        if prompt_id not in places:
            raise InputError(f"{rows.where(row)} has no opponent to be compared with")
        others = places[prompt_id]
        is_same_M = (
            np.array([opponents.responses[place] for place in others]) == rows.responses[row]
        )
        signs_M = np.where(is_same_M, 0.0, np.sign(rewards[row] - theirs[others]))
        made.append(((1 + signs_M) / 2).tolist())
    return made


class Mixture:
    """The judge of a mix: one judge for each reward, by name."""

    def __init__(
        self, judges: Mapping[str, Judge], combine: str, weights: Mapping[str, float]
    ) -> None:
        self._judges = judges
        self._combine = combine
        self._weights = weights

    def __call__(
        self, rows: Responses, opponents: Responses | None, progress: Progress
    ) -> dict[str, Any]:
        """Return `reward` and the columns of each reward; against opponents also `preferences`.

        `reward` is then the mean preference over them. Raises InputError for a combined reward that
        is too large.
        """
        both = rows if opponents is None else rows.joined(opponents)
        columns = self._columns(both, progress)
        rewards = {name: columns[name] for name in self._judges}
        mixed = combined(rewards, self._combine, self._weights, both.groups or both.prompt_ids)
        refuse_non_finite("the mix of rewards", mixed, both.where)
        if opponents is None:
            return {"reward": mixed, **columns}
        ours, theirs = np.split(mixed, [len(rows)])
        over = preferences(rows, ours, opponents, theirs)
        return {
            "reward": [math.fsum(each) / len(each) for each in over],
            "preferences": over,
            **{name: column[: len(rows)] for name, column in columns.items()},
        }

    def _columns(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return each reward by its name, and its components after its name and a dot."""
        columns = {}
        for place, (name, judge) in enumerate(self._judges.items()):

            def told(done: int, total: int, place: int = place) -> None:
                progress(place * total + done, len(self._judges) * total)

            for column, values in judge(rows, None, told).items():
                columns[name if column == "reward" else f"{name}.{column}"] = values
        return columns
