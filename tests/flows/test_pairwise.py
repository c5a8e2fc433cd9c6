"""A whole iteration with preferences instead of rewards, on real components."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.distill import distill
from tasks.run import open_run
from tests.wind.pairwise_case import digits, digits_cross_encoder
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version

pytestmark = pytest.mark.slow

KEY = ["prompt_id", "sample_index"]


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_an_iteration_with_a_pairwise_reward(
    recipe: Callable[..., DistillConfig], tiny_model: Path, tmp_path: Path
) -> None:
    """It ends with a version, checked and whole; its preferences are those that the model learnt; a
    rerun computes nothing.
    """
    digits_cross_encoder(tmp_path / "pairs", tiny_model)
    config = recipe("reward={kind: pairwise, path: pairs, template: chat}")
    with open_run(config, planning=True, quiet=True) as here:
        distill.fn(here.config)
        planned = [event.task for event in here.events]
    computed = []
    for _ in range(2):
        with open_run(config, quiet=True) as here:
            distill(here.config)
            computed.append([event.task for event in here.events if event.outcome == "computed"])
    assert computed == [planned, []]
    # among the siblings, and against the reference: no third for the reference
    assert planned.count("score_rewards") == 2

    store = Store(tmp_path / "store")
    version = find_version(store, "tiny")
    assert verify(store, version) > 0
    assert all(expectations > 0 for expectations in version.checks.values())
    datasets = version.content.datasets

    rewards = store.frame(datasets["rewards"])
    texts = rewards.join(
        store.frame(datasets["generations"], [*KEY, "response"]), on=KEY, maintain_order="left"
    )
    wins, judged = 0, 0
    for _, group in texts.group_by("prompt_id"):
        counts = np.array([digits(response) for response in group["response"]])
        matrix = np.array(group["preferences"].to_list())
        assert (matrix + matrix.T == 1).all()
        more = counts[:, None] > counts
        wins, judged = wins + int((matrix[more] > 0.5).sum()), judged + int(more.sum())
    assert judged > 20
    assert wins / judged > 0.8

    win_rates = store.frame(datasets["win_rates"])
    # unbiased: the same mean
    assert win_rates["win_rate"].to_numpy() == pytest.approx(
        rewards["reward"].to_numpy(), abs=1e-12
    )
    evaluation = store.frame(datasets["evaluation"])
    against = store.frame(datasets["eval_rewards"])
    assert against["preferences"].list.len().unique().to_list() == [2]
    assert evaluation["win_rate"].to_numpy() == pytest.approx(
        against["reward"].to_numpy(), abs=1e-12
    )
    metrics = {
        row["metric"]: row["value"]
        for row in store.frame(datasets["metrics"]).iter_rows(named=True)
    }
    assert metrics["mean_reward"] == pytest.approx(metrics["win_rate"])
    assert metrics["mean_reward_reference"] == pytest.approx(1 - metrics["win_rate"])
    ties = against.select(pl.col("preferences").explode() == 0.5).to_series().mean()
    assert metrics["tie_share"] == pytest.approx(ties)
