"""On-policy training on one rank: what is sampled and recorded, the anchor that moves, resuming."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.wind.pairwise_case import TEMPLATE, template_logit
from tests.wind.rollouts_case import PROMPTS, N, roll, rollouts_spec, write_reward
from tests.wind.test_reward_models import llama_reward_model
from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Interrupted,
    distance,
    logps_of,
    stop_after,
    values,
    weights,
)
from wind.code.observed import noting
from wind.config.models import InferenceConfig
from wind.config.rewards import PairwiseRewardConfig
from wind.errors import ConfigError, InputError
from wind.generations import Request, request_seed
from wind.generations.hf import TransformersSampler
from wind.models import load_policy, stop_token_ids
from wind.objectives import Batch, objective_for
from wind.rewards import resolve_reward
from wind.rollouts import STAGE, RolloutsSpec
from wind.stages import Job, Place, Shard, parse
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model
from wind.training.batches import Plan
from wind.training.runs import work_folder
from wind.win_rates import win_rates

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

ONE_STEP: dict[str, Any] = {
    "epochs": 1,
    "batch_prompts": PROMPTS + 1,
    "schedule": "constant",
    "warmup_fraction": 0.0,
}


@pytest.fixture
def policy(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Model:
    write_reward(tmp_path, monkeypatch)
    return import_model(store, tiny_model)


def frame_of(shard: Shard) -> pl.DataFrame:
    return pl.DataFrame(shard.table)


def training_of(store: Store, shard: Shard) -> Shard:
    """The output `training` as its own stage would have given it."""
    training = shard.outputs["training"]
    assert isinstance(training, Dataset)
    return Shard(store.read(training), outputs=store.manifest(training).outputs)


def prompt_tokens(store: Store, spec: RolloutsSpec) -> dict[str, list[int]]:
    return dict(store.frame(spec.prompts, ["prompt_id", "prompt_token_ids"]).iter_rows())


def first_logps(store: Store, spec: RolloutsSpec, model: Model, rows: pl.DataFrame) -> list[float]:
    tokens = prompt_tokens(store, spec)
    return logps_of(
        store,
        model,
        [tokens[name] for name in rows["prompt_id"]],
        rows["response_token_ids"].to_list(),
    )


# --------------------------------------------------------------------------------- what is recorded


def test_rollouts_are_what_the_stored_policy_answers(store: Store, policy: Model) -> None:
    spec = rollouts_spec(store, policy, {"name": "bond"}, gradient_checkpointing=True)
    shard = roll(spec, store)
    rows = frame_of(shard)
    assert len(rows) == 2 * PROMPTS * 2 * N  # two epochs, N of the policy and N of the anchor
    first = rows.filter(pl.col("step") == 1)
    sampler = TransformersSampler(
        load_policy(store, policy, InferenceConfig(), "cpu"), stop_token_ids(store.path(policy)), 64
    )
    for drawn_from in ("policy", "anchor"):
        ours = first.filter(pl.col("drawn_from") == drawn_from)
        tokens = prompt_tokens(store, spec)
        requests = [
            Request(name, tokens[name], request_seed(3, 1, f"{drawn_from}/1", name))
            for name in ours["prompt_id"].unique(maintain_order=True)
        ]
        expected = [
            sample
            for samples in sampler.sample(requests, spec.sampling, lambda done, total: None)
            for sample in samples
        ]
        assert ours["response_token_ids"].to_list() == [sample.token_ids for sample in expected]
        assert ours["seed"].to_list() == [
            request.seed + index for request in requests for index in range(N)
        ]
    # The anchor is the start of the iteration, for good; the policy is it at the first step only.
    assert first["logp_policy"].to_list() == pytest.approx(
        first_logps(store, spec, policy, first), abs=1e-4
    )
    assert rows["logp_reference"].to_list() == pytest.approx(
        first_logps(store, spec, policy, rows), abs=1e-4
    )
    later = rows.filter(pl.col("step") > 1)
    assert (later["logp_policy"] - later["logp_reference"]).abs().max() > 1e-2  # type: ignore[operator]


def test_every_prompt_is_answered_once_an_epoch_and_judged_among_its_own(
    store: Store, policy: Model
) -> None:
    spec = rollouts_spec(store, policy, {"name": "jbond", "refresh_steps": 4})
    rows = frame_of(roll(spec, store))
    plan = Plan(training=spec.training, seed=3, iteration=1, groups=PROMPTS)
    train = store.frame(spec.prompts).filter(pl.col("split") == "train")["prompt_id"].sort()
    for step in range(plan.steps):
        answered = rows.filter(pl.col("step") == step + 1)["prompt_id"].unique().sort()
        assert answered.to_list() == [
            train[group] for group in sorted(plan.step_groups(step).tolist())
        ]
    assert rows["reward"].to_list() == [
        sum(map(str.isdigit, response)) for response in rows["response"]
    ]
    for (_, _, drawn_from), group in rows.group_by("step", "prompt_id", "drawn_from"):
        assert group["sample_index"].to_list() == list(
            range(N) if drawn_from == "policy" else range(N, 2 * N)
        )
        expected = win_rates(group.select("prompt_id", "sample_index", "reward"), spec.win_rate)
        assert group.select("win_rate", "rank").rows() == expected.select("win_rate", "rank").rows()
    # A refresh serves its steps with the policy as it was before the first of them.
    frozen = rows.filter(pl.col("step") <= 4)
    assert frozen["logp_policy"].to_list() == pytest.approx(
        first_logps(store, spec, policy, frozen), abs=1e-4
    )
    assert rows.filter(pl.col("step") == 5)["logp_policy"].to_list() != pytest.approx(
        first_logps(store, spec, policy, rows.filter(pl.col("step") == 5)), abs=1e-2
    )


def test_one_sample_and_two_of_the_anchor_are_what_is_drawn_and_trained_on(
    store: Store, policy: Model
) -> None:
    spec = rollouts_spec(store, policy, {"name": "jbond", "anchor_samples": 2}, samples=1, rate=0.1)
    shard = roll(spec, store)
    groups = frame_of(shard).group_by("step", "prompt_id", maintain_order=True)
    drawn = groups.agg("sample_index", "drawn_from", "win_rate", "rank")
    assert len(drawn) == 2 * PROMPTS  # two epochs
    for _, _, index, drawn_from, win_rate, rank in drawn.iter_rows():
        assert (index, drawn_from) == ([0, 1, 2], ["policy", "anchor", "anchor"])
        assert (win_rate[0], rank[0]) == (0.5, 1)  # nothing to be compared with
        assert sum(win_rate[1:]) == 1
        assert sorted(rank[1:]) == [1, 2]
    training = training_of(store, shard)
    assert np.isfinite(values(training, "loss") + values(training, "grad_norm")).all()
    trained, start = (
        weights(store, training),
        weights(store, Shard(training.table, outputs={"model": policy})),
    )
    assert distance(trained, start) > 1e-3
    assert all(tensor.isfinite().all() for tensor in trained.values())


@pytest.mark.parametrize("name", ["bond", "jbond", "grpo", "rloo"])
def test_first_step_is_that_of_the_recorded_rows(store: Store, policy: Model, name: str) -> None:
    spec = rollouts_spec(store, policy, {"name": name}, **ONE_STEP)
    shard = roll(spec, store)
    rows = frame_of(shard)
    is_anchored = name in ("bond", "jbond")
    assert rows["drawn_from"].unique().sort().to_list() == (
        ["anchor", "policy"] if is_anchored else ["policy"]
    )
    columns = {
        column: torch.tensor(rows[column].cast(pl.Float64).to_list(), dtype=torch.float64)
        for column in ("logp_policy", "logp_reference", "win_rate", "reward", "rank")
    }
    from_anchor = torch.tensor((rows["drawn_from"] == "anchor").to_list()) if is_anchored else None
    group = torch.tensor(rows["prompt_id"].rle_id().to_list())
    samples = torch.full((len(rows),), float(N), dtype=torch.float64)
    batch = Batch(**columns, samples=samples, group=group, from_anchor=from_anchor)
    expected, _ = objective_for(spec.objective)(batch.logp_policy, batch)
    training = training_of(store, shard)
    assert values(training, "loss") == pytest.approx([float(expected)], rel=1e-4)
    assert values(training, "log_ratio_policy") == pytest.approx([0], abs=1e-4)


def test_a_pairwise_reward_is_the_mean_preference_over_all_others(
    store: Store, policy: Model, tmp_path: Path
) -> None:
    folder = llama_reward_model(tmp_path / "judge", store.path(policy))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    reward = resolve_reward(
        store, PairwiseRewardConfig(kind="pairwise", path=str(folder), template="chat")
    )
    spec = rollouts_spec(store, policy, {"name": "jbond", "refresh_steps": 4}, batch_prompts=4)
    rows = frame_of(roll(spec.model_copy(update={"reward": reward}), store))
    # every prompt at two steps
    assert rows["prompt_id"].n_unique() * 2 == rows.select("step", "prompt_id").n_unique()
    logit = template_logit(folder)
    for (_, prompt_id), group in rows.group_by("step", "prompt_id"):
        texts = group["response"].to_list()  # of the policy and of its anchor
        assert len(texts) == 2 * N
        for index, (text, recorded) in enumerate(zip(texts, group["reward"], strict=True)):
            others = [other for place, other in enumerate(texts) if place != index]
            logits = [
                (logit(prompt_id, text, other) - logit(prompt_id, other, text)) / 2
                for other in others
            ]
            assert recorded == pytest.approx(
                np.mean([1 / (1 + np.exp(-mean)) for mean in logits]), abs=1e-5
            )
    assert rows["reward"].std() > 0.02  # type: ignore[operator]


def test_the_policy_learns_what_is_rewarded(store: Store, policy: Model) -> None:
    spec = rollouts_spec(
        store, policy, {"name": "rloo"}, epochs=10, batch_prompts=6, lr=2e-2, zero_stage=2
    )
    shard = roll(spec, store)
    numbers = STAGE.numbers(spec, shard.table)
    assert numbers["last_reward"] > numbers["first_reward"] + 1
    rewards = frame_of(shard).group_by("step").agg(pl.col("reward").mean()).sort("step")["reward"]
    assert (rewards[0], rewards[-1]) == (numbers["first_reward"], numbers["last_reward"])


def test_outputs_stand_for_a_training(store: Store, policy: Model) -> None:
    spec = rollouts_spec(store, policy, {"name": "jbond"}, rate=0.5, **ONE_STEP)
    shard = roll(spec, store)
    training = shard.outputs["training"]
    manifest = store.verify(training)
    assert set(manifest.outputs) == {"model", "anchor"}
    assert manifest.parents == spec.parents()
    for output in manifest.outputs.values():
        assert store.verify(output).parents == spec.parents()
    assert not work_folder(spec, store).exists()


# --------------------------------------------------------------------------------------- the anchor


def test_anchor_is_the_average_of_the_policies(store: Store, policy: Model) -> None:
    steps = [
        training_of(
            store,
            roll(
                rollouts_spec(
                    store, policy, {"name": "jbond"}, rate=0.3, **ONE_STEP | {"epochs": epochs}
                ),
                store,
            ),
        )
        for epochs in (1, 2)
    ]
    start = weights(store, Shard(pl.DataFrame().to_arrow(), outputs={"model": policy}))
    policies = [weights(store, step) for step in steps]
    anchors = [
        weights(store, Shard(step.table, outputs={"model": step.outputs["anchor"]}))
        for step in steps
    ]
    after_one = {name: 0.7 * start[name] + 0.3 * policies[0][name] for name in start}
    after_two = {name: 0.7 * after_one[name] + 0.3 * policies[1][name] for name in start}
    assert distance(anchors[0], after_one) < 1e-6
    assert distance(anchors[1], after_two) < 1e-6
    assert distance(policies[1], start) > 1e-3


def test_at_rate_one_the_anchor_is_the_policy(store: Store, policy: Model) -> None:
    training = training_of(
        store,
        roll(rollouts_spec(store, policy, {"name": "jbond"}, rate=1.0, batch_prompts=4), store),
    )
    anchor = weights(store, Shard(training.table, outputs={"model": training.outputs["anchor"]}))
    assert all(
        torch.equal(tensor, anchor[name]) for name, tensor in weights(store, training).items()
    )
    # From then on it is what the rows were drawn from.
    assert values(training, "log_ratio_reference") == pytest.approx([0] * 4, abs=1e-4)


def test_the_anchor_goes_on_where_it_was_left(store: Store, policy: Model) -> None:
    """The reference of a spec is where its anchor starts, whatever the policy starts from."""
    first = training_of(
        store, roll(rollouts_spec(store, policy, {"name": "jbond"}, rate=0.3, **ONE_STEP), store)
    )
    model, anchor = first.outputs["model"], first.outputs["anchor"]
    assert isinstance(model, Model)
    assert isinstance(anchor, Model)
    spec = rollouts_spec(store, model, {"name": "jbond"}, rate=0.3, reference=anchor, **ONE_STEP)
    shard = roll(spec, store)
    rows = frame_of(shard)
    assert rows["logp_reference"].to_list() == pytest.approx(
        first_logps(store, spec, anchor, rows), abs=1e-4
    )
    assert rows["logp_policy"].to_list() == pytest.approx(
        first_logps(store, spec, model, rows), abs=1e-4
    )
    second = training_of(store, shard)
    before, trained = (
        weights(store, Shard(first.table, outputs={"model": each}))
        for each in (anchor, second.outputs["model"])
    )
    expected = {name: 0.7 * before[name] + 0.3 * trained[name] for name in before}
    assert (
        distance(
            weights(store, Shard(first.table, outputs={"model": second.outputs["anchor"]})),
            expected,
        )
        < 1e-6
    )


def test_a_small_rate_is_not_lost_in_bfloat16(store: Store, policy: Model) -> None:
    spec = rollouts_spec(
        store, policy, {"name": "jbond"}, rate=1e-4, precision="bfloat16", zero_stage=2, lr=1e-2
    )
    training = training_of(store, roll(spec, store))
    anchor = Shard(training.table, outputs={"model": training.outputs["anchor"]})
    start = Shard(training.table, outputs={"model": policy})
    moved = weights(store, anchor)
    assert {tensor.dtype for tensor in moved.values()} == {torch.float32}
    assert (
        json.loads((store.path(training.outputs["anchor"]) / "config.json").read_bytes())["dtype"]
        == "float32"
    )
    assert 1e-6 < distance(moved, weights(store, start)) < 1e-3
    assert {tensor.dtype for tensor in weights(store, training).values()} == {torch.bfloat16}


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stage", [0, 2])
def test_resuming_equals_never_having_stopped(store: Store, policy: Model, stage: int) -> None:
    # Checkpoints after steps 3 and 6 of 6: the first lies within the refresh that serves steps 3
    # and 4.
    spec = rollouts_spec(
        store,
        policy,
        {"name": "jbond", "refresh_steps": 2},
        rate=0.1,
        epochs=2,
        checkpoint_steps=3,
        zero_stage=stage,
    )
    uninterrupted = roll(spec, store)
    with pytest.raises(Interrupted):
        roll(spec, store, stop_after(5))
    steps: list[int] = []
    resumed = roll(spec, store, lambda done, total: steps.append(done))
    assert steps == [4, 5, 6]
    # the numbers, the model and the anchor, by content
    assert resumed.outputs == uninterrupted.outputs
    assert resumed.table == uninterrupted.table


@pytest.mark.parametrize("damage", ["rollouts", "anchor"])
def test_a_damaged_checkpoint_costs_time_only(store: Store, policy: Model, damage: str) -> None:
    spec = rollouts_spec(
        store, policy, {"name": "jbond", "refresh_steps": 2}, rate=0.1, checkpoint_steps=3
    )
    uninterrupted = roll(spec, store)
    with pytest.raises(Interrupted):
        roll(spec, store, stop_after(4))
    work = work_folder(spec, store)
    (path,) = work.glob(
        "rollouts/step-00000003.arrow"
        if damage == "rollouts"
        else "step-00000003/anchor-0.safetensors"
    )
    path.write_bytes(path.read_bytes()[:-1])
    steps: list[int] = []
    again = roll(spec, store, lambda done, total: steps.append(done))
    assert steps[0] == 1
    assert (again.outputs, again.table) == (uninterrupted.outputs, uninterrupted.table)


@pytest.mark.parametrize("is_edited", [False, True])
def test_an_interrupted_training_begins_anew_if_its_reward_has_read_something_else(
    store: Store, policy: Model, tmp_path: Path, is_edited: bool
) -> None:
    weight = tmp_path / "weight.txt"
    weight.write_text("1.0")
    reward = tmp_path / "counted_digits.py"
    reward.write_text(
        reward.read_text().replace("float(", "float(open('weight.txt').read()) * float(")
    )
    spec = rollouts_spec(store, policy, {"name": "jbond", "refresh_steps": 2}, checkpoint_steps=3)
    with noting(), pytest.raises(Interrupted):
        roll(spec, store, stop_after(4))
    if is_edited:
        weight.write_text("3.0")
    steps: list[int] = []
    with noting() as noted:
        rows = frame_of(roll(spec, store, lambda done, total: steps.append(done)))
    assert steps[0] == (1 if is_edited else 4)
    assert "weight.txt" in noted.all().files
    digits = rows["response"].str.count_matches("[0-9]") * (3.0 if is_edited else 1.0)
    assert digits.max() != 0
    assert rows["reward"].to_list() == digits.to_list()


# ---------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_sampled_is_said_before_anything_is_loaded(
    store: Store, policy: Model
) -> None:
    spec = rollouts_spec(store, policy, {"name": "jbond"})
    too_long = spec.model_copy(
        update={"sampling": spec.sampling.model_copy(update={"max_new_tokens": 200})}
    )
    with pytest.raises(ConfigError, match="exceed the policy's 128 positions"):
        roll(too_long, store)
    stored = spec.model_dump(mode="json") | {"objective": {"name": "raft"}}
    with pytest.raises(ConfigError, match="raft has no refresh_steps"):
        parse(Job(stage="rollouts", spec=stored, place=Place(root=str(store.root))))


def test_a_reward_that_fails_is_named(store: Store, policy: Model) -> None:
    spec = rollouts_spec(store, policy, {"name": "jbond"})
    edited = spec.model_copy(
        update={"reward": spec.reward.model_copy(update={"source_digest": "0" * 64})}
    )
    with pytest.raises(InputError, match="counted_digits:digits was edited"):
        roll(edited, store)


def test_a_stage_by_that_name_knows_its_numbers(store: Store, policy: Model) -> None:
    spec = rollouts_spec(store, policy, {"name": "grpo"}, **ONE_STEP)
    shard = roll(spec, store)
    numbers = STAGE.numbers(spec, shard.table)
    assert (
        numbers["first_reward"]
        == numbers["last_reward"]
        == pytest.approx(float(np.mean(frame_of(shard)["reward"].to_numpy())))
    )
    truncated = (frame_of(shard)["finish_reason"] == "length").to_numpy()
    assert numbers["truncated_share"] == pytest.approx(float(truncated.mean()))
