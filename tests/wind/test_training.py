"""Training: order and weighting of rows, the engine against numbers by hand, resuming, exporting, and ranks as processes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from wind.config import TrainingConfig, WindObjectiveConfig
from wind.datasets import Dataset, Model, Store
from wind.errors import DatasetError, TrainingError
from wind.fingerprints import digest
from wind.models import load_policy
from wind.sequence_logps import SequenceLogps
from wind.stages import Place, Progress, Shard
from wind.training import STAGE, TrainingSpec, compute
from wind.training.batches import Plan, load_rows, micro_batch
from wind.training.runs import work_folder
from wind.training.schedules import learning_rate

pytestmark = [
    # DeepSpeed 0.19 calls collectives and settings that torch 2.13 is renaming.
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed"),
]

N = 3
GROUPS = 7
Inputs = dict[str, Any]  # the handles of a TrainingSpec


class Interrupted(Exception):  # noqa: N818 - not an error: it stands for the end of a process
    pass


def quiet(done: int, total: int) -> None:
    return


def publish(store: Store, name: str, columns: dict[str, Any]) -> Dataset:
    table = pa.table(columns)
    with store.partial(name, digest(table.to_pylist())) as partial:
        partial.write(0, table)
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def logps_of(store: Store, model: Model, prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    """One row at a time, without padding, under the scoring half of the project."""
    policy = SequenceLogps(load_policy(store, model, "float32", "cpu"))
    logps = []
    for prompt, response in zip(prompts, responses, strict=True):
        input_ids_B_T = torch.tensor([prompt + response])
        response_mask_B_T = torch.arange(input_ids_B_T.shape[1])[None] >= len(prompt)
        with torch.no_grad():
            logps.append(float(policy(input_ids_B_T, torch.ones_like(input_ids_B_T), response_mask_B_T)))
    return logps


def make_inputs(store: Store, folder: Path, groups: int = GROUPS) -> Inputs:
    generator = np.random.default_rng(0)
    policy = store.import_model(folder)
    ids = sorted(digest(index)[:32] for index in range(groups))
    prompts = [[1, *generator.integers(5, 40, generator.integers(2, 6)).tolist()] for _ in ids]
    responses = [[*generator.integers(5, 40, generator.integers(1, 9)).tolist(), 2] for _ in range(groups * N)]
    logps = np.array(logps_of(store, policy, [prompt for prompt in prompts for _ in range(N)], responses))
    rewards_P_N = generator.integers(0, 4, (groups, N)).astype(float)
    wins_P_N = (rewards_P_N[:, :, None] > rewards_P_N[:, None]).sum(2)
    ties_P_N = (rewards_P_N[:, :, None] == rewards_P_N[:, None]).sum(2) - 1
    key = {"prompt_id": [name for name in ids for _ in range(N)], "sample_index": pa.array(list(range(N)) * groups, pa.int32())}
    rows = groups * N
    return {
        "policy": policy,
        "prompts": publish(
            store,
            "prompts",
            {
                "prompt_id": ids,
                "prompt": ids,
                "messages": [[{"role": "user", "content": name}] for name in ids],
                "prompt_token_ids": pa.array(prompts, pa.list_(pa.int32())),
                "split": ["train"] * groups,
                "answer": pa.nulls(groups, pa.string()),
                "meta": ["{}"] * groups,
            },
        ),
        "generations": publish(
            store,
            "generations",
            {
                **key,
                "policy": [policy.fingerprint] * rows,
                "response": ["x"] * rows,
                "response_token_ids": pa.array(responses, pa.list_(pa.int32())),
                "logp_sampler": logps,
                "finish_reason": ["stop"] * rows,
                "seed": list(range(rows)),
            },
        ),
        "rewards": publish(store, "rewards", {**key, "reward": rewards_P_N.ravel()}),
        "win_rates": publish(
            store,
            "win_rates",
            {
                **key,
                "win_rate": ((wins_P_N + ties_P_N / 2) / (N - 1)).ravel(),
                "wins": wins_P_N.ravel(),
                "ties": ties_P_N.ravel(),
                "losses": (N - 1 - wins_P_N - ties_P_N).ravel(),
                "rank": ((-rewards_P_N).argsort(1, kind="stable").argsort(1) + 1).ravel(),
            },
        ),
        "logps": publish(
            store,
            "logps",
            {
                **key,
                "logp_policy": logps,
                "logp_reference": logps - generator.uniform(0, 1, rows),
                "response_tokens": [len(response) for response in responses],
            },
        ),
    }


def make_spec(inputs: Inputs, objective: dict[str, Any] | None = None, **training: Any) -> TrainingSpec:
    settings = {"epochs": 2, "batch_prompts": 4, "micro_prompts": 2, "lr": 1e-3, "zero_stage": 0} | training
    return TrainingSpec(
        **inputs,
        objective=WindObjectiveConfig(**(objective or {})),
        training=TrainingConfig(**settings),
        seed=3,
        iteration=1,
    )


def train(spec: TrainingSpec, store: Store, progress: Progress = quiet) -> Shard:
    return compute(spec, store, 0, Place(root=str(store.root)), progress)


def values(shard: Shard, metric: str) -> list[float]:
    frame = pl.DataFrame(shard.table).filter(pl.col("metric") == metric).sort("step")
    return [float(value) for value in frame["value"]]


def weights(store: Store, shard: Shard) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(store.path(shard.outputs["model"]) / "model.safetensors")


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest relative distance between two models' tensors."""
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).norm() / others[name].norm()) for name in some)


