"""Small and random games over finite response sets, and closeness to 1e-12."""

import math

import torch

from wind.games import MatrixPreferences

ROCK_PAPER_SCISSORS = torch.tensor(
    [[[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]], dtype=torch.float64
)


def row(*values: float) -> torch.Tensor:
    """One prompt."""
    return torch.tensor([values], dtype=torch.float64)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, *, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def uniform(prompts: int, responses: int) -> torch.Tensor:
    return torch.full((prompts, responses), -math.log(responses), dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_policy(seed: int, prompts: int, responses: int, *, spread: float = 1.0) -> torch.Tensor:
    return (
        spread * torch.randn(prompts, responses, dtype=torch.float64, generator=seeded(seed))
    ).log_softmax(-1)


def constant_sum(upper_P_Y_Y: torch.Tensor) -> MatrixPreferences:
    """The constant-sum preferences with these values above the diagonal."""
    upper = upper_P_Y_Y.triu(1)
    half = torch.eye(upper.shape[-1], dtype=upper.dtype) / 2
    return MatrixPreferences(upper + (1 - upper.mT).tril(-1) + half)


def random_game(seed: int, prompts: int, responses: int) -> MatrixPreferences:
    return constant_sum(
        torch.rand(prompts, responses, responses, dtype=torch.float64, generator=seeded(seed))
    )


def random_rewards(seed: int, prompts: int, responses: int, *, levels: int) -> torch.Tensor:
    return torch.randint(0, levels, (prompts, responses), generator=seeded(seed)).to(torch.float64)
