"""The records of the stages: what a new stage must say, and that it is consistent."""

import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests import dataset_table
from wind.code import loading
from wind.errors import ConfigError, DatasetError
from wind.machine.processes import environment, python
from wind.stages import Stage, costs, one_side, roles, stage_named
from wind.store.nouns import STAGES, STUDIES
from wind.store.schemas import SAMPLE, Declaration, declared, find_declaration

ALL = (*STAGES, *STUDIES)
WRITE = "python -m tests.dataset_table writes it"


def declarations(stage: Stage[Any]) -> list[Declaration]:
    return [stage.dataset, *([] if stage.dropped is None else [stage.dropped])]


@pytest.mark.parametrize("noun", ALL)
def test_a_stage_is_complete(noun: str) -> None:
    stage = stage_named(noun)
    assert stage.name == noun, f"wind/{noun}: STAGE is called {stage.name!r}: name it {noun!r}"
    for room in ("tasks", "data_checks"):
        file = Path(loading.ROOT, room, f"{noun}.py")
        assert file.is_file(), f"{noun} has no {room}/{noun}.py: write it"
    is_study = noun in STUDIES
    assert (stage.role is None) == is_study, (
        f"{noun} is a {'study: its role is None' if is_study else 'stage of a run: give it a role'}"
    )


@pytest.mark.parametrize("noun", ALL)
def test_a_dataset_is_declared_in_full(noun: str) -> None:
    for declaration in declarations(stage_named(noun)):
        names = [each.name for each in (*declaration.columns, *declaration.optional_columns)]
        assert declaration.row, f"{noun}: say what one row is"
        assert len({*names}) == len(names), f"{noun} declares a column twice"
        for name, meaning in declaration.meanings().items():
            assert meaning, f"{noun}: say what the column {name} means"
        for column in declaration.columns:
            assert not (column.name in declaration.key and column.is_nullable), (
                f"{noun}: {column.name} is part of the key and may not be null"
            )
        used = {*declaration.key, *(name for k in declaration.foreign_keys for name in k.columns)}
        assert used <= {*names}, f"{noun}: no column is called {' or '.join(used - {*names})}"


@pytest.mark.parametrize("noun", ALL)
def test_keys_refer_to_fields_of_the_spec(noun: str) -> None:
    stage = stage_named(noun)
    known = stage.spec.model_fields.keys()
    for key in stage.dataset.foreign_keys:
        assert key.parent in known, f"{noun}: its spec has no {key.parent}, as a foreign key says"
    for related in stage.role.related_parents.values() if stage.role else ():
        assert {*related.values()} <= known, f"{noun}: related parents are no fields of its spec"
        targets = {*related} - {"policy"}
        assert targets <= {*STAGES}, f"{noun}: related parents go from datasets to fields"


@pytest.mark.parametrize("noun", STAGES)
def test_a_role_is_consistent(noun: str) -> None:
    role = roles()[noun]
    assert role.sides[:1] == ("",), f"{noun}: its first side is that of a run, without a prefix"
    assert (role.side is one_side) == (len(role.sides) == 1), (
        f"{noun} has {len(role.sides)} sides: let `side` say which one a spec is on"
    )
    if role.history:
        assert {*SAMPLE} <= {*stage_named(noun).dataset.key}, (
            f"{noun} is in a prompt's history, which joins by prompt_id and sample_index"
        )


@pytest.mark.parametrize("forgotten", [each.name for each in fields(Stage)])
def test_a_stage_that_forgets_something_does_not_import(forgotten: str) -> None:
    stage = stage_named("win_rates")
    said = {each.name: getattr(stage, each.name) for each in fields(Stage)}
    del said[forgotten]
    with pytest.raises(TypeError, match=rf"missing 1 required .*argument: '{forgotten}'"):
        Stage(**said)


def test_every_stage_is_imported_without_an_engine() -> None:
    program = f"""
import sys
from wind.stages import stage_named
for noun in {ALL!r}:
    stage_named(noun)
print(*({{"torch", "transformers", "vllm", "deepspeed", "great_expectations"}} & {{*sys.modules}}))
"""
    said = subprocess.run(
        python("-c", program), capture_output=True, text=True, check=True, env=environment()
    ).stdout
    assert said.split() == []


def test_a_dataset_is_found_by_its_noun_alone() -> None:
    assert declared("rewards") is stage_named("rewards").dataset
    assert declared("prompts.dropped") is stage_named("prompts").dropped
    for stranger in ("models", "store", "win_rates.dropped", "prompts.kept", "demo"):
        assert find_declaration(stranger) is None
    with pytest.raises(DatasetError, match=r"^no stage makes a dataset called 'demo'$"):
        declared("demo")
    with pytest.raises(ConfigError, match="no stage is called 'demo': the stages are prompts, "):
        stage_named("demo")


def test_what_a_run_costs_is_told_by_phase() -> None:
    sampled = ("eval_generations", "eval_rewards", "eval_logps")
    evaluating = (*sampled, "evaluation", "responses", "matches", "health")
    judging = ("rewards", "win_rates", "selections", "logps")
    training = ("generations", *judging, "training", "rollouts")
    assert costs("evaluation") == evaluating, "add the dataset of a new stage here"
    assert costs("training") == training, "add the dataset of a new stage here"


def test_the_page_of_datasets_says_what_is_declared() -> None:
    page = dataset_table.PAGE.read_text()
    assert dataset_table.table() in page, f"{dataset_table.PAGE} is out of date: {WRITE}"


def test_names_in_a_version() -> None:
    assert stage_named("rewards").names() == ("rewards", "eval_rewards", "reference_rewards")
    assert stage_named("logps").names() == ("logps", "eval_logps")
    assert stage_named("rates").names() == ()
