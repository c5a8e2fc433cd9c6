"""Benchmarks: what their task files say, what data they get, and every mistake told in one line."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from wind.benchmarks import BenchmarksSpec, records, resolve_benchmarks
from wind.benchmarks.records import HARNESS, HarnessBenchmark, harness_version
from wind.benchmarks.tasks import OWN, find_task, is_of_split
from wind.code.named_code import functions_in
from wind.config.benchmarks import HarnessBenchmarkConfig
from wind.config.evaluation import EvaluationSection
from wind.config.models import InferenceConfig
from wind.errors import ConfigError
from wind.metrics.values import benchmark_metrics
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model

QUESTIONS = Path(__file__).resolve().parents[1] / "questions"
HARNESS_TASKS = Path(str(find_spec("lm_eval").origin)).with_name("tasks")  # type: ignore[union-attr]
MODEL = Model(fingerprint="0" * 64, parameters=1)
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{sum}}="
doc_to_target: "{{total}}"
"""


def resolved(store: Store, name: str, **settings: Any) -> HarnessBenchmark:
    config = HarnessBenchmarkConfig.model_validate({"kind": "harness", **settings})
    found = resolve_benchmarks(store, {name: config})[name]
    assert isinstance(found, HarnessBenchmark)
    return found


def own_task(folder: Path, text: str = TASK) -> Path:
    """A folder with one task and its data."""
    folder.mkdir()
    (folder / "sums.yaml").write_text(text)
    (folder / "sums.jsonl").write_text('{"sum": "1+1", "total": "2"}\n')
    return folder


def names(value: Any) -> Any:
    """A task's fields as the harness has them, without what only names its dataset."""
    dropped = ("dataset_path", "dataset_name", "tag", "process_docs")
    return {name: value[name] for name in value if name not in dropped and value[name] is not None}


@pytest.mark.parametrize("name", ["gsm8k", "hellaswag"])
def test_our_task_files_are_those_of_the_harness(name: str) -> None:
    text = (HARNESS_TASKS / name / f"{name}.yaml").read_text().replace("!function", "")
    theirs = yaml.safe_load(text)
    assert names(find_task(OWN, name, "here").config) == names(theirs)


def test_the_version_to_install_is_that_of_the_extra() -> None:
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'benchmarks = ["{HARNESS.replace("[hf]", "")}"]' in pyproject


@pytest.mark.parametrize(
    ("file", "split", "is_of"),
    [
        ("train_2000.jsonl", "train", True),
        ("hellaswag_val.jsonl", "validation", True),
        ("val_1000.jsonl", "validation", True),
        ("test-00000-of-00001.parquet", "test", True),
        ("dev.jsonl", "dev", True),
        ("dev.jsonl", "validation", False),
        ("latest.jsonl", "test", False),
    ],
)
def test_a_file_tells_its_split(file: str, split: str, is_of: bool) -> None:
    assert is_of_split(Path(file), split) == is_of


def test_files_not_paths_are_what_a_spec_holds(store: Store, tmp_path: Path) -> None:
    one = resolved(store, "gsm8k", data=str(QUESTIONS / "gsm8k"), shots=2)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("test", "train"):
        (moved / f"{name}.jsonl").write_bytes((QUESTIONS / "gsm8k" / f"{name}.jsonl").read_bytes())
    assert resolved(store, "gsm8k", data=str(moved), shots=2) == one
    with (moved / "train.jsonl").open("a") as file:
        file.write('{"question": "1+1?", "answer": "#### 2"}\n')
    other = resolved(store, "gsm8k", data=str(moved), shots=2)
    assert other.data != one.data
    assert other.tasks == one.tasks
    assert one.parents() == {"tasks": one.tasks, "data": one.data}
    assert str(tmp_path) not in other.model_dump_json()


def test_local_files_take_the_place_of_the_dataset() -> None:
    task = find_task(OWN, "hellaswag", "here")
    fields = task.local([QUESTIONS / "hellaswag" / "val.jsonl"], 0)
    assert fields["dataset_path"] == "json"
    assert fields["dataset_kwargs"]["data_files"] == {
        "validation": [str(QUESTIONS / "hellaswag" / "val.jsonl")]
    }
    # there are no such files, and no shots need them
    assert fields["training_split"] is None
    assert fields["validation_split"] == "validation"


