"""Answers in the formats of AlpacaEval and of FastChat's MT-Bench, for judges of their own.

Both are one file. The same content gives the same bytes: where FastChat writes an id drawn by lot
and the time, a version's answers have a digest and zero.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wind.errors import ConfigError
from wind.exchange.exports import Exportable, appearing
from wind.fingerprints import digest
from wind.store.datasets import Store
from wind.store.handles import Dataset

# the metrics of MT-Bench in the dataset `benchmarks`, in order
TURNS = ("turn_1", "turn_2")


def export_alpaca_eval(store: Store, subject: Exportable, destination: Path) -> None:
    """Write the held-out responses of a version as AlpacaEval's JSON list.

    One entry is the first response to a prompt; its instruction is what the user asked last.
    """
    generations = _dataset(subject, "eval_generations", "alpaca_eval")
    prompts = store.frame(_dataset(subject, "prompts", "alpaca_eval"), ["prompt_id", "messages"])
    asked = {
        prompt_id: next(turn["content"] for turn in reversed(messages) if turn["role"] == "user")
        for prompt_id, messages in prompts.iter_rows()
    }
    store.verify(generations)
    rows = store.frame(generations, ["prompt_id", "sample_index", "response"])
    outputs = [
        {
            "instruction": asked[prompt_id],
            "output": response,
            "generator": subject.name,
            "dataset": "wind",
        }
        for prompt_id, sample_index, response in rows.iter_rows()
        if sample_index == 0
    ]
    with appearing(destination) as file:
        file.write_text(json.dumps(outputs, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def export_mt_bench(store: Store, subject: Exportable, destination: Path) -> None:
    """Write a version's answers to MT-Bench as FastChat's JSON lines of answers."""
    benchmarks = _dataset(subject, "benchmarks", "mt_bench")
    store.verify(benchmarks)
    turns: dict[tuple[str, str], dict[str, str]] = {}
    rows = store.frame(benchmarks, ["benchmark", "item", "metric", "response"])
    for benchmark, item, metric, response in rows.iter_rows():
        if metric in TURNS:
            turns.setdefault((benchmark, item), {})[metric] = response
    names = {benchmark for benchmark, _ in turns}
    if len(names) != 1:
        raise ConfigError(
            f"{subject.name} has answers to {len(names)} MT-Benches, of which one is exported: "
            "run with one benchmark of kind mt_bench"
        )
    lines = (json.dumps(answer, ensure_ascii=False) for answer in _answers(subject.name, turns))
    with appearing(destination) as file:
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _answers(model: str, turns: dict[tuple[str, str], dict[str, str]]) -> Iterator[dict[str, Any]]:
    for (_, item), said in turns.items():
        texts = [said[turn] for turn in TURNS if turn in said]
        yield {
            "question_id": int(item),
            "answer_id": digest([model, item, texts])[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": texts}],
            "tstamp": 0.0,
        }


def _dataset(subject: Exportable, name: str, form: str) -> Dataset:
    if name not in subject.datasets or subject.version is None:
        raise ConfigError(
            f"{subject.name} has no {name}, which --format {form} writes: name a version that has"
        )
    return subject.datasets[name]
