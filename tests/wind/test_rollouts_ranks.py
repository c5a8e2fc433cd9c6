"""On-policy training by several ranks: the same samples, the same weights, and one anchor between
them.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.wind.rollouts_case import roll, rollouts_spec, write_reward
from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Interrupted,
    distance,
    stop_after,
    values,
    weights,
)
from wind.rollouts import RolloutsSpec
from wind.stages import Shard
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.imports import import_model

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

SETTINGS: dict[str, Any] = {
    "lr": 3e-4,
    "batch_prompts": 2,
    "micro_prompts": 1,
    "checkpoint_steps": 3,
}


def outputs(store: Store, shard: Shard) -> tuple[Shard, Shard]:
    """The training, and the same with the anchor in place of the model."""
    handle = shard.outputs["training"]
    assert isinstance(handle, Dataset)
    models = store.manifest(handle).outputs
    return Shard(store.read(handle), outputs=models), Shard(
        store.read(handle), outputs={"model": models["anchor"]}
    )


def test_ranks_and_zero_stages_draw_and_train_the_same(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reward(tmp_path, monkeypatch)
    policy = import_model(store, tiny_model)

    def spec(ranks: int, stage: int) -> RolloutsSpec:
        objective = {"name": "jbond", "refresh_steps": 2}
        return rollouts_spec(
            store, policy, objective, rate=0.5, ranks=ranks, zero_stage=stage, **SETTINGS
        )

    alone = roll(spec(1, 0), store)
    training, anchor = outputs(store, alone)
    start = weights(store, Shard(alone.table, outputs={"model": policy}))
    assert distance(weights(store, anchor), start) > 2e-3
    # Two ranks are interrupted within a refresh, each with its part of the anchor, and go on from
    # their checkpoint.
    with pytest.raises(Interrupted):
        roll(spec(2, 3), store, stop_after(4))
    # Stage 2 leaves a rank its whole weights. A refresh of three prompts gives one of two ranks
    # two, the other one.
    for ranks, stage in ((1, 2), (2, 3)):
        steps: list[int] = []
        other = roll(spec(ranks, stage), store, lambda done, total, steps=steps: steps.append(done))
        assert (steps[0] > 3) == (ranks == 2)
        rows, expected = pl.DataFrame(other.table), pl.DataFrame(alone.table)
        exact = [name for name in rows.columns if not name.startswith("logp")]
        assert (
            rows.filter(pl.col("step") <= 2)
            .select(exact)
            .equals(expected.filter(pl.col("step") <= 2).select(exact))
        )
        for column in ("logp_policy", "logp_reference"):
            assert rows[column].to_list() == pytest.approx(expected[column].to_list(), abs=1e-3)
        theirs, moved = outputs(store, other)
        assert values(theirs, "loss") == pytest.approx(values(training, "loss"), rel=1e-4)
        assert distance(weights(store, theirs), weights(store, training)) < 1e-4
        assert distance(weights(store, moved), weights(store, anchor)) < 1e-4
