"""Random policies of one architecture that every sampler takes, and prompts for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import declared

STOP = [2, 9, 17, 30]  # more than the tokenizer's </s>


def save_random_policy(
    folder: Path, tokenizer_folder: Path, *, seed: int, head_dim: int = 32, is_tied: bool = False
) -> Path:
    """A model folder, its weights drawn by `seed`, with the tokenizer of another; vLLM wants heads
    of 32 or more.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=47,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=is_tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    model.generation_config.eos_token_id = STOP
    # a default of the folder that must not move anything
    model.generation_config.temperature = 0.01
    model.generation_config.do_sample = True
    model.generation_config.save_pretrained(folder)
    return folder


def stored_prompts(store: Store, prompts: Sequence[Sequence[int]]) -> Dataset:
    """Prompts of these token ids, whose prompt ids are their numbers."""
    rest: dict[str, Any] = {
        "prompt": "",
        "messages": [],
        "split": "train",
        "answer": None,
        "meta": "{}",
    }
    rows = [
        {"prompt_id": f"{row:032x}", "prompt_token_ids": ids, **rest}
        for row, ids in enumerate(prompts)
    ]
    with store.partial("prompts", "given") as partial:
        partial.write(0, pa.Table.from_pylist(rows, schema=declared("prompts").schema))
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
