"""RAFT, BoNBoN, BOND and J-BOND.

The formulas from scratch, and the numbers of MATH 1 and 3.
"""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from tests.wind.objective_case import (
    CASES,
    Row,
    batch_of,
    chosen,
    extremes,
    gradient_of,
    loss_of,
    mean_over_rows,
    random_batch,
)
from wind.objectives.best_of_n import best_of_n_weights, jbond_rewards, target_margin

Settings = dict[str, Any]


def raft(group: list[Row], settings: Settings) -> float:
    return -next(row.logp for row in group if row.rank == 1)


def bonbon(group: list[Row], settings: Settings) -> float:
    n = int(group[0].samples)
    best = next(row for row in group if row.rank == 1)
    worst = next(row for row in group if row.rank == n)
    beta = 1 / (2 * (n - 1) * sum(1 / k for k in range(1, n)))
    h = (best.logp - worst.logp) - (best.policy - worst.policy)
    contrast = (
        math.log(1 + math.exp(-beta * h))
        if settings.get("contrast") == "dpo"
        else (h - 1 / (2 * beta)) ** 2
    )
    if best.reward == worst.reward:
        contrast = 0.0
    return float(settings["alpha"] * -best.logp + (1 - settings["alpha"]) * contrast)


def forward(group: list[Row], n: int) -> float:
    # All ordered draws of n rows without replacement; the best of each, equal rewards in turn.
    losses = []
    for draw in permutations(group, n):
        top = [row for row in draw if row.reward == max(other.reward for other in draw)]
        losses.append(-sum(row.logp for row in top) / len(top))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("case", ["raft", "bonbon", "bonbon-dpo", "bond-forward", "jbond-forward"])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_loops_from_scratch(case: str, ties: bool) -> None:
    settings = CASES[case]
    formulas = {"raft": raft, "bonbon": bonbon}
    logps_B, batch = random_batch(seed=21, ties=ties)
    if settings["name"] == "bonbon":
        logps_B, batch = extremes(logps_B, batch)

    def loss(group: list[Row]) -> float:
        formula = formulas.get(settings["name"])
        return formula(group, settings) if formula else forward(group, 2)

    assert loss_of(logps_B, batch, **settings) == pytest.approx(
        mean_over_rows(logps_B, batch, loss), rel=1e-12
    )


@pytest.mark.parametrize("name", ["bond", "jbond"])
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_of_the_backward_term_from_scratch(name: str, ties: bool) -> None:
    # One group, so a row's gradient is -(R - B)/N, plus J-BOND's + gamma log(pi/pi_t)/N, the sign
    # that lowers the KL.
    logps_B, batch = random_batch(seed=22, sizes=[6], ties=ties)
    reward, moved = batch.reward.tolist(), (logps_B - batch.logp_policy).tolist()
    returns = []
    for i in range(6):
        if name == "bond":
            learned = (3 - 1) * math.log(sum(reward[j] <= reward[i] for j in range(6)) / 6)
        else:
            others = [(j, k) for j in range(6) for k in range(j + 1, 6) if i not in (j, k)]
            learned = (
                -math.log(16)
                * sum(reward[i] < min(reward[j], reward[k]) for j, k in others)
                / len(others)
            )
        returns.append(learned - moved[i])
    expected = [-(returns[i] - sum(returns[:i] + returns[i + 1 :]) / 5) / 6 for i in range(6)]
    settings: Settings = {"name": name, "jeffreys": 1.0} | ({"n": 3} if name == "bond" else {})
    np.testing.assert_allclose(gradient_of(logps_B, batch, **settings), expected, rtol=1e-10)
    if name == "jbond":
        pulled = [slope + 0.5 * step / 6 for slope, step in zip(expected, moved, strict=True)]
        np.testing.assert_allclose(
            gradient_of(logps_B, batch, **settings, gamma=0.5), pulled, rtol=1e-10
        )


def test_bond_mixes_its_terms_by_the_jeffreys_weight() -> None:
    logps_B, batch = random_batch(seed=23)
    ends = [gradient_of(logps_B, batch, name="bond", n=3, jeffreys=weight) for weight in (0.0, 1.0)]
    torch.testing.assert_close(
        gradient_of(logps_B, batch, name="bond", n=3, jeffreys=0.3), 0.7 * ends[0] + 0.3 * ends[1]
    )


