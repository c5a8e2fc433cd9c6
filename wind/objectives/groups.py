"""Arithmetic within prompt groups: every function returns one entry per row, whatever the order of
the rows.

Counts are float64, so that their quotients keep all digits. They compare all rows with all, [B, B]:
a batch holds a handful of groups, and the comparison costs less than one token.
"""

import torch

from wind.objectives.batch import Batch


def group_index(group_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The group of every row, counted from 0, as [B]; and the number of rows of every group, as
    [G].
    """
    _, index_B, rows_G = torch.unique(group_B, return_inverse=True, return_counts=True)
    return index_B, rows_G


def group_rows(group_B: torch.Tensor) -> torch.Tensor:
    """The number of rows of each row's group, n."""
    index_B, rows_G = group_index(group_B)
    return rows_G[index_B].double()


def group_sum(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """The sum of `values_B` over each row's group; gradient flows through it."""
    index_B, rows_G = group_index(group_B)
    sums_G = torch.zeros(len(rows_G), dtype=values_B.dtype, device=values_B.device).index_add(
        0, index_B, values_B
    )
    return sums_G[index_B]


def centred(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """`values_B` minus the mean of their group, exactly 0 where all are equal; gradient flows
    through the mean.
    """
    index_B, rows_G = group_index(group_B)
    # Counted from the least: the mean of three times 1e100 is off by 1e84, which an advantage
    # divides by itself.
    infinity_G = values_B.new_full(rows_G.shape, torch.inf)
    above_B = values_B - infinity_G.scatter_reduce(0, index_B, values_B.detach(), "amin")[index_B]
    return above_B - group_sum(above_B, group_B) / group_rows(group_B)


def group_logmeanexp(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """The logarithm of the mean of exp(`values_B`) over each row's group."""
    values_B_B = values_B.expand(len(values_B), -1).masked_fill(~_same(group_B), -torch.inf)
    return values_B_B.logsumexp(1) - group_rows(group_B).log()


def rewards_below(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """How many rows of each row's group have a smaller reward; and how many a smaller or equal one,
    the row itself counted.
    """
    same_B_B = _same(batch.group)
    below_B = (same_B_B & (batch.reward < batch.reward[:, None])).sum(1)
    not_above_B = (same_B_B & (batch.reward <= batch.reward[:, None])).sum(1)
    return below_B.double(), not_above_B.double()


def anchors_above(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the anchor's other samples in each row's group have a larger reward; and how many
    there are.
    """
    is_itself_B_B = torch.eye(len(batch.group), dtype=torch.bool, device=batch.group.device)
    others_B_B = _same(batch.group) & batch.is_of_anchor & ~is_itself_B_B
    above_B = (others_B_B & (batch.reward > batch.reward[:, None])).sum(1)
    return above_B.double(), others_B_B.sum(1).double()


def is_best(batch: Batch) -> torch.Tensor:
    """Whether the row has its group's first rank: one row of every group, equal rewards broken by
    rank.
    """
    return ~(_same(batch.group) & (batch.rank < batch.rank[:, None])).any(1)


def is_worst(batch: Batch) -> torch.Tensor:
    """Whether the row has its group's last rank."""
    return ~(_same(batch.group) & (batch.rank > batch.rank[:, None])).any(1)


def _same(group_B: torch.Tensor) -> torch.Tensor:
    return group_B == group_B[:, None]
