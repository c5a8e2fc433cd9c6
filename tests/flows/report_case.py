"""Runs made by hand whose reports can be checked by eye: four held-out prompts, two samples each."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.wind.reading_case import model, publish
from wind.store.datasets import Store
from wind.store.imports import import_source
from wind.store.versions import Content, Version, Versions

PROMPTS = [letter * 32 for letter in "abcd"]
# of the policy's two responses to each prompt, by iteration; those of the reference stay
REWARDS = {1: [0.0, 1.0, 1.0, 1.0, 2.0, 0.0, 1.0, 3.0], 2: [1.0, 2.0, 2.0, 3.0, 3.0, 1.0, 6.0, 6.0]}
REFERENCE = [0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 0.0, 3.0]
WINS = {
    1: [0.25, 0.5, 0.75, 0.5, 1.0, 0.0, 0.5, 0.75],
    2: [0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0],
}
# value, low and high of each metric, by iteration
METRICS: dict[int, dict[str, tuple[float, float | None, float | None]]] = {
    1: {
        "win_rate": (0.53125, 0.40, 0.66),
        "win_rate.held_out.initial": (0.55, 0.45, 0.65),
        "win_rate.training.initial": (0.53125, 0.40, 0.66),
        "accuracy": (0.25, 0.1, 0.4),
        "accuracy_reference": (0.25, 0.1, 0.4),
        "accuracy_gain": (0.0, -0.1, 0.1),
        "kl_k1": (0.2, 0.1, 0.3),
        "response_tokens": (2.0, 2.0, 2.0),
        "benchmark.gsm8k.exact_match": (0.1, 0.05, 0.15),
        "loss": (1.5, None, None),
    },
    2: {
        "win_rate": (0.90625, 0.80, 0.97),
        "win_rate.held_out.initial": (0.40, 0.31, 0.48),
        "win_rate.training.initial": (0.90625, 0.80, 0.97),
        "accuracy": (0.75, 0.6, 0.9),
        "accuracy_reference": (0.25, 0.1, 0.4),
        "accuracy_gain": (0.5, 0.3, 0.7),
        "kl_k1": (0.5, 0.4, 0.6),
        "response_tokens": (2.5, 2.4, 2.6),
        "benchmark.gsm8k.exact_match": (0.2, 0.15, 0.25),
        "loss": (0.5, None, None),
    },
}


def key() -> dict[str, Any]:
    return {
        "prompt_id": [name for name in PROMPTS for _ in range(2)],
        "sample_index": pa.array([0, 1] * len(PROMPTS), pa.int32()),
    }


def make_run(
    store: Store,
    folder: Path,
    run: str = "demo",
    text: str = "",
    lr: float = 0.1,
    hacked: bool | None = None,
) -> list[Version]:
    """Two iterations; `text` stands in all texts, and `folder` is where models are written first.

    `hacked` says whether an alarm is raised; None for no tests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = policy = model(store, folder / "base", 0.5, provenance={"origin": f"org/base{text}"})
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "say a"}) + "\n")
    source = import_source(
        store, [folder / "prompts.jsonl"], provenance={"origin": "prompts.jsonl"}
    )
    asked = publish(
        store,
        "prompts",
        {
            "prompt_id": PROMPTS,
            "prompt": [f"say {name[0]}{text}" for name in PROMPTS],
            "messages": [[{"role": "user", "content": f"say {name[0]}{text}"}] for name in PROMPTS],
            "prompt_token_ids": [[1, 5]] * len(PROMPTS),
            "split": ["eval"] * len(PROMPTS),
            "answer": pa.array([None] * len(PROMPTS), pa.string()),
            "meta": ["{}"] * len(PROMPTS),
        },
        parents={"source": source, "tokenizer": base},
    )
    published: list[Version] = []
    for iteration in (1, 2):
        trained = model(store, folder / f"{run}{iteration}", 0.5 + iteration + lr)
        training = publish(
            store,
            "training",
            {"step": [1], "metric": ["loss"], "value": [lr + 1 / iteration]},
            parents={"policy": policy, "prompts": asked},
            outputs={"model": trained},
            provenance={"peak_memory_bytes": 3 * 2**20, "packages": {f"torch{text}": "2.13.0"}},
        )
        sampled = publish(
            store,
            "generations",
            {
                **key(),
                "policy": [trained.fingerprint] * 8,
                "response": [f"{run} {iteration} {index}{text}" for index in range(8)],
                "response_token_ids": [[5, 2]] * 8,
                "logp_sampler": [-1.0] * 8,
                "finish_reason": ["stop"] * 8,
                "seed": list(range(8)),
            },
            parents={"policy": trained, "prompts": asked},
        )
        evaluation = publish(store, "evaluation", _evaluation(iteration), parents={"x": sampled})
        numbers = dict(sorted(METRICS[iteration].items()))
        metrics = publish(
            store,
            "metrics",
            {
                "iteration": pa.array([iteration] * len(numbers), pa.int32()),
                "metric": list(numbers),
                "value": [value for value, _, _ in numbers.values()],
                "low": pa.array([low for _, low, _ in numbers.values()], pa.float64()),
                "high": pa.array([high for _, _, high in numbers.values()], pa.float64()),
                "n": [8] * len(numbers),
            },
            parents={"evaluation": evaluation},
        )
        alarms = publish(
            store,
            "alarms",
            {
                "alarm": ["length.moved.initial", "reward_hacking.gold.initial"],
                "statistic": [-1.0, 4.0],
                "p_value": [0.9, 0.001],
                "threshold": [0.025, 0.025],
                "is_raised": [False, bool(hacked)],
                "message": [f"it did not{text}", f"the reward rose alone{text}"],
            },
            parents={"evaluation": evaluation},
        )
        datasets = {
            "prompts": asked,
            "training": training,
            "eval_generations": sampled,
            "evaluation": evaluation,
            "metrics": metrics,
            **({} if hacked is None else {"alarms": alarms}),
        }
        content = Content(
            iteration=iteration,
            recipe={
                "seed": 0,
                "note": text,
                "reward": {"kind": "rule"},
                "training": {"lr": lr, "epochs": 1},
                "reference": {"kind": "initial"},
            },
            defaults=("seed", "training.epochs"),
            datasets=datasets,
            model_in=policy,
            model_out=trained,
            reference=base,
            previous=published[-1].id if published else None,
        )
        published.append(
            Versions(store, run).publish(
                content,
                checks=dict.fromkeys(datasets, 4),
                warnings={"evaluation": [f"win_rate moved by 0.4{text}"]} if iteration == 2 else {},
                metrics={
                    name: {"value": value, "low": low, "high": high, "n": 8}
                    for name, (value, low, high) in numbers.items()
                },
                seconds={"training": 1.5, "evaluation": 0.25},
            )
        )
        policy = trained
    return published


def _evaluation(iteration: int) -> dict[str, Any]:
    return {
        **key(),
        "reward_policy": REWARDS[iteration],
        "reward_reference": REFERENCE,
        "win_rate": WINS[iteration],
        "tie_share": [0.0] * 8,
        "response_tokens_policy": pa.array([2, 3] * 4, pa.int32()),
        "response_tokens_reference": pa.array([2] * 8, pa.int32()),
        "is_truncated_policy": [False] * 8,
        "is_truncated_reference": [False] * 8,
        "logp_policy": [-1.0] * 8,
        "logp_reference": [-1.5] * 8,
        "accuracy_policy": pa.array([1.0, 0.0] * 4, pa.float64()),
        "accuracy_reference": pa.array([0.0] * 8, pa.float64()),
    }
