"""A small training: datasets that fit together, made of random responses, and what the tests read
of what came out.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from tests.wind.objective_case import config_of
from wind.config.models import InferenceConfig
from wind.config.training import TrainingConfig
from wind.fingerprints import digest
from wind.models import load_policy
from wind.models.sequence_logps import SequenceLogps
from wind.stages import Place, Progress, Shard
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model
from wind.training import TrainingSpec, compute

DEEPSPEED_WARNINGS = [  # DeepSpeed 0.19 calls collectives and settings that torch 2.13 is renaming
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed"),
]

N = 3
GROUPS = 7
Inputs = dict[str, Any]  # the handles of a TrainingSpec


def quiet(done: int, total: int) -> None:
    return


class Interrupted(Exception):  # noqa: N818 - not an error: it stands for the end of a process
    pass


def stop_after(step: int) -> Progress:
    def progress(done: int, total: int) -> None:
        if done >= step:
            raise Interrupted

    return progress


def publish(store: Store, name: str, columns: dict[str, Any]) -> Dataset:
    table = pa.table(columns)
    with store.partial(name, digest(table.to_pylist())) as partial:
        partial.write(0, table)
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def logps_of(
    store: Store, model: Model, prompts: list[list[int]], responses: list[list[int]]
) -> list[float]:
    """One row at a time, without padding, under the scoring half of the project."""
    policy = SequenceLogps(load_policy(store, model, InferenceConfig(), "cpu"))
    logps = []
    for prompt, response in zip(prompts, responses, strict=True):
        input_ids_B_T = torch.tensor([prompt + response])
        response_mask_B_T = torch.arange(input_ids_B_T.shape[1])[None] >= len(prompt)
        with torch.no_grad():
            logps.append(
                float(policy(input_ids_B_T, torch.ones_like(input_ids_B_T), response_mask_B_T))
            )
    return logps


def make_inputs(store: Store, folder: Path, groups: int = GROUPS, samples: int = N) -> Inputs:
    generator = np.random.default_rng(0)
    policy = import_model(store, folder)
    ids = sorted(digest(index)[:32] for index in range(groups))
    prompts = [[1, *generator.integers(5, 40, generator.integers(2, 6)).tolist()] for _ in ids]
    responses = [
        [*generator.integers(5, 40, generator.integers(1, 9)).tolist(), 2]
        for _ in range(groups * samples)
    ]
    logps = np.array(
        logps_of(store, policy, [prompt for prompt in prompts for _ in range(samples)], responses)
    )
    rewards_P_N = generator.integers(0, 4, (groups, samples)).astype(float)
    wins_P_N = (rewards_P_N[:, :, None] > rewards_P_N[:, None]).sum(2)
    ties_P_N = (rewards_P_N[:, :, None] == rewards_P_N[:, None]).sum(2) - 1
    win_rates_P_N = (wins_P_N + ties_P_N / 2) / (samples - 1)
    key = {
        "prompt_id": [name for name in ids for _ in range(samples)],
        "sample_index": pa.array(list(range(samples)) * groups, pa.int32()),
    }
    rows = groups * samples
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
                "win_rate": win_rates_P_N.ravel(),
                "wins": wins_P_N.ravel(),
                "ties": ties_P_N.ravel(),
                "losses": (samples - 1 - wins_P_N - ties_P_N).ravel(),
                "rank": ((-rewards_P_N).argsort(1, kind="stable").argsort(1) + 1).ravel(),
            },
        ),
        "selections": publish(
            store, "selections", {**key, "role": ["all"] * rows, "label": win_rates_P_N.ravel()}
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


def make_spec(
    inputs: Inputs, objective: dict[str, Any] | None = None, **training: Any
) -> TrainingSpec:
    settings = {
        "epochs": 2,
        "batch_prompts": 4,
        "micro_prompts": 2,
        "lr": 1e-3,
        "zero_stage": 0,
    } | training
    return TrainingSpec(
        **inputs,
        objective=config_of(**(objective or {})),
        training=TrainingConfig(**settings),
        seed=3,
        iteration=1,
    )


def train(spec: TrainingSpec, store: Store, progress: Progress = quiet) -> Shard:
    return compute(spec, store, 0, Place(root=store.address), progress)


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
