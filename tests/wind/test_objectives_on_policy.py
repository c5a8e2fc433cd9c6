"""BOND and J-BOND on fresh samples.

Policy and anchor are sampled at every step, and the policy is driven to the law that is aimed at.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.wind.objective_case import chosen, gradient_of, objective_of, random_batch
from wind.objectives import Batch
from wind.objectives.best_of_n import anchor_quantiles, best_of_n_weights, jbond_rewards

RESPONSES = 10  # equally likely under the anchor, in ascending order of reward
UNIFORM_Y = torch.full((RESPONSES,), -math.log(RESPONSES), dtype=torch.float64)
QUANTILE_Y = torch.arange(1, RESPONSES + 1, dtype=torch.float64) / RESPONSES
MIDDLE_Y = QUANTILE_Y - 0.5 / RESPONSES  # the win rate of each against the anchor, ties one half


def fresh(
    policy_Y: torch.Tensor, anchor_Y: torch.Tensor, samples: int, draws: torch.Generator
) -> tuple[torch.Tensor, Batch]:
    """Draw 8 groups of `samples` responses of policy and the anchor.

    Returns the responses and their batch.
    """
    groups = 8
    laws = (
        torch.multinomial(law_Y.exp(), groups * samples, True, generator=draws)
        for law_Y in (policy_Y, anchor_Y)
    )
    responses_B = torch.cat([drawn.view(groups, samples) for drawn in laws], 1).ravel()
    nothing_B = torch.zeros(len(responses_B), dtype=torch.float64)
    batch = Batch(
        logp_policy=policy_Y[responses_B],
        logp_reference=anchor_Y[responses_B],
        win_rate=nothing_B,
        reward=responses_B.double(),
        rank=nothing_B,
        samples=torch.full_like(nothing_B, samples),
        group=torch.arange(groups).repeat_interleave(2 * samples),
        from_anchor=torch.tensor([0.0] * samples + [1.0] * samples).repeat(groups),
    )
    return responses_B, batch


def converged(
    samples: int = 6, steps: int = 150, rate: float = 0.0, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train `steps` on-policy steps from the uniform policy (MATH 1.6 eq. 18).

    Returns the log-probabilities of the policy and of the anchor.
    """
    draws = torch.Generator().manual_seed(0)
    objective = objective_of(**settings)
    logits_Y = UNIFORM_Y.clone().requires_grad_()
    anchor_Y = UNIFORM_Y.clone()
    optimizer = torch.optim.Adam([logits_Y], betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / steps)
        responses_B, batch = fresh(
            logits_Y.detach().log_softmax(0), anchor_Y.log_softmax(0), samples, draws
        )
        optimizer.zero_grad()
        objective(logits_Y.log_softmax(0)[responses_B], batch)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        anchor_Y.lerp_(logits_Y.detach(), rate)
    return logits_Y.detach().log_softmax(0), anchor_Y.log_softmax(0)


def variation(some_Y: torch.Tensor, others_Y: torch.Tensor) -> float:
    return float((some_Y - others_Y).abs().sum() / 2)


def kl(some_Y: torch.Tensor, others_Y: torch.Tensor) -> float:
    return float((some_Y.exp() * (some_Y - others_Y)).sum())


def win_rate(policy_Y: torch.Tensor) -> float:
    return float(policy_Y.exp() @ MIDDLE_Y)


# ------------------------------------------------------------------------------- one batch, by hand


def mixed(
    rewards: Sequence[float], from_anchor: Sequence[float], seed: int = 0
) -> tuple[torch.Tensor, Batch]:
    """Return one group with these rewards and random log-probabilities.

    Samples of policy and anchor may come in any order.
    """
    logps_B, batch = random_batch(seed, sizes=[len(rewards)])
    columns = {
        "reward": torch.tensor(rewards, dtype=torch.float64),
        "from_anchor": torch.tensor(from_anchor),
    }
    return logps_B, chosen(batch, slice(None), **columns)


