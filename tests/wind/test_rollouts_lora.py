"""On-policy training of adapters: what samples, what the anchor averages, and what is published, is
the merged policy.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.wind.rollouts_case import PROMPTS, N, roll, rollouts_spec, write_reward
from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Interrupted,
    distance,
    logps_of,
    stop_after,
    values,
    weights,
)
from wind.rollouts import RolloutsSpec
from wind.stages import Shard
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

# Every epoch is one step and one refresh, and the second begins where a training of one epoch ends.
SETTINGS: dict[str, Any] = {
    "batch_prompts": PROMPTS + 1,
    "lr": 1e-2,
    "schedule": "constant",
    "warmup_fraction": 0.0,
}
LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 6, "target_modules": ["q_proj", "up_proj"]}}
RATE = 0.3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("rollouts_lora")
    with pytest.MonkeyPatch.context() as patch:
        write_reward(folder, patch)
        yield Store(folder / "store")


@pytest.fixture(scope="module")
def policy(store: Store, tiny_model: Path) -> Model:
    return import_model(store, tiny_model)


@pytest.fixture(scope="module")
def alone(store: Store, policy: Model) -> Shard:
    """Two steps of one rank without ZeRO."""
    return roll(spec_of(store, policy), store)


def spec_of(store: Store, policy: Model, **fields: Any) -> RolloutsSpec:
    return rollouts_spec(
        store, policy, {"name": "jbond"}, **{"rate": RATE, "epochs": 2} | SETTINGS | LORA | fields
    )


def training_of(store: Store, shard: Shard) -> Shard:
    """The output `training` as its own stage would have given it."""
    training = shard.outputs["training"]
    assert isinstance(training, Dataset)
    return Shard(store.read(training), outputs=store.manifest(training).outputs)


def output(store: Store, shard: Shard, name: str) -> dict[str, torch.Tensor]:
    """The weights of an output of a training."""
    return weights(
        store, Shard(shard.table, outputs={"model": training_of(store, shard).outputs[name]})
    )


def step_rows(shard: Shard, step: int) -> pl.DataFrame:
    return pl.DataFrame(shard.table).filter(pl.col("step") == step)


def test_the_merged_policy_samples_scores_and_moves_the_anchor(
    store: Store, policy: Model, alone: Shard
) -> None:
    # Adapters start at zero: the first refresh is that of a training of every weight, to the last
    # bit.
    assert step_rows(alone, 1).equals(
        step_rows(roll(spec_of(store, policy, epochs=1, lora=None), store), 1)
    )
    first = roll(spec_of(store, policy, epochs=1), store)
    made = training_of(store, first).outputs
    assert set(made) == {"model", "adapter", "anchor"}
    # The second is drawn and scored by what a training that ends before it publishes.
    rows = step_rows(alone, 2)
    assert len(rows) == PROMPTS * 2 * N
    tokens = dict(
        store.frame(spec_of(store, policy).prompts, ["prompt_id", "prompt_token_ids"]).iter_rows()
    )
    asked, answered = (
        [tokens[name] for name in rows["prompt_id"]],
        rows["response_token_ids"].to_list(),
    )
    for column, name in (("logp_policy", "model"), ("logp_reference", "anchor")):
        model = made[name]
        assert isinstance(model, Model)
        expected = logps_of(store, model, asked, answered)
        assert rows[column].to_list() == pytest.approx(expected, abs=1e-4)
        assert expected != pytest.approx(logps_of(store, policy, asked, answered), abs=1e-2)
    # The average of merged weights: an average of A times one of B is another.
    start = weights(store, Shard(first.table, outputs={"model": policy}))
    policies, anchors = (
        [output(store, shard, name) for shard in (first, alone)] for name in ("model", "anchor")
    )
    after_one = {name: (1 - RATE) * start[name] + RATE * policies[0][name] for name in start}
    after_two = {name: (1 - RATE) * after_one[name] + RATE * policies[1][name] for name in start}
    assert distance(anchors[0], after_one) < 1e-6
    assert distance(anchors[1], after_two) < 1e-6
    assert distance(policies[1], start) > 1e-2
    moved = {name for name in start if not torch.equal(anchors[1][name], start[name])}
    assert moved == {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }


def test_the_anchor_of_a_rounded_policy_is_not_rounded(store: Store, policy: Model) -> None:
    """At rate 1 it is W + (alpha/rank) B A; the reference was float32, and takes up the rounded
    weights without adapters too.
    """
    shard = roll(
        spec_of(store, policy, rate=1.0, epochs=1, precision="bfloat16", zero_stage=2), store
    )
    base, trained = (
        weights(store, Shard(shard.table, outputs={"model": policy})),
        training_of(store, shard),
    )
    adapter = load_file(store.path(trained.outputs["adapter"]) / "adapter_model.safetensors")
    model, anchor = output(store, shard, "model"), output(store, shard, "anchor")
    for name, weight in base.items():
        exact = weight.bfloat16().float()
        if (
            layer := f"base_model.model.{name.removesuffix('.weight')}"
        ) + ".lora_A.weight" in adapter:
            b, a = (adapter[f"{layer}.lora_{letter}.weight"].float() for letter in "BA")
            exact += 1.5 * (b @ a)
            assert not torch.equal(exact, exact.bfloat16().float())
        assert torch.equal(anchor[name], exact)
        assert torch.equal(model[name], exact.bfloat16())


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_agree(store: Store, policy: Model, alone: Shard, stage: int) -> None:
    assert_agrees(
        store,
        roll(spec_of(store, policy, zero_stage=stage, gradient_checkpointing=stage == 2), store),
        alone,
    )


def test_two_ranks_that_part_the_weights_agree(
    store: Store, policy: Model, alone: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{store.root.parent}:{Path(__file__).parents[2]}")
    assert_agrees(
        store, roll(spec_of(store, policy, ranks=2, zero_stage=3, micro_prompts=1), store), alone
    )


def assert_agrees(store: Store, other: Shard, alone: Shard) -> None:
    rows, expected = pl.DataFrame(other.table), pl.DataFrame(alone.table)
    logps = ["logp_policy", "logp_reference"]
    assert rows.drop(logps).equals(expected.drop(logps))
    for name in logps:
        assert rows[name].to_list() == pytest.approx(expected[name].to_list(), abs=1e-3)
    for name in ("model", "anchor"):
        assert distance(output(store, other, name), output(store, alone, name)) < 1e-4
    losses = [values(training_of(store, shard), "loss") for shard in (other, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2])
def test_resuming_equals_never_having_stopped(store: Store, policy: Model, stage: int) -> None:
    # The checkpoint after step 3 of 6 lies within the refresh that serves steps 3 and 4.
    settings = SETTINGS | LORA | {"batch_prompts": 2, "checkpoint_steps": 3, "zero_stage": stage}
    spec = rollouts_spec(
        store, policy, {"name": "jbond", "refresh_steps": 2}, rate=RATE, **settings
    )
    uninterrupted = roll(spec, store)
    with pytest.raises(Interrupted):
        roll(spec, store, stop_after(5))
    steps: list[int] = []
    resumed = roll(spec, store, lambda done, total: steps.append(done))
    assert steps == [4, 5, 6]
    assert (resumed.outputs, resumed.table) == (uninterrupted.outputs, uninterrupted.table)
