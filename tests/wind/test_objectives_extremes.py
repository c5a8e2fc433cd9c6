"""Objectives where numbers are extreme.

Far log-ratios, the largest rewards that are admitted, ties everywhere, groups of the fewest rows.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.wind.objective_case import CASES, batch_of, chosen, config_of, gradient_of, loss_of
from wind.config.objectives import AnyObjectiveConfig
from wind.objectives import Batch
from wind.rewards.functions import LARGEST

FAR = 1000.0  # nats
FRESH = {
    f"{name} afresh": CASES[name] | {"refresh_steps": 1}
    for name in ("bond", "bond-forward", "jbond", "jbond-forward")
}
EVERY: dict[str, dict[str, Any]] = CASES | FRESH
every = pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY.keys())

log_ratios = st.sampled_from([-FAR, 0.0, FAR]) | st.floats(-FAR, FAR)
rewards = st.sampled_from([-LARGEST, 0.0, 1.0, LARGEST]) | st.floats(-LARGEST, LARGEST)


def kinds(objective: AnyObjectiveConfig, more: int) -> list[float]:
    """Return 1 for each row of the anchor, else 0.

    The rows of a group are the fewest of either kind, and `more` of each.
    """
    of_anchor = objective.least_anchor_samples + more if objective.draws_from_anchor else 0
    return [0.0] * (objective.facts.least_samples + more) + [1.0] * of_anchor


@st.composite
def batches(draw: Callable[..., Any], objective: AnyObjectiveConfig) -> tuple[torch.Tensor, Batch]:
    """Draw up to three groups whose policies are far apart.

    They differ by up to FAR nats in a row; the rewards of a group may all be equal.
    """
    from_anchor = kinds(objective, draw(st.integers(0, 2)))
    size, groups = len(from_anchor), draw(st.integers(1, 3))
    tied = st.builds(lambda reward: [reward] * size, rewards)
    some = st.lists(rewards, min_size=size, max_size=size)
    logps_B, batch = batch_of([draw(tied | some) for _ in range(groups)])

    def moved() -> torch.Tensor:
        return logps_B + torch.tensor(
            [draw(log_ratios) for _ in range(size * groups)], dtype=torch.float64
        )

    columns = {"logp_policy": moved(), "logp_reference": moved()}
    if objective.draws_from_anchor:
        columns["from_anchor"] = torch.tensor(from_anchor * groups, dtype=torch.float64)
    return logps_B, chosen(batch, slice(None), **columns)


@every
@examples(max_examples=25, deadline=None)
@given(data=st.data())
def test_loss_and_gradient_are_finite(settings: dict[str, Any], data: st.DataObject) -> None:
    logps_B, batch = data.draw(batches(config_of(**settings)))
    assert math.isfinite(loss_of(logps_B, batch, **settings))
    assert gradient_of(logps_B, batch, **settings).isfinite().all()


@every
@pytest.mark.parametrize("apart", [-FAR, FAR])
def test_far_from_where_it_was_sampled_the_slope_is_what_a_float32_squares(
    settings: dict[str, Any], apart: float
) -> None:
    """Rewards of ordinary size.

    Training sums the squares of what the slope becomes in float32, whose largest is 3e38.
    """
    objective = config_of(**settings)
    from_anchor = kinds(objective, 1)
    _, batch = batch_of([[float(row) for row in range(len(from_anchor))]])
    columns = {"from_anchor": torch.tensor(from_anchor)} if objective.draws_from_anchor else {}
    gradient_B = gradient_of(
        batch.logp_policy + apart, chosen(batch, slice(None), **columns), **settings
    )
    assert gradient_B.abs().max() < 1e12


@pytest.mark.parametrize("name", ["grpo", "rloo"])
@pytest.mark.parametrize("reward", [0.1, 1e16 / 3, LARGEST, -LARGEST])
def test_equal_rewards_have_no_advantage_whatever_their_size(name: str, reward: float) -> None:
    # In floating point a third of 3 times 1e100 is not 1e100, and a deviation divided by itself is
    # 1.
    _, batch = batch_of([[reward] * 3, [reward] * 7])
    gradient_B = gradient_of(batch.logp_policy, batch, name=name, beta=0.0)
    assert gradient_B.abs().max() == 0


@pytest.mark.parametrize("name", ["bond", "jbond"])
def test_what_the_anchor_s_own_rows_return_is_left_out_whatever_it_is(name: str) -> None:
    # Masked, not multiplied by 0: the log-ratio of a sample that the anchor itself gives no
    # probability is infinite.
    logps_B, batch = batch_of([[0.0, 2.0, 1.0, 3.0]])
    batch = chosen(batch, slice(None), from_anchor=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    lost = chosen(
        batch,
        slice(None),
        logp_reference=batch.logp_reference.where(~batch.is_of_anchor, -torch.inf),
    )
    settings: dict[str, Any] = {"name": name, "jeffreys": 0.5} | (
        {"gamma": 0.5} if name == "jbond" else {}
    )
    assert torch.equal(
        gradient_of(logps_B, lost, **settings), gradient_of(logps_B, batch, **settings)
    )
