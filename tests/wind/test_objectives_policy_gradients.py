"""GRPO, RLOO and QRPO.

The formulas from scratch, and the effect of clipping and of the KL term.
"""

import math
import statistics
from itertools import product

import pytest
import torch

from tests.wind.objective_case import (
    Row,
    batch_of,
    chosen,
    gradient_of,
    loss_of,
    mean_over_rows,
    random_batch,
)
from wind.objectives.exponentials import MAX_LOG_RATIO, bounded_exp, bounded_expm1


@pytest.mark.parametrize("name", ["grpo", "rloo"])
@pytest.mark.parametrize("ties", [False, True])
def test_policy_gradients_agree_with_loops_from_scratch(name: str, ties: bool) -> None:
    logps_B, batch = random_batch(seed=31, ties=ties)

    def loss(group: list[Row]) -> float:
        total = 0.0
        for number, row in enumerate(group):
            rewards = [other.reward for other in group]
            if name == "grpo":
                advantage = (row.reward - statistics.mean(rewards)) / (
                    statistics.stdev(rewards) + 1e-4
                )
            else:
                advantage = row.reward - statistics.mean(rewards[:number] + rewards[number + 1 :])
            ratio = math.exp(row.logp - row.policy)
            surrogate = min(ratio * advantage, min(max(ratio, 0.7), 1.3) * advantage)
            log_ratio = row.logp - row.reference
            total += 0.5 * (math.exp(-log_ratio) - 1 + log_ratio) - surrogate
        return total / len(group)

    settings = {"name": name, "epsilon": 0.3, "beta": 0.5}
    assert loss_of(logps_B, batch, **settings) == pytest.approx(
        mean_over_rows(logps_B, batch, loss), rel=1e-10
    )


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_clipping_stops_what_has_gone_far_enough(name: str) -> None:
    # Rows: a winner far up and a loser far down are let go; a winner far down and a loser far up
    # still are pulled.
    _, batch = batch_of([[1.0, 0.0, 1.0, 0.0]])
    moved_B = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=torch.float64)
    gradient_B = gradient_of(batch.logp_policy + moved_B, batch, name=name, epsilon=0.2, beta=0.0)
    assert gradient_B[:2].tolist() == [0, 0]
    assert gradient_B[2] < 0 < gradient_B[3]


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_constant_rewards_leave_the_pull_of_the_reference(name: str) -> None:
    _, batch = batch_of([[2.0, 2.0]])
    moved_B = batch.logp_reference + torch.tensor([1.0, -1.0], dtype=torch.float64)
    gradient_B = gradient_of(moved_B, batch, name=name, beta=0.1)
    assert gradient_B.tolist() == pytest.approx(
        [0.05 * (1 - math.exp(-1)), 0.05 * (1 - math.exp(1))]
    )
    assert gradient_of(moved_B, batch, name=name, beta=0.0).abs().max() == 0


def test_rloo_on_policy_is_the_gradient_of_reward_and_forward_kl() -> None:
    # Every pair of draws from four equally likely atoms of three responses, so that sums over
    # groups are expectations. The gradient of -E r + beta KL(pi_ref || pi) vanishes where pi (r -
    # J) = beta (pi - pi_ref): take the reference that does it.
    atoms = [0, 1, 2, 2]
    policy_Y = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    reward_Y = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    beta = 2.0
    gain_Y = reward_Y - policy_Y @ reward_Y
    responses_B = torch.tensor(
        [response for group in product(atoms, repeat=2) for response in group]
    )
    rewards = [
        [float(reward_Y[first]), float(reward_Y[second])]
        for first, second in product(atoms, repeat=2)
    ]
    _, batch = batch_of(rewards)

    def gradient(reference_Y: torch.Tensor, weight: float) -> torch.Tensor:
        logits_Y = policy_Y.log().requires_grad_()
        logps_B = logits_Y.log_softmax(0)[responses_B]
        frozen = chosen(
            batch,
            slice(None),
            logp_policy=logps_B.detach(),
            logp_reference=reference_Y.log()[responses_B],
        )
        gradient_B = gradient_of(logps_B, frozen, name="rloo", beta=weight)
        (gradient_Y,) = torch.autograd.grad(logps_B, logits_Y, gradient_B)
        return gradient_Y

    torch.testing.assert_close(gradient(policy_Y, 0.0), -policy_Y * gain_Y)
    balanced_Y = policy_Y * (beta - gain_Y) / beta
    assert float(balanced_Y.sum()) == pytest.approx(1)
    assert gradient(balanced_Y, beta).abs().max() < 1e-12


@pytest.mark.parametrize("ties", [False, True])
def test_qrpo_agrees_with_loops_from_scratch(ties: bool) -> None:
    logps_B, batch = random_batch(seed=32, ties=ties)
    beta = 0.5
    partition = beta * (math.exp(1 / beta) - 1)

    def loss(group: list[Row]) -> float:
        total = 0.0
        for number, row in enumerate(group):
            others = group[:number] + group[number + 1 :]
            quantile = sum(other.reward <= row.reward for other in others) / len(others)
            total += (quantile - beta * math.log(partition) - beta * (row.logp - row.policy)) ** 2
        return total / len(group)

    assert loss_of(logps_B, batch, name="qrpo", beta=beta) == pytest.approx(
        mean_over_rows(logps_B, batch, loss), rel=1e-12
    )


def test_qrpo_survives_the_small_beta_of_its_authors() -> None:
    # e^(1/beta) overflows at beta = 0.001; the normalizer must not. u - beta log Z -> 1 - 1 at the
    # best row.
    _, batch = batch_of([[0.0, 1.0]])
    residual = -0.0003 * math.log(0.0003)
    expected = ((1 - 1 + residual) ** 2 + (0 - 1 + residual) ** 2) / 2
    assert loss_of(batch.logp_policy, batch, name="qrpo", beta=0.0003) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
@pytest.mark.parametrize("far", [60.0, 800.0, 5000.0])
def test_log_ratios_far_beyond_any_float_pull_back_and_overflow_nowhere(
    name: str, far: float
) -> None:
    _, batch = batch_of([[1.0, 0.0]])
    for moved in (far, -far):
        logps_B = batch.logp_policy + torch.tensor([moved, moved], dtype=torch.float64)
        gradient_B = gradient_of(logps_B, batch, name=name, epsilon=0.2, beta=0.1)
        assert torch.isfinite(gradient_B).all()
        assert math.isfinite(loss_of(logps_B, batch, name=name, epsilon=0.2, beta=0.1))
        if moved > 0:
            assert gradient_B[1] > 0  # the loser is pushed down
        else:
            assert (gradient_B < 0).all()  # the reference pulls both up


def test_bounded_exponentials_are_the_plain_ones_within_the_bound_and_their_tangents_beyond() -> (
    None
):
    inside_B = torch.linspace(-900, MAX_LOG_RATIO, 50, dtype=torch.float64)
    assert torch.equal(bounded_exp(inside_B), inside_B.exp())
    assert torch.equal(bounded_expm1(inside_B), torch.expm1(inside_B))
    for bounded in (bounded_exp, bounded_expm1):
        beyond_B = torch.tensor(
            [MAX_LOG_RATIO + 2, 5000.0], dtype=torch.float64, requires_grad=True
        )
        values_B = bounded(beyond_B)
        values_B.sum().backward()  # type: ignore[no-untyped-call]
        assert values_B[0].item() == pytest.approx(3 * math.exp(MAX_LOG_RATIO))
        assert beyond_B.grad is not None
        assert beyond_B.grad.tolist() == pytest.approx([math.exp(MAX_LOG_RATIO)] * 2)
