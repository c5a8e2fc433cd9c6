"""Flows on real components: a Prefect server for all tests, and a recipe small enough to run in seconds."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import cli
from flows.cli import QUIET
from flows.server import EmbeddedServer
from wind.config import DistillConfig, load_config

REWARD = '''"""A rule reward: digits are good, and more of them are better."""


def digits(prompts, responses, answers):
    return [float(sum(character.isdigit() for character in response)) for response in responses]
'''


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server on loopback."""
    home = tmp_path_factory.mktemp("prefect")
    server = EmbeddedServer(home, services=True)
    before = dict(os.environ)
    os.environ.update(QUIET)
    server.start()
    server.wait()
    os.environ["PREFECT_API_URL"] = server.url
    os.environ["PREFECT_HOME"] = str(home)
    # Prefect read its settings when it was imported, before there was a server.
    with temporary_settings({PREFECT_API_URL: server.url}):
        yield server.url
    server.stop()
    os.environ.clear()
    os.environ.update(before)


Recipe = Callable[..., DistillConfig]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A function from overrides to the config of a tiny run; its YAML file lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{first}+{second}=", "answer": str(first + second)} for first in range(5) for second in range(4)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tiny_reward.py").write_text(REWARD)
    config: dict[str, Any] = {
        "run": "tiny",
        "policy": {"path": str(tiny_model)},
        "prompts": {"source": "prompts.jsonl", "eval_fraction": 0.3},
        "reward": {"kind": "rule", "function": "tiny_reward:digits"},
        "iterations": 1,
        "sampling": {"backend": "transformers", "samples_per_prompt": 4, "max_new_tokens": 6, "shard_prompts": 6},
        "training": {"batch_prompts": 4, "micro_prompts": 4, "lr": 1e-3, "zero_stage": 0},
        "evaluation": {"samples_per_prompt": 2, "bootstrap_samples": 100},
        "checks": {"max_empty_share": 1.0},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(config))

    def load(*overrides: str) -> DistillConfig:
        return load_config(Path("tiny.yaml"), overrides)

    return load


@pytest.fixture
def wind(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns its exit code, standard output, and the last line of standard error."""
    recipe()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wind", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return int(ended.value.code or 0), printed.out, printed.err.splitlines()[-1] if printed.err else ""

    return run
