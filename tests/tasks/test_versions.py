"""Where a run begins that continues a version: its models, whatever the config says of the policy."""

from typing import Any

import pytest

from flows.deployments import finished_iterations
from tasks.run import open_run
from tasks.versions import beginning
from tests.wind.versions_case import dataset, model
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, DatasetError
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.handles import AnyHandle, Model
from wind.store.versions import Content, Version, Versions


def config(store: Store, **settings: Any) -> DistillConfig:
    fields = {
        "run": "next",
        "root": str(store.root),
        "policy": {"path": "gone"},
        "prompts": {"source": "gone.jsonl"},
        "reward": {"kind": "rule", "function": "gone:gone"},
    }
    return DistillConfig.model_validate(fields | settings)


def published(
    store: Store, models: list[Model], iteration: int, before: Version | None, *, moves: bool
) -> Version:
    """An iteration from `models[iteration - 1]` to `models[iteration]`; with a moving average,
    `models[-iteration]`.
    """
    outputs: dict[str, AnyHandle] = {"model": models[iteration]}
    if moves:
        outputs["anchor"] = models[-iteration]
    content = Content(
        iteration=iteration,
        recipe={},
        datasets={"training": dataset(store, f"{iteration} {moves}", outputs=outputs)},
        model_in=models[iteration - 1],
        model_out=models[iteration],
        reference=models[0],
        previous=before.id if before else None,
    )
    return Versions(store, "demo").publish(content, checks={}, metrics={}, seconds={})


@pytest.mark.parametrize("moves", [True, False])
def test_a_run_begins_where_the_version_ended(store: Store, moves: bool) -> None:
    models = [model(store, value) for value in (0.0, 1.0, 2.0, 8.0, 9.0)]
    first = published(store, models, 1, None, moves=moves)
    second = published(store, models, 2, first, moves=moves)
    with open_run(config(store), planning=True, quiet=True) as here:
        begin = beginning(here.config, second)
        assert (begin.initial, begin.policy, begin.after) == (models[0], models[2], second)
        assert begin.anchor == (models[-2] if moves else models[0])
        with pytest.raises(
            ConfigError,
            match=r"demo@2 is iteration 2, and iterations is 2: .* --iterations 3 or more",
        ):
            beginning(here.config.model_copy(update={"iterations": 2}), second)
        (store.path(models[2]) / "model.safetensors").unlink()
        with pytest.raises(
            DatasetError, match=r"demo@2 cannot be continued: its models/.* is not whole"
        ):
            beginning(here.config, second)
        forget(store, "demo", [first], force=True)
        with pytest.raises(
            DatasetError, match=r"demo@2 continues version .* it was forgotten or lost"
        ):
            beginning(here.config, second)


def test_retention_and_timeouts_are_no_part_of_a_version(store: Store) -> None:
    reward, evaluation = config(store).reward, config(store).evaluation
    changed = config(
        store,
        retention={"weights": 1, "optimizer_states": 2},
        reward={**reward.model_dump(), "timeout": 1.0},
        evaluation={**evaluation.model_dump(), "match_timeout": None},
    )
    assert config(store).recipe() == changed.recipe()
    assert evaluation.content() == changed.evaluation.content()
    assert changed.evaluation.match_timeout is None


def test_a_version_of_an_older_release_is_the_same_version(store: Store) -> None:
    """One whose id holds every setting, and does not know those that a later release added."""
    now = config(store)
    models = [model(store, value) for value in (0.0, 1.0)]
    old = published(store, models, 1, None, moves=False).content.model_copy(
        update={"recipe": now.recipe()}
    )
    first = Versions(store, "next").publish(old, checks={}, metrics={}, seconds={})
    again = old.model_copy(update={"defaults": now.defaults()})
    assert again.id() != first.id
    assert Versions(store, "next").publish(again, checks={}, metrics={}, seconds={}) == first
    assert finished_iterations(now) == 1
    assert finished_iterations(now.model_copy(update={"seed": 1})) == 0
    other = old.model_copy(
        update={
            "iteration": 2,
            "recipe": {name: value for name, value in now.recipe().items() if name != "seed"},
        }
    )
    Versions(store, "next").publish(other, checks={}, metrics={}, seconds={})
    assert finished_iterations(now) == 2
    assert finished_iterations(now.model_copy(update={"seed": 1})) == 0
