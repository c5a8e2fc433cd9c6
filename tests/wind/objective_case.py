"""Batches for the tests of objectives, and the objectives by name.

A loop over groups computes losses to check them against.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter

from wind.config.objectives import AnyObjectiveConfig, ObjectiveConfig
from wind.objectives import Batch, Objective, objective_for

SIZES = (4, 3, 5)  # of groups: unequal, so that a mean over groups is no mean over rows

# Every objective, with each of its ways to compute; the values are such that no term is negligible.
CASES: dict[str, dict[str, Any]] = {
    "wind-squared-half": {"name": "wind", "beta": 0.3, "eta": 2.0},
    "wind-squared-strict": {"name": "wind", "beta": 0.3, "eta": 2.0, "shift": "strict"},
    "wind-squared-centred": {"name": "wind", "beta": 0.3, "eta": 2.0, "shift": "centred"},
    "wind-squared-learned": {"name": "wind", "beta": 0.3, "eta": 2.0, "shift": "learned"},
    "wind-squared-plug_in": {"name": "wind", "beta": 0.3, "eta": 2.0, "shift": "plug_in"},
    "wind-kl-half": {"name": "wind", "risk": "kl", "beta": 0.3, "eta": 2.0},
    "wind-kl-centred": {"name": "wind", "risk": "kl", "beta": 0.3, "eta": 2.0, "shift": "centred"},
    "wind-nce-plug_in": {
        "name": "wind",
        "risk": "nce",
        "beta": 0.3,
        "eta": 2.0,
        "shift": "plug_in",
    },
    "wind-nce-half": {"name": "wind", "risk": "nce", "beta": 0.3, "eta": 2.0, "epsilon": 0.1},
    "wind-nce_noise-half": {"name": "wind", "risk": "nce_noise", "beta": 0.3, "eta": 2.0},
    "wind-nce_noise-centred": {
        "name": "wind",
        "risk": "nce_noise",
        "beta": 0.3,
        "eta": 2.0,
        "shift": "centred",
    },
    "sppo": {"name": "sppo", "eta": 2.0},
    "sppo_pair": {"name": "sppo_pair", "eta": 2.0},
    "inpo": {"name": "inpo", "eta": 0.5, "tau": 0.2},
    "dpo": {"name": "dpo", "beta": 0.5},
    "dpo-smoothed": {"name": "dpo", "beta": 0.5, "label_smoothing": 0.1},
    "ipo": {"name": "ipo", "tau": 0.4},
    "rebel": {"name": "rebel", "eta": 0.7},
    "raft": {"name": "raft"},
    "bonbon": {"name": "bonbon", "alpha": 0.3},
    "bonbon-dpo": {"name": "bonbon", "alpha": 0.3, "contrast": "dpo"},
    "bond": {"name": "bond", "n": 3},
    "bond-forward": {"name": "bond", "n": 2, "jeffreys": 0.0},
    "jbond": {"name": "jbond", "gamma": 0.5},
    "jbond-forward": {"name": "jbond", "jeffreys": 0.0},
    "grpo": {"name": "grpo"},
    "rloo": {"name": "rloo"},
    "qrpo": {"name": "qrpo", "beta": 0.5},
}


class Row(NamedTuple):
    """One row as plain numbers; `logp` is that of the policy being trained."""

    logp: float
    policy: float
    reference: float
    win: float
    reward: float
    rank: float
    samples: float


def config_of(**settings: Any) -> AnyObjectiveConfig:
    config: AnyObjectiveConfig = TypeAdapter[Any](ObjectiveConfig).validate_python(settings)
    return config


def objective_of(**settings: Any) -> Objective:
    return objective_for(config_of(**settings))


def loss_of(logps_B: torch.Tensor, batch: Batch, **settings: Any) -> float:
    return float(objective_of(**settings)(logps_B, batch)[0])


def gradient_of(logps_B: torch.Tensor, batch: Batch, **settings: Any) -> torch.Tensor:
    logps_B = logps_B.detach().clone().requires_grad_()
    (gradient_B,) = torch.autograd.grad(objective_of(**settings)(logps_B, batch)[0], logps_B)
    return gradient_B


def batch_of(rewards: Sequence[Sequence[float]], seed: int = 0) -> tuple[torch.Tensor, Batch]:
    """Return a batch with these rewards, group by group.

    It has their unbiased win rates and ranks, and random log-probabilities.
    """
    generator = np.random.default_rng(seed)
    win_rate, rank = [], []
    for group in rewards:
        beaten = [sum(other < reward for other in group) for reward in group]
        tied = [sum(other == reward for other in group) - 1 for reward in group]
        win_rate += [
            (wins + ties / 2) / max(len(group) - 1, 1)
            for wins, ties in zip(beaten, tied, strict=True)
        ]
        order = sorted(range(len(group)), key=lambda sample: -group[sample])
        rank += [order.index(sample) + 1 for sample in range(len(group))]
    rows = len(rank)
    logp_policy_B = torch.from_numpy(-generator.uniform(1, 20, rows))
    batch = Batch(
        logp_policy=logp_policy_B,
        logp_reference=logp_policy_B + torch.from_numpy(generator.normal(0, 0.5, rows)),
        win_rate=torch.tensor(win_rate, dtype=torch.float64),
        reward=torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64),
        rank=torch.tensor(rank, dtype=torch.float64),  # as training hands it over
        samples=torch.tensor(
            [float(len(group)) for group in rewards for _ in group], dtype=torch.float64
        ),
        intercept=torch.tensor(
            [0.5 + 0.1 * number for number, group in enumerate(rewards) for _ in group],
            dtype=torch.float64,
        ),
        group=torch.tensor([7 - number for number, group in enumerate(rewards) for _ in group]),
    )
    return logp_policy_B + torch.from_numpy(generator.normal(0, 0.5, rows)), batch


def random_batch(
    seed: int, sizes: Sequence[int] = SIZES, ties: bool = False
) -> tuple[torch.Tensor, Batch]:
    generator = np.random.default_rng(1000 + seed)
    rewards = [
        generator.integers(0, 3, size) if ties else generator.normal(0, 1, size) for size in sizes
    ]
    return batch_of([[float(reward) for reward in group] for group in rewards], seed)


def chosen(batch: Batch, rows: Any, **columns: torch.Tensor) -> Batch:
    """Return the rows of `batch` at the index `rows`, with `columns` replaced."""
    kept = {name: values[rows] for name, values in vars(batch).items() if values is not None}
    return Batch(**kept | columns)


def extremes(logps_B: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """Return the best and the worst row of every group."""
    rows = (batch.rank == 1) | (batch.rank == batch.samples)
    return logps_B[rows], chosen(batch, rows)


def groups_of(logps_B: torch.Tensor, batch: Batch) -> list[list[Row]]:
    columns = (
        logps_B,
        batch.logp_policy,
        batch.logp_reference,
        batch.win_rate,
        batch.reward,
        batch.rank,
        batch.samples,
    )
    rows = [Row(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
    names = batch.group.tolist()
    return [
        [row for row, name in zip(rows, names, strict=True) if name == group]
        for group in dict.fromkeys(names)
    ]


def mean_over_rows(
    logps_B: torch.Tensor, batch: Batch, loss: Callable[[list[Row]], float]
) -> float:
    """Return the mean over rows of a loss of groups."""
    return sum(len(group) * loss(group) for group in groups_of(logps_B, batch)) / len(logps_B)
