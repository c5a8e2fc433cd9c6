"""The WIND objective.

Numbers derived by hand, the identities of MATH 2.4-2.7, and one minimizer of all risks.
"""

import math
from collections.abc import Sequence

import numpy as np
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
from wind.objectives import Batch
from wind.objectives.wind import log_extended, strict


def rows_of(
    logp_policy: Sequence[float],
    logp_reference: Sequence[float],
    win_rate: Sequence[float],
    group: Sequence[int],
) -> Batch:
    rows = len(win_rate)
    return Batch(
        logp_policy=torch.tensor(logp_policy, dtype=torch.float64),
        logp_reference=torch.tensor(logp_reference, dtype=torch.float64),
        win_rate=torch.tensor(win_rate, dtype=torch.float64),
        reward=torch.zeros(rows, dtype=torch.float64),
        rank=torch.arange(1, rows + 1),
        samples=torch.full((rows,), rows),
        group=torch.tensor(group),
    )


# ------------------------------------------------------------------------------------------ by hand


def test_half_shift_by_hand() -> None:
    # beta = 1/2, eta = 2: lam = 1/(1 + 1) = 1/2 and eta lam = 1.
    # row 1: d = -3 + 1/2 * 2 + 1/2 * 4 = 0,   target = 1 * (1 - 1/2) =  1/2, residual -1/2
    # row 2: d = -5 + 1/2 * 6 + 1/2 * 2 = -1,  target = 1 * (0 - 1/2) = -1/2, residual -1/2
    # row 3: d = -1 + 1/2 * 2 + 1/2 * 2 = 1,   target = 1 * (1/2 - 1/2) = 0,  residual  1
    batch = rows_of([-2, -6, -2], [-4, -2, -2], [1.0, 0.0, 0.5], [7, 7, 7])
    logps_B = torch.tensor([-3.0, -5.0, -1.0])
    assert loss_of(logps_B, batch, name="wind", beta=0.5, eta=2) == pytest.approx(
        (0.25 + 0.25 + 1) / 3
    )


def test_centred_shift_by_hand() -> None:
    # As above, e = d - 1 * P = -1, -1, 1/2 in one group (mean -1/2): residuals -1/2, -1/2, 1; two
    # more rows in a group of their own with e = 0 and 3 (mean 3/2): residuals -3/2, 3/2.
    batch = rows_of(
        [-2, -6, -2, -4, -4], [-4, -2, -2, -4, -4], [1.0, 0.0, 0.5, 1.0, 0.0], [7, 7, 7, 2, 2]
    )
    logps_B = torch.tensor([-3.0, -5.0, -1.0, -3.0, -1.0])
    loss = loss_of(logps_B, batch, name="wind", beta=0.5, eta=2, shift="centred")
    assert loss == pytest.approx((0.25 + 0.25 + 1 + 2.25 + 2.25) / 5)


def test_kl_and_nce_risks_by_hand() -> None:
    # eta = 1, beta = 0: q = log(pi/pi_t) + 1/2 = 3/4 and 1/4 on a winner and a loser.
    batch = rows_of([-2, -2], [-9, -9], [1.0, 0.0], [0, 0])
    logps_B = torch.tensor([-1.75, -2.25])
    settings = {"name": "wind", "beta": 0, "eta": 1}
    assert loss_of(logps_B, batch, risk="kl", **settings) == pytest.approx(-math.log(0.75))
    assert loss_of(logps_B, batch, risk="nce", **settings) == pytest.approx(-2 * math.log(0.75))
    # noise: h = 2q/(1 + 2q) = 3/5 and 1/3; the winner pays -2 log h - log(1 - h), the loser -log(1
    # - h).
    expected = (-2 * math.log(3 / 5) - math.log(2 / 5) - math.log(2 / 3)) / 2
    assert loss_of(logps_B, batch, risk="nce_noise", **settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("eta", "constant"), [(1, 0.5413), (10, 0.7697), (100, 0.9539), (1000, 0.9931)]
)
def test_strict_constant(eta: float, constant: float) -> None:
    assert strict(eta) == pytest.approx(constant, abs=5e-5)


