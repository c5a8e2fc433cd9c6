"""Matches of a real run: two iterations, a held-out judge, and opponents of every kind."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from flows.distill import distill
from flows.plan import planned as plan
from tasks.run import open_run
from tests.flows.conftest import Recipe, Wind
from tests.wind.versions_case import verify
from wind.audit.diff import difference
from wind.audit.lineage import of_version
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = pytest.mark.slow

JUDGE = """
def letters(prompts, responses, answers):
    return [float(sum(character.isalpha() for character in response)) for response in responses]
"""


def run(config: DistillConfig) -> list[str]:
    """The datasets that were computed, in order."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        return [event.name for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_two_iterations_against_opponents_of_every_kind(
    finished_recipe: Recipe, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "held_out.py").write_text(JUDGE)
    store = Store(tmp_path / "store")
    first = find_version(store, "tiny")
    prompts = store.frame(first.content.datasets["prompts"]).filter(split="eval")
    rows = [
        {"instruction": prompt, "output": text}
        for prompt in prompts["prompt"]
        for text in ("1", "a")[: 1 + (prompt == prompts["prompt"][0])]
    ]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = finished_recipe(
        "run=matched",
        "iterations=2",
        "evaluation.judges.held_out={kind: rule, function: 'held_out:letters'}",
        "evaluation.opponents.before={kind: policy, policy: previous}",
        "evaluation.opponents.other={kind: version, version: tiny@1}",
        f"evaluation.opponents.sft={{kind: model, path: {tiny_model}}}",
        "evaluation.opponents.gpt={kind: responses, path: gpt.jsonl}",
    )
    computed = run(config)
    assert run(config) == []
    print(computed)
