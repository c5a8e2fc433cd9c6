"""Plans by arithmetic: what a Llama of 8 B weights takes on eight H100, checked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.config.training import LoraConfig, TrainingConfig
from wind.errors import ConfigError
from wind.planning import memory as memory_of
from wind.planning.hardware import GPUS, gpu_named
from wind.planning.measuring import probed
from wind.planning.memory import USABLE, adapter_weights, cure, training_memory
from wind.planning.probe import Measured
from wind.planning.rates import BANDWIDTH_SHARE, GRAPH, TRAINING_SHARE, Rates, of_cpu, of_gpu
from wind.planning.shapes import Shape
from wind.planning.work import Device, Iteration, Prompts, Responses, prompts_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "llama3-ultrafeedback-wind.yaml"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
WEIGHTS = 8_030_261_248  # what the model's card says
SHAPE = Shape.of(LLAMA)
H100 = gpu_named("H100")
PROMPTS = Prompts(count=20_000, tokens=200, longest=512)
RESPONSES = Responses(mean=400, longest=1600, basis="as given")


def recipe(*overrides: str) -> DistillConfig:
    return load_config(RECIPE, overrides)


def iteration(config: DistillConfig, shape: Shape = SHAPE, **changes: Any) -> Iteration:
    rates = of_gpu(H100, config, shape, PROMPTS.tokens + RESPONSES.mean)
    device = Device(kind="cuda", memory=H100.memory, rates=rates.model_copy(update=changes))
    return Iteration(config, shape, None, device, RESPONSES)


# ------------------------------------------------------------------------------------------- shapes


def test_the_weights_of_a_llama_are_counted() -> None:
    """A layer has 2 * 4096^2 + 2 * 4096 * 1024 of attention, 3 * 4096 * 14336 of the feed-forward
    part and two norms: 218,112,000. 32 of them, a norm, embedding and head of 128256 * 4096 each.
    """
    assert WEIGHTS == 32 * 218_112_000 + 4096 + 2 * 525_336_576
    assert (SHAPE.parameters, SHAPE.embedding) == (WEIGHTS, 525_336_576)
    assert SHAPE.weights("bfloat16") == 16_060_522_496
    # keys and values of 8 heads of 128 in 32 layers: 128 KiB of bfloat16 per token
    assert SHAPE.cache("bfloat16") == 131_072
    # all but the embedding is multiplied; scores and values of 1000 tokens add 4 * 32 * 4096 each
    assert SHAPE.flops(1000) == 2 * (WEIGHTS - 525_336_576) + 524_288_000


def test_the_weights_of_the_demo_are_those_in_its_file() -> None:
    from safetensors import safe_open

    folder = ROOT / "models" / "base"
    with safe_open(folder / "model.safetensors", framework="np") as file:
        stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert Shape.of(json.loads((folder / "config.json").read_text())).parameters == stored


def test_a_tied_head_is_the_embedding_and_is_multiplied() -> None:
    tied = Shape.of({**LLAMA, "tie_word_embeddings": True})
    assert tied.parameters == WEIGHTS - 525_336_576
    assert tied.flops(0) == SHAPE.flops(0)


def test_sizes_have_other_names_elsewhere_and_one_that_is_missing_is_named() -> None:
    """GPT-2: 12 layers of 12 * 768^2, an embedding of 50257; positions and biases are left out."""
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    assert Shape.of(config).parameters == pytest.approx(124_439_808, rel=0.01)
    with pytest.raises(ConfigError, match=r"no num_hidden_layers, which a plan needs"):
        Shape.of({"hidden_size": 8})


# ----------------------------------------------------------------------------------------- hardware


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("h200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
    ],
)
def test_a_gpu_is_known_by_the_drivers_name(said: str, name: str) -> None:
    assert gpu_named(said).name == name


def test_every_gpu_is_found_by_its_own_name_and_an_unknown_one_lists_them() -> None:
    assert [gpu_named(row.name) for row in GPUS] == list(GPUS)
    with pytest.raises(ConfigError, match=r"no GPU called 'V9' .*B200, .*RTX 3090"):
        gpu_named("V9")


# ------------------------------------------------------------------------------------------- memory


def parts(**training: Any) -> dict[str, float]:
    given = {"precision": "bfloat16", "batch_prompts": 64, "micro_prompts": 1, **training}
    found = training_memory(TrainingConfig(**given), SHAPE, tokens=1000)
    return {**found.parts, "host": found.host}


@pytest.mark.parametrize(
    ("stage", "ranks", "weights", "gradients", "sums", "optimizer"),
    [
        # bytes per weight: 2, 2, 4, and 4 of the master with 8 of Adam's two states
        (1, 1, 2, 2, 4, 12),
        (1, 8, 2, 2, 4, 12 / 8),
        (2, 8, 2, 2, 4 / 8, 12 / 8),
        (3, 8, 2 / 8, 2 / 8, 4 / 8, 12 / 8),
    ],
)
def test_zero_shards_what_it_says(
    stage: int, ranks: int, weights: float, gradients: float, sums: float, optimizer: float
) -> None:
    found = parts(zero_stage=stage, ranks=ranks)
    gathered = 2 * 2 * WEIGHTS / 32 if stage == 3 else 0  # two layers at a time
    assert found["weights"] == pytest.approx(weights * WEIGHTS + gathered)
    assert found["gradients"] == pytest.approx(gradients * WEIGHTS)
    assert found["gradient sums"] == pytest.approx(sums * WEIGHTS)
    assert found["optimizer"] == pytest.approx(optimizer * WEIGHTS)


def test_float32_without_zero_has_sixteen_bytes_per_weight() -> None:
    found = parts(precision="float32", zero_stage=0)
    states = sum(found[name] for name in ("weights", "gradients", "gradient sums", "optimizer"))
    assert states == 16 * WEIGHTS


def test_rmsprop_has_one_state_and_adapters_have_no_other() -> None:
    assert parts(optimizer="rmsprop", zero_stage=1)["optimizer"] == 8 * WEIGHTS
    config = recipe("training.lora={rank: 16, target_modules: [q_proj, v_proj]}")
    # A is 16 x 4096, B 4096 x 16 for queries and 1024 x 16 for values, in 32 layers
    assert adapter_weights(config, SHAPE) == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    training = TrainingConfig(
        precision="bfloat16", zero_stage=1, lora=LoraConfig(), micro_prompts=1
    )
    assert training_memory(training, SHAPE, 1000, 1000).parts["optimizer"] == 12 * 1000


def test_what_is_offloaded_is_in_the_host() -> None:
    found = parts(zero_stage=3, ranks=8, offload="optimizer_and_parameters")
    assert (found["optimizer"], found["gradient sums"]) == (0, 0)
    assert found["host"] == pytest.approx((2 + 4 + 12) * WEIGHTS / 8)


def test_checkpointing_keeps_one_layer_and_the_boundaries() -> None:
    layer = 1000 * (14 * 4096 + 4 * 14336) * 2
    assert parts(zero_stage=1)["activations"] == 32 * layer
    kept = parts(zero_stage=1, gradient_checkpointing=True)["activations"]
    assert kept == layer + 32 * 1000 * 4096 * 2
    assert parts(zero_stage=1)["logits"] == 1000 * 128256 * 4 * memory_of.COPIES


def test_the_first_setting_that_makes_it_fit_is_named() -> None:
    """Per weight and rank, eight ranks: ZeRO 1 has 2 + 2 + 4 + 1.5 bytes, 2 has 6, 3 has 2.25."""
    config = recipe("training.zero_stage=1", "training.optimizer=adamw")

    def needed(given: DistillConfig) -> float:
        return training_memory(given.training, SHAPE, 1000).total()

    at = {
        stage: needed(recipe("training.optimizer=adamw", f"training.zero_stage={stage}"))
        for stage in (1, 2, 3)
    }
    assert at[1] > at[2] > at[3]
    assert cure(config, needed, at[2] / USABLE) == "set training.zero_stage=2"
    assert cure(config, needed, at[3] / USABLE) == "set training.zero_stage=3"
    away = cure(config, needed, 0.9 * at[3] / USABLE)
    assert away.startswith("set training.zero_stage=3, training.")
    assert cure(config, needed, 1e6) == "set training.lora, a smaller policy, or more GPUs"


# ------------------------------------------------------------------------------------------ seconds


def test_training_is_arithmetic_over_the_ranks() -> None:
    """20,000 prompts of 5 responses: 100,000 rows. A group's longest of five, as if uniform around
    400 up to 1600, is 400 + 1200 * 4 / 6 = 1200, so a row has 1400 tokens: 140 M in all. Each takes
    four passes with checkpointing (one forward, two backward, one again) of 2 * 7.505 B + 4 * 32 *
    4096 * 300 FLOP, on eight GPUs at 35% of 989 TFLOP/s.
    """
    config = recipe()
    trained = iteration(config, update=0.0, training_start=0.0, start=0.0).estimates(
        PROMPTS, PROMPTS, first=False
    )["training"]
    token = 2 * (WEIGHTS - 525_336_576) + 4 * 32 * 4096 * 300
    seconds = 100_000 * 1400 * 4 * token / (8 * 0.35 * 989e12)
    export = 16_060_522_496 * (1 / 1e9 + 2 / 0.5e9)
    assert TRAINING_SHARE == 0.35
    assert trained.tokens == pytest.approx(140e6)
    assert trained.seconds == pytest.approx(seconds + export)
    assert 50 * 60 < trained.seconds < 60 * 60


def test_decoding_reads_the_weights_each_step_and_the_cache_of_each_row() -> None:
    """256 rows decode at once on each of eight GPUs, in 100,000 * 400 / 256 / 8 steps and those of
    the longest; a step reads 16.06 GB at 60% of 3.35 TB/s, 8 ms, and launches a graph.
    """
    config = recipe()
    rates = of_gpu(H100, config, SHAPE, 600)
    assert BANDWIDTH_SHARE == 0.6
    assert rates.step == pytest.approx(16_060_522_496 / (0.6 * 3.35e12) + GRAPH)
    sampled = iteration(config, row=0.0, prefill=0.0, start=0.0, engine_start=0.0).estimates(
        PROMPTS, PROMPTS, first=False
    )["generations"]
    steps = 100_000 * 400 / 256 / 8 + 1600
    assert sampled.seconds == pytest.approx(steps * rates.step + 16_060_522_496 / 1e9)
    # 256 rows of 600 tokens of 128 KiB, beside the weights
    assert sampled.memory is not None
    assert sampled.memory.parts["cache"] == pytest.approx(256 * 600 * 131_072)
    assert (sampled.cure, sampled.starts, sampled.rows) == (None, 8, 100_000)


def test_rows_wait_where_the_cache_has_no_room() -> None:
    """Weights of 32 GB leave (0.92 * 80 - 32.1 - 1.5) GB for sequences of 600 * 256 KiB."""
    config = recipe("inference.dtype=float32")
    sampled = iteration(config).estimates(PROMPTS, PROMPTS, first=False)["generations"]
    room = (0.92 * 80e9 - 4 * WEIGHTS - 1.5e9) // (600 * 262_144)
    assert sampled.memory is not None
    assert sampled.memory.parts["cache"] == pytest.approx(room * 600 * 262_144)
    assert sampled.cure is None


def test_more_gpus_take_less_and_a_larger_policy_does_not_fit() -> None:
    one = recipe("workers.processes=1", "training.ranks=1", "training.zero_stage=2")
    fewer, more = (
        iteration(config).estimates(PROMPTS, PROMPTS, first=True) for config in (one, recipe())
    )
    for name in ("generations", "logps", "training"):
        assert more[name].seconds < fewer[name].seconds
    assert fewer["training"].cure is not None
    assert more["training"].cure is None
    # 313 steps, a checkpoint every 100: two of 16 GB of weights and of RMSprop's 8 bytes a weight
    assert more["training"].scratch == pytest.approx(2 * 10 * WEIGHTS / 1e6)


def test_later_iterations_score_two_models_and_sample_no_opponent() -> None:
    first, later = (
        iteration(recipe()).estimates(PROMPTS, PROMPTS, first=each) for each in (True, False)
    )
    assert "reference_generations" in first.keys() - later.keys()
    assert later["logps"].tokens == 2 * (first["logps"].tokens or 0)


# -------------------------------------------------------------------------------------------- probe

RATES = Measured(
    start=5, memory=5e8, prefill=1e-4, step=1e-2, row=1e-3, forward=1e-4, trained=3e-4, update=1e-9
)


def test_a_cpu_decodes_batch_after_batch() -> None:
    """Twenty prompts in shards of 6 are four shards of 24 rows, each in one batch of 6 steps."""
    shape = Shape.of(json.loads((ROOT / "models" / "base" / "config.json").read_text()))
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        [
            "sampling={backend: transformers, samples_per_prompt: 4, max_new_tokens: 6, shard_prompts: 6}",
            "workers.processes=1",
        ],
    )
    rates: Rates = of_cpu(RATES, shape)
    device = Device(kind="cpu", memory=16e9, rates=rates)
    work = Iteration(config, shape, None, device, Responses.assumed(6))
    train = prompts_of([9] * 20)
    sampled = work.estimates(train, train, first=False)["generations"]
    expected = 20 * 9 * 1e-4 + 4 * 6 * 1e-2 + 80 * 3 * 1.15 * 1e-3
    assert sampled.seconds == pytest.approx(expected + shape.weights("float32") / 1e9)
    assert sampled.rows == 80


@pytest.mark.slow
def test_the_probe_runs_the_stages_own_code(tiny_model: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    model = json.loads((tiny_model / "config.json").read_text())
    shape = Shape.of(model)
    measured, basis = probed(config, model, shape, prompts_of([5] * 8), Responses.assumed(4))
    assert basis == "a probe of this CPU"
    assert all(value > 0 for name, value in measured if name != "row")
    assert measured.row >= 0
    assert measured.trained > measured.forward


@pytest.mark.slow
def test_a_policy_that_the_probe_cannot_build_is_assumed() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    model = {**LLAMA, "model_type": "unheard-of", "hidden_size": 8, "vocab_size": 9}
    shape = Shape.of({**model, "intermediate_size": 8})
    measured, basis = probed(config, model, shape, prompts_of([5] * 8), Responses.assumed(4))
    assert basis.startswith(
        "an assumed 30 GFLOP/s of one thread, since the probe of this CPU failed"
    )
    assert measured.trained == 3 * measured.forward


def test_a_policy_too_large_for_a_probe_is_assumed() -> None:
    measured, basis = probed(recipe(), LLAMA, SHAPE, PROMPTS, RESPONSES)
    assert basis == "an assumed 30 GFLOP/s of one thread"
    assert measured.forward == pytest.approx(SHAPE.flops(0) / 3e10)
