"""A small on-policy training on the tests' tiny policy, rewarded for the digits of a response."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.wind.objective_case import config_of
from tests.wind.training_case import publish, quiet
from wind.config.models import InferenceConfig
from wind.config.rewards import RuleRewardConfig, WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.config.training import TrainingConfig
from wind.fingerprints import digest
from wind.rewards import resolve_reward
from wind.rollouts import RolloutsSpec, compute
from wind.stages import Place, Progress, Shard
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model

N = 3
PROMPTS = 5
REWARD = '''"""Digits are good."""


def digits(prompts, responses, answers):
    return [float(sum(character.isdigit() for character in response)) for response in responses]
'''


def write_reward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of the reward, in a folder that is then the current one."""
    (folder / "counted_digits.py").write_text(REWARD)
    monkeypatch.chdir(folder)


def prompts_of(store: Store) -> Dataset:
    """Five prompts to train on, and one that is held out."""
    ids = sorted(digest(index)[:32] for index in range(PROMPTS + 1))
    rows = len(ids)
    tokens = [
        [1, *(5 + (7 * index + place) % 30 for place in range(2 + index % 3)), 4]
        for index in range(rows)
    ]
    return publish(
        store,
        "prompts",
        {
            "prompt_id": ids,
            "prompt": ids,
            "messages": [[{"role": "user", "content": name}] for name in ids],
            "prompt_token_ids": pa.array(tokens, pa.list_(pa.int32())),
            "split": ["train"] * 2 + ["eval"] + ["train"] * 3,
            "answer": pa.nulls(rows, pa.string()),
            "meta": ["{}"] * rows,
        },
    )


def rollouts_spec(
    store: Store,
    policy: Model,
    objective: dict[str, Any],
    *,
    samples: int = N,
    rate: float = 0.0,
    reference: Model | None = None,
    **training: Any,
) -> RolloutsSpec:
    settings = {
        "epochs": 2,
        "batch_prompts": 2,
        "micro_prompts": 1,
        "lr": 1e-3,
        "zero_stage": 0,
    } | training
    return RolloutsSpec(
        policy=policy,
        reference=reference or policy,
        rate=rate,
        prompts=prompts_of(store),
        reward=resolve_reward(
            store, RuleRewardConfig(kind="rule", function="counted_digits:digits")
        ),
        sampling=SamplingConfig(
            backend="transformers", samples_per_prompt=samples, max_new_tokens=5
        ),
        inference=InferenceConfig(batch_tokens=64),
        win_rate=WinRateConfig(),
        objective=config_of(**({"refresh_steps": 1} | objective)),
        training=TrainingConfig(**settings),
        seed=3,
        iteration=1,
    )


def roll(spec: RolloutsSpec, store: Store, progress: Progress = quiet) -> Shard:
    return compute(spec, store, 0, Place(root=str(store.root)), progress)
