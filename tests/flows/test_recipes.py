"""Every recipe under `configs/` loads, names the command that runs it, and can be planned."""

from pathlib import Path

import pytest

from flows.plan import planned
from tests.flows.conftest import write_recipe
from wind.config.loading import load_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_names_its_command(path: Path) -> None:
    config = load_config(path)
    assert path.read_text().splitlines()[0] == f"# wind run configs/{path.name}"
    assert config.run == path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_planned(
    path: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small model, prompts and reward in place of those that a network would bring."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model)
    config = load_config(path)
    prompts = config.prompts.model_copy(
        update={"source": "prompts.jsonl", "subset": None, "source_split": None, "field": "prompt"}
    )
    overrides = [
        f"policy={{path: {tiny_model}}}",
        f"prompts={prompts.model_dump_json()}",
        "reward={kind: rule, function: 'tiny_reward:digits'}",
        "evaluation.match=null",
        f"root={tmp_path / 'store'}",
    ]
    steps = planned(load_config(path, overrides))
    training = [step["outcome"] for step in steps if step["stage"] in ("training", "rollouts")]
    assert training == ["run"] * config.iterations
    assert not any((tmp_path / "store" / "datasets").glob("*"))  # nothing was computed