def test_only_the_anchor_is_compared_with() -> None:
    _, batch = mixed([2.0, 9.0, 1.0, 2.0, 3.0], [0, 0, 1, 1, 1])
    # (1 + rows of the anchor not above)/(1 + 3)
    assert anchor_quantiles(batch)[:2].tolist() == [3 / 4, 4 / 4]
    assert jbond_rewards(batch)[:2].tolist() == [0, 0]  # one above 2: no pair
    assert best_of_n_weights(batch, 2).tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3])
    _, batch = mixed([1.5, 0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1, 1])
    # 1 of 3 pairs, and all
    assert jbond_rewards(batch)[:2].tolist() == pytest.approx([-math.log(16) / 3, -math.log(16)])


@pytest.mark.parametrize("name", ["bond", "jbond"])
def test_gradients_of_fresh_rows_by_hand(name: str) -> None:
    rewards, from_anchor = [0.5, 3.5, 1.0, 2.0, 4.0, 2.5], [0, 0, 1, 1, 1, 0]
    logps_B, batch = mixed(rewards, from_anchor)
    moved = (logps_B - batch.logp_reference).tolist()  # the anchor is the reference
    policy, anchor = [0, 1, 5], [2, 3, 4]
    returns = {}
    for i in policy:
        if name == "bond":
            learned = (3 - 1) * math.log((1 + sum(rewards[j] <= rewards[i] for j in anchor)) / 4)
        else:
            pairs = list(itertools.combinations(anchor, 2))
            learned = (
                -math.log(16) * sum(rewards[i] < min(rewards[j], rewards[k]) for j, k in pairs) / 3
            )
        returns[i] = learned - moved[i]
    backward = [0.0] * 6
    for i in policy:
        others = [returns[j] for j in policy if j != i]
        backward[i] = -(returns[i] - sum(others) / 2) / 3  # the mean over the policy's three rows
    settings: dict[str, Any] = {"name": name} | ({"n": 3} if name == "bond" else {})
    np.testing.assert_allclose(
        gradient_of(logps_B, batch, **settings, jeffreys=1.0), backward, rtol=1e-10
    )
    # best of 3, or of 2, of the anchor
    forward = [0.0, 0, 0, 0, -1, 0] if name == "bond" else [0.0, 0, 0, -1 / 3, -2 / 3, 0]
    np.testing.assert_allclose(
        gradient_of(logps_B, batch, **settings, jeffreys=0.0), forward, rtol=1e-10
    )
    if name == "jbond":
        pulled = [0.7 * slope + 0.3 * step for slope, step in zip(forward, backward, strict=True)]
        pulled = [slope + 0.5 * moved[i] / 3 * (i in policy) for i, slope in enumerate(pulled)]
        np.testing.assert_allclose(
            gradient_of(logps_B, batch, **settings, jeffreys=0.3, gamma=0.5), pulled, rtol=1e-10
        )


def test_jbond_of_one_sample_and_two_of_the_anchor_by_hand() -> None:
    # MATH 1.6: the row is below both, R = -log 16 - (-1 + 1.5) without a baseline; the best of two
    # is the last row. Rows of either kind are a mean of their own.
    columns = {"logp_reference": torch.tensor([-1.5, -2.0, -3.0], dtype=torch.float64)}
    _, batch = mixed([0.0, 1.0, 3.0], [0, 1, 1])
    batch = chosen(batch, slice(None), **columns)
    logps_B = torch.tensor([-1.0, -2.5, -3.5], dtype=torch.float64)
    learned = math.log(16) + 0.5
    for jeffreys, gamma, expected in [
        (1.0, 0.0, [learned, 0, 0]),
        (0.0, 0.0, [0, 0, -1]),
        (0.25, 2.0, [0.25 * learned + 2 * 0.5, 0, -0.75]),
    ]:
        gradient_B = gradient_of(logps_B, batch, name="jbond", jeffreys=jeffreys, gamma=gamma)
        assert gradient_B.tolist() == pytest.approx(expected, rel=1e-12)
    # A row above one of the two has the reward 0.
    above = chosen(batch, slice(None), reward=torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64))
    assert gradient_of(logps_B, above, name="jbond", jeffreys=1.0).tolist() == pytest.approx(
        [0.5, 0, 0], rel=1e-12
    )


