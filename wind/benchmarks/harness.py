"""Questions asked by lm-evaluation-harness, the only module that imports it.

It runs as its own command would: `lm_eval.simple_evaluate` of the policy's folder, one task, all of
whose data are local files. What is kept is each question, under each metric; a metric's value must
be the mean of those, which is checked against the number that the harness itself reports.
"""

import math
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any, Final

from wind.benchmarks.records import HarnessBenchmark, foreign_files
from wind.benchmarks.tasks import BUILDERS, TaskFile, find_task
from wind.config.models import InferenceConfig
from wind.errors import ConfigError, InputError, first_line
from wind.models import attention_of, policy_positions
from wind.models.pretrained import load_tokenizer
from wind.store.datasets import Store
from wind.store.handles import Model
from wind.store.layout import MANIFEST

# rounding of a mean
TOLERANCE: Final = 1e-9
# what the harness generates unless a task says otherwise
MAX_GEN_TOKS: Final = 256
SEEDS: Final = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclass(frozen=True)
class Answers:
    """The rows of a benchmark, one per question and metric."""

    rows: list[dict[str, Any]]
    # questions whose prompt the harness cut at its left, since the policy has no more positions
    cut: int


def answers(
    name: str,
    benchmark: HarnessBenchmark,
    store: Store,
    policy: Model,
    inference: InferenceConfig,
    device: str,
) -> Answers:
    """Ask the questions of the benchmark called `name`.

    Raises ConfigError if the harness has another version than planned, or if the task needs what is
    not there, and InputError for a metric that is no mean over questions.
    """
    setting = f"evaluation.benchmarks.{name}"
    if (here := metadata.version("lm-eval")) != benchmark.harness:
        raise ConfigError(
            f"{setting} was planned with lm-eval {benchmark.harness}, and here is {here}: "
            "start the run again"
        )
    if foreign_files(store, benchmark.tasks) != benchmark.task_files:
        raise ConfigError(f"{setting}: its task files are not those of its spec: start it again")
    with tempfile.TemporaryDirectory() as scratch:
        # a copy, since Python keeps bytecode beside what it imports
        folder = Path(scratch, "tasks")
        shutil.copytree(store.path(benchmark.tasks), folder)
        task = find_task(folder, benchmark.task, setting)
        fields = task.local(_data(store, benchmark), task.shots(benchmark.shots))
        fields["dataset_kwargs"]["cache_dir"] = str(Path(scratch, "cache"))
        return _asked(name, benchmark, task, fields, store.path(policy), inference, device)


def _asked(
    name: str,
    benchmark: HarnessBenchmark,
    task: TaskFile,
    fields: Mapping[str, Any],
    policy: Path,
    inference: InferenceConfig,
    device: str,
) -> Answers:
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager(include_defaults=False)
    attention = attention_of(policy, inference.attention)
    model: dict[str, Any] = {"pretrained": str(policy), "dtype": inference.dtype}
    if benchmark.backend == "hf" and attention is not None:
        model["attn_implementation"] = attention
    tokenizer, templated = load_tokenizer(policy), benchmark.chat_template
    if templated == "auto":
        templated = tokenizer.chat_template is not None
    tokens = benchmark.max_new_tokens
    try:
        loaded = manager.load([{**load_yaml(task.path), **fields}])["tasks"][task.name]
        found: Any = lm_eval.simple_evaluate(
            model=benchmark.backend,
            model_args=model,
            tasks=[loaded],
            task_manager=manager,
            num_fewshot=benchmark.shots,
            batch_size=benchmark.batch_size,
            device=device,
            limit=benchmark.limit,
            bootstrap_iters=0,
            apply_chat_template=templated,
            fewshot_as_multiturn=benchmark.fewshot_as_multiturn,
            gen_kwargs=None if tokens is None else {"max_gen_toks": tokens},
            **({} if benchmark.seed is None else dict.fromkeys(SEEDS, benchmark.seed)),
        )
        samples = found["samples"][task.name]
        rows = [row for sample in samples for row in _rows(name, loaded, sample)]
    except Exception as error:  # a task's own functions may raise anything, and so does the harness
        traceback.print_exc()  # into the worker's log
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{task.setting}: the harness fails on the task {task.name} "
            f"({type(error).__name__}: {first_line(error)}, {Path(where.filename).name} line "
            f"{where.lineno}): does the task fit its data, and a question the policy's context?"
        ) from error
    _refuse_other_means(task, rows, found["results"][task.name])
    positions = policy_positions(policy)
    cut = [
        sample
        for sample in samples
        if positions is not None and _longest(sample, tokenizer, templated) > positions
    ]
    return Answers(rows, len({sample["doc_id"] for sample in cut}))