@pytest.fixture
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


@pytest.fixture(scope="module")
def engine() -> Any:
    """The engine module, imported for a CPU."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import wind.training.engine as module

    return module


# ---------------------------------------------------------------------------------------- order and weighting


def plan_of(groups: int = 11, seed: int = 0, iteration: int = 1, **training: Any) -> Plan:
    settings = {"epochs": 2, "batch_prompts": 4, "micro_prompts": 2} | training
    return Plan(training=TrainingConfig(**settings), seed=seed, iteration=iteration, groups=groups)


def test_every_epoch_visits_every_group_once() -> None:
    plan = plan_of()
    assert (plan.steps_per_epoch, plan.steps) == (3, 6)
    sizes = [len(plan.step_groups(step)) for step in range(6)]
    assert sizes == [4, 4, 3, 4, 4, 3]  # the rest is a smaller step, not dropped and not filled up
    for epoch in range(2):
        visited = np.concatenate([plan.step_groups(step) for step in range(3 * epoch, 3 * epoch + 3)])
        assert sorted(visited.tolist()) == list(range(11))


def test_order_depends_on_seed_iteration_and_epoch_alone() -> None:
    def order(plan: Plan, first: int = 0) -> list[int]:
        return [int(group) for step in range(first, first + plan.steps_per_epoch) for group in plan.step_groups(step)]

    assert order(plan_of()) == order(plan_of(micro_prompts=1, batch_prompts=8, ranks=2))
    others = [order(plan_of(seed=1)), order(plan_of(iteration=2)), order(plan_of(), first=3)]
    assert all(order(plan_of()) != other for other in others)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [8, 5, 1])
def test_ranks_and_micro_batches_share_a_step_out(ranks: int, size: int) -> None:
    plan = plan_of(batch_prompts=8, micro_prompts=2, ranks=ranks)
    parts = [plan.micro_groups(np.arange(size), rank) for rank in range(ranks)]
    assert {len(part) for part in parts} == {8 // (2 * ranks)}  # every rank makes as many passes, some of them empty
    assert sorted(int(group) for part in parts for groups in part for group in groups) == list(range(size))
    assert max(len(groups) for part in parts for groups in part) <= 2


def test_learning_rate_by_hand() -> None:
    # 10 steps, 2 of warm-up: 1/2, 1, then 8 steps from 1 towards 0.
    def rates(schedule: str) -> list[float]:
        training = TrainingConfig(lr=1.0, warmup_fraction=0.2, schedule=schedule)
        return [learning_rate(training, step, 10) for step in range(10)]

    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("linear") == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rates("cosine")[6] == pytest.approx(0.5)
    assert rates("cosine")[9] == pytest.approx((1 - math.cos(math.pi / 8)) / 2)


def test_warmup_may_be_everything_or_nothing() -> None:
    assert [learning_rate(TrainingConfig(lr=1.0, warmup_fraction=1), step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert learning_rate(TrainingConfig(lr=1.0, warmup_fraction=0), 0, 1) == 1


def test_rows_are_joined_by_key(store: Store, inputs: Inputs) -> None:
    rows = load_rows(make_spec(inputs), store)
    assert (rows.groups, rows.starts.tolist()) == (GROUPS, list(range(0, GROUPS * N + 1, N)))
    generations = store.frame(inputs["generations"])
    for index in (0, 4, GROUPS * N - 1):
        assert rows.responses[index].tolist() == generations["response_token_ids"][index].to_list()
        assert rows.columns["logp_policy"][index] == generations["logp_sampler"][index]
    assert rows.prompts[2].tolist() == store.frame(inputs["prompts"])["prompt_token_ids"][2].to_list()


def test_micro_batch_by_hand(store: Store, inputs: Inputs) -> None:
    rows = load_rows(make_spec(inputs), store)
    batch = micro_batch(rows, np.array([4, 1]), "cpu")
    input_ids_B_T, attention_mask_B_T, response_mask_B_T = batch.inputs
    assert batch.batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.batch.win_rate.tolist() == rows.columns["win_rate"][[12, 13, 14, 3, 4, 5]].tolist()
    assert input_ids_B_T.shape[1] == max(
        len(rows.prompts[g]) + len(rows.responses[r]) for g in (4, 1) for r in range(3 * g, 3 * g + 3)
    )
    for row, (group, index) in enumerate(zip([4] * 3 + [1] * 3, [12, 13, 14, 3, 4, 5], strict=True)):
        prompt, response = rows.prompts[group].tolist(), rows.responses[index].tolist()
        assert input_ids_B_T[row][attention_mask_B_T[row]].tolist() == prompt + response
        assert input_ids_B_T[row][response_mask_B_T[row]].tolist() == response
        assert attention_mask_B_T[row].tolist() == sorted(attention_mask_B_T[row].tolist(), reverse=True)  # padded on the right


def test_missing_rows_are_an_error(store: Store, inputs: Inputs) -> None:
    frame = store.frame(inputs["win_rates"]).head(5)
    fewer = publish(store, "win_rates", {name: frame[name].to_arrow() for name in frame.columns})
    with pytest.raises(DatasetError, match=r"win_rates/.* has 5 rows, .* 21, and 5 in common"):
        load_rows(make_spec({**inputs, "win_rates": fewer}), store)


def test_logps_of_other_responses_are_an_error(store: Store, inputs: Inputs) -> None:
    frame = store.frame(inputs["logps"]).with_columns(response_tokens=pl.lit(1, pl.Int32))
    other = publish(store, "logps", {name: frame[name].to_arrow() for name in frame.columns})
    with pytest.raises(DatasetError, match="scored other responses"):
        load_rows(make_spec({**inputs, "logps": other}), store)


# ---------------------------------------------------------------------------------------- the engine


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_config(engine: Any, stage: int) -> None:
    training = TrainingConfig(batch_prompts=24, micro_prompts=2, ranks=3, zero_stage=stage, max_grad_norm=0.5)
    config = engine.deepspeed_config(training)
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 3 == 24
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": stage}
    assert config["bf16"] == {"enabled": False}
    assert "data_types" not in config
    in_bf16 = engine.deepspeed_config(training.model_copy(update={"precision": "bfloat16"}))
    assert in_bf16["bf16"] == {"enabled": True}
    assert ("data_types" in in_bf16) == (stage > 0)


@pytest.mark.slow
def test_weight_decay_is_for_matrices(engine: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    decayed, plain = engine.parameter_groups(model, 0.1)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 2)]
    assert (decayed["weight_decay"], plain["weight_decay"], len(plain["params"])) == (0.1, 0.0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("shift", ["half", "centred"])
def test_first_step_is_that_of_the_recorded_logps(store: Store, inputs: Inputs, shift: str) -> None:
    # Before the first update log pi_theta = log pi_t: the loss follows from the columns alone, and nothing has moved.
    spec = make_spec(inputs, {"beta": 0.5, "eta": 2.0, "shift": shift}, gradient_checkpointing=shift == "half")
    shard = train(spec, store)
    rows = load_rows(spec, store)
    groups = Plan(training=spec.training, seed=3, iteration=1, groups=GROUPS).step_groups(0)
    index_P_N = rows.starts[groups][:, None] + np.arange(N)
    drift_P_N = (rows.columns["logp_policy"] - rows.columns["logp_reference"])[index_P_N] / 2  # 1 - lam = 1/2
    residual_P_N = drift_P_N - rows.columns["win_rate"][index_P_N]  # eta lam = 1
    residual_P_N += 0.5 if shift == "half" else -residual_P_N.mean(1, keepdims=True)
    assert values(shard, "loss")[0] == pytest.approx(float(np.mean(residual_P_N**2)), rel=1e-4)
    assert values(shard, "log_ratio_policy")[0] == pytest.approx(0, abs=1e-4)
    assert values(shard, "learning_rate") == pytest.approx([1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert all(norm > 0 for norm in values(shard, "grad_norm"))


@pytest.mark.slow
def test_training_solves_the_regression(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, {"beta": 0.0, "eta": 4.0}, epochs=40, batch_prompts=8, lr=3e-3, schedule="cosine")
    shard = train(spec, store)
    losses, margins = values(shard, "loss"), values(shard, "win_margin")
    assert losses[-1] < losses[0] / 20
    assert margins[0] == pytest.approx(0, abs=1e-4)
    # At the solution log(pi/pi_t) = eta (P - 1/2): the margin is the mean of 2 eta (P - 1/2)^2.
    win_rates = store.frame(inputs["win_rates"])["win_rate"].to_numpy()
    assert margins[-1] == pytest.approx(float(np.mean(8 * (win_rates - 0.5) ** 2)), rel=0.2)
    table_numbers = STAGE.numbers(spec, shard.table)
    assert table_numbers == {"steps": 40, "first_loss": losses[0], "last_loss": losses[-1]}


@pytest.mark.slow
def test_micro_batches_do_not_matter(store: Store, inputs: Inputs) -> None:
    # Two steps an epoch, of 4 and 3 groups: the second is incomplete, and with micro-batches of 2 unequal.
    trained = [weights(store, train(make_spec(inputs, micro_prompts=size, lr=1e-4), store)) for size in (4, 2, 1)]
    assert distance(trained[1], trained[0]) < 1e-4
    assert distance(trained[2], trained[0]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_zero_stages_agree_on_one_rank(store: Store, inputs: Inputs, stage: int, optimizer: str) -> None:
    without = weights(store, train(make_spec(inputs, lr=1e-4, optimizer=optimizer), store))
    sharded = weights(store, train(make_spec(inputs, lr=1e-4, optimizer=optimizer, zero_stage=stage), store))
    assert distance(sharded, without) < 1e-4


@pytest.mark.slow
def test_bfloat16_is_exported_as_such(store: Store, inputs: Inputs) -> None:
    shard = train(make_spec(inputs, precision="bfloat16", zero_stage=2), store)
    assert {tensor.dtype for tensor in weights(store, shard).values()} == {torch.bfloat16}
    assert json.loads((store.path(shard.outputs["model"]) / "config.json").read_bytes())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_divergence_names_the_step(store: Store, inputs: Inputs) -> None:
    with pytest.raises(TrainingError, match=r"of step \d+ is (nan|inf|not finite)"):
        train(make_spec(inputs, lr=1e30, epochs=4), store)


# ---------------------------------------------------------------------------------------- resuming


def stop_after(step: int) -> Progress:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_resuming_equals_never_having_stopped(store: Store, inputs: Inputs, stage: int) -> None:
    spec = make_spec(inputs, epochs=4, checkpoint_steps=2, zero_stage=stage)
    uninterrupted = train(spec, store)
    with pytest.raises(Interrupted):
        train(spec, store, stop_after(5))
    steps: list[int] = []
    resumed = train(spec, store, lambda done, total: steps.append(done))
    assert steps == [5, 6, 7, 8]  # steps 1 to 4 were not repeated
    assert resumed.outputs == uninterrupted.outputs
    assert resumed.table == uninterrupted.table
    assert not work_folder(spec, store).exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["torn", "unmarked", "marker"])
def test_a_damaged_checkpoint_costs_time_only(store: Store, inputs: Inputs, damage: str) -> None:
    spec = make_spec(inputs, checkpoint_steps=1)
    uninterrupted = train(spec, store)
    with pytest.raises(Interrupted):
        train(spec, store, stop_after(3))
    (kept,) = work_folder(spec, store).glob("step-*")
    assert kept.name == "step-00000003"  # the last one only
    if damage == "unmarked":
        # Killed while the checkpoint after step 3 was being written: the one before is still there.
        torn = kept.with_name("step-00000004")
        shutil.copytree(kept, torn)
        (torn / "complete.json").unlink()
    elif damage == "torn":
        state = next(path for path in kept.rglob("*.pt"))
        state.write_bytes(state.read_bytes()[:-1])
    else:
        (kept / "complete.json").write_text('{"steps": 3')
    steps: list[int] = []
    again = train(spec, store, lambda done, total: steps.append(done))
    assert steps[0] == (4 if damage == "unmarked" else 1)
    assert (again.outputs, again.table) == (uninterrupted.outputs, uninterrupted.table)


# ---------------------------------------------------------------------------------------- the export


@pytest.mark.slow
def test_export_is_the_start_folder_with_other_weights(store: Store, inputs: Inputs, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = make_spec(inputs)
    model = train(spec, store).outputs["model"]
    assert isinstance(model, Model)
    folder = store.path(model)
    assert model != inputs["policy"]
    assert model.parameters == inputs["policy"].parameters
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    assert json.loads((folder / "config.json").read_bytes()) == json.loads((tiny_model / "config.json").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.eos_token_id == 2
    assert (
        AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<s><u>a"
    )
    manifest = store.verify(model)
    assert manifest.parents == spec.parents()
    assert manifest.computed_by["spec"] == spec.model_dump(mode="json")
    assert str(store.root) not in (folder / "config.json").read_text()


@pytest.mark.slow
def test_tied_weights_stay_tied(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tied = tmp_path / "tied"
    shutil.copytree(tiny_model, tied)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tied, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tied)  # type: ignore[no-untyped-call]
    inputs = make_inputs(store, tied)
    shard = train(make_spec(inputs), store)
    assert "lm_head.weight" not in weights(store, shard)
    assert shard.outputs["model"] != inputs["policy"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["weights", "shape", "missing"])
def test_a_wrong_export_is_not_published(store: Store, inputs: Inputs, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    from wind.training.export import probe_logps, verify_export
    from wind.training.policies import load_policy as load

    start = store.path(inputs["policy"])
    rows = load_rows(make_spec(inputs), store)
    probe = probe_logps(SequenceLogps(load(start, "float32")), rows, 2, "cpu")
    folder = tmp_path / "export"
    shutil.copytree(start, folder)
    verify_export(folder, start, rows, 2, probe, "float32", "cpu")
    tensors = load_file(folder / "model.safetensors")
    if damage == "weights":
        tensors["model.norm.weight"] *= 1.001
    elif damage == "shape":
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 46}))
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = tensors[name][:46].clone()
    else:
        del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = {"weights": "log-probabilities of a probe", "shape": "2 shapes, such as that of lm_head", "missing": "1 missing"}
    with pytest.raises(TrainingError, match=expected[damage]):
        verify_export(folder, start, rows, 2, probe, "float32", "cpu")


# ---------------------------------------------------------------------------------------- ranks


def rank_processes(folder: Path) -> list[int]:
    """Every living process of a training that works in `folder`: torchrun and its ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "wind.training." in command and str(folder.resolve()) in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3), (1, 3)])
