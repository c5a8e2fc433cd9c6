"""Adapters: where they start, what they move, what is published of them, whatever the ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Inputs,
    Interrupted,
    N,
    distance,
    make_inputs,
    make_spec,
    stop_after,
    train,
    values,
    weights,
)
from wind.config.training import LoraConfig
from wind.errors import ConfigError
from wind.models.sequence_logps import SequenceLogps
from wind.stages import Shard
from wind.store.datasets import Store
from wind.store.handles import Model
from wind.training.batches import Plan, load_rows, micro_batch
from wind.training.policies import load_policy as load_for_training
from wind.training.runs import work_folder

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]

# What every test but the solved problem trains; checkpoints are made so that one of them can go on
# from the second.
SETTINGS: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 6},
    "epochs": 2,
    "micro_prompts": 1,
    "lr": 1e-3,
    "checkpoint_steps": 2,
}
LAYERS = {
    f"model.layers.{layer}.{name}_proj"
    for layer in (0, 1)
    for name in (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    )
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("lora") / "store")


@pytest.fixture(scope="module")
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


@pytest.fixture(scope="module")
def alone(store: Store, inputs: Inputs) -> Shard:
    """What one rank without ZeRO trained."""
    return train(make_spec(inputs, **SETTINGS), store)


def tensors(store: Store, model: Any, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(store.path(model) / file)


def test_training_starts_at_the_recorded_logps(store: Store, inputs: Inputs, alone: Shard) -> None:
    spec = make_spec(inputs, **SETTINGS)
    rows = load_rows(spec, store)
    groups = Plan(training=spec.training, seed=3, iteration=1, groups=rows.groups).step_groups(0)
    index_P_N = rows.starts[groups][:, None] + np.arange(N)
    drift_P_N = (rows.columns["logp_policy"] - rows.columns["logp_reference"])[index_P_N]
    lam = 1 / 1.1  # beta = 0.1, eta = 1
    residual_P_N = (1 - lam) * drift_P_N - lam * (rows.columns["win_rate"][index_P_N] - 0.5)
    assert values(alone, "loss")[0] == pytest.approx(float(np.mean(residual_P_N**2)), rel=1e-4)
    assert values(alone, "log_ratio_policy")[0] == pytest.approx(0, abs=1e-4)


def test_the_export_is_the_base_and_the_scaled_product(
    store: Store, inputs: Inputs, alone: Shard
) -> None:
    base, merged = tensors(store, inputs["policy"]), weights(store, alone)
    adapter = tensors(store, alone.outputs["adapter"], "adapter_model.safetensors")
    assert {
        name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter
    } == LAYERS
    assert len(adapter) == 2 * len(LAYERS)
    for name, weight in base.items():
        layer = name.removesuffix(".weight")
        if layer in LAYERS:
            b, a = (adapter[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "BA")
            assert (b.shape, a.shape) == ((weight.shape[0], 4), (4, weight.shape[1]))
            assert b.abs().max() > 0
            assert torch.equal(merged[name], weight + 1.5 * (b @ a))  # alpha / rank = 6 / 4
        else:
            assert torch.equal(merged[name], weight)
    assert merged.keys() == base.keys()


def test_the_adapter_on_its_base_is_the_export(store: Store, inputs: Inputs, alone: Shard) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = load_rows(make_spec(inputs, **SETTINGS), store)
    batch = micro_batch(rows, np.arange(rows.groups), "cpu")
    folders = {name: store.path(handle) for name, handle in alone.outputs.items()}
    named = json.loads((folders["adapter"] / "adapter_config.json").read_bytes())[
        "base_model_name_or_path"
    ]
    assert store.root / named == store.path(inputs["policy"])
    base = AutoModelForCausalLM.from_pretrained(store.root / named)
    adapted: Any = PeftModel.from_pretrained(base, str(folders["adapter"]))
    merged = AutoModelForCausalLM.from_pretrained(folders["model"])
    with torch.no_grad():
        logps_B = [
            SequenceLogps(model.eval())(*batch.inputs)
            for model in (adapted.base_model.model, merged)
        ]
    assert float((logps_B[0] - logps_B[1]).abs().max()) < 1e-4
    # and it learnt something
    assert float((logps_B[0] - torch.tensor(rows.columns["logp_policy"])).abs().max()) > 0.1
    adapter = alone.outputs["adapter"]
    assert isinstance(adapter, Model)
    # rank * (in + out) of q, k, v, o of 32 x 32 and of gate, up, down between 32 and 64, in each of
    # two layers
    assert adapter.parameters == 2 * (4 * 4 * (32 + 32) + 3 * 4 * (32 + 64))
    assert store.verify(adapter).parents == make_spec(inputs).parents()


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_and_recomputed_activations_agree(
    store: Store, inputs: Inputs, alone: Shard, stage: int
) -> None:
    shard = train(
        make_spec(inputs, **SETTINGS, zero_stage=stage, gradient_checkpointing=stage == 2), store
    )
    assert distance(weights(store, shard), weights(store, alone)) < 1e-4
    assert values(shard, "grad_norm") == pytest.approx(values(alone, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize(("stage", "offload"), [(2, "none"), (3, "optimizer_and_parameters")])
def test_two_ranks_agree_with_one(
    store: Store, inputs: Inputs, alone: Shard, stage: int, offload: str
) -> None:
    together = train(
        make_spec(inputs, **SETTINGS, ranks=2, zero_stage=stage, offload=offload), store
    )
    assert distance(weights(store, together), weights(store, alone)) < 1e-4
    assert values(together, "loss") == pytest.approx(values(alone, "loss"), rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2])
def test_resuming_equals_never_having_stopped(store: Store, inputs: Inputs, stage: int) -> None:
    spec = make_spec(inputs, **SETTINGS, zero_stage=stage)
    uninterrupted = train(spec, store)
    with pytest.raises(Interrupted):
        train(spec, store, stop_after(3))
    (checkpoint,) = work_folder(spec, store).glob("step-*")
    state = torch.load(checkpoint / "engine" / "mp_rank_00_model_states.pt", weights_only=False)[
        "module"
    ]
    assert len(state) == 2 * len(LAYERS)  # no frozen weight is written again
    steps: list[int] = []
    resumed = train(spec, store, lambda done, total: steps.append(done))
    assert steps == [3, 4]
    assert (resumed.outputs, resumed.table) == (uninterrupted.outputs, uninterrupted.table)


def test_full_rank_solves_the_regression(store: Store, inputs: Inputs) -> None:
    settings = {
        "epochs": 40,
        "batch_prompts": 8,
        "micro_prompts": 4,
        "lr": 3e-3,
        "schedule": "cosine",
    }
    shard = train(
        make_spec(inputs, {"beta": 0.0, "eta": 4.0}, lora={"rank": 32, "alpha": 64}, **settings),
        store,
    )
    losses = values(shard, "loss")
    assert losses[-1] < losses[0] / 20


def test_bfloat16_is_rounded_once(store: Store, inputs: Inputs) -> None:
    shard = train(make_spec(inputs, **SETTINGS, precision="bfloat16", zero_stage=2), store)
    base, merged = tensors(store, inputs["policy"]), weights(store, shard)
    adapter = tensors(store, shard.outputs["adapter"], "adapter_model.safetensors")
    assert {tensor.dtype for tensor in (*merged.values(), *adapter.values())} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj"
    b, a = (adapter[f"base_model.model.{name}.lora_{letter}.weight"].float() for letter in "BA")
    exact = base[f"{name}.weight"].bfloat16().float() + 1.5 * (b @ a)
    assert torch.equal(merged[f"{name}.weight"], exact.bfloat16())


def test_only_the_named_layers_have_adapters(store: Store, inputs: Inputs) -> None:
    lora = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}
    shard = train(make_spec(inputs, epochs=1, lora=lora), store)
    base, merged = tensors(store, inputs["policy"]), weights(store, shard)
    moved = {name for name in base if not torch.equal(base[name], merged[name])}
    assert moved == {
        f"model.layers.{layer}.self_attn.{letter}_proj.weight"
        for layer in (0, 1)
        for letter in "qv"
    }


def test_adapters_are_drawn_from_the_seed(store: Store, inputs: Inputs) -> None:
    from wind.training.lora import add_adapters

    def drawn(seed: int) -> torch.Tensor:
        model = load_for_training(store.path(inputs["policy"]), "float32")
        torch.manual_seed(torch.seed())  # what was drawn before does not matter
        add_adapters(model, LoraConfig(), seed)
        return model.get_parameter("model.layers.1.mlp.up_proj.lora_A.default.weight").detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_module_the_policy_lacks_is_named_with_those_it_has(store: Store, inputs: Inputs) -> None:
    from wind.training.lora import add_adapters

    for wrong in ("c_attn", "lm_head", "embed_tokens"):
        model = load_for_training(store.path(inputs["policy"]), "float32")
        with pytest.raises(ConfigError) as error:
            add_adapters(model, LoraConfig(target_modules=("q_proj", wrong)), 0)
        assert str(error.value) == (
            f"training.lora.target_modules names {wrong}, but the policy has no such linear layer "
            "(the head has no adapter): name some of "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        )


# peft corrects it, and says so
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_layers_that_keep_their_weights_transposed() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    from wind.training.lora import add_adapters, merged_weights

    config = GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    add_adapters(model, LoraConfig(rank=2, target_modules=("c_fc",)), 0)
    torch.nn.init.normal_(model.get_parameter("transformer.h.0.mlp.c_fc.lora_B.default.weight"))
    merged = AutoModelForCausalLM.from_config(config).eval()
    merged.load_state_dict(merged_weights(model, model.state_dict()))
    input_ids_B_T = torch.arange(6)[None]
    torch.testing.assert_close(merged(input_ids_B_T).logits, model(input_ids_B_T).logits)