def metric_name(metric: str, filtered: str) -> str:
    """Return the name of a metric after a filter, as `exact_match.strict_match`.

    The harness writes "exact_match,strict-match". A filter called none is left out.
    """
    parts = [metric] if filtered == "none" else [metric, filtered]
    return ".".join(re.sub(r"[^a-z0-9_]+", "_", part.lower()) for part in parts)


def _longest(sample: Mapping[str, Any], tokenizer: Any, templated: bool) -> int:
    """Return the most tokens that one prompt of a sample has with its answer."""

    def size(text: str) -> int:
        # a chat template has written its own
        return len(tokenizer(text, add_special_tokens=not templated, verbose=False)["input_ids"])

    return max(
        size(prompt)
        + (answer.get("max_gen_toks", MAX_GEN_TOKS) if isinstance(answer, dict) else size(answer))
        for prompt, answer in sample["arguments"]
    )


def _data(store: Store, benchmark: HarnessBenchmark) -> list[Path]:
    if benchmark.data is None:
        return []
    folder = store.path(benchmark.data).absolute()
    return sorted(
        path for path in folder.iterdir() if path.suffix in BUILDERS and path.name != MANIFEST
    )


def _rows(name: str, task: Any, sample: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of one logged sample."""
    doc = sample["doc"]
    question, choices = task.doc_to_text(doc), None
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = list(task.doc_to_choice(doc))
    if not isinstance(question, str):  # some tasks complete one of several texts
        question = sample["arguments"][0][0]
    target = sample["target"]
    if choices is not None and isinstance(target, int):
        target = choices[target]
    for metric in sample["metrics"]:
        value = sample[metric]
        yield {
            "benchmark": name,
            "item": f"{sample['doc_id']:05d}",
            "metric": metric_name(metric, sample["filter"]),
            "value": float(value) if isinstance(value, Real) else math.nan,
            "question": question,
            "response": _response(sample, choices, is_normalized=metric == "acc_norm"),
            "target": target if isinstance(target, str) else repr(target),
        }


def _response(
    sample: Mapping[str, Any], choices: Sequence[str] | None, *, is_normalized: bool
) -> str:
    """Return the text that was generated, or the choice of the highest log-likelihood.

    Accuracy of the kind `acc_norm` takes it per character.
    """
    if choices is None:
        said = sample["resps"][0][0]
        return said if isinstance(said, str) else repr(said)
    logps = [answer[0] for answer in sample["filtered_resps"][: len(choices)]]
    lengths = [float(len(choice)) for choice in choices] if is_normalized else [1.0] * len(choices)
    scores = [logp / length for logp, length in zip(logps, lengths, strict=True)]
    return choices[scores.index(max(scores))]


def _refuse_other_means(
    task: TaskFile, rows: Sequence[Mapping[str, Any]], reported: Mapping[str, Any]
) -> None:
    """Raise InputError unless the mean of each metric is what the harness reports."""
    for key, value in reported.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = metric_name(metric, filtered)
        values = [row["value"] for row in rows if row["metric"] == name]
        mean = sum(values) / len(values) if values else math.nan
        if not (isinstance(value, Real) and abs(mean - value) <= TOLERANCE):
            raise InputError(
                f"{task.setting}: the metric {key} of the task {task.name} is no mean over its "
                "questions: take it out of metric_list in a copy of the task file"
            )
