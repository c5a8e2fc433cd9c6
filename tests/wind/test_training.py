"""Training on one rank: the engine against numbers by hand, resuming, exporting."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    GROUPS,
    Inputs,
    Interrupted,
    N,
    distance,
    make_inputs,
    make_spec,
    quiet,
    stop_after,
    train,
    values,
    weights,
)
from wind.config.training import TrainingConfig
from wind.errors import TrainingError
from wind.machine.environment import variables
from wind.models.sequence_logps import SequenceLogps
from wind.objectives import Batch, objective_for
from wind.stages import Place
from wind.store.datasets import Store
from wind.store.handles import Model
from wind.training import STAGE, compute
from wind.training.batches import Plan, load_rows
from wind.training.runs import work_folder

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]


@pytest.fixture
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


@pytest.fixture(scope="module")
def engine() -> Any:
    """The engine module, imported for a CPU."""
    with variables({"DS_ACCELERATOR": "cpu"}):
        import wind.training.engine as module

    return module


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_config(engine: Any, stage: int) -> None:
    training = TrainingConfig(
        batch_prompts=24, micro_prompts=2, ranks=3, zero_stage=stage, max_grad_norm=0.5
    )
    config = engine.deepspeed_config(training)
    assert config["train_batch_size"] == 24
    assert (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 3 == 24
    )
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": stage}
    assert config["bf16"] == {"enabled": False}
    assert "data_types" not in config
    in_bf16 = engine.deepspeed_config(training.model_copy(update={"precision": "bfloat16"}))
    assert in_bf16["bf16"] == {"enabled": True}
    assert ("data_types" in in_bf16) == (stage > 0)


def test_what_is_offloaded(engine: Any) -> None:
    host = {"device": "cpu"}
    optimizer = engine.deepspeed_config(TrainingConfig(zero_stage=2, offload="optimizer"))
    assert optimizer["zero_optimization"] == {"stage": 2, "offload_optimizer": host}
    both = engine.deepspeed_config(TrainingConfig(zero_stage=3, offload="optimizer_and_parameters"))
    assert both["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": host,
        "offload_param": host,
    }


def test_weight_decay_is_for_matrices(engine: Any) -> None:
    wrapped = SequenceLogps(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)))
    decayed, plain = engine.parameter_groups(wrapped, TrainingConfig(weight_decay=0.1))
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 2)]
    assert (decayed["weight_decay"], plain["weight_decay"], len(plain["params"])) == (0.1, 0.0, 3)


def test_adamw_is_fused_beside_a_gpu(engine: Any) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]}]

    def made(optimizer: str, device: str) -> torch.optim.Optimizer:
        settings = TrainingConfig.model_validate({"optimizer": optimizer, "lr": 0.5})
        made: torch.optim.Optimizer = engine.new_optimizer(settings, groups, device)
        return made

    on_gpu, on_cpu = made("adamw", "cuda"), made("adamw", "cpu")
    assert (on_gpu.defaults["fused"], on_cpu.defaults["fused"]) == (True, None)
    assert (on_gpu.defaults["lr"], on_cpu.defaults["lr"]) == (0.5, 0.5)
    assert isinstance(made("rmsprop", "cuda"), torch.optim.RMSprop)


def test_a_learned_intercept_starts_at_a_half_and_moves_beside_the_policy(
    store: Store, inputs: Inputs
) -> None:
    settings = {
        "epochs": 4,
        "lr": 1e-4,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "max_grad_norm": 1e6,
    }
    half = train(make_spec(inputs, {"eta": 2.0}, **settings), store)
    learned = train(
        make_spec(inputs, {"eta": 2.0, "shift": "learned"}, intercept_lr=0.1, **settings), store
    )
    assert values(learned, "loss")[0] == pytest.approx(values(half, "loss")[0])
    intercepts = values(learned, "intercept")
    assert intercepts[0] == 0.5
    # A row's residual is its drift minus 2 lam (P - c): while the policy barely moves, the best c
    # makes its mean zero.
    rows = load_rows(make_spec(inputs), store)
    lam = 1 / 1.2
    drift_B = (1 - lam) * (rows.columns["logp_policy"] - rows.columns["logp_reference"])
    assert intercepts[-1] == pytest.approx(0.5 - drift_B.mean() / (2 * lam), abs=0.03)
    assert values(learned, "loss")[-1] < values(half, "loss")[-1]
    assert weights(store, learned).keys() == weights(store, half).keys()  # the head stays behind


@pytest.mark.parametrize("stage", [2, 3])
def test_a_learned_intercept_is_sharded_like_the_rest(
    store: Store, inputs: Inputs, stage: int
) -> None:
    objective = {"eta": 2.0, "shift": "learned"}
    alone, sharded = (
        train(make_spec(inputs, objective, lr=1e-4, zero_stage=each), store) for each in (0, stage)
    )
    assert values(sharded, "intercept") == pytest.approx(values(alone, "intercept"), abs=1e-6)
    assert values(alone, "intercept")[-1] != 0.5
    assert distance(weights(store, sharded), weights(store, alone)) < 1e-4


@pytest.mark.parametrize("shift", ["half", "centred"])
def test_first_step_is_that_of_the_recorded_logps(store: Store, inputs: Inputs, shift: str) -> None:
    # Before the first update log pi_theta = log pi_t: the loss follows from the columns alone, and
    # nothing has moved.
    spec = make_spec(
        inputs, {"beta": 0.5, "eta": 2.0, "shift": shift}, gradient_checkpointing=shift == "half"
    )
    shard = train(spec, store)
    rows = load_rows(spec, store)
    groups = Plan(training=spec.training, seed=3, iteration=1, groups=GROUPS).step_groups(0)
    index_P_N = rows.starts[groups][:, None] + np.arange(N)
    # 1 - lam = 1/2
    drift_P_N = (rows.columns["logp_policy"] - rows.columns["logp_reference"])[index_P_N] / 2
    residual_P_N = drift_P_N - rows.columns["win_rate"][index_P_N]  # eta lam = 1
    residual_P_N += 0.5 if shift == "half" else -residual_P_N.mean(1, keepdims=True)
    assert values(shard, "loss")[0] == pytest.approx(float(np.mean(residual_P_N**2)), rel=1e-4)
    assert values(shard, "log_ratio_policy")[0] == pytest.approx(0, abs=1e-4)
    assert values(shard, "learning_rate") == pytest.approx([1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert all(norm > 0 for norm in values(shard, "grad_norm"))


@pytest.mark.parametrize("name", ["inpo", "bonbon"])
def test_other_objectives_start_from_the_recorded_logps_too(
    store: Store, inputs: Inputs, name: str
) -> None:
    spec = make_spec(inputs, {"name": name}, epochs=1, micro_prompts=1)
    rows = load_rows(spec, store)
    groups = Plan(training=spec.training, seed=3, iteration=1, groups=GROUPS).step_groups(0)
    index_B = (rows.starts[groups][:, None] + np.arange(N)).ravel()
    columns = {
        column: torch.from_numpy(values_B[index_B]) for column, values_B in rows.columns.items()
    }
    batch = Batch(**columns, group=torch.from_numpy(groups).repeat_interleave(N))
    expected, _ = objective_for(spec.objective)(batch.logp_policy, batch)
    shard = train(spec, store)
    assert values(shard, "loss")[0] == pytest.approx(float(expected), rel=1e-4)
    assert values(shard, "log_ratio_policy")[0] == pytest.approx(0, abs=1e-4)


def test_training_solves_the_regression(store: Store, inputs: Inputs) -> None:
    spec = make_spec(
        inputs, {"beta": 0.0, "eta": 4.0}, epochs=40, batch_prompts=8, lr=3e-3, schedule="cosine"
    )
    shard = train(spec, store)
    losses, margins = values(shard, "loss"), values(shard, "win_margin")
    assert losses[-1] < losses[0] / 20
    assert margins[0] == pytest.approx(0, abs=1e-4)
    # At the solution log(pi/pi_t) = eta (P - 1/2): the margin is the mean of 2 eta (P - 1/2)^2.
    win_rates = store.frame(inputs["win_rates"])["win_rate"].to_numpy()
    assert margins[-1] == pytest.approx(float(np.mean(8 * (win_rates - 0.5) ** 2)), rel=0.2)
    table_numbers = STAGE.numbers(spec, shard.table)
    assert table_numbers == {"steps": 40, "first_loss": losses[0], "last_loss": losses[-1]}


def test_a_training_leaves_no_process_group_and_needs_none_of_before(
    store: Store, inputs: Inputs
) -> None:
    """Between two trainings of a process another library may make a group of its own and end it, as
    vLLM does.
    """
    first = train(make_spec(inputs, epochs=1), store)
    assert not torch.distributed.is_initialized()
    hash_store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=hash_store, rank=0, world_size=1)
    torch.distributed.destroy_process_group()
    assert train(make_spec(inputs, epochs=1), store).outputs == first.outputs


def test_micro_batches_do_not_matter(store: Store, inputs: Inputs) -> None:
    # Two steps an epoch, of 4 and 3 groups: the second is incomplete, and with micro-batches of 2
    # unequal.
    trained = [
        weights(store, train(make_spec(inputs, micro_prompts=size, lr=1e-4), store))
        for size in (4, 2, 1)
    ]
    assert distance(trained[1], trained[0]) < 1e-4
    assert distance(trained[2], trained[0]) < 1e-4


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_zero_stages_agree_on_one_rank(
    store: Store, inputs: Inputs, stage: int, optimizer: str
) -> None:
    without = weights(store, train(make_spec(inputs, lr=1e-4, optimizer=optimizer), store))
    sharded = weights(
        store, train(make_spec(inputs, lr=1e-4, optimizer=optimizer, zero_stage=stage), store)
    )
    assert distance(sharded, without) < 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_an_offloaded_optimizer_does_the_same(store: Store, inputs: Inputs, optimizer: str) -> None:
    shards = [
        train(make_spec(inputs, lr=1e-4, optimizer=optimizer, zero_stage=2, offload=offload), store)
        for offload in ("none", "optimizer")
    ]
    # Not the same bits: DeepSpeed sums the norm it clips by in another order.
    assert distance(weights(store, shards[1]), weights(store, shards[0])) < 1e-6
    assert values(shards[0], "grad_norm") == pytest.approx(values(shards[1], "grad_norm"), rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "gradient_checkpointing": True},
        {"zero_stage": 1},
        {"zero_stage": 2, "lora": {"rank": 2}},
    ],
    ids=["checkpointing", "zero-1", "lora"],
)
def test_shared_prompts_train_the_same(
    store: Store, inputs: Inputs, settings: dict[str, Any]
) -> None:
    objective = {"eta": 2.0, "shift": "learned"}
    apart, shared = (
        train(
            make_spec(inputs, objective, epochs=1, lr=1e-4, prompt_sharing=sharing, **settings),
            store,
        )
        for sharing in ("off", "auto")
    )
    for metric in ("loss", "grad_norm", "intercept"):
        assert values(shared, metric) == pytest.approx(values(apart, metric), rel=1e-5)
    # AdamW divides by the gradient's size, so it magnifies the rounding of small ones
    assert distance(weights(store, shared), weights(store, apart)) < 1e-4
    # rounding differs, so it was not trained in the same way
    assert values(shared, "grad_norm") != values(apart, "grad_norm")


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "prompt_sharing": "auto"},
        {"zero_stage": 1, "micro_prompts": 4},
        {"zero_stage": 2, "prompt_sharing": "auto"},
    ],
    ids=["shared", "zero-1", "zero-2"],
)
def test_groups_in_pieces_train_the_same(
    store: Store, inputs: Inputs, settings: dict[str, Any]
) -> None:
    # Rows have 4 to 15 tokens: most pieces are one row, and no group fits into one. The intercept
    # compares all rows of a prompt.
    objective = {"eta": 2.0, "shift": "learned"}
    whole, pieces = (
        train(make_spec(inputs, objective, lr=1e-4, pass_tokens=tokens, **settings), store)
        for tokens in (None, 16)
    )
    for metric in ("loss", "grad_norm", "intercept"):
        assert values(pieces, metric) == pytest.approx(values(whole, metric), rel=1e-5)
    assert distance(weights(store, pieces), weights(store, whole)) < 1e-4


def test_bfloat16_is_exported_as_such(store: Store, inputs: Inputs) -> None:
    shard = train(make_spec(inputs, precision="bfloat16", zero_stage=2), store)
    assert {tensor.dtype for tensor in weights(store, shard).values()} == {torch.bfloat16}
    assert (
        json.loads((store.path(shard.outputs["model"]) / "config.json").read_bytes())["dtype"]
        == "bfloat16"
    )


# ----------------------------------------------------------------------------------------- resuming


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


def test_a_kept_state_gives_the_model_again_without_a_step(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, checkpoint_steps=100)
    place = Place(root=str(store.root), keep_state=True)
    shard = compute(spec, store, 0, place, quiet)
    model = shard.outputs["model"]
    work = work_folder(spec, store)
    assert sorted(path.name for path in work.iterdir()) == ["finished.json", "step-00000004"]
    assert json.loads((work / "finished.json").read_bytes()) == {"model": model.fingerprint}
    assert not work.with_name(f"{work.name}.lock").exists()
    shutil.rmtree(store.path(model))
    steps: list[int] = []
    again = compute(
        spec, store, 0, Place(root=str(store.root)), lambda done, total: steps.append(done)
    )
    assert (again.outputs, again.table, steps) == (shard.outputs, shard.table, [])
    assert store.verify(model).fingerprint == model.fingerprint
    assert not work.exists()


@pytest.mark.slow
def test_another_machine_goes_on_from_the_checkpoint_in_the_bucket(
    store: Store, s3: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Store(s3)
    spec = make_spec(make_inputs(bucket, tiny_model), epochs=4, checkpoint_steps=2)
    with pytest.raises(Interrupted):
        train(spec, bucket, stop_after(5))
    monkeypatch.setenv("WIND_CACHE", str(tmp_path / "another machine"))
    steps: list[int] = []
    resumed = train(spec, Store(s3), lambda done, total: steps.append(done))
    assert steps == [5, 6, 7, 8]
    assert spec == make_spec(make_inputs(store, tiny_model), epochs=4, checkpoint_steps=2)
    assert (resumed.outputs, resumed.table) == (
        (uninterrupted := train(spec, store)).outputs,
        uninterrupted.table,
    )
    assert bucket.storage.names("partial") == []


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


# --------------------------------------------------------------------------------------- the export


def test_export_is_the_start_folder_with_other_weights(
    store: Store, inputs: Inputs, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = make_spec(inputs)
    model = train(spec, store).outputs["model"]
    assert isinstance(model, Model)
    folder = store.path(model)
    assert model != inputs["policy"]
    assert model.parameters == inputs["policy"].parameters
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    assert json.loads((folder / "config.json").read_bytes()) == json.loads(
        (tiny_model / "config.json").read_bytes()
    )
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.eos_token_id == 2
    assert (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False
        )
        == "<s><u>a"
    )
    manifest = store.verify(model)
    assert manifest.parents == spec.parents()
    assert manifest.computed_by["spec"] == spec.model_dump(mode="json")
    assert str(store.root) not in (folder / "config.json").read_text()


def test_tied_weights_stay_tied(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tied = tmp_path / "tied"
    shutil.copytree(tiny_model, tied)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tied, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tied)
    inputs = make_inputs(store, tied)
    shard = train(make_spec(inputs), store)
    assert "lm_head.weight" not in weights(store, shard)
    assert shard.outputs["model"] != inputs["policy"]


@pytest.mark.parametrize("damage", ["weights", "shape", "missing"])
def test_a_wrong_export_is_not_published(
    store: Store, inputs: Inputs, tmp_path: Path, damage: str
) -> None:
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
    expected = {
        "weights": "log-probabilities of a probe",
        "shape": "2 shapes, such as that of lm_head",
        "missing": "1 missing",
    }
    with pytest.raises(TrainingError, match=expected[damage]):
        verify_export(folder, start, rows, 2, probe, "float32", "cpu")