def test_strict_constant_at_the_ends() -> None:
    assert strict(1e-9) == pytest.approx(0.5, abs=1e-9)
    # where the series takes over
    assert strict(0.99e-4) == pytest.approx(strict(1.01e-4), abs=1e-6)
    assert strict(1e4) == pytest.approx(1 - math.log(1e4) / 1e4, abs=1e-12)


def test_strict_shift_moves_the_target_by_the_constant() -> None:
    # At beta = 0 with pi_theta = pi_t the drift is 0: the residual is -eta (P - c).
    batch = rows_of([-2.0], [-9.0], [1.0], [0])
    expected = (10 * (1 - 0.769737)) ** 2
    assert loss_of(
        torch.tensor([-2.0]), batch, name="wind", beta=0, eta=10, shift="strict"
    ) == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------- from scratch, and identities


def predicted(row: Row, group: list[Row], beta: float, eta: float, shift: str) -> float:
    """q = psi + c in the scale of win rates (MATH 2.6a)."""

    def psi(row: Row) -> float:
        return (1 + beta * eta) / eta * row.logp - row.policy / eta - beta * row.reference

    lam = 1 / (1 + beta * eta)
    if shift == "centred":
        intercept = sum(other.win - psi(other) for other in group) / len(group)
    elif shift == "plug_in":
        weights = [
            math.exp((1 - lam) * (other.reference - other.policy) + eta * lam * other.win)
            for other in group
        ]
        intercept = math.log(sum(weights) / len(group)) / (eta * lam)
    else:
        intercept = 0.5 if shift == "half" else math.log((math.exp(eta) - 1) / eta) / eta
    return psi(row) + intercept


def risk_of(q: float, p: float, risk: str) -> float:
    if risk == "squared":
        return (q - p) ** 2
    if risk == "nce_noise":
        h = 2 * q / (1 + 2 * q)
        return -2 * p * math.log(h) - math.log(1 - h)
    crossed = -p * math.log(q) - (1 - p) * math.log(1 - q)
    entropy = -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)
    return 2 * crossed if risk == "nce" else crossed - entropy


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
@pytest.mark.parametrize("shift", ["half", "strict", "centred", "plug_in"])
@pytest.mark.parametrize(("beta", "eta"), [(0.0, 5.0), (0.1, 10.0), (2.0, 4.0)])
def test_agrees_with_loops_from_scratch(risk: str, shift: str, beta: float, eta: float) -> None:
    logps_B, batch = random_batch(seed=1, ties=True)
    near_B = batch.logp_policy + 0.2 * (batch.logp_reference - batch.logp_policy)
    batch = chosen(batch, slice(None), logp_reference=near_B)
    # q stays inside (0, 1), where the risks are the textbook's: the policy a little off the exact
    # fit of P.
    lam = 1 / (1 + beta * eta)
    fit_B = (
        lam * batch.logp_policy
        + (1 - lam) * batch.logp_reference
        + eta * lam * (0.3 * batch.win_rate - 0.15)
    )
    logps_B = fit_B + 0.02 * eta * lam * (logps_B - batch.logp_policy)
    scale = (eta * lam) ** 2 if risk == "squared" else 1

    def loss(group: list[Row]) -> float:
        return (
            scale
            * sum(risk_of(predicted(row, group, beta, eta, shift), row.win, risk) for row in group)
            / len(group)
        )

    settings = {
        "name": "wind",
        "risk": risk,
        "beta": beta,
        "eta": eta,
        "shift": shift,
        "epsilon": 1e-4,
    }
    assert loss_of(logps_B, batch, **settings) == pytest.approx(
        mean_over_rows(logps_B, batch, loss), rel=1e-10
    )