def test_one_sample_and_two_of_the_anchor_are_unbiased() -> None:
    # All 27 draws of (y, y', y'') from three responses, each with its probability: the mean
    # gradient in the logits is that of (1 - j) KL(best of 2, pi) - j E_pi[R log pi] + gamma KL(pi,
    # anchor), with E r_J = -log 16 (1 - p_<=)^2 (MATH 1.6).
    policy_Y = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    anchor_Y = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    jeffreys, gamma = 0.4, 0.3
    draws = torch.tensor(list(itertools.product(range(3), repeat=3)))  # rewards are the indices
    logits_Y = policy_Y.clone().requires_grad_()
    objective = objective_of(
        name="jbond", jeffreys=jeffreys, gamma=gamma, refresh_steps=1, anchor_samples=2
    )
    mean = torch.zeros((), dtype=torch.float64)
    for draw in draws:
        nothing_B = torch.zeros(3, dtype=torch.float64)
        batch = Batch(
            logp_policy=policy_Y[draw],
            logp_reference=anchor_Y[draw],
            win_rate=nothing_B,
            reward=draw.double(),
            rank=nothing_B,
            samples=nothing_B,
            group=torch.zeros(3, dtype=torch.long),
            from_anchor=torch.tensor([0.0, 1.0, 1.0]),
        )
        probability = (policy_Y[draw[0]] + anchor_Y[draw[1]] + anchor_Y[draw[2]]).exp()
        mean = mean + probability * objective(logits_Y.log_softmax(0)[draw], batch)[0]
    (found_Y,) = torch.autograd.grad(mean, logits_Y)

    below_Y = anchor_Y.exp().cumsum(0)  # p_<=
    best_of_2_Y = below_Y**2 - (below_Y - anchor_Y.exp()) ** 2
    logps_Y = logits_Y.log_softmax(0)
    moved_Y = policy_Y - anchor_Y
    returns_Y = -math.log(16) * (1 - below_Y) ** 2 - moved_Y
    slopes_Y = (
        (1 - jeffreys) * best_of_2_Y
        + jeffreys * policy_Y.exp() * returns_Y
        - gamma * policy_Y.exp() * moved_Y
    )
    (expected_Y,) = torch.autograd.grad(-(slopes_Y * logps_Y).sum(), logits_Y)
    torch.testing.assert_close(found_Y, expected_Y, rtol=1e-12, atol=1e-14)


def test_metrics_are_those_of_the_policy_s_rows() -> None:
    logps_B, batch = mixed([0.5, 3.5, 1.0, 2.0], [0, 1, 0, 1])
    _, metrics = objective_of(name="bond")(logps_B, batch)
    expected = (logps_B - batch.logp_reference)[[0, 2]].mean()
    assert float(metrics["log_ratio_reference"]) == pytest.approx(float(expected))


# ---------------------------------------------------------------------------- driven to convergence


@pytest.mark.slow
def test_bond_backward_reaches_best_of_n_the_closer_the_more_samples_a_quantile_has() -> None:
    # MATH 1.2 without log S: pi ~ anchor F^(n-1). The smoothed quantile of M samples is too high by
    # (1 - p)/(M + 1).
    aim_Y = (QUANTILE_Y**2) / (QUANTILE_Y**2).sum()
    best_of_3_Y = QUANTILE_Y**3 - (QUANTILE_Y - 1 / RESPONSES) ** 3
    found_Y = {
        samples: converged(samples, name="bond", n=3, jeffreys=1.0)[0].exp() for samples in (4, 20)
    }
    assert variation(found_Y[4], aim_Y) < 0.08
    assert variation(found_Y[20], aim_Y) < 0.03
    # .022 of it is what leaving out S costs with ten responses
    assert variation(found_Y[20], best_of_3_Y) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("jeffreys", "tolerance"), [(0.0, 0.04), (0.5, 0.04)])
