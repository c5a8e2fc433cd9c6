"""Benchmarks inside a run: the numbers of the harness called directly, and nothing asked twice."""

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows.distill import distill
from tasks.run import open_run
from tests.flows.conftest import Wind
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.machine.processes import environment, python
from wind.store.datasets import Store
from wind.store.references import find_version

pytestmark = pytest.mark.slow

QUESTIONS = Path(__file__).resolve().parents[1] / "questions"
HARNESS_TASKS = Path(str(find_spec("lm_eval").origin)).with_name("tasks")  # type: ignore[union-attr]
GSM8K = f"gsm8k: {{data: {QUESTIONS}/gsm8k, shots: 1, limit: 6, max_new_tokens: 8, every: 2}}"
HELLASWAG = f"hellaswag: {{data: {QUESTIONS}/hellaswag}}"
MMLU = f"mmlu: {{data: {QUESTIONS}/mmlu, shots: 2, batch_size: 3}}"

# What a user of the harness alone would write: its own task files, on the same data.
TASKS = {
    "gsm8k.yaml": f"""
include: {HARNESS_TASKS}/gsm8k/gsm8k.yaml
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {QUESTIONS}/gsm8k/test.jsonl, train: {QUESTIONS}/gsm8k/train.jsonl}}}}
""",
    "hellaswag.yaml": f"""
include: {HARNESS_TASKS}/hellaswag/hellaswag.yaml
dataset_path: json
training_split: null
process_docs: !function whole_context.process_docs
dataset_kwargs: {{data_files: {{validation: {QUESTIONS}/hellaswag/val.jsonl}}}}
""",
    "whole_context.py": """
from lm_eval.tasks.hellaswag.utils import preprocess

def process_docs(rows):
    return rows.map(lambda row: {
        "query": preprocess(row["activity_label"] + ": " + row["ctx"]),
        "choices": [preprocess(ending) for ending in row["endings"]],
    })
""",
    **{
        f"mmlu_{subject}.yaml": f"""
include: {HARNESS_TASKS}/mmlu/default/_default_template_yaml
task: mmlu_{subject}
description: "The following are multiple choice questions (with answers) about {subject.replace("_", " ")}.\\n\\n"
dataset_path: json
process_docs: !function one_subject.{subject}
dataset_kwargs: {{data_files: {{test: {QUESTIONS}/mmlu/test.jsonl, dev: {QUESTIONS}/mmlu/dev.jsonl}}}}
"""
        for subject in ("sums", "animal_sounds")
    },
    "one_subject.py": """
def sums(rows):
    return rows.filter(lambda row: row["subject"] == "sums")

def animal_sounds(rows):
    return rows.filter(lambda row: row["subject"] == "animal_sounds")
""",
}
PROGRAM = """
import json, sys, lm_eval
from lm_eval.tasks import TaskManager

manager = TaskManager(include_path="asked", include_defaults=False)
model, said = {"pretrained": sys.argv[1], "dtype": "float32"}, {}
for name, settings in (
    ("gsm8k", {"num_fewshot": 1, "limit": 6, "gen_kwargs": {"max_gen_toks": 8}, "batch_size": 16}),
    ("hellaswag", {"batch_size": 16}),
    ("mmlu_sums", {"num_fewshot": 2, "batch_size": 3}),
    ("mmlu_animal_sounds", {"num_fewshot": 2, "batch_size": 3}),
):
    found = lm_eval.simple_evaluate(
        "hf", model, tasks=[name], task_manager=manager, device="cpu", apply_chat_template=True,
        bootstrap_iters=0, **settings,
    )
    numbers = {key: float(value) for key, value in found["results"][name].items() if "," in key
               and "stderr" not in key}
    prompts = [sample["arguments"][0][0] for sample in found["samples"][name]]
    said[name] = {"numbers": numbers, "prompts": prompts}
print(json.dumps(said))
"""


def asked_directly(model: Path, folder: Path) -> dict[str, Any]:
    """What the harness reports of a model, called without any of this project."""
    (folder / "asked").mkdir()
    for name, text in TASKS.items():
        (folder / "asked" / name).write_text(text)
    ran = subprocess.run(
        python("-c", PROGRAM, str(model)),
        env=environment(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(folder / "cache")),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


def long_context(model: Path, folder: Path) -> Path:
    """The model with positions enough for the questions, which are long in characters."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def run(config: DistillConfig) -> list[str]:
    """The names of the datasets that were computed, in order."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        return [event.name for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_numbers_are_those_of_the_harness_called_directly(
    recipe: Callable[..., DistillConfig], tiny_model: Path, command: Wind, tmp_path: Path
) -> None:
    policy = f"policy.path={long_context(tiny_model, tmp_path / 'long')}"
    two = recipe(policy, "iterations=2", f"evaluation.benchmarks={{{GSM8K}, {HELLASWAG}}}")
    computed = run(two)
    # every second iteration, and each iteration
    of_first, of_second = (
        computed[: computed.index("metrics")],
        computed[computed.index("metrics") :],
    )
    assert [name for name in of_first if "benchmarks" in name] == ["benchmarks"]
    assert [name for name in of_second if "benchmarks" in name] == [
        "benchmarks.gsm8k",
        "benchmarks.hellaswag",
        "benchmarks",
    ]
    assert run(two) == []

    # another benchmark asks its own questions alone
    more = f"evaluation.benchmarks={{{GSM8K}, {HELLASWAG}, {MMLU}}}"
    computed = run(recipe(policy, "iterations=2", more))
    assert computed == [
        *("benchmarks.mmlu", "benchmarks", "metrics"),
        *("benchmarks.mmlu", "benchmarks", "metrics"),
    ]
    store = Store(tmp_path / "store")
    version = find_version(store, "tiny")
    assert verify(store, version) > 0

    said = asked_directly(store.path(version.content.model_out), tmp_path)
    numbers = {
        name.removeprefix("benchmark."): entry["value"]
        for name, entry in version.metrics.items()
        if name.startswith("benchmark.")
    }
    gsm8k, hellaswag = said["gsm8k"]["numbers"], said["hellaswag"]["numbers"]
    subjects = [said[f"mmlu_{name}"]["numbers"]["acc,none"] for name in ("sums", "animal_sounds")]
    assert numbers == {
        "gsm8k.exact_match.flexible_extract": gsm8k["exact_match,flexible-extract"],
        "gsm8k.exact_match.strict_match": gsm8k["exact_match,strict-match"],
        "hellaswag.acc": hellaswag["acc,none"],
        "hellaswag.acc_norm": hellaswag["acc_norm,none"],
        "mmlu.acc": pytest.approx(sum(subjects) / 2),
    }
    assert 0 < hellaswag["acc,none"] < 1
    # three questions of each subject: the same prompts, shots and all
    rows = store.frame(version.content.datasets["benchmarks"])
    assert rows.group_by("benchmark").len().sort("benchmark").rows() == [
        ("gsm8k", 12),
        ("hellaswag", 32),
        ("mmlu", 6),
    ]

    code, out, _ = command("versions", "tiny")
    assert code == 0
    assert "mmlu, acc" in out
    code, out, _ = command("diff", "tiny@1", "tiny@2")
    assert code == 0
    assert "benchmark.gsm8k.exact_match.strict_match" in out
    code, out, _ = command("sql", "select count(distinct benchmark) as n from benchmarks", "--json")
    assert code == 0
    assert json.loads(out)[0]["n"] == 3
