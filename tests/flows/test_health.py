"""Health in a real run: what it adds, what it compares, and what it leaves alone."""

from pathlib import Path

import pytest

from flows.distill import distill
from tasks.run import Event, open_run
from tests.flows.conftest import Recipe
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = pytest.mark.slow


def run(config: DistillConfig) -> list[Event]:
    """What the run computed, in order."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        return [event for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_health_of_two_iterations(finished_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    without = find_version(store, "tiny")
    assert "health" not in without.content.datasets

    settings = ("evaluation.health=true", "reference.kind=previous")
    # the first iteration began with the policy that it is evaluated against
    assert [event.name for event in run(finished_recipe(*settings))] == ["health", "metrics"]
    assert [event.name for event in run(finished_recipe(*settings, "iterations=2"))][-6:] == [
        "eval_rewards",
        "eval_logps",
        "evaluation",
        "eval_logps.previous",
        "health",
        "metrics",
    ]
    assert run(finished_recipe(*settings, "iterations=2")) == []

    _, first, second = Versions(store, "tiny")
    assert without.content.datasets.items() - first.content.datasets.items() == {
        ("metrics", without.content.datasets["metrics"])
    }
    for version in (first, second):
        values = {name: entry["value"] for name, entry in version.metrics.items()}
        # transformers samples and scores in float32 here
        assert values["logp_gap"] < 1e-5
        assert values["eos_share"] == pytest.approx(1 - values["truncated_share"])
        assert values["kl_reference_k1"] == values["kl_previous_k1"]
        assert (values["kl_previous_k1"] == values["kl_k1"]) == (version == first)
        assert values["kl_previous_k3"] >= 0
        assert values["response_tokens_p10"] <= values["response_tokens_p90"]
    kept = {name: without.metrics[name] for name in without.metrics}
    assert {name: first.metrics[name] for name in kept} == kept
    assert verify(store, second) > verify(store, without) > 0
    scored = store.manifest(second.content.datasets["health"]).parents["logps_previous"]
    assert store.manifest(scored).parents["policy"] == second.content.model_in


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_health_of_on_policy_training(recipe: Recipe, tmp_path: Path) -> None:
    """There are no training samples to compare; the moving reference is a policy of its own."""
    config = recipe(
        "evaluation.health=true",
        "objective={name: jbond, refresh_steps: 2}",
        "reference={kind: ema, rate: 0.05}",
        "iterations=2",
    )
    assert [event.name for event in run(config)][-4:] == [
        "eval_logps.previous",
        "eval_logps.reference",
        "health",
        "metrics",
    ]
    metrics = find_version(Store(tmp_path / "store"), "tiny").metrics
    values = {name: entry["value"] for name, entry in metrics.items()}
    assert "win_rate_reliability" not in values
    assert len({values[f"kl_{of}"] for of in ("k1", "previous_k1", "reference_k1")}) == 3