def test_task_files_of_the_user_are_named_code(store: Store, tmp_path: Path) -> None:
    """YAML too: its templates are evaluated."""
    assert resolved(store, "hellaswag", data=str(QUESTIONS / "hellaswag")).task_files == ()
    mine = resolved(store, "sums", tasks_folder=str(own_task(tmp_path / "mine")))
    assert [each.split()[0] for each in mine.task_files] == ["sums.jsonl", "sums.yaml"]
    spec = BenchmarksSpec(policy=MODEL, name="sums", benchmark=mine, inference=InferenceConfig())
    assert [each.setting for each in functions_in(spec)] == ["benchmark.task_files"] * 2
    section = EvaluationSection.model_validate({"benchmarks": {"sums": {"tasks_folder": "mine"}}})
    assert [str(each) for each in functions_in(section)] == ["benchmarks.sums.tasks_folder mine"]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("arc", {}, "there is no task arc, only gsm8k, hellaswag, mmlu: set"),
        ("gsm8k", {}, "the task gsm8k needs the dataset openai/gsm8k, and nothing is fetched: set "
         "evaluation.benchmarks.gsm8k.data to a folder with its files"),
        ("gsm8k", {"data": "nowhere"}, r"data nowhere does not exist: name a file"),
        ("gsm8k", {"data": str(OWN)}, r"holds no \.jsonl, .* file: name the questions"),
        ("mmlu", {"data": str(QUESTIONS / "gsm8k")}, None),
        ("hellaswag", {"data": str(QUESTIONS / "hellaswag"), "shots": 3},
         "data has no file of the split train, which the task hellaswag takes its shots from"),
        ("hellaswag", {"data": str(QUESTIONS / "gsm8k")},
         "no file of the split validation, which the task hellaswag asks"),
        ("sums", {"tasks_folder": "nowhere"}, "tasks_folder nowhere is no folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told_before_the_run(
    store: Store, name: str, settings: dict[str, Any], said: str | None
) -> None:
    if said is None:  # its shots are those of the task: none
        resolved(store, name, **settings)
        return
    with pytest.raises(ConfigError, match=said) as caught:
        resolved(store, name, **settings)
    assert str(caught.value).startswith(f"evaluation.benchmarks.{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group: sums\ntask: [a, b]\n", "task sums is a group: name one of its tasks"),
        (f"{TASK}process_docs: !function os.system\n", r"calls os\.system, and .* has no os\.py"),
        (TASK.replace("sums.jsonl", "/etc/passwd"), "names the data file /etc/passwd, which is no"),
        (TASK.replace("sums.jsonl", "../sums.jsonl"), "put it there, or set"),
        (f"{TASK}include: ../other.yaml\n", "include only other files of the same folder"),
        (f"{TASK}include: sums.yaml\n", "include only other files"),
        (TASK.replace("test_split: test", ""), "neither test_split nor validation_split"),
        (f"{TASK}num_fewshot: 0\n", "shots is 2, and the task sums says num_fewshot: 0"),
        ("- a\n", "is no task file: it must be a mapping"),
        ("task: [\n", "cannot be read"),
    ],
)
def test_a_task_file_that_cannot_be_asked_is_told(
    store: Store, tmp_path: Path, text: str, said: str
) -> None:
    folder = own_task(tmp_path / "mine", text)
    with pytest.raises(ConfigError, match=said) as caught:
        resolved(store, "sums", tasks_folder=str(folder), shots=2 if "num_few" in text else None)
    assert "\n" not in str(caught.value)


def test_without_the_harness_the_run_does_not_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness_version.cache_clear()
    monkeypatch.setattr(records, "metadata", NoPackages)
    data = str(QUESTIONS / "hellaswag")
    config = {"hellaswag": HarnessBenchmarkConfig(kind="harness", data=data)}
    with pytest.raises(ConfigError, match=r"pip install 'lm-eval\[hf\]==.*', or let workers\.pyth"):
        resolve_benchmarks(store, config)
    harness_version.cache_clear()
    with pytest.raises(ConfigError, match=r"workers\.python\.benchmarks /no/python does not start"):
        resolve_benchmarks(store, config, interpreter="/no/python")
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    empty.chmod(0o755)
    with pytest.raises(ConfigError, match=r"needs lm-evaluation-harness, which .*/python does not"):
        resolve_benchmarks(store, config, interpreter=str(empty))
    harness_version.cache_clear()


class NoPackages:
    """An environment in which nothing is installed."""

    from importlib.metadata import PackageNotFoundError

    @staticmethod
    def version(name: str) -> str:
        raise NoPackages.PackageNotFoundError(name)


def test_a_benchmark_is_of_the_harness_unless_it_says_otherwise() -> None:
    section = EvaluationSection.model_validate({"benchmarks": {"gsm8k": {"shots": 2}, "arc": None}})
    assert {name: each.kind for name, each in section.benchmarks.items()} == {
        "gsm8k": "harness",
        "arc": "harness",
    }
    with pytest.raises(ValueError, match=r"benchmarks\.gsm8k"):
        EvaluationSection.model_validate({"benchmarks": {"gsm8k": 3}})


ROWS = [
    ("a", "00000", "acc", 1.0),
    ("a", "00000", "acc_norm", 0.0),
    ("a", "00001", "acc", 0.0),
    ("a", "00001", "acc_norm", 0.0),
    ("b", "00000", "acc", 0.25),
]


def part(store: Store, benchmark: str) -> Dataset:
    rows = [row for row in ROWS if row[0] == benchmark]
    texts = dict.fromkeys(("question", "response", "target"), "x")
    table = pa.Table.from_pylist(
        [
            dict(zip(("benchmark", "item", "metric", "value"), row, strict=True)) | texts
            for row in rows
        ]
    )
    with store.partial("benchmarks", benchmark * 64) as partial:
        partial.write(0, table)
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def test_parts_are_put_together(store: Store) -> None:
    parts = {name: part(store, name) for name in ("b", "a")}
    spec = BenchmarksSpec(policy=MODEL, parts=parts)
    assert spec.parents() == {"policy": MODEL, **parts}
    job = Job(
        stage="benchmarks", spec=spec.model_dump(mode="json"), place=Place(root=store.address)
    )
    made = run(job, lambda done, total: None)
    rows = store.frame(made)
    assert rows.select("benchmark", "item", "metric", "value").rows() == ROWS
    assert store.manifest(made).numbers == {"a.acc": 0.5, "a.acc_norm": 0.0, "b.acc": 0.25}
    values = benchmark_metrics(rows)
    assert {name: frame["value"].mean() for name, frame in values.items()} == {
        "benchmark.a.acc": 0.5,
        "benchmark.a.acc_norm": 0.0,
        "benchmark.b.acc": 0.25,
    }


def test_a_spec_asks_or_puts_together() -> None:
    with pytest.raises(ValueError, match="name one benchmark and how the policy runs, or parts"):
        BenchmarksSpec(policy=MODEL)
    with pytest.raises(ValueError, match="name one benchmark"):
        BenchmarksSpec(
            policy=MODEL,
            name="a",
            parts={"a": Dataset(name="benchmarks", fingerprint="0" * 64, rows=1)},
        )
