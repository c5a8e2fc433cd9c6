"""Alarms and gates on a real run whose reward likes long responses: caught, sent back, stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.deployments import continue_run_of, finished_iterations
from flows.distill import distill
from flows.plan import planned
from tasks.run import open_run
from tests.flows.conftest import write_recipe
from tests.wind.versions_case import verify
from wind.audit.lineage import chain, of_version
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.errors import GateError
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version, Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "own_workers")]

Load = Callable[..., DistillConfig]
RIGHT = """
def right(prompts, responses, answers):
    return [float(response.strip() == answer) for response, answer in zip(responses, answers)]
"""
HONEST = "gates.honest={alarm: reward_hacking, action: rollback, max_rollbacks: 1}"
STOP = "gates.honest={alarm: reward_hacking}"


@pytest.fixture
def greedy(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The config of a run whose reward is for right answers, and 0.1 for every character.

    The answers are the honest judge.
    """
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, tiny_model)
    rows = [
        {"prompt": f"{first}+{second}=", "answer": str(first + second)}
        for first in range(8)
        for second in range(8)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gold.py").write_text(RIGHT)
    recipe = yaml.safe_load(path.read_text())
    recipe["iterations"] = 3
    recipe["prompts"]["eval_fraction"] = 0.5
    recipe["reward"] = {"kind": "rule", "function": "gold:right", "corruption": {"bias": 0.1}}
    recipe["sampling"] |= {"max_new_tokens": 24, "shard_prompts": 64}
    recipe["training"] |= {"batch_prompts": 8, "micro_prompts": 8, "lr": 3e-3}
    recipe["evaluation"] |= {"samples_per_prompt": 4, "alarms": {}}
    path.write_text(yaml.safe_dump(recipe))

    def load(*overrides: str) -> DistillConfig:
        return load_config(path, overrides)

    return load


def run(config: DistillConfig) -> tuple[list[Version], list[str], str]:
    """The versions published, the tasks that computed something, and the gate's last word."""
    said = ""
    with open_run(config, quiet=True) as here:
        try:
            distill(here.config)
        except GateError as error:
            said = str(error)
        computed = [event.task for event in here.events if event.outcome == "computed"]
        return here.published, computed, said


def test_a_planted_reward_hack_is_caught_sent_back_and_stopped(greedy: Load) -> None:
    versions, _, said = run(greedy())
    assert said == ""
    for version in versions:
        print(version.alarms, version.metrics["win_rate"], version.metrics["response_tokens"])
    assert False
