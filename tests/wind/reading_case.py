"""A small store made by hand: run `demo` with two versions whose numbers can be checked by eye."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from wind.fingerprints import digest
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.imports import import_model, import_source
from wind.store.versions import Content, Version, Versions

PROMPTS = ["a" * 32, "b" * 32, "c" * 32]  # the last is held out
# of two samples of each of the two training prompts
REWARDS = {1: [1.0, 3.0, 2.0, 0.0], 2: [2.0, 4.0, 3.0, 5.0]}


def key(prompts: list[str]) -> dict[str, Any]:
    """The key columns of two samples of each of `prompts`."""
    return {
        "prompt_id": [name for name in prompts for _ in range(2)],
        "sample_index": pa.array([0, 1] * len(prompts), pa.int32()),
    }


def publish(store: Store, name: str, *shards: dict[str, Any], **facts: Any) -> Dataset:
    """The dataset of `shards`; `facts` are fields of its manifest."""
    tables = [pa.table(columns) for columns in shards]
    fields = {
        "parents": {},
        "computed_by": {"stage": name, "code": "0" * 64},
        "numbers": {},
        "provenance": {"host": "x"},
    }
    with store.partial(name, digest([table.to_pylist() for table in tables])) as partial:
        for index, table in enumerate(tables):
            partial.write(index, table)
        return partial.publish(len(tables), **(fields | facts))


def model(store: Store, folder: Path, weight: float, **facts: Any) -> Model:
    """A stored model of four weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"weight": np.full((2, 2), weight, np.float32)}, folder / "model.safetensors")
    return import_model(store, folder, **facts)


def prompts(store: Store, folder: Path, base: Model, text: str = "") -> Dataset:
    """Two training prompts and one held out, from a source file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": name}) + "\n" for name in PROMPTS)
    )
    source = import_source(
        store, [folder / "prompts.jsonl"], provenance={"origin": "prompts.jsonl"}
    )
    dropped = publish(
        store,
        "prompts.dropped",
        {"row": [3], "prompt_id": ["a" * 32], "reason": ["duplicate"], "prompt_tokens": [2]},
    )
    columns = {
        "prompt_id": PROMPTS,
        "prompt": [f"say {name[0]}{text}" for name in PROMPTS],
        "messages": [[{"role": "user", "content": f"say {name[0]}{text}"}] for name in PROMPTS],
        "prompt_token_ids": [[1, 5], [1, 6], [1, 7]],
        "split": ["train", "train", "eval"],
        "answer": [f"a{text}", None, f"c{text}"],
        "meta": [json.dumps({text: text} if text else {}, ensure_ascii=False)] * 3,
    }
    return publish(
        store,
        "prompts",
        columns,
        parents={"source": source, "tokenizer": base},
        outputs={"dropped": dropped},
    )


def generations(
    store: Store,
    asked: list[str],
    policy: Model,
    iteration: int,
    parents: dict[str, AnyHandle],
    text: str = "",
) -> Dataset:
    """Two responses to each of the prompts `asked`, a shard for each prompt."""
    shards = [
        {
            **key([name]),
            "policy": [policy.fingerprint] * 2,
            "response": [f"{name[0]}{iteration}{index}{text}" for index in range(2)],
            "response_token_ids": [[5, 2], [6, 7, 2]],
            "logp_sampler": [-1.0, -2.0],
            "finish_reason": ["stop", "stop"],
            "seed": [iteration, iteration + 1],
        }
        for name in asked
    ]
    return publish(store, "generations", *shards, parents={"model": policy, **parents})


def sibling(rewards: list[float]) -> list[float]:
    """The reward of the other sample of the same prompt."""
    return [rewards[index ^ 1] for index in range(len(rewards))]


def make_versions(store: Store, folder: Path, run: str = "demo", text: str = "") -> list[Version]:
    """Two published versions of `run`; `folder` is where what they import is written first, and
    `text` stands in all texts.
    """
    policy = base = model(
        store, folder / "base", 0.5, provenance={"origin": f"org/base{text}", "revision": "f" * 40}
    )
    asked = prompts(store, folder, base, text)
    published: list[Version] = []
    for iteration in (1, 2):
        sampled = generations(store, PROMPTS[:2], policy, iteration, {"prompts": asked}, text)
        rewards = publish(
            store,
            "rewards",
            {**key(PROMPTS[:2]), "reward": REWARDS[iteration]},
            parents={"generations": sampled},
            numbers={"mean_reward": sum(REWARDS[iteration]) / 4},
        )
        wins = [
            int(reward > other)
            for reward, other in zip(REWARDS[iteration], sibling(REWARDS[iteration]), strict=True)
        ]
        win_rates = publish(
            store,
            "win_rates",
            {
                **key(PROMPTS[:2]),
                "win_rate": [float(won) for won in wins],
                "wins": wins,
                "ties": [0] * 4,
                "losses": [1 - won for won in wins],
                "rank": [2 - won for won in wins],
            },
            parents={"rewards": rewards},
        )
        trained = model(store, folder / "trained", 0.5 + iteration)
        training = publish(
            store,
            "training",
            {"step": [1], "metric": ["loss"], "value": [1 / iteration]},
            parents={"policy": policy, "win_rates": win_rates},
            outputs={"model": trained},
        )
        held_out = generations(store, PROMPTS[2:], trained, iteration, {"prompts": asked}, text)
        low, high = iteration / 2 - 0.1, iteration / 2 + 0.1
        numbers = {
            "metric": ["win_rate"],
            "value": [iteration / 2],
            "low": [low],
            "high": [high],
            "n": [2],
        }
        metrics = publish(
            store,
            "metrics",
            {"iteration": [iteration], **numbers},
            parents={"generations": held_out},
        )
        content = Content(
            iteration=iteration,
            recipe={"seed": 0, "objective": {"name": "wind", "beta": 0.1}},
            datasets={
                "prompts": asked,
                "generations": sampled,
                "rewards": rewards,
                "win_rates": win_rates,
                "training": training,
                "eval_generations": held_out,
                "metrics": metrics,
            },
            model_in=policy,
            model_out=trained,
            reference=base,
            previous=published[-1].id if published else None,
        )
        named = {"win_rate": {"value": iteration / 2, "low": low, "high": high, "n": 2}}
        for dataset in content.datasets.values():
            store.storage.write(
                f"checks/{dataset.name}/{dataset.fingerprint}.json", b'{"success": true}'
            )
        checks = dict.fromkeys(content.datasets, 4)
        published.append(
            Versions(store, run).publish(
                content, checks=checks, metrics=named, seconds={"training": 1.5}
            )
        )
        policy = trained
    return published
