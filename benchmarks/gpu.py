"""The parts of `benchmarks/gpu.sh`: a policy of random weights with its recipe, and the table.

Usage: python benchmarks/gpu.py recipe FOLDER [--width 2048] [--layers 16] [--prompts 256] ...
       python benchmarks/gpu.py table ROOT

`recipe` writes a Llama of that width and depth with weights drawn at random, prompts four times as
long as its responses, and `recipe.yaml`. `table` prints what each stage of the finished run took,
its tokens per second, the FLOP per second that these are, and their share of the data sheet's peak.
"""

import argparse
import json
import random
from pathlib import Path

import yaml

from wind.demo.tokenizer import policy_tokenizer
from wind.machine import devices
from wind.nesting import json_value
from wind.planning.hardware import gpu_named
from wind.planning.shapes import Shape
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Manifest, Model

HEAD = 64
# forward passes that a token of the stage is worth: backward counts twice
PASSES = {"generations": 1, "logps": 1, "training": 3}


def main() -> None:
    """Write the recipe, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    recipe = commands.add_parser("recipe")
    recipe.add_argument("folder", type=Path)
    for name, default in (
        ("width", 2048),
        ("layers", 16),
        ("vocabulary", 32000),
        ("prompts", 256),
        ("prompt-tokens", 1024),
        ("response-tokens", 256),
        ("samples", 8),
    ):
        recipe.add_argument(f"--{name}", type=int, default=default)
    recipe.add_argument("--dtype", default="bfloat16")
    table = commands.add_parser("table")
    table.add_argument("root")
    arguments = parser.parse_args()
    if arguments.command == "recipe":
        write_recipe(arguments)
    else:
        print_table(Store(arguments.root))


def write_recipe(given: argparse.Namespace) -> None:
    """Write policy, prompts and recipe into a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = policy_tokenizer()
    config = LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.width,
        intermediate_size=int(2.75 * given.width),
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // HEAD,
        num_key_value_heads=max(1, given.width // HEAD // 4),
        max_position_embeddings=2 * (given.prompt_tokens + given.response_tokens),
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, given.dtype))
    model.save_pretrained(given.folder / "policy")
    tokenizer.save_pretrained(given.folder / "policy")
    digits = random.Random(0)
    with (given.folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(given.prompts):
            # a digit is a token, and so are the marks of a turn around them
            text = "".join(digits.choice("0123456789") for _ in range(given.prompt_tokens - 8))
            file.write(json.dumps({"prompt": text}) + "\n")
    settings = {
        "run": "gpu",
        "iterations": 1,
        "root": str(given.folder / "store"),
        "policy": {"path": str(given.folder / "policy")},
        "prompts": {
            "source": str(given.folder / "prompts.jsonl"),
            "max_prompt_tokens": 2 * given.prompt_tokens,
        },
        "sampling": {
            "samples_per_prompt": given.samples,
            "max_new_tokens": given.response_tokens,
        },
        "inference": {"dtype": given.dtype},
        # differs between random responses
        "reward": {"kind": "repetition", "n": 1, "unit": "tokens"},
        "training": {
            "batch_prompts": 16,
            "micro_prompts": 1,
            "precision": given.dtype,
            "gradient_checkpointing": True,
            "optimizer": "rmsprop",
        },
        # random weights say nothing of use
        "checks": {"max_empty_share": 1.0},
    }
    (given.folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def print_table(store: Store) -> None:
    """Print a line per stage that runs a model."""
    names = devices.gpus()
    peak = gpu_named(names[0]).bfloat16 * len(names) if names else None
    print(
        f"{'stage':<12} {'rows':>7} {'seconds':>8} {'tokens/s':>9} {'TFLOP/s':>8} {'of peak':>8} {'GB':>6}"
    )
    for noun, passes in PASSES.items():
        for handle in store.handles(noun):
            manifest = store.manifest(handle)
            shape, tokens = _shape(store, manifest), _tokens(store, handle, manifest)
            seconds = manifest.provenance["seconds"]
            flops = passes * tokens * shape.flops(0) / seconds
            share = "" if peak is None else f"{flops / peak:8.1%}"
            memory = manifest.provenance["peak_memory_bytes"] / 1e9
            print(
                f"{noun:<12} {manifest.rows:>7} {seconds:>8.1f} {tokens / seconds:>9.0f} "
                f"{flops / 1e12:>8.2f} {share:>8} {memory:>6.2f}"
            )


def _shape(store: Store, manifest: Manifest) -> Shape:
    policy = manifest.parents["policy"]
    assert isinstance(policy, Model)
    config = json_value((store.path(policy) / "config.json").read_bytes())
    return Shape.of(config, policy.parameters)


def _tokens(store: Store, handle: AnyHandle, manifest: Manifest) -> float:
    """Return the tokens that passed the model: of prompts once when sampled, else in every row."""
    is_sampled = isinstance(handle, Dataset) and handle.name == "generations"
    generations = manifest if is_sampled else _parent(store, manifest, "generations")
    prompt = _parent(store, manifest, "prompts").numbers["mean_prompt_tokens"]
    responses = generations.rows * generations.numbers["mean_response_tokens"]
    if isinstance(handle, Dataset) and is_sampled:
        return responses + store.frame(handle, ["prompt_id"]).n_unique() * prompt
    return responses + generations.rows * prompt


def _parent(store: Store, manifest: Manifest, name: str) -> Manifest:
    return store.manifest(manifest.parents[name])


if __name__ == "__main__":
    main()
