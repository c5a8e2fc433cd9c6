"""Whole iterations with a mix of rewards, on real components."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_checks.validation import refuse_wrong_checks
from flows.distill import distill
from tasks.run import open_run
from tests.wind.versions_case import verify
from wind.config.loading import checks_config
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version

pytestmark = pytest.mark.slow

KEY = ["prompt_id", "sample_index"]
REWARDS = (
    "digits: {kind: rule, function: 'tiny_reward:digits'}, "
    "late: {kind: overlong, max_tokens: 6, cache_tokens: 4}, "
    "again: {kind: repetition, n: 1, unit: tokens}"
)
COLUMNS = ["again", "digits", "late"]


def run(config: DistillConfig) -> tuple[list[str], Store, Version]:
    """The tasks that computed something; the store and its last version, which is whole."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        computed = [event.task for event in here.events if event.outcome == "computed"]
    store = Store(config.root)
    version = find_version(store, "tiny")
    assert verify(store, version) > 0
    assert all(expectations > 0 for expectations in version.checks.values())
    return computed, store, version


def expected(frame: pl.DataFrame) -> dict[str, list[float]]:
    """The three rewards of responses, recomputed from their texts and tokens."""
    tokens = frame["response_token_ids"].to_list()
    lengths = [
        6 if reason == "length" else len(each)
        for each, reason in zip(tokens, frame["finish_reason"], strict=True)
    ]
    return {
        "again": [len(set(each)) / len(each) - 1 for each in tokens],
        "digits": [
            float(sum(character.isdigit() for character in response))
            for response in frame["response"]
        ],
        "late": [max(-1.0, min(0.0, (2 - length) / 4)) for length in lengths],
    }


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_an_iteration_with_a_standardized_mix(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    config = recipe(f"reward={{kind: mix, combine: standardized, rewards: {{{REWARDS}}}}}")
    computed, store, version = run(config)
    # the policy's and, against the reference, the held-out ones: no third for the reference
    assert computed.count("score_rewards") == 2
    assert run(config)[0] == []
    datasets = version.content.datasets
    texts = store.frame(datasets["generations"])
    rewards = store.frame(datasets["rewards"])
    columns = expected(texts)
    for name in COLUMNS:
        assert rewards[name].to_list() == pytest.approx(columns[name])
    for _, group in rewards.group_by("prompt_id"):
        scores = group.select(COLUMNS).to_numpy()
        deviations = scores.std(axis=0)
        deviations[deviations == 0] = 1
        total = ((scores - scores.mean(axis=0)) / deviations).sum(axis=1)
        assert group["reward"].to_numpy() == pytest.approx(total, abs=1e-9)
    evaluation = store.frame(datasets["evaluation"])
    against = store.frame(datasets["eval_rewards"])
    assert set(against["preferences"].explode().unique()) <= {0.0, 0.5, 1.0}
    assert evaluation["win_rate"].to_list() == against["reward"].to_list()
    metrics = dict(store.frame(datasets["metrics"]).select("metric", "value").iter_rows())
    assert metrics["win_rate"] == pytest.approx(np.mean(against["reward"].to_list()))
    # columns of a component can be checked
    extra: dict[str, Any] = {
        "rewards": [{"expectation": "ExpectColumnValuesToNotBeNull", "column": "late"}]
    }
    refuse_wrong_checks(checks_config({"extra": extra}), config.reward.component_names())


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_an_iteration_on_policy_with_a_mix(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    config = recipe(
        f"reward={{kind: mix, rewards: {{{REWARDS}}}, combine: standardized, weights: {{late: 2}}}}",
        "objective={name: rloo, refresh_steps: 1}",
    )
    _, store, version = run(config)
    rollouts = store.frame(version.content.datasets["rollouts"])
    columns = expected(rollouts)
    for name in COLUMNS:
        assert rollouts[name].to_list() == pytest.approx(columns[name])
    sums = rollouts.group_by("step", "prompt_id").agg(pl.col("reward").sum(), pl.len())
    assert sums["len"].unique().to_list() == [4]
    assert sums["reward"].to_list() == pytest.approx([0] * len(sums), abs=1e-9)
