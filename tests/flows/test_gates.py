"""Alarms and gates on a real run whose reward likes long responses: caught, sent back, stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.deployments import continue_run_of, finished_iterations
from flows.distill import distill
from flows.plan import planned
from tasks.run import keep_config, open_run
from tests.wind.versions_case import verify
from wind.audit.lineage import chain, of_version
from wind.config.recipe import DistillConfig
from wind.errors import GateError
from wind.store.datasets import Store
from wind.store.versions import Version, Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "own_workers")]

Load = Callable[..., DistillConfig]
Wind = Callable[..., tuple[int, str, str]]
RIGHT = """
def right(prompts, responses, answers):
    return [float(response.strip() == answer) for response, answer in zip(responses, answers)]
"""
HONEST = "gates.honest={alarm: reward_hacking, action: rollback, max_rollbacks: 1}"
STOP = "gates.honest={alarm: reward_hacking}"


@pytest.fixture
def greedy(recipe: Load, tmp_path: Path) -> Load:
    """The config of a run whose reward is for right answers, and 0.1 for every character.

    The answers are the honest judge.
    """
    path = Path("tiny.yaml")
    rows = [
        {"prompt": f"{first}+{second}=", "answer": str(first + second)}
        for first in range(8)
        for second in range(8)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gold.py").write_text(RIGHT)
    content = yaml.safe_load(path.read_text())
    content["iterations"] = 3
    content["prompts"]["eval_fraction"] = 0.5
    content["reward"] = {"kind": "rule", "function": "gold:right", "corruption": {"bias": 0.1}}
    content["sampling"] |= {"max_new_tokens": 24, "shard_prompts": 64}
    content["training"] |= {"batch_prompts": 8, "micro_prompts": 8, "lr": 3e-3}
    content["evaluation"] |= {"samples_per_prompt": 4, "alarms": {}}
    path.write_text(yaml.safe_dump(content))
    return recipe


def run(config: DistillConfig) -> tuple[list[Version], list[str], str]:
    """The versions published, the tasks that computed something, and the gate's last word."""
    said = ""
    with open_run(config, quiet=True) as here:
        keep_config(here.store, config)
        try:
            distill(here.config)
        except GateError as error:
            said = str(error)
        computed = [event.task for event in here.events if event.outcome == "computed"]
        return here.published, computed, said


def finished(config: DistillConfig) -> int:
    with open_run(config, quiet=True) as here:
        return finished_iterations(here.config)


def test_a_planted_reward_hack_is_caught_sent_back_and_stopped(
    greedy: Load, wind: Wind, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    plain, _, said = run(greedy())
    assert (len(plain), said) == (3, "")
    raised = [[*version.alarms] for version in plain]
    first = next(index for index, names in enumerate(raised) if names)
    assert "reward_hacking.gold.initial" in raised[first]
    assert (
        plain[first]
        .alarms["reward_hacking.gold.initial"]
        .startswith("since the start the training reward's win rate rose from 0.500 to ")
    )

    # what was trained before the gate is the same; then the run goes back, with half of the step
    published, _, said = run(greedy("run=gated", HONEST))
    refused, other = published[first : first + 2]
    assert [version.id for version in published[: first + 1]] == [
        version.id for version in plain[: first + 1]
    ]
    assert refused.gates["honest"].startswith("alarm reward_hacking.gold.initial, since the start")
    assert (other.number, other.content.iteration) == (first + 2, first + 1)
    assert other.instead_of == refused.id
    assert other.content.previous == refused.content.previous
    assert other.content.model_in == refused.content.model_in
    assert other.content.recipe["training"]["lr"] == refused.content.recipe["training"]["lr"] / 2
    assert other.content.datasets["rewards"] == refused.content.datasets["rewards"]
    assert other.content.model_out != refused.content.model_out
    assert refused not in chain(store, other)
    assert of_version(store, other).nodes[f"version/{other.id}"].instead_of == refused.id
    assert "gates" not in other.content.recipe
    for version in (refused, other):
        assert verify(store, version) > 0

    # a rerun and a plan take the same path
    assert run(greedy("run=gated", HONEST)) == (published, [], said)
    steps = planned(greedy("run=gated", HONEST))
    assert {step["outcome"] for step in steps} == {"cached"}
    assert len([step for step in steps if step["dataset"] == "training"]) == len(published)
    code, out, line = wind("run", "tiny.yaml", "--set", "run=gated", "--set", HONEST)
    assert (code, line) == (4, f"error: {said}") if said else code == 0
    assert f"gated@{first + 1}  {refused.id[:12]}" in out
    assert "gate honest refused it: alarm reward_hacking.gold.initial" in out
    code, out, _ = wind("show", f"gated@{other.number}")
    assert f"instead of: {refused.id}, which a gate refused" in out

    code, out, line = wind("run", "tiny.yaml", "--set", "run=stopped", "--set", STOP)
    advice = f"the best is stopped@{first} (win_rate " if first else "no version is before it: "
    assert code == 4
    assert line.startswith(
        f"error: stopped@{first + 1} is the last version: gate honest refuses it: "
        "alarm reward_hacking.gold.initial, since the start"
    )
    assert f"; {advice}" in line
    # a schedule neither goes on nor computes anything
    stopped = greedy("run=stopped", STOP)
    state = continue_run_of(stopped, 1)
    assert state.name == "Failed"
    assert str(state.message).startswith(f"stopped: stopped@{first + 1} is the last version")
    assert finished(stopped) == first + 1
    assert len(list(Versions(store, "stopped"))) == first + 1
    assert finished(greedy("run=gated", HONEST)) == published[-1].content.iteration
