"""The contextual bandits of the study.

An instance says for a batch of prompts which responses beat which, and holds the reference policy.
Each has one kind of difficulty. Tensors are float64, with the axes of `wind.games`. A prompt is
either rewarded, one reward call per response, or judged by duels, one call per pair, whose outcome
is a coin of P.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

import torch

from wind.best_of_n import RewardOrder
from wind.games import MatrixPreferences, RewardPreferences

TIED_LEVELS: Final = 3
# of the scores, in logits: preferences are a few percent off one half
CLOSE_SPREAD: Final = 0.1
# the reference's probability of the best response
RARE: Final = 1e-3


@dataclass(frozen=True)
class Instance:
    """Prompts, their responses, and the reference policy `ref`.

    `scores` order the responses where there is an order, which best of n needs, and are NaN where
    there is none. Where a prompt `is_rewarded` they are what the reward returns; otherwise only P
    can be asked for.
    """

    matrix: torch.Tensor  # [P, Y, Y], P(y, y'), constant-sum
    ref: torch.Tensor  # [P, Y], log pi_ref, nats
    scores: torch.Tensor  # [P, Y]
    is_rewarded: torch.Tensor  # [P], bool

    @cached_property
    def preferences(self) -> MatrixPreferences:
        """The preferences between the responses."""
        return MatrixPreferences(self.matrix)

    @cached_property
    def order(self) -> RewardOrder | None:
        """The order of the responses, None if they have none."""
        return None if self.scores.isnan().any() else RewardOrder.of(self.scores)

    def repeated(self, times: int) -> "Instance":
        """Return the same prompts `times` times, end to end.

        They make one batch of all repetitions of an experiment.
        """
        return joined([self] * times)


def joined(instances: Sequence[Instance]) -> Instance:
    """Return the prompts of several instances, end to end."""
    return Instance(
        *(
            torch.cat([getattr(instance, field.name) for instance in instances])
            for field in fields(Instance)
        )
    )


def random(generator: torch.Generator, prompts: int, responses: int) -> Instance:
    """Independent normal rewards without ties, and a reference of normal logits."""
    return _rewarded(
        _normal(generator, prompts, responses), _reference(generator, prompts, responses)
    )


def tied(generator: torch.Generator, prompts: int, responses: int) -> Instance:
    """Rewards on three levels: about a third of all comparisons tie."""
    rewards_P_Y = torch.randint(TIED_LEVELS, (prompts, responses), generator=generator).to(
        torch.float64
    )
    return _rewarded(rewards_P_Y, _reference(generator, prompts, responses))


def rare(generator: torch.Generator, prompts: int, responses: int) -> Instance:
    """Normal rewards, with a best response that the reference rarely draws.

    It draws it once in a thousand times.
    """
    rewards_P_Y = _normal(generator, prompts, responses)
    best_P_Y = rewards_P_Y == rewards_P_Y.amax(-1, keepdim=True)
    others_P_Y = (
        _reference(generator, prompts, responses).masked_fill(best_P_Y, -torch.inf).softmax(-1)
    )
    return _rewarded(rewards_P_Y, torch.where(best_P_Y, RARE, (1 - RARE) * others_P_Y).log())


def cyclic(generator: torch.Generator, prompts: int, responses: int) -> Instance:
    """Rock, paper, scissors with Y responses.

    Each response beats those up to half a turn behind it for sure, its opposite half the time. None
    is best: every one is beaten by as many as it beats. Constant-sum and as far from transitive as
    can be.
    """
    turn_Y_Y = (torch.arange(responses)[:, None] - torch.arange(responses)) % responses
    wins_Y_Y, ties_Y_Y = (
        (turn_Y_Y > 0) & (2 * turn_Y_Y < responses),
        (turn_Y_Y == 0) | (2 * turn_Y_Y == responses),
    )
    matrix_P_Y_Y = (wins_Y_Y.to(torch.float64) + ties_Y_Y.to(torch.float64) / 2).repeat(
        prompts, 1, 1
    )
    ref_P_Y = _reference(generator, prompts, responses)
    return Instance(
        matrix_P_Y_Y,
        ref_P_Y,
        torch.full_like(ref_P_Y, torch.nan),
        torch.zeros(prompts, dtype=torch.bool),
    )


def close(generator: torch.Generator, prompts: int, responses: int) -> Instance:
    """Nearly equal responses, judged by duels that are nearly coins.

    Preferences are Bradley-Terry's, of normal scores of spread 0.1.
    """
    scores_P_Y = CLOSE_SPREAD * _normal(generator, prompts, responses)
    matrix_P_Y_Y = (scores_P_Y[..., :, None] - scores_P_Y[..., None, :]).sigmoid()
    ref_P_Y = _reference(generator, prompts, responses)
    return Instance(matrix_P_Y_Y, ref_P_Y, scores_P_Y, torch.zeros(prompts, dtype=torch.bool))


INSTANCES: Final[Mapping[str, Callable[[torch.Generator, int, int], Instance]]] = {
    "random": random,
    "tied": tied,
    "cyclic": cyclic,
    "close": close,
    "rare": rare,
}


def _rewarded(rewards_P_Y: torch.Tensor, ref_P_Y: torch.Tensor) -> Instance:
    matrix_P_Y_Y = RewardPreferences.of(rewards_P_Y).matrix()
    return Instance(matrix_P_Y_Y, ref_P_Y, rewards_P_Y, torch.ones(len(ref_P_Y), dtype=torch.bool))


def _reference(generator: torch.Generator, prompts: int, responses: int) -> torch.Tensor:
    return _normal(generator, prompts, responses).log_softmax(-1)


def _normal(generator: torch.Generator, prompts: int, responses: int) -> torch.Tensor:
    return torch.randn(prompts, responses, dtype=torch.float64, generator=generator)
