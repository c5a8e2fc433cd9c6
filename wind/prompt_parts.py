"""Parts of the train split: each iteration samples one, in turn.

This module stands outside `wind.prompts` so that the code that imports prompts is no part of the
digest of the stages that sample them.
"""

import hashlib

import polars as pl


def part_of(prompt_id: str, seed: int, parts: int) -> int:
    """Return the part that a train prompt is in.

    It is 0 to `parts` - 1, and depends only on the prompt's id and the seed.
    """
    content = hashlib.sha256(f"{seed}/part/{prompt_id}".encode()).digest()
    return int.from_bytes(content[:8], "big") % parts


def sampled_prompts(
    prompts: pl.DataFrame, split: str, seed: int, iteration: int, parts: int
) -> pl.DataFrame:
    """Return the rows of `prompts` that a 1-based iteration samples.

    These are the whole eval split, or part (iteration - 1) mod `parts` of the train split.
    """
    ours = prompts.filter(pl.col("split") == split)
    if split == "eval" or parts == 1:
        return ours
    part = (iteration - 1) % parts
    return ours.filter(
        pl.Series(
            [part_of(prompt_id, seed, parts) == part for prompt_id in ours["prompt_id"]],
            dtype=pl.Boolean,
        )
    )