@pytest.mark.parametrize("n", [2, 3, 8])
def test_centring_is_the_loss_over_all_pairs(n: int) -> None:  # MATH 8 item 5
    logps_B, batch = random_batch(seed=n, sizes=[n])
    lam, eta = 1 / (1 + 0.1 * 2.0), 2.0
    e_N = (
        logps_B
        - lam * batch.logp_policy
        - (1 - lam) * batch.logp_reference
        - eta * lam * batch.win_rate
    ).tolist()
    pairs = sum((e_N[i] - e_N[j]) ** 2 for i in range(n) for j in range(i + 1, n)) / n**2
    assert loss_of(
        logps_B, batch, name="wind", beta=0.1, eta=eta, shift="centred"
    ) == pytest.approx(pairs)
    if n == 2:
        assert pairs == pytest.approx((e_N[0] - e_N[1]) ** 2 / 4)


def test_balanced_duels_reduce_to_win_rates_of_rows() -> None:
    # The derivation in `nce_risk`, the long way: both outcomes of all ordered pairs, each with its
    # probability.
    logps_B, batch = batch_of([[2.0, 1.0, 1.0, 0.0]])
    logps_B = batch.logp_policy + 0.1 * (logps_B - batch.logp_policy)
    q = (logps_B - batch.logp_policy + 0.5).tolist()
    reward = batch.reward.tolist()
    risk = 0.0
    for i in range(4):
        for j in range(4):
            wins = (reward[i] > reward[j]) + 0.5 * (reward[i] == reward[j])
            if i != j:
                risk -= wins * (math.log(q[i]) + math.log(1 - q[j])) / 12
                risk -= (1 - wins) * (math.log(q[j]) + math.log(1 - q[i])) / 12
    assert loss_of(logps_B, batch, name="wind", risk="nce", beta=0, eta=1) == pytest.approx(risk)


@pytest.mark.parametrize("risk", ["kl", "nce", "nce_noise"])
@pytest.mark.parametrize("q", [-3.0, -0.2, 0.005, 0.995, 1.3, 4.0])
def test_gradient_survives_outside_the_unit_interval(risk: str, q: float) -> None:
    # A clipped q would have none; here it always points to the win rate inside.
    batch = rows_of([-2.0], [-9.0], [0.3], [0])
    gradient = float(
        gradient_of(torch.tensor([-2.5 + q]), batch, name="wind", risk=risk, beta=0, eta=1)
    )
    assert gradient * (q - 0.3) > 0
    assert abs(gradient) > 0.1


def test_extended_logarithm() -> None:
    values = log_extended(
        torch.tensor([-0.1, 0.0, 0.1, 0.5, 1.0, 2.0], dtype=torch.float64), 0.1
    ).tolist()
    tangent = [math.log(0.1) - 2, math.log(0.1) - 1, math.log(0.1)]
    assert values == pytest.approx([*tangent, math.log(0.5), 0, 0])


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
def test_all_risks_share_their_minimizer(risk: str) -> None:  # MATH 8 item 9
    # Tabular, interior win rates, exact in every response: the gradient is zero at q = P alone,
    # from either side.
    win_rate = [0.15, 0.4, 0.8]
    batch = rows_of([-1, -2, -3], [-9, -9, -9], win_rate, [0, 0, 0])
    exact_B = batch.logp_policy + 2.0 * (batch.win_rate - 0.5)
    settings = {"name": "wind", "risk": risk, "beta": 0, "eta": 2.0}
    assert gradient_of(exact_B, batch, **settings).abs().max() < 1e-12
    for step in (0.05, 0.5, 5.0):
        assert (gradient_of(exact_B + step, batch, **settings) > 0).all()
        assert (gradient_of(exact_B - step, batch, **settings) < 0).all()
    if risk == "kl":
        assert loss_of(exact_B, batch, **settings) == pytest.approx(0, abs=1e-12)


