"""A finished store of two iterations, written by hand: every kind of published file, and keys that
fit together.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from wind.config.models import InferenceConfig
from wind.config.sampling import SamplingConfig
from wind.fingerprints import digest
from wind.generations import GenerationsSpec
from wind.store import sealed_json
from wind.store.computations import Computation, record
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.imports import import_model, import_source
from wind.store.versions import Content, Version, Versions

TRAIN = ["a", "b", "c", "d"]
EVAL = ["e", "f"]
N = 2
SAMPLING = SamplingConfig(backend="transformers", samples_per_prompt=N)


def publish(
    store: Store,
    name: str,
    columns: dict[str, Any],
    parents: dict[str, AnyHandle],
    outputs: dict[str, AnyHandle] | None = None,
    spec: dict[str, Any] | None = None,
    shards: int = 1,
) -> Dataset:
    table = pa.table(columns)
    size = -(-table.num_rows // shards)
    with store.partial(name, digest(table.to_pylist())) as partial:
        for index in range(shards):
            partial.write(index, table.slice(index * size, size))
        computed_by = {"stage": name, "code": "0" * 64, "spec": spec or {}}
        provenance = {"host": "here", "packages": {"numpy": "2"}, "seconds": 1.5}
        numbers = {"rows": table.num_rows}
        return partial.publish(
            shards,
            parents=parents,
            outputs=outputs,
            computed_by=computed_by,
            numbers=numbers,
            provenance=provenance,
        )


def model(store: Store, folder: Path, seed: int, **facts: Any) -> Model:
    """A folder with the files of a Hugging Face model; nobody loads it."""
    folder = folder / str(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 4, "seed": seed})
    )
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"x": seed}}})
    )
    save_file({"weight": np.full((4, 4), seed, np.float32)}, folder / "model.safetensors")
    return import_model(store, folder, **facts)


def key(prompts: list[str]) -> dict[str, Any]:
    return {
        "prompt_id": [prompt for prompt in prompts for _ in range(N)],
        "sample_index": pa.array([*range(N)] * len(prompts), pa.int32()),
    }


def generations(
    store: Store, prompts: Dataset, policy: Model, split: str, iteration: int
) -> Dataset:
    ids = TRAIN if split == "train" else EVAL
    rows = len(ids) * N
    columns = {
        **key(ids),
        "policy": [policy.fingerprint] * rows,
        "response": [f"{iteration}{split}{row}" for row in range(rows)],
        "response_token_ids": [[iteration, row, 2] for row in range(rows)],
        "logp_sampler": [-1.0] * rows,
        "finish_reason": ["stop"] * rows,
        "seed": list(range(rows)),
    }
    spec = GenerationsSpec.model_validate(
        {
            "policy": policy,
            "prompts": prompts,
            "split": split,
            "sampling": SAMPLING,
            "inference": InferenceConfig(),
            "seed": 0,
            "iteration": iteration,
        }
    )
    parents: dict[str, AnyHandle] = {"policy": policy, "prompts": prompts}
    return publish(
        store, "generations", columns, parents, spec=spec.model_dump(mode="json"), shards=2
    )


def rewards(
    store: Store, prompts: Dataset, generations: Dataset, ids: list[str], iteration: int
) -> Dataset:
    columns = {**key(ids), "reward": [float(row * iteration) for row in range(len(ids) * N)]}
    return publish(
        store, "rewards", columns, {"prompts": prompts, "generations": generations}, shards=2
    )


def logps(
    store: Store,
    prompts: Dataset,
    generations: Dataset,
    policy: Model,
    ids: list[str],
    iteration: int,
) -> Dataset:
    rows = len(ids) * N
    columns = {
        **key(ids),
        "logp_policy": [-float(row + iteration) for row in range(rows)],
        "logp_reference": [-2.0] * rows,
        "response_tokens": [3] * rows,
    }
    parents: dict[str, AnyHandle] = {
        "prompts": prompts,
        "generations": generations,
        "policy": policy,
        "reference": policy,
    }
    return publish(store, "logps", columns, parents)


def evaluation(store: Store, parents: dict[str, AnyHandle], iteration: int) -> Dataset:
    rows = len(EVAL) * N
    ones, flags = [float(iteration)] * rows, [False] * rows
    columns = {
        **key(EVAL),
        **dict.fromkeys(("reward_policy", "reward_reference", "win_rate", "tie_share"), ones),
        **dict.fromkeys(("response_tokens_policy", "response_tokens_reference"), [3] * rows),
        **dict.fromkeys(("is_truncated_policy", "is_truncated_reference"), flags),
        **dict.fromkeys(
            ("logp_policy", "logp_reference", "accuracy_policy", "accuracy_reference"), ones
        ),
    }
    return publish(store, "evaluation", columns, parents)


def iteration_of(
    store: Store, folder: Path, prompts: Dataset, policy: Model, iteration: int
) -> tuple[dict[str, Dataset], Model]:
    """The datasets of one iteration, and the model it ended with."""
    sampled = generations(store, prompts, policy, "train", iteration)
    rewarded = rewards(store, prompts, sampled, TRAIN, iteration)
    rows = len(TRAIN) * N
    won = publish(
        store,
        "win_rates",
        {
            **key(TRAIN),
            "win_rate": [0.0, 1.0] * len(TRAIN),
            "wins": [0, 1] * len(TRAIN),
            "ties": [0] * rows,
            "losses": [1, 0] * len(TRAIN),
            "rank": [2, 1] * len(TRAIN),
        },
        {"rewards": rewarded},
    )
    selected = publish(
        store,
        "selections",
        {**key(TRAIN), "role": ["all"] * rows, "label": [0.0, 1.0] * len(TRAIN)},
        {"rewards": rewarded, "win_rates": won},
    )
    scored = logps(store, prompts, sampled, policy, TRAIN, iteration)
    parents: dict[str, AnyHandle] = {
        "policy": policy,
        "prompts": prompts,
        "generations": sampled,
        "rewards": rewarded,
        "win_rates": won,
        "selections": selected,
        "logps": scored,
    }
    trained = model(store, folder, iteration, parents=parents)
    losses = {"step": [1, 2], "metric": ["loss"] * 2, "value": [1.0 / iteration, 0.5]}
    training = publish(store, "training", losses, parents, {"model": trained})
    held_out = generations(store, prompts, trained, "eval", iteration)
    opponent = generations(store, prompts, policy, "eval", 0)
    eval_rewards = rewards(store, prompts, held_out, EVAL, iteration)
    eval_logps = logps(store, prompts, held_out, trained, EVAL, iteration)
    evaluated = evaluation(
        store,
        {
            "prompts": prompts,
            "generations_policy": held_out,
            "generations_reference": opponent,
            "rewards_policy": eval_rewards,
            "logps": eval_logps,
        },
        iteration,
    )
    measured = publish(
        store,
        "metrics",
        {
            "iteration": [iteration] * 2,
            "metric": ["kl_k1", "win_rate"],
            "value": [0.1, 0.5 + iteration / 10],
            "low": [None, 0.5],
            "high": [None, 0.9],
            "n": [4, 4],
        },
        {
            "evaluation": evaluated,
            "generations": held_out,
            "training": training,
            "rewards": rewarded,
            "win_rates": won,
        },
    )
    datasets = {
        "prompts": prompts,
        "generations": sampled,
        "rewards": rewarded,
        "win_rates": won,
        "selections": selected,
        "logps": scored,
        "training": training,
        "eval_generations": held_out,
        "eval_rewards": eval_rewards,
        "eval_logps": eval_logps,
        "evaluation": evaluated,
        "metrics": measured,
    }
    return datasets, trained


def check(store: Store, dataset: Dataset) -> str:
    """The key of a result of data checks, with its page, as a check writes them."""
    key = digest(["a check", dataset.fingerprint])
    name = f"checks/{dataset.name}/{dataset.fingerprint}/{key}"
    page = f"<html>{dataset.fingerprint}</html>".encode()
    result = {
        "handle": dataset.model_dump(mode="json"),
        "success": True,
        "expectations": 3,
        "key": key,
        "page_sha256": hashlib.sha256(page).hexdigest(),
        "path": f"{name}.html",
    }
    store.storage.write(f"{name}.json", sealed_json.encode(result))
    store.storage.write(f"{name}.html", page)
    store.storage.write(f"checks/{dataset.name}/{dataset.fingerprint}/latest", f"{key}\n".encode())
    return key


def few_of(
    store: Store, folder: Path, prompts: Dataset, policy: Model, iteration: int
) -> tuple[dict[str, Dataset], Model]:
    """As `iteration_of`, with the fewest datasets that have something to say of one another."""
    sampled = generations(store, prompts, policy, "train", iteration)
    rewarded = rewards(store, prompts, sampled, TRAIN, iteration)
    trained = model(store, folder, iteration, parents={"policy": policy, "rewards": rewarded})
    return {"prompts": prompts, "generations": sampled, "rewards": rewarded}, trained


def finished(store: Store, folder: Path, *, few: bool = False) -> list[Version]:
    """Fill `store` with two versions of a run called `tiny`; the first has the tag `good`."""
    base = model(store, folder, 0)
    sources = [folder / "eval.jsonl", folder / "train.jsonl"]
    for source, some in zip(sources, (EVAL, TRAIN), strict=True):
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in some))
    ids = TRAIN + EVAL
    prompts = publish(
        store,
        "prompts",
        {
            "prompt_id": ids,
            "prompt": ids,
            "messages": [[{"role": "user", "content": name}] for name in ids],
            "prompt_token_ids": [[1, position] for position in range(len(ids))],
            "split": ["train"] * len(TRAIN) + ["eval"] * len(EVAL),
            "answer": pa.nulls(len(ids), pa.string()),
            "meta": ["{}"] * len(ids),
        },
        {"source": import_source(store, sources), "tokenizer": base},
    )
    versions: list[Version] = []
    policy = base
    for iteration in (1, 2):
        datasets, trained = (few_of if few else iteration_of)(
            store, folder, prompts, policy, iteration
        )
        made = Computation(
            dataset=datasets["rewards"],
            stage="rewards",
            spec={},
            code="0" * 64,
            provenance={"host": "here"},
        )
        record(store, made)
        content = Content(
            iteration=iteration,
            recipe={"seed": 0, "training": {"lr": 1e-3}},
            datasets=datasets,
            model_in=policy,
            model_out=trained,
            reference=base,
            previous=versions[-1].id if versions else None,
        )
        rows = (
            store.read(datasets["metrics"]).drop_columns("iteration").to_pylist()
            if "metrics" in datasets
            else []
        )
        metrics = {row.pop("metric"): row for row in rows}
        version = Versions(store, "tiny").publish(
            content,
            checks=dict.fromkeys(datasets, 3),
            check_results={name: check(store, dataset) for name, dataset in datasets.items()},
            metrics=metrics,
            seconds=dict.fromkeys(datasets, 1.5),
            computations={"rewards": made.key()},
        )
        versions.append(version)
        policy = trained
    Versions(store, "tiny").tag("good", versions[0])
    return versions
