"""SPPO, and the losses of preference pairs: DPO, IPO, INPO, REBEL.

Which pairs there are, and what each weighs.
"""

import math
from typing import Any

import pytest
import torch

from tests.wind.objective_case import (
    CASES,
    Row,
    batch_of,
    chosen,
    gradient_of,
    loss_of,
    mean_over_rows,
    random_batch,
)
from wind.objectives.pairs import pairs_of


def pairs_among(group: list[Row], *, with_ties: bool) -> list[tuple[Row, Row]]:
    ranked = sorted(group, key=lambda row: row.rank)
    pairs = [(ranked[i], ranked[j]) for i in range(len(ranked)) for j in range(i + 1, len(ranked))]
    return [(won, lost) for won, lost in pairs if with_ties or won.reward > lost.reward]


def sppo_pair(won: Row, lost: Row, s: dict[str, Any]) -> float:
    # The authors' code: 0.5 [(logits_w - (P_w - 0.5)/beta)^2 + (logits_l - (P_l - 0.5)/beta)^2],
    # its beta = 1/eta.
    beta = 1 / s["eta"]
    logits_w, logits_l = won.logp - won.policy, lost.logp - lost.policy
    return float(
        0.5
        * (
            (logits_w - 1 / beta * (won.win - 0.5)) ** 2
            + (logits_l - 1 / beta * (lost.win - 0.5)) ** 2
        )
    )


def dpo(won: Row, lost: Row, s: dict[str, Any]) -> float:
    x = s["beta"] * ((won.logp - lost.logp) - (won.reference - lost.reference))
    smoothing = s.get("label_smoothing", 0)
    return float(
        (1 - smoothing) * math.log(1 + math.exp(-x)) + smoothing * math.log(1 + math.exp(x))
    )


def ipo(won: Row, lost: Row, s: dict[str, Any]) -> float:
    return float(
        ((won.logp - lost.logp) - (won.reference - lost.reference) - 1 / (2 * s["tau"])) ** 2
    )


def inpo(won: Row, lost: Row, s: dict[str, Any]) -> float:
    share = s["tau"] / s["eta"]
    drift = (
        (won.logp - lost.logp)
        - share * (won.reference - lost.reference)
        - (1 - share) * (won.policy - lost.policy)
    )
    return float((drift - (1 / (2 * s["eta"]) if won.reward > lost.reward else 0)) ** 2)


def rebel(won: Row, lost: Row, s: dict[str, Any]) -> float:
    return float(
        (
            (won.logp - lost.logp)
            - (won.policy - lost.policy)
            - s["eta"] * (won.reward - lost.reward)
        )
        ** 2
    )


FORMULAS = {"sppo_pair": sppo_pair, "dpo": dpo, "ipo": ipo, "inpo": inpo, "rebel": rebel}


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]["name"] in FORMULAS])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_loops_from_scratch(case: str, ties: bool) -> None:
    settings = CASES[case]
    logps_B, batch = random_batch(seed=11, ties=ties)

    def loss(group: list[Row]) -> float:
        pairs = pairs_among(group, with_ties=settings["name"] in ("inpo", "rebel"))
        return sum(FORMULAS[settings["name"]](won, lost, settings) for won, lost in pairs) / max(
            len(pairs), 1
        )

    assert loss_of(logps_B, batch, **settings) == pytest.approx(
        mean_over_rows(logps_B, batch, loss), rel=1e-12
    )


# --------------------------------------------------------------------------------------------- SPPO


def test_sppo_from_scratch_and_as_wind_without_a_reference() -> None:  # MATH 8 item 4
    logps_B, batch = random_batch(seed=12)
    expected = mean_over_rows(
        logps_B,
        batch,
        lambda group: (
            sum((r.logp - r.policy - 1000 * (r.win - 0.5)) ** 2 for r in group) / len(group)
        ),
    )
    assert loss_of(logps_B, batch, name="sppo") == pytest.approx(expected, rel=1e-12)
    assert loss_of(logps_B, batch, name="wind", beta=0, eta=1000) == pytest.approx(
        expected, rel=1e-12
    )


def test_on_groups_of_two_all_three_forms_of_sppo_agree() -> None:
    logps_B, batch = random_batch(seed=13, sizes=[2, 2, 2])
    losses = [loss_of(logps_B, batch, name=name, eta=3.0) for name in ("sppo", "sppo_pair")]
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] == pytest.approx(loss_of(logps_B, batch, name="wind", beta=0, eta=3.0))


# -------------------------------------------------------------------------------------- which pairs


def test_pairs_by_hand() -> None:
    # Group A: rewards 1, 3, 1, 2 (ranks 3, 1, 4, 2); group B: 5, 5.
    _, batch = batch_of([[1, 3, 1, 2], [5, 5]])
    every = pairs_of(batch)
    assert set(zip(every.winner.tolist(), every.loser.tolist(), strict=True)) == {
        (1, 0),
        (1, 2),
        (1, 3),
        (3, 0),
        (3, 2),
    }
    # group B's rows count, and have no pair
    assert every.weight.tolist() == pytest.approx([4 / 6 / 5] * 5)
    tied = pairs_of(batch, with_ties=True)
    assert len(tied.winner) == 6 + 1
    assert float(tied.weight.sum()) == pytest.approx(1)


