"""The WIND objective: numbers derived by hand, the identities of MATH 2.4-2.6, and problems whose solution is known."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wind.config import WindObjectiveConfig
from wind.objectives import OBJECTIVES, Batch, objective_for
from wind.objectives.wind import squared_loss, strict

Floats = npt.NDArray[np.float64]


def batch_of(
    logp_policy: Sequence[float], logp_reference: Sequence[float], win_rate: Sequence[float], group: Sequence[int]
) -> Batch:
    rows = len(win_rate)
    return Batch(
        logp_policy=torch.tensor(logp_policy, dtype=torch.float64),
        logp_reference=torch.tensor(logp_reference, dtype=torch.float64),
        win_rate=torch.tensor(win_rate, dtype=torch.float64),
        reward=torch.zeros(rows, dtype=torch.float64),
        rank=torch.arange(1, rows + 1),
        group=torch.tensor(group),
    )


def random_batch(seed: int, groups: int, n: int) -> tuple[torch.Tensor, Batch]:
    generator = np.random.default_rng(seed)
    rows = groups * n
    batch = batch_of(
        list(-generator.uniform(1, 20, rows)),
        list(-generator.uniform(1, 20, rows)),
        list(generator.uniform(0, 1, rows)),
        list(np.repeat(np.arange(groups), n)),
    )
    return torch.tensor(-generator.uniform(1, 20, rows)), batch


def loss_of(logps_B: torch.Tensor, batch: Batch, beta: float, eta: float, shift: str) -> float:
    return float(squared_loss(logps_B, batch, beta=beta, eta=eta, shift=shift))


# ---------------------------------------------------------------------------------------- by hand


def test_half_shift_by_hand() -> None:
    # beta = 1/2, eta = 2: lam = 1/(1 + 1) = 1/2 and eta lam = 1.
    # row 1: d = -3 + 1/2 * 2 + 1/2 * 4 = 0,   target = 1 * (1 - 1/2) =  1/2, residual -1/2
    # row 2: d = -5 + 1/2 * 6 + 1/2 * 2 = -1,  target = 1 * (0 - 1/2) = -1/2, residual -1/2
    # row 3: d = -1 + 1/2 * 2 + 1/2 * 2 = 1,   target = 1 * (1/2 - 1/2) = 0,  residual  1
    batch = batch_of([-2, -6, -2], [-4, -2, -2], [1.0, 0.0, 0.5], [7, 7, 7])
    logps_B = torch.tensor([-3.0, -5.0, -1.0])
    assert loss_of(logps_B, batch, beta=0.5, eta=2, shift="half") == pytest.approx((0.25 + 0.25 + 1) / 3)


def test_centred_shift_by_hand() -> None:
    # As above, e = d - 1 * P = -1, -1, 1/2 in one group (mean -1/2): residuals -1/2, -1/2, 1; two more rows in a
    # group of their own with e = 0 and 3 (mean 3/2): residuals -3/2, 3/2.
    batch = batch_of([-2, -6, -2, -4, -4], [-4, -2, -2, -4, -4], [1.0, 0.0, 0.5, 1.0, 0.0], [7, 7, 7, 2, 2])
    logps_B = torch.tensor([-3.0, -5.0, -1.0, -3.0, -1.0])
    loss = loss_of(logps_B, batch, beta=0.5, eta=2, shift="centred")
    assert loss == pytest.approx((0.25 + 0.25 + 1 + 2.25 + 2.25) / 5)


@pytest.mark.parametrize(("eta", "constant"), [(1, 0.5413), (10, 0.7697), (100, 0.9539), (1000, 0.9931)])
def test_strict_constant(eta: float, constant: float) -> None:
    assert strict(eta) == pytest.approx(constant, abs=5e-5)


def test_strict_constant_at_the_ends() -> None:
    assert strict(1e-9) == pytest.approx(0.5, abs=1e-9)
    assert strict(0.99e-4) == pytest.approx(strict(1.01e-4), abs=1e-6)  # where the series takes over
    assert strict(1e4) == pytest.approx(1 - math.log(1e4) / 1e4, abs=1e-12)


def test_strict_shift_moves_the_target_by_the_constant() -> None:
    # At beta = 0 with pi_theta = pi_t the drift is 0: the residual is -eta (P - c).
    batch = batch_of([-2.0], [-9.0], [1.0], [0])
    expected = (10 * (1 - 0.769737)) ** 2
    assert loss_of(torch.tensor([-2.0]), batch, beta=0, eta=10, shift="strict") == pytest.approx(expected, rel=1e-5)


def test_metrics_by_hand() -> None:
    batch = batch_of([-2.0, -6.0], [-4.0, -2.0], [1.0, 0.0], [0, 0])
    _, metrics = objective_for(WindObjectiveConfig())(torch.tensor([-1.0, -8.0]), batch)
    assert {name: float(value) for name, value in metrics.items()} == {
        "log_ratio_policy": (1 - 2) / 2,
        "log_ratio_reference": (3 - 6) / 2,
        "win_margin": (1 * 1 + -1 * -2) / 2,  # the winner gained 1 nat, the loser lost 2
    }


# ---------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("shift", ["half", "strict", "centred"])
@pytest.mark.parametrize(("beta", "eta"), [(0.0, 1.0), (0.1, 10.0), (2.0, 0.3)])
def test_agrees_with_numpy_from_scratch(shift: str, beta: float, eta: float) -> None:
    logps_B, batch = random_batch(seed=1, groups=3, n=4)
    lam = 1 / (1 + beta * eta)
    d_P_N = (logps_B.numpy() - lam * batch.logp_policy.numpy() - (1 - lam) * batch.logp_reference.numpy()).reshape(3, 4)
    e_P_N = d_P_N - eta * lam * batch.win_rate.numpy().reshape(3, 4)
    if shift == "centred":
        expected = np.mean((e_P_N - e_P_N.mean(1, keepdims=True)) ** 2)
    else:
        constant = 0.5 if shift == "half" else math.log((math.exp(eta) - 1) / eta) / eta
        expected = np.mean((e_P_N + eta * lam * constant) ** 2)
    assert loss_of(logps_B, batch, beta, eta, shift) == pytest.approx(float(expected), rel=1e-12)


def test_psi_scale_differs_by_its_factor_alone() -> None:
    # MATH 2.6a: psi = d (1 + beta eta) / eta, so the loss in win-rate units is ((1 + beta eta)/eta)^2 times ours.
    logps_B, batch = random_batch(seed=2, groups=1, n=5)
    beta, eta = 0.3, 4.0
    psi_B = (1 + beta * eta) / eta * logps_B - batch.logp_policy / eta - beta * batch.logp_reference
    in_win_rates = float((psi_B + 0.5 - batch.win_rate).square().mean())
    assert loss_of(logps_B, batch, beta, eta, "half") * ((1 + beta * eta) / eta) ** 2 == pytest.approx(in_win_rates)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_centring_is_the_loss_over_all_pairs(n: int) -> None:
    logps_B, batch = random_batch(seed=n, groups=1, n=n)
    lam, eta = 1 / (1 + 0.1 * 2.0), 2.0
    e_N = (logps_B - lam * batch.logp_policy - (1 - lam) * batch.logp_reference - eta * lam * batch.win_rate).numpy()
    pairs = sum((e_N[i] - e_N[j]) ** 2 for i in range(n) for j in range(i + 1, n)) / n**2
    assert loss_of(logps_B, batch, 0.1, eta, "centred") == pytest.approx(pairs)
    if n == 2:
        assert pairs == pytest.approx((e_N[0] - e_N[1]) ** 2 / 4)


def test_beta_zero_with_half_shift_is_the_sppo_code_loss() -> None:
    # SPPO's code (commit 5e61c4e): 0.5 [(logits_w - (P_w - 0.5)/beta)^2 + (logits_l - (P_l - 0.5)/beta)^2], its beta = 1/eta: the
    # mean over the pair, which is ours on the same two rows; the reference must not enter.
    logps_B, batch = random_batch(seed=3, groups=1, n=2)
    eta = 1000.0
    logits_w, logits_l = (logps_B - batch.logp_policy).tolist()
    win_w, win_l = batch.win_rate.tolist()
    code = 0.5 * ((logits_w - eta * (win_w - 0.5)) ** 2 + (logits_l - eta * (win_l - 0.5)) ** 2)
    assert loss_of(logps_B, batch, 0.0, eta, "half") == pytest.approx(code)


@pytest.mark.parametrize("shift", ["half", "strict", "centred"])
def test_gradient_is_that_of_finite_differences(shift: str) -> None:
    logps_B, batch = random_batch(seed=4, groups=2, n=3)
    logps_B.requires_grad_()
    squared_loss(logps_B, batch, beta=0.2, eta=3.0, shift=shift).backward()  # type: ignore[no-untyped-call]
    assert logps_B.grad is not None
    for row in range(6):
        moved_B = torch.zeros(6, dtype=torch.float64)
        moved_B[row] = 1e-6
        ends = [loss_of((logps_B + sign * moved_B).detach(), batch, 0.2, 3.0, shift) for sign in (1, -1)]
        assert float(logps_B.grad[row]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_descent_raises_winners_and_lowers_losers() -> None:
    batch = batch_of([-5.0, -5.0], [-5.0, -5.0], [1.0, 0.0], [0, 0])
    for shift in ("half", "centred"):
        logps_B = torch.full((2,), -5.0, dtype=torch.float64, requires_grad=True)
        squared_loss(logps_B, batch, beta=0.1, eta=1.0, shift=shift).backward()  # type: ignore[no-untyped-call]
        assert logps_B.grad is not None
        assert logps_B.grad[0] < 0 < logps_B.grad[1]


@pytest.mark.parametrize("shift", ["half", "strict", "centred"])
def test_order_of_rows_does_not_matter(shift: str) -> None:
    logps_B, batch = random_batch(seed=5, groups=3, n=4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = Batch(**{name: getattr(batch, name)[order] for name in vars(batch)})
    before = loss_of(logps_B, batch, 0.1, 2.0, shift)
    assert loss_of(logps_B[order], permuted, 0.1, 2.0, shift) == pytest.approx(before, rel=1e-12)


def test_centring_is_blind_to_a_common_movement_of_a_group() -> None:
    logps_B, batch = random_batch(seed=6, groups=2, n=3)
    moved_B = logps_B + torch.tensor([5.0] * 3 + [-2.0] * 3)
    assert loss_of(moved_B, batch, 0.1, 2.0, "centred") == pytest.approx(loss_of(logps_B, batch, 0.1, 2.0, "centred"))
    assert loss_of(moved_B, batch, 0.1, 2.0, "half") != pytest.approx(loss_of(logps_B, batch, 0.1, 2.0, "half"))


def test_groups_are_centred_apart() -> None:
    logps_B, batch = random_batch(seed=7, groups=2, n=3)
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        part = Batch(**{name: getattr(batch, name)[rows] for name in vars(batch)})
        parts.append(loss_of(logps_B[rows], part, 0.1, 2.0, "centred"))
    assert loss_of(logps_B, batch, 0.1, 2.0, "centred") == pytest.approx(sum(parts) / 2)


def test_equal_rewards_leave_only_the_drift() -> None:
    # All tie: every win rate is 1/2 and, at the start, nothing pulls; away from it, the pull is back along the drift.
    batch = batch_of([-5.0, -7.0], [-5.0, -7.0], [0.5, 0.5], [0, 0])
    for shift in ("half", "centred"):
        assert loss_of(batch.logp_policy, batch, 0.1, 10.0, shift) == 0
    logps_B = (batch.logp_policy + torch.tensor([1.0, -2.0])).requires_grad_()
    squared_loss(logps_B, batch, beta=0.1, eta=10.0, shift="half").backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logps_B.grad, torch.tensor([1.0, -2.0], dtype=torch.float64))  # (2/2) (d - 0)


def test_tied_responses_have_equal_gradients() -> None:
    batch = batch_of([-5.0] * 3, [-5.0] * 3, [0.75, 0.75, 0.0], [0] * 3)
    logps_B = torch.full((3,), -5.0, dtype=torch.float64, requires_grad=True)
    squared_loss(logps_B, batch, beta=0.1, eta=2.0, shift="centred").backward()  # type: ignore[no-untyped-call]
    assert logps_B.grad is not None
    assert logps_B.grad[0] == logps_B.grad[1] < 0 < logps_B.grad[2]


def test_frozen_columns_get_no_gradient_and_metrics_carry_none() -> None:
    logps_B, batch = random_batch(seed=8, groups=1, n=3)
    loss, metrics = objective_for(WindObjectiveConfig(shift="centred"))(logps_B.requires_grad_(), batch)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


def test_every_configured_objective_exists() -> None:
    assert set(OBJECTIVES) == {"wind"}
    for shift in ("half", "strict", "centred"):
        config = WindObjectiveConfig(beta=0.3, eta=2.0, shift=shift)
        logps_B, batch = random_batch(seed=9, groups=2, n=2)
        assert float(objective_for(config)(logps_B, batch)[0]) == loss_of(logps_B, batch, 0.3, 2.0, shift)


# ---------------------------------------------------------------------------------------- solved problems
# One prompt, Y responses: the update has the closed form (2.4a), and the objective must find it.


def exact_update(logpi_Y: Floats, logref_Y: Floats, preference_Y_Y: Floats, beta: float, eta: float) -> Floats:
    """MATH 2.4a in the log-space tabular form of 6a."""
    lam = 1 / (1 + beta * eta)
    z_Y = lam * logpi_Y + (1 - lam) * logref_Y + eta * lam * (preference_Y_Y @ np.exp(logpi_Y))
    return np.asarray(z_Y - np.logaddexp.reduce(z_Y))


def fitted_update(
    logpi_Y: Floats, logref_Y: Floats, win_rate_B: Floats, responses_B: npt.NDArray[np.int64], beta: float, eta: float
) -> Floats:
    """The softmax policy that minimises the centred loss on the sampled rows, found by Newton-like L-BFGS."""
    batch = batch_of(list(logpi_Y[responses_B]), list(logref_Y[responses_B]), list(win_rate_B), [0] * len(responses_B))
    logits_Y = torch.tensor(logpi_Y, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_Y], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = squared_loss(logits_Y.log_softmax(0)[responses_B], batch, beta=beta, eta=eta, shift="centred")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits_Y.detach().log_softmax(0).numpy()


def bandit(seed: int, responses: int) -> tuple[Floats, Floats, Floats]:
    generator = np.random.default_rng(seed)
    logpi_Y, logref_Y = (np.log(generator.dirichlet(np.full(responses, 5.0))) for _ in range(2))
    rewards_Y = generator.integers(0, 4, responses)  # with ties
    preference_Y_Y = (rewards_Y[:, None] > rewards_Y) + 0.5 * (rewards_Y[:, None] == rewards_Y)
    return logpi_Y, logref_Y, preference_Y_Y


def test_exact_win_rates_give_the_exact_update() -> None:
    logpi_Y, logref_Y, preference_Y_Y = bandit(seed=0, responses=6)
    win_rate_Y = preference_Y_Y @ np.exp(logpi_Y)
    fitted_Y = fitted_update(logpi_Y, logref_Y, win_rate_Y, np.arange(6), beta=0.5, eta=2.0)
    np.testing.assert_allclose(fitted_Y, exact_update(logpi_Y, logref_Y, preference_Y_Y, 0.5, 2.0), atol=1e-5)


def test_sampled_win_rates_approach_the_exact_update() -> None:
    logpi_Y, logref_Y, preference_Y_Y = bandit(seed=1, responses=5)
    exact_Y = exact_update(logpi_Y, logref_Y, preference_Y_Y, beta=0.5, eta=2.0)
    errors = []
    for samples in (40, 4000):
        squares = []
        for seed in range(8):
            drawn_B = np.random.default_rng(seed).choice(5, size=samples, p=np.exp(logpi_Y))
            # Unbiased in-group win rates of the samples themselves: their own comparison, a tie, is taken out.
            win_rate_B = (preference_Y_Y[np.ix_(drawn_B, drawn_B)].sum(1) - 0.5) / (samples - 1)
            fitted_Y = fitted_update(logpi_Y, logref_Y, win_rate_B, drawn_B, beta=0.5, eta=2.0)
            squares.append(float(np.square(np.exp(fitted_Y) - np.exp(exact_Y)).sum()))
        errors.append(math.sqrt(np.mean(squares)))
    assert errors[1] < errors[0] / 4  # about 1/sqrt(samples): a factor of ten
    assert errors[1] < 0.02


def test_iterating_reaches_the_fixed_point() -> None:
    # (2.3a): pi*(y) ~ pi_ref(y) exp(P*(y) / beta), reached at rate 1/(1 + eta beta) for eta <= 4 beta (MATH 2.5).
    _, logref_Y, preference_Y_Y = bandit(seed=2, responses=5)
    beta, eta = 0.5, 2.0
    logpi_Y = logref_Y
    for _ in range(40):
        logpi_Y = fitted_update(logpi_Y, logref_Y, preference_Y_Y @ np.exp(logpi_Y), np.arange(5), beta, eta)
    z_Y = logref_Y + (preference_Y_Y @ np.exp(logpi_Y)) / beta
    np.testing.assert_allclose(logpi_Y, z_Y - np.logaddexp.reduce(z_Y), atol=1e-4)
