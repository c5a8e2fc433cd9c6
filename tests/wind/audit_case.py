"""A run of two iterations by hand: four samples of two prompts, one of them held out, and a model
trained between them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from wind.fingerprints import digest
from wind.store.computations import Computation, record
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model, Source
from wind.store.imports import import_model, import_source
from wind.store.versions import Content, Version, Versions

TRAIN, HELD_OUT = digest("train")[:32], digest("held out")[:32]
# of the samples of the train prompt, by iteration
REWARDS = {1: [0.0, 2.0, 2.0, 5.0], 2: [3.0, 2.0, 2.0, 6.0]}


def publish(
    store: Store,
    name: str,
    columns: Mapping[str, Any],
    parents: Mapping[str, AnyHandle] | None = None,
    outputs: Mapping[str, AnyHandle] | None = None,
    spec: Mapping[str, Any] | None = None,
    code: str = "c0de",
) -> tuple[Dataset, str]:
    """The dataset with `columns`, its computation recorded as the stages record theirs; and its
    key.
    """
    inputs, made_with = dict(parents or {}), dict(outputs or {})
    fields = {parent: handle.model_dump(mode="json") for parent, handle in inputs.items()} | dict(
        spec or {}
    )
    table = pa.table(dict(columns))
    facts: dict[str, Any] = {
        "parents": inputs,
        "outputs": made_with,
        "numbers": {"rows": table.num_rows},
    }
    provenance = {
        "started": 1.0,
        "seconds": 2.0,
        "packages": {"torch": "2.13.0"},
        "git_revision": code,
    }
    with store.partial(name, digest([fields, code])) as partial:
        partial.write(0, table)
        computed_by = {"stage": name, "code": code, "spec": fields}
        dataset = partial.publish(1, computed_by=computed_by, provenance=provenance, **facts)
    modules = {f"wind.{name}": digest([name, code])}
    computation = Computation(
        dataset=dataset,
        stage=name,
        spec=fields,
        code=code,
        modules=modules,
        provenance=provenance,
        **facts,
    )
    record(store, computation)
    return dataset, computation.key()


def model(store: Store, folder: Path, weight: float, **facts: Any) -> Model:
    """A model folder with one weight."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"weight": weight}))
    save_file({"weight": np.array([weight], np.float32)}, folder / "model.safetensors")
    return import_model(store, folder, **facts)


class Run:
    """The store after both iterations."""

    def __init__(
        self, folder: Path, *, lr: float = 0.1, run: str = "tiny", root: str = "store"
    ) -> None:
        self.store = Store(folder / root)
        self.models = [
            model(self.store, folder / f"{root}-{run}-0", 0.0, provenance={"origin": "models/base"})
        ]
        (folder / "prompts.jsonl").write_text('{"prompt": "first"}\n{"prompt": "second"}\n')
        self.source: Source = import_source(
            self.store, [folder / "prompts.jsonl"], provenance={"source": "prompts.jsonl"}
        )
        self.prompts, prompts_key = self._prompts()
        self.versions: list[Version] = []
        for iteration in (1, 2):
            datasets = {"prompts": self.prompts}
            keys = {"prompts": prompts_key}

            def add(
                name: str, columns: Mapping[str, Any], parents: Mapping[str, AnyHandle], **more: Any
            ) -> Dataset:
                noun = name.rpartition("eval_")[2]
                made, keys[name] = publish(self.store, noun, columns, parents, **more)  # noqa: B023
                datasets[name] = made  # noqa: B023
                return made

            policy = self.models[-1]
            generations = add(
                "generations",
                responses(TRAIN, 4, policy, f"{run} {iteration}"),
                {"policy": policy, "prompts": self.prompts},
            )
            rewards = add(
                "rewards",
                {**key(TRAIN, 4), "reward": REWARDS[iteration]},
                {"generations": generations},
            )
            win_rates = add("win_rates", wins(REWARDS[iteration]), {"rewards": rewards})
            trained = model(
                self.store,
                folder / f"{root}-{run}-{iteration}",
                iteration + lr,
                computed_by={"stage": "training", "spec": {}},
            )
            add(
                "training",
                {"step": pa.array([1], pa.int32()), "metric": ["loss"], "value": [lr * iteration]},
                {"policy": policy, "win_rates": win_rates},
                outputs={"model": trained},
                spec={"training": {"lr": lr}},
            )
            self.models.append(trained)
            add(
                "eval_generations",
                responses(HELD_OUT, 2, trained, "held out"),
                {"policy": trained, "prompts": self.prompts},
            )
            content = Content(
                iteration=iteration,
                recipe={"seed": 0, "training": {"lr": lr, "epochs": 1}},
                datasets=datasets,
                model_in=policy,
                model_out=trained,
                reference=self.models[0],
                previous=self.versions[-1].id if self.versions else None,
            )
            metrics = {
                "win_rate": {"value": 0.5 + iteration * lr, "low": 0.5, "high": 0.75, "n": 4}
            }
            published = Versions(self.store, run).publish(
                content, checks={}, metrics=metrics, seconds={}, computations=keys
            )
            self.versions.append(published)

    def _prompts(self) -> tuple[Dataset, str]:
        ids = sorted([TRAIN, HELD_OUT])
        rows = {
            "prompt_id": ids,
            "prompt": ["first" if name == TRAIN else "second" for name in ids],
            "messages": [
                [{"role": "user", "content": "first" if name == TRAIN else "second"}]
                for name in ids
            ],
            "prompt_token_ids": pa.array([[1], [1]], pa.list_(pa.int32())),
            "split": ["train" if name == TRAIN else "eval" for name in ids],
            "answer": pa.array([None, None], pa.string()),
            "meta": ["{}", "{}"],
        }
        spec = {
            "field": "prompt",
            "answer_field": "answer",
            "template": "none",
            "eval_fraction": 0.5,
            "max_prompt_tokens": 8,
            "limit": None,
            "seed": 0,
        }
        return publish(
            self.store,
            "prompts",
            rows,
            {"source": self.source, "tokenizer": self.models[0]},
            spec=spec,
        )


def key(prompt_id: str, samples: int) -> dict[str, Any]:
    return {
        "prompt_id": [prompt_id] * samples,
        "sample_index": pa.array(range(samples), pa.int32()),
    }


def responses(prompt_id: str, samples: int, policy: Model, text: str) -> dict[str, Any]:
    return {
        **key(prompt_id, samples),
        "policy": [policy.fingerprint] * samples,
        "response": [f"{text} {index}" for index in range(samples)],
        "response_token_ids": pa.array(
            [[2] * (index + 1) for index in range(samples)], pa.list_(pa.int32())
        ),
        "logp_sampler": [-1.0] * samples,
        "finish_reason": ["stop"] * samples,
        "seed": list(range(samples)),
    }


def wins(rewards: list[float]) -> dict[str, Any]:
    """Against the other samples of the same prompt, by definition."""
    won = [sum(other < reward for other in rewards) for reward in rewards]
    tied = [rewards.count(reward) - 1 for reward in rewards]
    best_first = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    return {
        **key(TRAIN, len(rewards)),
        "win_rate": [
            (win + tie / 2) / (len(rewards) - 1) for win, tie in zip(won, tied, strict=True)
        ],
        "wins": won,
        "ties": tied,
        "losses": [len(rewards) - 1 - win - tie for win, tie in zip(won, tied, strict=True)],
        "rank": [best_first.index(index) + 1 for index in range(len(rewards))],
    }
