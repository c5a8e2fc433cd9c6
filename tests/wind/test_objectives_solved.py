"""Solved problems: each sampled objective finds the law it is known for.

It is minimized over the softmax policies of a small bandit. Samples are arranged so that sums over
rows *are* expectations: a group in which every response stands as often as its probability says, or
all groups of n draws. The targets are then met to the precision of the optimizer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.wind.objective_case import batch_of, chosen, extremes, objective_of
from wind.objectives import Batch

Floats = npt.NDArray[np.float64]

COUNTS = (1, 2, 4, 2, 1)  # of the responses in the population: pi_t is a tenth of these
LOGPI_Y = np.log(np.array(COUNTS) / 10)
LOGREF_Y = np.log([0.3, 0.1, 0.2, 0.1, 0.3])
REWARD_Y = np.array([0.0, 2.0, 1.0, 2.0, 3.0])  # two responses tie


def normalized(z_Y: Floats) -> Floats:
    return np.asarray(z_Y - np.logaddexp.reduce(z_Y))


def preferences(reward_Y: Floats) -> Floats:
    return np.asarray((reward_Y[:, None] > reward_Y) + 0.5 * (reward_Y[:, None] == reward_Y))


def drawn(
    groups: Sequence[Sequence[int]], reward_Y: Floats, logpi_Y: Floats, logref_Y: Floats
) -> tuple[torch.Tensor, Batch]:
    """Return the responses of all rows, and their batch."""
    responses_B = torch.tensor([response for group in groups for response in group])
    _, batch = batch_of([[float(reward_Y[response]) for response in group] for group in groups])
    frozen = {
        "logp_policy": torch.from_numpy(logpi_Y)[responses_B],
        "logp_reference": torch.from_numpy(logref_Y)[responses_B],
    }
    return responses_B, chosen(batch, slice(None), **frozen)


def population(reward_Y: Floats, logpi_Y: Floats = LOGPI_Y) -> tuple[torch.Tensor, Batch]:
    """Return one group that is pi_t itself, with exact win rates."""
    responses_B, batch = drawn(
        [np.repeat(np.arange(5), COUNTS).tolist()], reward_Y, logpi_Y, LOGREF_Y
    )
    win_rate_Y = torch.from_numpy(preferences(reward_Y) @ (np.array(COUNTS) / 10))
    return responses_B, chosen(batch, slice(None), win_rate=win_rate_Y[responses_B])


def fitted(responses_B: torch.Tensor, batch: Batch, start_Y: Floats, **settings: Any) -> Floats:
    """Return the log-probabilities of the softmax policy that minimizes the objective."""
    objective = objective_of(**settings)
    logits_Y = torch.tensor(start_Y, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits_Y],
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss, _ = objective(logits_Y.log_softmax(0)[responses_B], batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(logits_Y.detach().log_softmax(0))


def exact_wind(logpi_Y: Floats, reward_Y: Floats, beta: float, eta: float) -> Floats:
    """MATH 2.4a in the log-space tabular form of 6a."""
    lam = 1 / (1 + beta * eta)
    return normalized(
        lam * logpi_Y + (1 - lam) * LOGREF_Y + eta * lam * (preferences(reward_Y) @ np.exp(logpi_Y))
    )


# -------------------------------------------------------------------------- regression on win rates


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
def test_every_risk_of_wind_finds_the_exact_update(risk: str) -> None:
    responses_B, batch = population(REWARD_Y)
    found_Y = fitted(
        responses_B, batch, LOGPI_Y, name="wind", risk=risk, beta=0.5, eta=2.0, shift="centred"
    )
    np.testing.assert_allclose(found_Y, exact_wind(LOGPI_Y, REWARD_Y, 0.5, 2.0), atol=1e-5)


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
def test_the_plug_in_intercept_finds_it_without_centring(risk: str) -> None:
    responses_B, batch = population(REWARD_Y)
    found_Y = fitted(
        responses_B, batch, LOGPI_Y, name="wind", risk=risk, beta=0.5, eta=2.0, shift="plug_in"
    )
    np.testing.assert_allclose(found_Y, exact_wind(LOGPI_Y, REWARD_Y, 0.5, 2.0), atol=1e-5)


def test_a_learned_intercept_finds_it_too_and_ends_as_the_normalizer() -> None:
    responses_B, batch = population(REWARD_Y)
    logits_Y = torch.tensor(LOGPI_Y, requires_grad=True)
    intercept = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    objective = objective_of(name="wind", beta=0.5, eta=2.0, shift="learned")
    optimizer = torch.optim.LBFGS(
        [logits_Y, intercept],
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss, _ = objective(
            logits_Y.log_softmax(0)[responses_B], replace(batch, intercept=intercept)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(
        logits_Y.detach().log_softmax(0), exact_wind(LOGPI_Y, REWARD_Y, 0.5, 2.0), atol=1e-5
    )
    # eta lam = 1: the intercept is log Z_t = log sum pi_t^(1/2) pi_ref^(1/2) exp(P_t) (MATH 2.6b).
    win_rate_Y = preferences(REWARD_Y) @ np.exp(LOGPI_Y)
    assert float(intercept.detach()) == pytest.approx(
        np.logaddexp.reduce(0.5 * (LOGPI_Y + LOGREF_Y) + win_rate_Y), abs=1e-5
    )


def test_sampled_win_rates_approach_the_exact_update() -> None:
    exact_Y = exact_wind(LOGPI_Y, REWARD_Y, beta=0.5, eta=2.0)
    errors = []
    for samples in (40, 800):
        squares = []
        for seed in range(6):
            drawn_B = np.random.default_rng(seed).choice(5, size=samples, p=np.exp(LOGPI_Y))
            responses_B, batch = drawn([drawn_B.tolist()], REWARD_Y, LOGPI_Y, LOGREF_Y)
            found_Y = fitted(
                responses_B, batch, LOGPI_Y, name="wind", beta=0.5, eta=2.0, shift="centred"
            )
            squares.append(float(np.square(np.exp(found_Y) - np.exp(exact_Y)).sum()))
        errors.append(math.sqrt(np.mean(squares)))
    assert errors[1] < errors[0] / 2.5  # about 1/sqrt(samples): a factor of 4.5
    assert errors[1] < 0.03


def test_iterating_wind_reaches_the_fixed_point() -> None:
    # (2.3a): pi*(y) ~ pi_ref(y) exp(P*(y) / beta), reached at rate 1/(1 + eta beta) for eta <= 4
    # beta (MATH 2.5). The rows are each response once: what is centred is the residual, and the fit
    # is exact whatever the weights.
    beta, eta = 0.5, 2.0
    logpi_Y = LOGREF_Y
    for _ in range(40):
        responses_B, batch = drawn([range(5)], REWARD_Y, logpi_Y, LOGREF_Y)
        batch = chosen(
            batch, slice(None), win_rate=torch.from_numpy(preferences(REWARD_Y) @ np.exp(logpi_Y))
        )
        logpi_Y = fitted(
            responses_B, batch, logpi_Y, name="wind", beta=beta, eta=eta, shift="centred"
        )
    np.testing.assert_allclose(
        logpi_Y, normalized(LOGREF_Y + preferences(REWARD_Y) @ np.exp(logpi_Y) / beta), atol=1e-4
    )


def test_sppo_approaches_its_update_as_its_intercept_becomes_the_normalizer() -> None:
    # (4.1) pi_t exp(eta P)/Z, whose log Z is eta/2 to first order: the error of the constant is of
    # order eta^2.
    responses_B, batch = population(REWARD_Y)
    errors = []
    for eta in (1.0, 0.1):
        found_Y = fitted(responses_B, batch, LOGPI_Y, name="sppo", eta=eta)
        errors.append(np.abs(found_Y - exact_wind(LOGPI_Y, REWARD_Y, 0.0, eta)).max())
    assert errors[1] < 2e-3
    assert errors[0] > 30 * errors[1]


# ------------------------------------------------------------------------------ regression on pairs


def test_inpo_finds_its_update_and_wind_s() -> None:
    responses_B, batch = population(REWARD_Y)
    beta, eta = 0.5, 2.0
    found_Y = fitted(responses_B, batch, LOGPI_Y, name="inpo", tau=beta, eta=beta + 1 / eta)
    win_rate_Y = preferences(REWARD_Y) @ np.exp(LOGPI_Y)
    # tau/eta_I = 1/2
    update_Y = normalized(win_rate_Y / (beta + 1 / eta) + 0.5 * LOGREF_Y + 0.5 * LOGPI_Y)
    np.testing.assert_allclose(found_Y, update_Y, atol=1e-6)
    np.testing.assert_allclose(update_Y, exact_wind(LOGPI_Y, REWARD_Y, beta, eta), atol=1e-12)


def test_rebel_finds_the_tilt_by_the_reward() -> None:
    responses_B, batch = population(REWARD_Y)
    found_Y = fitted(responses_B, batch, LOGPI_Y, name="rebel", eta=0.7)
    np.testing.assert_allclose(found_Y, normalized(LOGPI_Y + 0.7 * REWARD_Y), atol=1e-6)


def test_ipo_over_all_pairs_finds_the_tilt_by_the_win_rate() -> None:
    # Without ties between different responses: a pair of equal responses says nothing, whether it
    # is left out or not.
    reward_Y = np.array([0.0, 2.0, 1.0, 4.0, 3.0])
    responses_B, batch = population(reward_Y)
    found_Y = fitted(responses_B, batch, LOGPI_Y, name="ipo", tau=0.4)
    np.testing.assert_allclose(
        found_Y, normalized(LOGREF_Y + preferences(reward_Y) @ np.exp(LOGPI_Y) / 0.4), atol=1e-6
    )


def test_smoothed_dpo_finds_the_odds_it_was_told() -> None:
    responses_B, batch = drawn(
        [[0, 1]], np.array([0.0, 1.0]), np.log([0.5, 0.5]), np.log([0.7, 0.3])
    )
    found_Y = fitted(responses_B, batch, np.zeros(2), name="dpo", beta=0.5, label_smoothing=0.2)
    assert found_Y[1] - found_Y[0] == pytest.approx(
        math.log(0.3 / 0.7) + math.log(0.8 / 0.2) / 0.5, abs=1e-5
    )


# ---------------------------------------------------------------------------------------- best of n


def best_of_n(counts: Sequence[int], n: int) -> Floats:
    """The exact law, responses in ascending order of reward (MATH 1.1, 6a)."""
    below_Y = np.concatenate([[0], np.cumsum(counts)]) / sum(counts)
    return np.asarray(np.log(below_Y[1:] ** n - below_Y[:-1] ** n))


@pytest.mark.parametrize("n", [2, 3])
def test_raft_finds_best_of_n(n: int) -> None:
    groups = list(product([0, 1, 1, 2, 2], repeat=n))  # all draws from (1, 2, 2)/5
    logpi_Y = np.log([0.2, 0.4, 0.4])
    responses_B, batch = drawn(groups, np.array([0.0, 1.0, 2.0]), logpi_Y, logpi_Y)
    np.testing.assert_allclose(
        fitted(responses_B, batch, logpi_Y, name="raft"), best_of_n([1, 2, 2], n), atol=1e-6
    )


@pytest.mark.parametrize("n", [2, 3])
def test_bond_forward_finds_best_of_n_from_larger_groups(n: int) -> None:
    groups = list(product([0, 1, 1, 2], repeat=4))
    logpi_Y = np.log([0.25, 0.5, 0.25])
    responses_B, batch = drawn(groups, np.array([0.0, 1.0, 2.0]), logpi_Y, logpi_Y)
    found_Y = fitted(responses_B, batch, logpi_Y, name="bond", n=n, jeffreys=0.0)
    np.testing.assert_allclose(found_Y, best_of_n([1, 2, 1], n), atol=1e-6)


def test_bond_backward_rests_at_best_of_n() -> None:
    # The anchor is uniform on strictly ordered responses, each stored once, and the policy
    # best-of-2 of it, pi ~ F: the return log F - log(pi/anchor) is then the same for all: nothing
    # is left to gain. At the anchor it ranks the top above the bottom.
    quantile_Y = np.arange(1, 201) / 200
    logpi_Y = np.log(np.full(200, 1 / 200))
    _, batch = drawn([range(200)], quantile_Y, logpi_Y, logpi_Y)
    best_B = torch.from_numpy(normalized(np.log(quantile_Y)))
    gradient = []
    for logps_B in (best_B, batch.logp_policy):
        logps_B = logps_B.clone().requires_grad_()
        objective_of(name="bond", n=2, jeffreys=1.0)(logps_B, batch)[0].backward()  # type: ignore[no-untyped-call]
        assert logps_B.grad is not None
        gradient.append(logps_B.grad)
    assert gradient[0].abs().max() < 1e-12
    assert (gradient[1].diff() < 0).all()


def test_bonbon_within_powers_of_the_quantile_falls_short_of_best_of_n() -> None:
    # MATH 3.2: over log(pi/pi_t) = k log u, the IPO contrast at n = 8 has its minimum at k = 7
    # H^2/(H^2 + V) = 5.715, not 7.
    harmonic, variance = (sum(1 / j**power for j in range(1, 8)) for power in (1, 2))
    expected = 7 * harmonic**2 / (harmonic**2 + variance)
    assert expected == pytest.approx(5.715, abs=1e-3)
    generator = np.random.default_rng(0)
    losses = np.zeros(3)
    objective = objective_of(name="bonbon", alpha=0.0)
    for _ in range(60):
        u_P_N = generator.uniform(size=(50, 8))
        _, batch = batch_of(u_P_N.tolist())
        log_u_B = torch.from_numpy(np.log(u_P_N).ravel())
        at = [extremes(batch.logp_policy + k * log_u_B, batch) for k in (5.0, 6.0, 7.0)]
        losses += [float(objective(*pair)[0]) for pair in at]
    slope, curvature = (losses[2] - losses[0]) / 2, losses[2] - 2 * losses[1] + losses[0]
    assert 6 - slope / curvature == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "win_rate", "kl"), [(8, 0.814, 0.879), (4, 0.834, 0.854)])
def test_bonbon_without_restriction_finds_a_step_like_tilt(
    n: int, win_rate: float, kl: float
) -> None:
    # MATH 3.2: the unrestricted minimizer of the IPO contrast. Rewards are continuous, the policy
    # is a law over 40 quantiles.
    bins, groups, steps = 40, 30, 500
    draws = torch.Generator().manual_seed(0)
    objective = objective_of(name="bonbon", alpha=0.0)
    logits_Y = torch.zeros(bins, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits_Y])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / steps)
        u_P_N = torch.rand(groups, n, dtype=torch.float64, generator=draws)
        uniform_B = torch.full((groups * n,), -math.log(bins), dtype=torch.float64)
        batch = Batch(
            logp_policy=uniform_B,
            logp_reference=uniform_B,
            win_rate=uniform_B,
            reward=u_P_N.ravel(),
            rank=(-u_P_N).argsort(1).argsort(1).double().ravel() + 1,
            samples=torch.full_like(uniform_B, n),
            group=torch.arange(groups).repeat_interleave(n),
        )
        optimizer.zero_grad()
        at = extremes(logits_Y.log_softmax(0)[(u_P_N.ravel() * bins).long()], batch)
        objective(*at)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found_Y = logits_Y.detach().log_softmax(0)
    assert float(
        found_Y.exp() @ ((torch.arange(bins, dtype=torch.float64) + 0.5) / bins)
    ) == pytest.approx(win_rate, abs=0.01)
    assert float(found_Y.exp() @ (found_Y + math.log(bins))) == pytest.approx(kl, abs=0.04)


# --------------------------------------------------------------------------------- quantile rewards


@pytest.mark.parametrize(("beta", "win_rate"), [(1.0, 0.5820), (0.5, 0.6565), (0.2, 0.8068)])
def test_qrpo_finds_the_tilt_by_the_quantile(beta: float, win_rate: float) -> None:
    # MATH 0.4: the exponential tilt with c = 1/beta, whose win rate against pi_t is ((c - 1) e^c +
    # 1)/(c (e^c - 1)).
    responses = 400
    quantile_Y = (np.arange(responses) + 0.5) / responses
    logpi_Y = np.log(np.full(responses, 1 / responses))
    responses_B, batch = drawn([range(responses)], quantile_Y, logpi_Y, logpi_Y)
    found_Y = fitted(responses_B, batch, logpi_Y, name="qrpo", beta=beta)
    np.testing.assert_allclose(found_Y, normalized(quantile_Y / beta), atol=0.02)
    assert float(np.exp(found_Y) @ quantile_Y) == pytest.approx(win_rate, abs=2e-3)