def test_best_of_n_weights_by_hand() -> None:
    # Ascending ranks 1..4 at n = 2: C(k - 1, 1)/C(4, 2) = 0, 1/6, 2/6, 3/6. At n = N the best takes
    # all.
    _, batch = batch_of([[3.0, 1.0, 4.0, 2.0]])
    assert best_of_n_weights(batch, 2).tolist() == pytest.approx([2 / 6, 0, 3 / 6, 1 / 6])
    assert best_of_n_weights(batch, 4).tolist() == pytest.approx([0, 0, 1, 0])
    # 1 < 2 = 2 < 3 at n = 2: the tied share (1 + 2)/6 is halved.
    _, batch = batch_of([[1.0, 2.0, 2.0, 3.0], [5.0, 5.0]])
    assert best_of_n_weights(batch, 2).tolist() == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 0.5])


def test_margins_of_bonbon() -> None:  # MATH 3.2 and 8 item 6
    margins = target_margin(torch.tensor([2.0, 3, 4, 6, 8, 16], dtype=torch.float64))
    assert margins.tolist() == pytest.approx([1, 3, 5.5, 11.416667, 18.15, 49.7734], rel=1e-6)
    assert 1 / (2 * float(margins[4])) == pytest.approx(0.0275482094, abs=1e-10)


def test_bonbon_at_its_margin_is_the_likelihood_alone() -> None:  # MATH 8 item 12
    _, batch = batch_of([[0.0, 1.0, 2.0, 3.0]])
    at = batch.logp_policy + torch.tensor([0.0, 0, 0, 5.5], dtype=torch.float64)
    assert loss_of(*extremes(at, batch), name="bonbon") == pytest.approx(-0.005 * float(at[3]))
    assert (
        loss_of(*extremes(at, batch), name="bonbon", contrast="dpo") > -0.005 * float(at[3]) + 0.1
    )


def test_raft_counts_each_group_once_per_row() -> None:
    logps_B, batch = batch_of([[1.0, 0.0], [0.0, 2.0, 1.0]])
    expected = -(2 * float(logps_B[0]) + 3 * float(logps_B[3])) / 5
    assert loss_of(logps_B, batch, name="raft") == pytest.approx(expected)


def test_jbond_reward_is_calibrated_at_the_median() -> None:  # MATH 8 item 7
    # E r_J = -log 16 (1 - p)^2 is log p at p = 1/2. The median of 2001 rows has 1000 of 2000 above:
    # C(1000, 2)/C(2000, 2).
    _, batch = batch_of([[float(reward) for reward in range(2001)]])
    rewards = jbond_rewards(batch).tolist()
    assert rewards[1000] == pytest.approx(math.log(0.5), rel=1e-3)
    assert rewards[0] == pytest.approx(-math.log(16))
    assert rewards[2000] == rewards[1999] == 0


def test_jbond_step_with_gamma_lowers_the_kl() -> None:  # MATH 8 item 10
    # A softmax bandit, every response once under a uniform anchor; the policy has moved, and the
    # rewards say nothing.
    anchor_Y = torch.full((4,), 0.25, dtype=torch.float64).log()
    logits_Y = torch.tensor([1.0, 0.0, -0.5, 0.2], dtype=torch.float64, requires_grad=True)
    _, batch = batch_of([[1.0] * 4])
    batch = chosen(batch, slice(None), logp_policy=anchor_Y, logp_reference=anchor_Y)
    moved_B = (logits_Y.log_softmax(0) - anchor_Y).detach()
    (with_gamma_Y,) = torch.autograd.grad((moved_B * logits_Y.log_softmax(0)).mean(), logits_Y)
    logps_B = logits_Y.log_softmax(0).detach()
    difference_B = gradient_of(logps_B, batch, name="jbond", gamma=1.0) - gradient_of(
        logps_B, batch, name="jbond"
    )
    torch.testing.assert_close(difference_B, moved_B / 4)

    def kl(logits_Y: torch.Tensor) -> float:
        logps_Y = logits_Y.detach().log_softmax(0)
        return float((logps_Y.exp() * (logps_Y - anchor_Y)).sum())

    assert kl(logits_Y - 0.1 * with_gamma_Y) < kl(logits_Y) < kl(logits_Y + 0.1 * with_gamma_Y)
