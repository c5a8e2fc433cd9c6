"""Pairs of responses to one prompt.

A loss of pairs becomes a mean over the rows of the batch. A group of n rows with m pairs
contributes the mean loss of its pairs, once per row:

    loss = sum over groups (n / B) (1/m) sum over its pairs loss(winner, loser),
    B = all rows of the batch.

The losses of several micro-batches, weighted by their rows, then add up to the loss of the step,
and every prompt of n responses weighs the same however many pairs it has. A group without a pair
contributes 0, and its rows count in B: they have nothing to teach.
"""

from dataclasses import dataclass

import torch

from wind.objectives.batch import Batch
from wind.objectives.groups import group_index


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of a batch; every field has shape [M]."""

    winner: torch.Tensor  # the row of the smaller rank, whose reward is no smaller
    loser: torch.Tensor  # the row of the larger rank
    weight: torch.Tensor  # n / (B m)

    def difference(self, values_B: torch.Tensor) -> torch.Tensor:
        """Return the winner's entry of `values_B` minus the loser's, [M]."""
        return values_B[self.winner] - values_B[self.loser]

    def mean(self, losses_M: torch.Tensor) -> torch.Tensor:
        """Return the loss of the batch from those of its pairs.

        `losses_M` [M] holds the loss of every pair. It is 0, with a gradient of 0, if there are no
        pairs.
        """
        return (self.weight * losses_M).sum()


def pairs_of(batch: Batch, *, with_ties: bool = False) -> Pairs:
    """Return all pairs of rows within the groups of `batch`, each once.

    Pairs of equal reward are left out unless `with_ties` is set.
    """
    index_B, rows_G = group_index(batch.group)
    chosen_B_B = (index_B[:, None] == index_B) & (batch.rank[:, None] < batch.rank)
    if not with_ties:
        chosen_B_B &= batch.reward[:, None] > batch.reward
    winner_M, loser_M = chosen_B_B.nonzero(as_tuple=True)
    index_M = index_B[winner_M]
    pairs_G = torch.bincount(index_M, minlength=len(rows_G))
    weight_M = rows_G[index_M] / (len(index_B) * pairs_G[index_M]).double()
    return Pairs(winner=winner_M, loser=loser_M, weight=weight_M)
