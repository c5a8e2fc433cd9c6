"""Preferences between the responses to a prompt."""

from dataclasses import dataclass
from typing import Protocol

import torch

from wind.best_of_n import RewardOrder
from wind.errors import InputError


class Preferences(Protocol):
    """For each prompt of a batch, which response beats which."""

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """Return E_{y' ~ pi} P(y, y') for every response y, [P, Y].

        `policy_P_Y` holds the probabilities of the policy pi, not their logarithms.
        """
        ...

    def matrix(self, prompts: slice = ...) -> torch.Tensor:
        """Return P(y, y') of these prompts, [P, Y, Y]."""
        ...


@dataclass(frozen=True)
class RewardPreferences:
    """The higher reward wins; ties count one half.

    With `inclusive` ties count as wins for both. One half is constant-sum (MATH 0.1, convention 1).
    `inclusive` makes the win rate the CDF p_<= in which best of n is written (convention 2); it is
    not constant-sum, as every response beats itself. Win rates are differences of cumulative sums
    in the order of rewards, so that they cost O(Y) after one sort, where the matrix costs O(Y^2).
    """

    order: RewardOrder
    inclusive: bool = False

    @classmethod
    def of(cls, rewards_P_Y: torch.Tensor, *, inclusive: bool = False) -> "RewardPreferences":
        """Build the preferences of `rewards_P_Y`; raise InputError for a NaN reward."""
        return cls(RewardOrder.of(rewards_P_Y), inclusive)

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """Return the win rate of every response against the policy, [P, Y].

        It is p_<= if `inclusive`, else (p_< + p_<=) / 2. `policy_P_Y` holds probabilities.
        """
        # [P, Y + 1]
        cumulative = torch.nn.functional.pad(
            policy_P_Y.gather(-1, self.order.ascending).cumsum(-1), (1, 0)
        )
        not_better_P_Y = cumulative.gather(-1, self.order.upto)
        return (
            not_better_P_Y
            if self.inclusive
            else (cumulative.gather(-1, self.order.below) + not_better_P_Y) / 2
        )

    def matrix(self, prompts: slice = slice(None)) -> torch.Tensor:
        """Return the preferences of these prompts, [P, Y, Y].

        They are 1{r > r'} + 1{r = r'} / 2, or 1{r >= r'} if `inclusive`.
        """
        rank = self.order.below[prompts]
        wins, ties = (
            compare(rank[..., :, None], rank[..., None, :]).to(torch.float64)
            for compare in (torch.gt, torch.eq)
        )
        return wins + (ties if self.inclusive else ties / 2)


@dataclass(frozen=True)
class MatrixPreferences:
    """Any preferences, transitive or not, as a dense matrix of probabilities.

    `values` is [P, Y, Y]. Raises InputError for any other shape and for values outside [0, 1].
    """

    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[-1] != self.values.shape[-2]:
            raise InputError(
                "preferences must be one square matrix per prompt, "
                f"not of shape {tuple(self.values.shape)}"
            )
        if not ((self.values >= 0) & (self.values <= 1)).all():  # also catches NaN
            raise InputError("a preference is not a probability: it must lie in [0, 1]")

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """Return the win rates against the policy, [P, Y].

        They are P @ pi; `policy_P_Y` holds probabilities.
        """
        return times(self.values, policy_P_Y)

    def matrix(self, prompts: slice = slice(None)) -> torch.Tensor:
        """Return the preferences of these prompts, [P, Y, Y]."""
        return self.values[prompts]


def is_constant_sum(matrix_P_Y_Y: torch.Tensor) -> torch.Tensor:
    """Return for each prompt whether its preferences are constant-sum, [P].

    That is P(y, y') + P(y', y) = 1 for all responses to within 1e-9, hence P(y, y) = 1/2.
    """
    return ((matrix_P_Y_Y + matrix_P_Y_Y.mT - 1).abs() <= 1e-9).all(-1).all(-1)


def times(matrix_P_Y_Y: torch.Tensor, vector_P_Y: torch.Tensor) -> torch.Tensor:
    """Multiply each prompt's matrix with its vector, [P, Y]."""
    return (matrix_P_Y_Y @ vector_P_Y[..., None])[..., 0]
