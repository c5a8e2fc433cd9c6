"""Arithmetic within the groups of a batch: the rows of one prompt.

Every function returns one entry per row, [B], whatever the order of the rows. Counts are float64,
so that their quotients keep all digits. Comparisons are of all rows with all others, [B, B]: a
batch holds a handful of groups, and comparing them costs less than one token.
"""

import torch

from wind.objectives.batch import Batch


def group_index(group_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's group, counted from 0, and each group's size.

    `group_B` [B] holds an integer per row that identifies its group. The results are [B] and [G].
    """
    _, index_B, rows_G = torch.unique(group_B, return_inverse=True, return_counts=True)
    return index_B, rows_G


def group_rows(group_B: torch.Tensor) -> torch.Tensor:
    """Return the number n of rows in each row's group, [B]."""
    index_B, rows_G = group_index(group_B)
    return rows_G[index_B].double()


def group_sum(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Return each row's sum of `values_B` over its group; gradient flows."""
    index_B, rows_G = group_index(group_B)
    sums_G = torch.zeros(len(rows_G), dtype=values_B.dtype, device=values_B.device).index_add(
        0, index_B, values_B
    )
    return sums_G[index_B]


def centered(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Return `values_B` minus their group's mean, [B].

    The result is exactly 0 where all values of a group are equal. Gradient flows through the mean.
    """
    index_B, rows_G = group_index(group_B)
    # Relative to the smallest value: the mean of three values of 1e100 is off by 1e84, and an
    # advantage would divide that error by itself.
    infinity_G = values_B.new_full(rows_G.shape, torch.inf)
    above_B = values_B - infinity_G.scatter_reduce(0, index_B, values_B.detach(), "amin")[index_B]
    return above_B - group_sum(above_B, group_B) / group_rows(group_B)


def group_logmeanexp(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Return log mean exp(`values_B`) over each row's group, [B]."""
    values_B_B = values_B.expand(len(values_B), -1).masked_fill(~_same(group_B), -torch.inf)
    return values_B_B.logsumexp(1) - group_rows(group_B).log()


def rewards_below(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Count rewards in each row's group that are smaller, or not larger.

    Both counts are [B]; the second includes the row itself.
    """
    same_B_B = _same(batch.group)
    below_B = (same_B_B & (batch.reward < batch.reward[:, None])).sum(1)
    not_above_B = (same_B_B & (batch.reward <= batch.reward[:, None])).sum(1)
    return below_B.double(), not_above_B.double()


def anchors_above(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the anchor's other samples in each row's group, [B] each.

    The first count is of those with a larger reward than the row, the second of all of them.
    """
    is_itself_B_B = torch.eye(len(batch.group), dtype=torch.bool, device=batch.group.device)
    others_B_B = _same(batch.group) & batch.is_of_anchor & ~is_itself_B_B
    above_B = (others_B_B & (batch.reward > batch.reward[:, None])).sum(1)
    return above_B.double(), others_B_B.sum(1).double()


def is_best(batch: Batch) -> torch.Tensor:
    """Mark the row of the first rank in each group, [B].

    There is exactly one, since ranks order rows of equal reward.
    """
    return ~(_same(batch.group) & (batch.rank < batch.rank[:, None])).any(1)


def is_worst(batch: Batch) -> torch.Tensor:
    """Mark the row of the last rank in each group, [B]."""
    return ~(_same(batch.group) & (batch.rank > batch.rank[:, None])).any(1)


def _same(group_B: torch.Tensor) -> torch.Tensor:
    return group_B == group_B[:, None]
