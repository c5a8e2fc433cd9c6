"""Properties of every objective.

Its gradient, its mean over rows, its invariance to order, its behavior at ties.
"""

import inspect
import math
from typing import Any

import pytest
import torch

from tests.wind.objective_case import (
    CASES,
    batch_of,
    chosen,
    config_of,
    gradient_of,
    loss_of,
    objective_of,
    random_batch,
)
from wind.config.objectives import SECTIONS
from wind.objectives import OBJECTIVES

every = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())

# The backward terms of these are REINFORCE: their value is no function to differentiate, its
# gradient is checked by hand.
SURROGATES = ("bond", "jbond")
# At pi_theta = pi_t = pi_ref and constant rewards these have nothing to learn, and know it.
# Likelihoods go on as before, QRPO's quantiles are all 1, and the strict intercept expects that
# somebody loses.
CONTENT = ("half", "centred", "plug_in", "sppo", "inpo", "dpo", "ipo", "rebel", "grpo", "rloo")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_section_of_every_objective_has_its_parameters(name: str) -> None:
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    keywords = {
        key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert keywords == set(SECTIONS[name].model_fields) - SECTIONS[name].SAMPLING
    assert not any(parameter.default is not parameter.empty for parameter in parameters.values()), (
        "defaults are the config's"
    )


@pytest.mark.parametrize("case", [case for case in CASES if case not in SURROGATES])
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_is_that_of_finite_differences(case: str, ties: bool) -> None:
    settings = CASES[case]
    logps_B, batch = random_batch(seed=1, ties=ties)
    objective = objective_of(**settings)
    assert torch.autograd.gradcheck(
        lambda logps_B: objective(logps_B, batch)[0], logps_B.requires_grad_()
    )


@every
@pytest.mark.parametrize("ties", [False, True])
def test_order_of_rows_does_not_matter(settings: dict[str, Any], ties: bool) -> None:
    logps_B, batch = random_batch(seed=2, ties=ties)
    order = torch.randperm(len(logps_B), generator=torch.Generator().manual_seed(0))
    moved = chosen(batch, order)
    assert loss_of(logps_B[order], moved, **settings) == pytest.approx(
        loss_of(logps_B, batch, **settings), rel=1e-12
    )
    torch.testing.assert_close(
        gradient_of(logps_B[order], moved, **settings),
        gradient_of(logps_B, batch, **settings)[order],
        rtol=1e-12,
        atol=1e-14,
    )


@every
def test_loss_is_the_mean_over_the_rows_of_groups_apart(settings: dict[str, Any]) -> None:
    logps_B, batch = random_batch(seed=3)
    value, gradient_B = 0.0, torch.zeros_like(logps_B)
    for group in dict.fromkeys(batch.group.tolist()):
        rows = batch.group == group
        share = float(rows.double().mean())
        value += share * loss_of(logps_B[rows], chosen(batch, rows), **settings)
        gradient_B[rows] = share * gradient_of(logps_B[rows], chosen(batch, rows), **settings)
    assert loss_of(logps_B, batch, **settings) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(
        gradient_of(logps_B, batch, **settings), gradient_B, rtol=1e-10, atol=1e-14
    )


@every
def test_two_samples_are_enough_unless_the_config_says_more(settings: dict[str, Any]) -> None:
    samples = config_of(**settings).facts.least_samples
    assert samples <= 3
    logps_B, batch = random_batch(seed=4, sizes=[samples, samples])
    assert torch.isfinite(gradient_of(logps_B, batch, **settings)).all()
    assert math.isfinite(loss_of(logps_B, batch, **settings))


@every
def test_constant_rewards_teach_nothing(
    settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    logps_B, batch = batch_of([[1.0] * 4, [-3.0] * 3])
    assert torch.isfinite(gradient_of(logps_B, batch, **settings)).all()
    batch = chosen(batch, slice(None), logp_reference=batch.logp_policy)
    gradient_B = gradient_of(batch.logp_policy, batch, **settings)
    assert torch.isfinite(gradient_B).all()
    if (
        any(word in request.node.callspec.id for word in CONTENT)
        and "bonbon" not in request.node.callspec.id
    ):
        assert gradient_B.abs().max() < 1e-12


@every
def test_metrics_and_frozen_columns_carry_no_gradient(settings: dict[str, Any]) -> None:
    logps_B, batch = random_batch(seed=5)
    for values in vars(batch).values():
        if values is not None and values.is_floating_point():
            values.requires_grad_()
    loss, metrics = objective_of(**settings)(logps_B.requires_grad_(), batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert set(metrics) == {"log_ratio_policy", "log_ratio_reference", "win_margin"}
    assert not any(
        metrics[name].requires_grad for name in ("log_ratio_policy", "log_ratio_reference")
    )


@every
def test_single_precision_scores_are_enough(settings: dict[str, Any]) -> None:
    # The engine's log-probabilities are float32, the frozen columns float64.
    logps_B, batch = random_batch(seed=6)
    single = gradient_of(logps_B.float(), batch, **settings)
    torch.testing.assert_close(
        single.double(), gradient_of(logps_B, batch, **settings), rtol=1e-3, atol=1e-4
    )


@every
def test_descent_raises_the_best_over_the_worst(settings: dict[str, Any]) -> None:
    _, batch = batch_of([[0.0, 1.0, 2.0, 3.0]])
    batch = chosen(batch, slice(None), logp_reference=batch.logp_policy)
    gradient_B = gradient_of(batch.logp_policy, batch, **settings)
    assert gradient_B[3] < 0
    assert gradient_B[3] < gradient_B[0]


def test_metrics_by_hand() -> None:
    _, batch = batch_of([[1.0, 0.0]])
    batch = chosen(
        batch,
        slice(None),
        logp_policy=torch.tensor([-2.0, -6.0]),
        logp_reference=torch.tensor([-4.0, -2.0]),
    )
    _, metrics = objective_of(name="raft")(torch.tensor([-1.0, -8.0]), batch)
    assert {name: float(value) for name, value in metrics.items()} == {
        "log_ratio_policy": (1 - 2) / 2,
        "log_ratio_reference": (3 - 6) / 2,
        "win_margin": (1 * 1 + -1 * -2) / 2,  # the winner gained 1 nat, the loser lost 2
    }