def test_ranks_and_zero_stages_train_the_same_weights(store: Store, inputs: Inputs, ranks: int, stage: int) -> None:
    alone = train(make_spec(inputs, lr=1e-4, micro_prompts=1), store)
    together = train(make_spec(inputs, lr=1e-4, micro_prompts=1, ranks=ranks, zero_stage=stage), store)
    assert distance(weights(store, together), weights(store, alone)) < 1e-4
    for metric in ("loss", "grad_norm", "log_ratio_reference", "learning_rate"):
        assert values(together, metric) == pytest.approx(values(alone, metric), rel=1e-3)


@pytest.mark.slow
def test_zero_3_in_bfloat16_keeps_rotary_frequencies(store: Store, inputs: Inputs) -> None:
    # Rounded frequencies would show in the very first loss, before any update.
    losses = [values(train(make_spec(inputs, precision="bfloat16", zero_stage=stage), store), "loss")[0] for stage in (2, 3)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_resumes(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    spec = make_spec(inputs, epochs=6, checkpoint_steps=2, ranks=2, zero_stage=2)
    uninterrupted = train(spec, store)
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"stage": "training", "spec": spec.model_dump(mode="json"), "place": {"root": str(store.root)}}))
    command = [sys.executable, "-m", "wind.training", str(job), "--root", str(store.root)]
    run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    work = work_folder(spec, store)
    deadline = time.monotonic() + 300
    while not any(work.glob("step-*/complete.json")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(rank_processes(work)) == 3
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 20
    while rank_processes(work):
        assert time.monotonic() < deadline, "ranks outlived the run"
        time.sleep(0.05)
    steps: list[int] = []
    resumed = train(spec, store, lambda done, total: steps.append(done))
    assert (resumed.outputs, resumed.table) == (uninterrupted.outputs, uninterrupted.table)


@pytest.mark.slow
def test_a_killed_rank_is_named(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, epochs=2000, ranks=2)

    def kill(done: int, total: int) -> None:
        for pid in rank_processes(work_folder(spec, store)):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"RANK=1" in environment:
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="rank 1 of the training ended with exit code -9"):
        train(spec, store, kill)
    assert not rank_processes(work_folder(spec, store))


@pytest.mark.slow
def test_an_error_in_a_rank_arrives_as_itself(store: Store, inputs: Inputs) -> None:
    with pytest.raises(TrainingError, match=r"of step \d+ is (nan|inf|not finite)"):
        train(make_spec(inputs, lr=1e30, epochs=4, ranks=2), store)


@pytest.mark.slow
def test_an_interruption_ends_the_ranks(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, epochs=2000, ranks=2)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, store, interrupt)
    assert not rank_processes(work_folder(spec, store))


def test_the_stage_is_cheap_to_import() -> None:
    code = "import sys, wind.training; sys.exit(bool({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
