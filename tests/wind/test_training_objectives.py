"""Every objective at the fewest samples it takes, through one real optimiser step on stored and on fresh samples."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.objective_case import CASES, config_of
from tests.wind.rollouts_case import PROMPTS, roll, rollouts_spec, write_reward
from tests.wind.training_case import DEEPSPEED_WARNINGS, Inputs, distance, make_inputs, make_spec, publish, train, weights
from wind.config import WinRateConfig
from wind.datasets import Store
from wind.handles import Dataset, Model
from wind.objective_config import SelectionConfig, least_anchor_samples, least_samples, rows_for
from wind.selections import SelectionsSpec, selections
from wind.stages import Shard

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

ONE_STEP: dict[str, Any] = {"epochs": 1, "warmup_fraction": 0.0}
ON_POLICY = {name: case for name, case in CASES.items() if "refresh_steps" in type(config_of(**case)).model_fields}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all: what is scored beforehand is scored once."""
    return Store(tmp_path_factory.mktemp("objectives") / "store")


@pytest.fixture(scope="module")
def inputs_of(store: Store, tiny_model: Path) -> Callable[[int], Inputs]:
    """The datasets with so many responses to each of four prompts."""
    return cache(lambda samples: make_inputs(store, tiny_model, groups=4, samples=samples))


def selected(store: Store, inputs: Inputs, settings: dict[str, Any]) -> Inputs:
    """`inputs` with the rows chosen that the objective's own paper takes."""
    spec = SelectionsSpec(
        rewards=inputs["rewards"],
        win_rates=inputs["win_rates"],
        win_rate=WinRateConfig(),
        selection=SelectionConfig(rows=rows_for(config_of(**settings))[0]),
        seed=3,
        iteration=1,
    )
    key = ["prompt_id", "sample_index"]
    rows = store.frame(inputs["win_rates"]).join(store.frame(inputs["rewards"]), on=key, validate="1:1")
    table = selections(rows, spec).to_arrow()
    return inputs | {"selections": publish(store, "selections", {name: table[name] for name in table.column_names})}


def assert_learned(store: Store, training: Shard, start: Model) -> None:
    """All numbers are finite, those of the weights too, and the weights are others than at the start."""
    assert np.isfinite(training.table["value"].to_numpy()).all()
    trained = weights(store, training)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert distance(trained, weights(store, Shard(training.table, outputs={"model": start}))) > 1e-4


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_stored_samples(store: Store, inputs_of: Callable[[int], Inputs], settings: dict[str, Any]) -> None:
    inputs = inputs_of(least_samples(config_of(**settings)))
    training = train(make_spec(selected(store, inputs, settings), settings, **ONE_STEP), store)
    assert_learned(store, training, inputs["policy"])


@pytest.mark.parametrize("settings", ON_POLICY.values(), ids=ON_POLICY.keys())
def test_fresh_samples(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    write_reward(tmp_path, monkeypatch)
    policy = store.import_model(tiny_model)
    objective = config_of(**settings, refresh_steps=1)
    samples, of_anchor = least_samples(objective), least_anchor_samples(objective)
    anchored = {"anchor_samples": of_anchor} if of_anchor else {}
    spec = rollouts_spec(store, policy, settings | anchored, samples=samples, batch_prompts=PROMPTS + 1, **ONE_STEP)
    shard = roll(spec, store)
    drawn = pl.DataFrame(shard.table).group_by("prompt_id").agg((pl.col("drawn_from") == "policy").sum(), pl.len())
    assert drawn.select("drawn_from", "len").unique().rows() == [(samples, samples + of_anchor)]
    training = shard.outputs["training"]
    assert isinstance(training, Dataset)
    assert_learned(store, Shard(store.read(training), outputs=store.manifest(training).outputs), policy)