@pytest.mark.parametrize("case", ["sppo_pair", "dpo", "dpo-smoothed", "ipo"])
def test_a_group_without_pairs_adds_nothing_but_its_rows(case: str) -> None:
    logps_B, batch = batch_of([[1.0, 0.0], [2.0, 2.0, 2.0]])
    alone = loss_of(logps_B[:2], chosen(batch, slice(0, 2)), **CASES[case])
    assert loss_of(logps_B, batch, **CASES[case]) == pytest.approx(alone * 2 / 5)
    assert (gradient_of(logps_B, batch, **CASES[case])[2:] == 0).all()
    assert loss_of(logps_B[2:], chosen(batch, slice(2, 5)), **CASES[case]) == 0


# ----------------------------------------------------------------------------------------- DPO, IPO


def test_label_smoothing_puts_the_minimum_at_a_finite_margin() -> None:
    _, batch = batch_of([[1.0, 0.0]])
    h = math.log(0.9 / 0.1) / 0.5
    at = batch.logp_reference + torch.tensor([h, 0.0], dtype=torch.float64)
    settings = {"name": "dpo", "beta": 0.5, "label_smoothing": 0.1}
    assert gradient_of(at, batch, **settings).abs().max() < 1e-12
    assert gradient_of(at, batch, name="dpo", beta=0.5)[0] < -0.01
    # At h = 0 the loss is log 2 whatever the smoothing, and the slope shrinks by 1 - 2 s.
    assert loss_of(batch.logp_reference, batch, **settings) == pytest.approx(math.log(2))
    slopes = [
        gradient_of(batch.logp_reference, batch, **(settings | {"label_smoothing": s}))[0]
        for s in (0.0, 0.1)
    ]
    assert slopes[1] == pytest.approx(0.8 * slopes[0])


def test_ipo_is_zero_at_its_margin() -> None:
    _, batch = batch_of([[1.0, 0.0]])
    at = batch.logp_reference + torch.tensor([1 / (2 * 0.4), 0.0], dtype=torch.float64)
    assert loss_of(at, batch, name="ipo", tau=0.4) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("dpo", "logp_policy"), ("ipo", "logp_policy"), ("rebel", "logp_reference")],
)
def test_only_the_base_enters(name: str, frozen: str) -> None:
    logps_B, batch = random_batch(seed=14)
    other = chosen(
        batch, slice(None), **{frozen: getattr(batch, frozen) + torch.linspace(0, 5, len(logps_B))}
    )
    assert loss_of(logps_B, other, name=name) == loss_of(logps_B, batch, name=name)
    base = "logp_reference" if frozen == "logp_policy" else "logp_policy"
    other = chosen(
        batch, slice(None), **{base: getattr(batch, base) + torch.linspace(0, 5, len(logps_B))}
    )
    assert loss_of(logps_B, other, name=name) != loss_of(logps_B, batch, name=name)


# -------------------------------------------------------------------------------------- INPO, REBEL


@pytest.mark.parametrize("ties", [False, True])
def test_inpo_over_all_pairs_is_wind_centred(ties: bool) -> None:  # MATH 8 item 3, in the loss
    # tau = beta and eta_I = beta + 1/eta; self-counting win rates; equal gradients up to 2n/(n - 1)
    # in groups of n.
    logps_B, batch = random_batch(seed=15, sizes=[5, 5], ties=ties)
    counted = chosen(batch, slice(None), win_rate=0.5 + 4 / 5 * (batch.win_rate - 0.5))
    beta, eta = 0.4, 2.0
    inpo_B = gradient_of(logps_B, batch, name="inpo", eta=beta + 1 / eta, tau=beta)
    wind_B = gradient_of(logps_B, counted, name="wind", beta=beta, eta=eta, shift="centred")
    torch.testing.assert_close(inpo_B, 2 * 5 / 4 * wind_B, rtol=1e-10, atol=1e-12)


def test_rebel_over_all_pairs_is_centring_with_rewards() -> None:
    logps_B, batch = random_batch(seed=16, sizes=[4, 4], ties=True)
    rewarded = chosen(batch, slice(None), win_rate=batch.reward)
    centred = loss_of(logps_B, rewarded, name="wind", beta=0, eta=0.7, shift="centred")
    assert loss_of(logps_B, batch, name="rebel", eta=0.7) == pytest.approx(2 * 4 / 3 * centred)


def test_tied_pairs_hold_log_ratios_together() -> None:
    _, batch = batch_of([[1.0, 1.0]])
    moved_B = batch.logp_policy + torch.tensor([1.0, 0.0], dtype=torch.float64)
    gradient_B = gradient_of(moved_B, batch, name="rebel")
    assert gradient_B[0] > 0 > gradient_B[1]