def test_centring_is_blind_to_a_common_movement_of_a_group() -> None:
    logps_B, batch = random_batch(seed=6)
    moved_B = logps_B + 3 * batch.group
    for risk in ("squared", "kl", "nce"):
        settings = {"name": "wind", "risk": risk, "beta": 0.1, "eta": 2.0}
        assert loss_of(moved_B, batch, shift="centred", **settings) == pytest.approx(
            loss_of(logps_B, batch, shift="centred", **settings)
        )
        assert loss_of(moved_B, batch, **settings) != pytest.approx(
            loss_of(logps_B, batch, **settings)
        )


def test_plug_in_intercept_is_exact_where_samples_are_the_whole_law() -> None:
    # Each of four responses once, under a uniform policy: the mean over the rows is that over the
    # law, so log Z is exact, and the exact update has no residual.
    reference_B = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    win_rate = [0.125, 0.375, 0.625, 0.875]
    batch = rows_of([math.log(0.25)] * 4, reference_B.tolist(), win_rate, [0] * 4)
    beta, eta = 0.5, 3.0
    lam = 1 / (1 + beta * eta)
    exact_B = (
        lam * batch.logp_policy + (1 - lam) * reference_B + eta * lam * batch.win_rate
    ).log_softmax(0)
    assert loss_of(
        exact_B, batch, name="wind", beta=beta, eta=eta, shift="plug_in"
    ) == pytest.approx(0, abs=1e-20)
    assert loss_of(exact_B, batch, name="wind", beta=beta, eta=eta) > 1e-4


def test_equal_rewards_leave_only_the_drift() -> None:
    # All tie: every win rate is 1/2 and, at the start, nothing pulls; away from it, the pull is
    # back along the drift.
    batch = rows_of([-5.0, -7.0], [-5.0, -7.0], [0.5, 0.5], [0, 0])
    for shift in ("half", "centred", "plug_in"):
        assert loss_of(
            batch.logp_policy, batch, name="wind", eta=10.0, shift=shift
        ) == pytest.approx(0, abs=1e-24)
    moved_B = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradient_B = gradient_of(batch.logp_policy + moved_B, batch, name="wind", eta=10.0)
    torch.testing.assert_close(gradient_B, moved_B)  # (2/2) (d - 0)


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
def test_tied_responses_have_equal_gradients(risk: str) -> None:
    _, batch = batch_of([[1.0, 1.0, 0.0]])
    same = torch.full((3,), -5.0, dtype=torch.float64)
    batch = chosen(batch, slice(None), logp_policy=same, logp_reference=same)
    gradient_B = gradient_of(same, batch, name="wind", risk=risk, shift="centred")
    assert gradient_B[0] == gradient_B[1] < 0 < gradient_B[2]


def test_psi_scale_differs_by_its_factor_alone() -> None:
    # MATH 2.6a: psi = d (1 + beta eta) / eta, so the loss in win-rate units is ((1 + beta
    # eta)/eta)^2 times ours.
    logps_B, batch = random_batch(seed=2)
    beta, eta = 0.3, 4.0
    psi_B = (1 + beta * eta) / eta * logps_B - batch.logp_policy / eta - beta * batch.logp_reference
    in_win_rates = float((psi_B + 0.5 - batch.win_rate).square().mean())
    loss = loss_of(logps_B, batch, name="wind", beta=beta, eta=eta)
    assert loss * ((1 + beta * eta) / eta) ** 2 == pytest.approx(in_win_rates)


def test_unbiased_labels_average_to_the_risk_of_their_mean() -> None:
    # The risks are affine in the label up to a constant, so estimates of P that are right on
    # average move no minimizer.
    batch = rows_of([-1.0] * 2, [-9.0] * 2, [0.0, 1.0], [0, 1])
    single = rows_of([-1.0], [-9.0], [0.5], [0])
    for risk in ("squared", "kl", "nce", "nce_noise"):
        settings = {"name": "wind", "risk": risk, "beta": 0, "eta": 1.0}
        spread = gradient_of(torch.tensor([-0.7, -0.7]), batch, **settings).sum()
        np.testing.assert_allclose(
            spread, gradient_of(torch.tensor([-0.7]), single, **settings)[0], rtol=1e-6
        )
