"""Every objective at the fewest samples it takes, through one optimizer step.

The step is a real one, on stored and on fresh samples.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.objective_case import CASES, config_of
from tests.wind.rollouts_case import PROMPTS, roll, rollouts_spec, write_reward
from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Inputs,
    distance,
    make_inputs,
    make_spec,
    publish,
    train,
    weights,
)
from wind.config.objectives import SelectionConfig
from wind.config.rewards import WinRateConfig
from wind.errors import TrainingError
from wind.rewards.functions import LARGEST
from wind.rollouts import RolloutsSpec
from wind.selections import SelectionsSpec, selections
from wind.stages import Shard
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model
from wind.win_rates import win_rates

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

FAR = 1000.0  # nats
SCALED = ("rebel", "rloo")  # follow the reward's size, and 1e100 is no float32
ONE_STEP: dict[str, Any] = {"epochs": 1, "warmup_fraction": 0.0}
ON_POLICY = {
    name: case
    for name, case in CASES.items()
    if "refresh_steps" in type(config_of(**case)).model_fields
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests: each model scores once."""
    return Store(tmp_path_factory.mktemp("objectives") / "store")


@pytest.fixture(scope="module")
def inputs_of(store: Store, tiny_model: Path) -> Callable[[int], Inputs]:
    """Return the datasets with that many responses to each of four prompts."""
    return cache(lambda samples: make_inputs(store, tiny_model, groups=4, samples=samples))


def selected(store: Store, inputs: Inputs, settings: dict[str, Any]) -> Inputs:
    """Return `inputs` with the rows that the objective's own paper selects."""
    spec = SelectionsSpec(
        rewards=inputs["rewards"],
        win_rates=inputs["win_rates"],
        win_rate=WinRateConfig(),
        selection=SelectionConfig(rows=config_of(**settings).facts.rows[0]),
        seed=3,
        iteration=1,
    )
    key = ["prompt_id", "sample_index"]
    rows = store.frame(inputs["win_rates"]).join(
        store.frame(inputs["rewards"]), on=key, validate="1:1"
    )
    table = selections(rows, spec).to_arrow()
    return inputs | {
        "selections": publish(
            store, "selections", {name: table[name] for name in table.column_names}
        )
    }


def extreme(store: Store, inputs: Inputs) -> Inputs:
    """Return `inputs` with extreme responses, rewards and log-ratios.

    Responses have one token, rewards are +-1e100, all rows of one prompt tie, and log-ratios are
    +-1000 nats.
    """
    key = ["prompt_id", "sample_index"]
    place = pl.int_range(pl.len())
    generations = store.frame(inputs["generations"]).with_columns(
        response_token_ids=pl.concat_list(5 + pl.col("sample_index"))
    )
    is_tied = pl.col("prompt_id") == generations["prompt_id"][0]
    sign = pl.when(is_tied | (pl.col("sample_index") % 2 == 0)).then(1.0).otherwise(-1.0)
    rewards = store.frame(inputs["rewards"]).with_columns(reward=LARGEST * sign)
    logps = store.frame(inputs["logps"]).with_columns(
        logp_policy=pl.col("logp_policy") + pl.when(place % 2 == 0).then(FAR).otherwise(-FAR),
        logp_reference=pl.col("logp_reference") + pl.when(place % 3 == 0).then(FAR).otherwise(-FAR),
        response_tokens=pl.lit(1),
    )
    frames = {
        "generations": generations,
        "rewards": rewards,
        "win_rates": win_rates(rewards, WinRateConfig()),
        "logps": logps,
    }
    columns = {name: frame.sort(key).to_arrow() for name, frame in frames.items()}
    return inputs | {
        name: publish(store, name, {column: table[column] for column in table.column_names})
        for name, table in columns.items()
    }


def fresh_spec(store: Store, policy: Model, settings: dict[str, Any]) -> RolloutsSpec:
    """Return one step on the fewest fresh samples that the objective takes."""
    objective = config_of(**settings, refresh_steps=1)
    of_anchor = objective.least_anchor_samples
    anchored = {"anchor_samples": of_anchor} if of_anchor else {}
    samples = objective.facts.least_samples
    return rollouts_spec(
        store, policy, settings | anchored, samples=samples, batch_prompts=PROMPTS + 1, **ONE_STEP
    )


def training_of(store: Store, shard: Shard) -> Shard:
    """Return the output `training` of rollouts, as its own stage would."""
    training = shard.outputs["training"]
    assert isinstance(training, Dataset)
    return Shard(store.read(training), outputs=store.manifest(training).outputs)


def assert_learned(store: Store, training: Shard, start: Model) -> None:
    """Assert that the weights changed and that all numbers are finite.

    The numbers are the metrics and the weights themselves.
    """
    assert np.isfinite(training.table["value"].to_numpy()).all()
    trained = weights(store, training)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert distance(trained, weights(store, Shard(training.table, outputs={"model": start}))) > 1e-4


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_stored_samples(
    store: Store, inputs_of: Callable[[int], Inputs], settings: dict[str, Any]
) -> None:
    inputs = inputs_of(config_of(**settings).facts.least_samples)
    training = train(make_spec(selected(store, inputs, settings), settings, **ONE_STEP), store)
    assert_learned(store, training, inputs["policy"])


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_stored_samples_at_extremes(
    store: Store, inputs_of: Callable[[int], Inputs], settings: dict[str, Any]
) -> None:
    inputs = extreme(store, inputs_of(config_of(**settings).facts.least_samples))
    spec = make_spec(selected(store, inputs, settings), settings, **ONE_STEP)
    if settings["name"] in SCALED:
        with pytest.raises(
            TrainingError,
            match=r"^step 1 was not taken: the loss of prompts? .* check the rewards there",
        ):
            train(spec, store)
    else:
        assert_learned(store, train(spec, store), inputs["policy"])


@pytest.mark.parametrize("settings", ON_POLICY.values(), ids=ON_POLICY.keys())
def test_fresh_samples(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    write_reward(tmp_path, monkeypatch)
    policy = import_model(store, tiny_model)
    spec = fresh_spec(store, policy, settings)
    shard = roll(spec, store)
    samples, of_anchor = spec.sampling.samples_per_prompt, spec.objective.least_anchor_samples
    drawn = (
        pl.DataFrame(shard.table)
        .group_by("prompt_id")
        .agg((pl.col("drawn_from") == "policy").sum(), pl.len())
    )
    assert drawn.select("drawn_from", "len").unique().rows() == [(samples, samples + of_anchor)]
    assert_learned(store, training_of(store, shard), policy)


@pytest.mark.parametrize("settings", ON_POLICY.values(), ids=ON_POLICY.keys())
def test_fresh_samples_at_extremes(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """Responses of one token, of which every other one has the largest reward and the rest its
    negative.
    """
    write_reward(tmp_path, monkeypatch)
    body = "    return [1e100 * (-1) ** (sum(map(ord, response)) % 2) for response in responses]\n"
    (tmp_path / "counted_digits.py").write_text(f"def digits(prompts, responses, answers):\n{body}")
    policy = import_model(store, tiny_model)
    spec = fresh_spec(store, policy, settings)
    spec = spec.model_copy(
        update={"sampling": spec.sampling.model_copy(update={"max_new_tokens": 1})}
    )
    if settings["name"] in SCALED:
        with pytest.raises(
            TrainingError,
            match=r"^step 1 was not taken: the loss of prompts? .* check the rewards there",
        ):
            roll(spec, store)
    else:
        assert_learned(store, training_of(store, roll(spec, store)), policy)
