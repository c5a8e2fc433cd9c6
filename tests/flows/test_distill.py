"""The whole loop on real components, and what its cache recomputes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_checks.results import recorded
from flows.distill import distill
from flows.plan import planned as plan
from tasks.run import open_run
from tests.flows.conftest import Recipe
from tests.wind.versions_case import verify
from wind.code import observed
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.stages import roles
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.references import find_version
from wind.store.shards import shard_name
from wind.store.versions import Versions

pytestmark = pytest.mark.slow

AFTER_TRAINING = [
    "train_policy",
    "sample_generations",
    "score_rewards",
    "score_logps",
    "evaluate_policy",
    "measure_metrics",
]


def run(config: DistillConfig, refresh: str | None = None) -> list[str]:
    """The tasks that computed something, in order."""
    with open_run(config, refresh=refresh, quiet=True) as here:
        distill(here.config)
        return [event.task for event in here.events if event.outcome == "computed"]


def previous_of(store: Store, dataset: Dataset) -> Dataset | None:
    """The dataset that the drift of `dataset` was judged against."""
    result = recorded(store, dataset)
    assert result is not None
    return result.previous


def planned(config: DistillConfig) -> list[str]:
    """The tasks that a plan says would compute something."""
    with open_run(config, planning=True, quiet=True) as here:
        distill.fn(here.config)
        return [event.task for event in here.events if event.outcome == "planned"]


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_cache_truth_table(finished_recipe: Callable[..., DistillConfig], tmp_path: Path) -> None:
    """What is recomputed is what changed and what depends on it, never more and never less."""
    recipe = finished_recipe
    store = Store(tmp_path / "store")
    first = find_version(store, "tiny")
    assert verify(store, first) > 0

    assert run(recipe()) == []
    assert [version.id for version in Versions(store, "tiny")] == [first.id]

    lr = recipe("training.lr=2e-3")
    assert planned(lr) == AFTER_TRAINING
    assert run(lr) == AFTER_TRAINING

    two = recipe("iterations=2")
    assert planned(two)[0] == "sample_generations"
    second = run(two)
    assert second == [
        "sample_generations",
        "score_rewards",
        "estimate_win_rates",
        "select_rows",
        "score_logps",
        *AFTER_TRAINING,
    ]
    latest = find_version(store, "tiny")
    assert latest.content.iteration == 2
    assert latest.content.previous == first.id
    for name, dataset in latest.content.datasets.items():  # drift is since the same part of before
        before = first.content.datasets[name] if roles()[dataset.name].has_drift else None
        assert previous_of(store, dataset) == before, name

    hotter = planned(recipe("sampling.temperature=2.0"))
    assert hotter[:5] == [
        "sample_generations",
        "score_rewards",
        "estimate_win_rates",
        "select_rows",
        "score_logps",
    ]
    assert "load_prompts" not in hotter

    assert run(recipe("checks.min_mean_response_tokens=0.1")) == []

    rewards = first.content.datasets["rewards"]
    (store.path(rewards) / shard_name(0)).unlink()
    assert run(recipe()) == ["score_rewards"]
    shard = store.path(rewards) / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(recipe()) == ["score_rewards"]
    shutil.rmtree(store.path(first.content.model_out))
    assert run(recipe()) == ["train_policy"]
    assert verify(store, first) > 0

    assert run(recipe(), refresh="rewards") == [
        "score_rewards",
        "estimate_win_rates",
        "select_rows",
        "score_logps",
        "train_policy",
        "score_rewards",
        "score_rewards",
        "score_logps",
        "evaluate_policy",
        "measure_metrics",
    ]

    (tmp_path / "store").rename(tmp_path / "moved")
    assert run(recipe("root=moved", "iterations=2")) == []


@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_what_a_reward_was_seen_to_read_is_part_of_every_hit(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No import statement and no setting tells of it."""
    source = (
        "def score(prompts, responses, answers):\n    weight = float(open('weight.txt').read())\n"
    )
    source += "    return [weight * len(each) for each in responses]\n"
    (tmp_path / "reads.py").write_text(source)
    (tmp_path / "weight.txt").write_text("1.0")
    config = recipe("reward.function=reads:score")
    assert len(run(config)) == 14
    assert (planned(config), run(config)) == ([], [])

    (tmp_path / "weight.txt").write_text("2.0")
    steps = {step["dataset"]: step for step in plan(config)}
    assert (steps["rewards"]["outcome"], steps["rewards"]["why"]) == (
        "run",
        ["weight.txt was edited"],
    )
    assert steps["generations"]["outcome"] == "cached"
    assert run(config)[0] == "score_rewards"
    assert (planned(config), run(config)) == ([], [])
    # what was computed then is there, and is all that a run needs
    (tmp_path / "weight.txt").write_text("1.0")
    assert (planned(config), run(config)) == ([], [])


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_hits_of_other_versions_of_packages_are_named_once_computed_anew_or_taken(
    finished_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished_recipe()
    assert (run(config), planned(config), capsys.readouterr().err) == ([], [], "")
    now = observed._version
    monkeypatch.setattr(observed, "_version", lambda name: "9.9" if name == "torch" else now(name))
    line = (
        f"taken from the cache, and computed with torch {now('torch')} (now 9.9): set "
        "cache.packages to key"
    )
    plan(config)
    assert [each.startswith(line) for each in capsys.readouterr().err.splitlines()] == [True]
    with open_run(config) as here:
        distill(here.config)
    assert [each for each in capsys.readouterr().err.splitlines() if "packages" in each] == [
        here.warning()
    ]
    assert str(here.warning()).startswith(line)
    assert (
        planned(load_config(Path("tiny.yaml"), ["cache.packages=ignore"])),
        capsys.readouterr().err,
    ) == ([], "")
    steps = plan(load_config(Path("tiny.yaml"), ["cache.packages=key"]))
    assert f"torch {now('torch')} is 9.9" in next(
        step["why"] for step in steps if step["dataset"] == "generations"
    )


@pytest.mark.usefixtures("prefect_server")
def test_an_edited_module_recomputes_what_it_computes(
    finished_recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """The source of the modules that a task names is in its key; the source of others is not."""
    finished_recipe()
    source = Path(__file__).parents[2]
    for package in ("flows", "tasks", "data_checks", "wind"):
        shutil.copytree(
            source / package,
            tmp_path / "copy" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )

    def wind(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", command, str(tmp_path / "tiny.yaml"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "copy")},
            capture_output=True,
            text=True,
            check=True,
        )

    with (tmp_path / "copy" / "wind" / "report_of_nobody.py").open("w") as file:
        file.write('"""A module that no stage names."""\n')
    with (tmp_path / "copy" / "wind" / "errors.py").open("a") as file:
        file.write("\n# edited\n")
    module = tmp_path / "copy" / "wind" / "win_rates.py"
    module.write_text(module.read_text() + "\n# edited: another digest, the same numbers\n")
    # win rates and evaluation
    assert "2 datasets computed, 12 from the cache" in wind("run").stderr

    reward = tmp_path / "tiny_reward.py"
    reward.write_text(reward.read_text().replace("float(sum", "-float(sum"))
    steps = json.loads(wind("plan", "--json").stdout)
    assert [step["stage"] for step in steps if step["outcome"] == "run"][:4] == [
        "rewards",
        "win_rates",
        "selections",
        "training",
    ]
    assert {step["outcome"] for step in steps if step["stage"] in ("prompts", "logps")} >= {
        "cached"
    }


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_on_policy_with_a_moving_anchor(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """J-BOND as published: no stage samples for it, the anchor goes on from iteration to iteration,
    and all of it is cached.
    """
    config = recipe(
        "objective={name: jbond, refresh_steps: 2}",
        "reference={kind: ema, rate: 0.05}",
        "iterations=2",
    )
    one_iteration = [
        "train_on_rollouts",
        "sample_generations",
        "score_rewards",
        "score_logps",
        "evaluate_policy",
        "measure_metrics",
    ]
    of_the_opponent = ["load_prompts", "sample_generations", "score_rewards"]
    assert sorted(planned(config)) == sorted([*of_the_opponent, *one_iteration, *one_iteration])
    assert sorted(run(config)) == sorted([*of_the_opponent, *one_iteration, *one_iteration])
    store = Store(tmp_path / "store")
    first, second = Versions(store, "tiny")
    assert set(first.content.datasets) >= {"rollouts", "training"}
    assert not set(first.content.datasets) & {"generations", "rewards", "win_rates", "logps"}
    assert first.content.reference == first.content.model_in
    assert (
        second.content.reference
        == store.manifest(first.content.datasets["training"]).outputs["anchor"]
    )
    assert second.content.reference not in (first.content.model_in, first.content.model_out)
    assert verify(store, second) > verify(store, first) > 0
    assert run(config) == []
    assert run(
        recipe(
            "objective={name: jbond, refresh_steps: 2}",
            "reference={kind: previous}",
            "iterations=1",
        )
    )[0] == ("train_on_rollouts")
    assert run(config, refresh="training")[0] == "train_on_rollouts"
