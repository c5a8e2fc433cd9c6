"""Simulated evaluations: what a policy gained under its reward and its answers, and how long it got."""

from typing import Any

import numpy as np
import polars as pl

PROMPTS, SAMPLES = 60, 4


def simulated(
    generator: np.random.Generator,
    *,
    reward: float = 0.0,
    accuracy: float = 0.3,
    accuracy_before: float = 0.3,
    tokens: float = 20.0,
    tokens_before: float = 20.0,
    per_token: float = 0.0,
    prompts: int = PROMPTS,
) -> pl.DataFrame:
    """Return the rows of an evaluation.

    Rewards are normal around a level of the prompt; the policy's are `reward` higher, and each
    token adds `per_token`. Lengths are Poisson. A response is right by chance, independent of its
    reward.
    """

    def side(shift: float, right: float, length: float) -> dict[str, np.ndarray[Any, Any]]:
        shape = prompts, SAMPLES
        lengths = 1 + generator.poisson(length - 1, shape)
        level = generator.normal(0, 0.3, (prompts, 1))
        noise = generator.normal(0, 1, shape)
        chance = np.clip(right + level * 0.3, 0, 1)
        return {
            "reward": shift + noise + per_token * lengths,
            "accuracy": (generator.random(shape) < chance).astype(float),
            "tokens": lengths,
        }

    ours = side(reward, accuracy, tokens)
    theirs = side(0.0, accuracy_before, tokens_before)
    against = np.sign(ours["reward"][:, :, None] - theirs["reward"][:, None, :])
    return pl.DataFrame(
        {
            "prompt_id": np.repeat([f"p{index:04d}" for index in range(prompts)], SAMPLES),
            "sample_index": np.tile(np.arange(SAMPLES), prompts),
            "reward_policy": ours["reward"].ravel(),
            "reward_reference": theirs["reward"].ravel(),
            "win_rate": ((1 + against) / 2).mean(axis=2).ravel(),
            "tie_share": (against == 0).mean(axis=2).ravel(),
            "response_tokens_policy": ours["tokens"].ravel(),
            "response_tokens_reference": theirs["tokens"].ravel(),
            "accuracy_policy": ours["accuracy"].ravel(),
            "accuracy_reference": theirs["accuracy"].ravel(),
        }
    )