def test_bond_reaches_best_of_n_by_its_other_divergences(jeffreys: float, tolerance: float) -> None:
    best_of_2_Y = QUANTILE_Y**2 - (QUANTILE_Y - 1 / RESPONSES) ** 2
    found_Y, anchor_Y = converged(8, name="bond", n=2, jeffreys=jeffreys)
    assert variation(found_Y.exp(), best_of_2_Y) < tolerance
    assert torch.equal(anchor_Y, UNIFORM_Y.log_softmax(0))


@pytest.mark.slow
def test_jbond_with_a_moving_anchor_goes_on_where_a_fixed_one_stops() -> None:
    # Best-of-2 of a fixed anchor wins 2/3 of its duels at .193 nats. Behind a moving one the anchor
    # follows, and stays near.
    fixed_Y, anchor_Y = converged(name="jbond")
    assert win_rate(fixed_Y) == pytest.approx(0.665, abs=0.03)
    moving_Y, moved_Y = converged(name="jbond", rate=0.05)
    assert win_rate(moving_Y) > 0.9
    assert win_rate(moved_Y) > 0.85
    assert kl(moving_Y, moved_Y) < math.log(2) - 0.5
    assert kl(moving_Y, anchor_Y) > 1.5


@pytest.mark.slow
def test_gamma_holds_the_policy_to_its_anchor() -> None:
    # The sign of the regularizer (MATH 1.6): with the printed minus the KL would grow.
    kls = [kl(*converged(name="jbond", gamma=gamma)) for gamma in (0.0, 0.3, 1.0)]
    assert kls[0] > 1.3 * kls[1] > 1.3 * 1.3 * kls[2]


def test_jbond_with_two_of_each_kind_is_finite_and_as_by_hand() -> None:
    """MATH 1.6 eq. 17.

    Of two anchor samples each has one other, and so no pair: only the policy's rows have a reward.
    """
    logps_B = torch.tensor([-1.0, -2.0, -1.5, -3.0], dtype=torch.float64, requires_grad=True)
    nothing_B = torch.zeros(4, dtype=torch.float64)
    batch = Batch(
        logp_policy=logps_B.detach(),
        logp_reference=torch.tensor([-1.5, -2.5, -1.5, -3.0], dtype=torch.float64),
        win_rate=nothing_B,
        reward=torch.tensor([0.0, 2.0, 1.0, 3.0], dtype=torch.float64),
        rank=nothing_B,
        samples=nothing_B + 2,
        group=torch.zeros(4, dtype=torch.long),
        from_anchor=torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64),
    )
    # below both, below one
    assert jbond_rewards(batch)[:2].tolist() == pytest.approx([-math.log(16), 0.0])
    assert torch.isfinite(jbond_rewards(batch)).all()
    loss = objective_of(name="jbond", refresh_steps=1, jeffreys=1.0, gamma=0.0)(logps_B, batch)[0]
    loss.backward()  # type: ignore[no-untyped-call]
    # Returns R = (-log 16 - 0.5, 0 - 0.5), each against the other's; the loss is the mean of -(R -
    # R') log pi over the two.
    assert loss.item() == pytest.approx(-(-math.log(16) * -1.0 + math.log(16) * -2.0) / 2)
    assert logps_B.grad is not None
    assert logps_B.grad.tolist() == pytest.approx([math.log(16) / 2, -math.log(16) / 2, 0.0, 0.0])
