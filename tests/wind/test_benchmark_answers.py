"""MT-Bench and AlpacaEval: two turns, a judge or none, and the files that others judge."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.wind.reading_case import publish
from wind.benchmarks import BenchmarksSpec, resolve_benchmarks
from wind.benchmarks.questions import read_questions
from wind.config.benchmarks import AlpacaEvalConfig, MtBenchConfig
from wind.config.evaluation import EvaluationSection
from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.rewards import RuleRewardConfig
from wind.config.sampling import SamplingConfig
from wind.errors import ConfigError
from wind.exchange.answers import export_alpaca_eval, export_mt_bench
from wind.exchange.exports import Exportable
from wind.metrics.values import benchmark_metrics
from wind.models import import_policy
from wind.rewards import Reward, resolve_reward
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.versions import Version

TURNS = [
    {"question_id": 81, "turns": ["say a", "say b"]},
    {"question_id": 9, "turns": ["1+1", "and 1"], "reference": ["2", "3"]},
]
INSTRUCTIONS = [
    {"instruction": "say a", "output": "a", "generator": "other", "dataset": "made"},
    {"instruction": "say b", "output": "bb " * 20},
]
JUDGE = """
def seen(prompts, responses, answers):
    return [len(prompt) + (10 if answer else 0) for prompt, answer in zip(prompts, answers)]

def length(prompts, responses, answers):
    return [float(len(response)) for response in responses]
"""


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(
    store: Store, model: Path, config: MtBenchConfig | AlpacaEvalConfig, judge: Reward | None
) -> pl.DataFrame:
    policy = import_policy(store, PolicyConfig(path=str(model)))
    (found,) = resolve_benchmarks(
        store, {"chat": config}, {"held_out": judge} if judge else {}
    ).values()
    spec = BenchmarksSpec(
        policy=policy,
        name="chat",
        benchmark=found,
        inference=InferenceConfig(),
        sampling=SamplingConfig(),
        seed=0,
    )
    job = Job(
        stage="benchmarks", spec=spec.model_dump(mode="json"), place=Place(root=store.address)
    )
    return store.frame(run(job, lambda done, total: None))


def judge(store: Store, function: str) -> Reward:
    return resolve_reward(store, RuleRewardConfig(kind="rule", function=f"chat_judge:{function}"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "chat_judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_second_turn_is_about_the_first_answer(
    store: Store, tiny_model: Path, folder: Path
) -> None:
    data = str(lines(folder / "question.jsonl", TURNS))
    config = MtBenchConfig(kind="mt_bench", data=data, max_new_tokens=4)
    rows = asked(store, tiny_model, config, None)
    assert rows.select("item", "metric", "value", "question", "target").rows() == [
        ("00009", "turn_1", None, "1+1", "2"),
        ("00009", "turn_2", None, "and 1", "3"),
        ("00081", "turn_1", None, "say a", ""),
        ("00081", "turn_2", None, "say b", ""),
    ]
    assert asked(store, tiny_model, config, None).equals(rows)
    assert all(not len(frame) for frame in benchmark_metrics(rows).values())

    # judged with the reference at hand; the conversation does not change for it
    judged = asked(
        store, tiny_model, config.model_copy(update={"judge": "held_out"}), judge(store, "seen")
    )
    assert judged["response"].equals(rows["response"])
    assert judged["value"].to_list() == [13.0, 15.0, 5.0, 5.0]

    # another first answer, another second prompt: longer first answers move it
    longer = asked(store, tiny_model, config.model_copy(update={"max_new_tokens": 6}), None)
    first = longer.filter(metric="turn_1")["response"].to_list()
    assert [
        text[: len(short)]
        for text, short in zip(first, rows.filter(metric="turn_1")["response"], strict=True)
    ] == rows.filter(metric="turn_1")["response"].to_list()


@pytest.mark.slow
def test_alpaca_eval_compares_with_the_reference(
    store: Store, tiny_model: Path, folder: Path
) -> None:
    (folder / "alpaca.json").write_text(json.dumps(INSTRUCTIONS))
    config = AlpacaEvalConfig(
        kind="alpaca_eval", data=str(folder / "alpaca.json"), judge="held_out", max_new_tokens=8
    )
    rows = asked(store, tiny_model, config, judge(store, "length"))
    lengths = [len(text) for text in rows["response"]]
    assert rows["value"].to_list() == [float(lengths[0] > 1) + (lengths[0] == 1) / 2, 0.0]
    assert rows["metric"].to_list() == ["win_rate"] * 2
    assert rows["target"].to_list() == ["a", "bb " * 20]

    with pytest.raises(ConfigError, match=r"and max_new_tokens 200 exceed the policy's 128 posit"):
        asked(
            store,
            tiny_model,
            config.model_copy(update={"max_new_tokens": 200}),
            judge(store, "length"),
        )


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("mt_bench", '{"turns": ["a"]}', "question 1 has no question_id and turns"),
        ("mt_bench", '{"question_id": 1, "turns": []}', "question 1 has no question_id and turns"),
        ("mt_bench", '{"question_id": 1, "turns": ["a"]}\n' * 2, "two questions have the id 00001"),
        ("alpaca_eval", '[{"instruction": "a"}]', "question 1 has no instruction and output"),
        ("alpaca_eval", "[]", "holds no question"),
        ("alpaca_eval", "{", "cannot be read"),
        ("alpaca_eval", "[3]", "question 1 has no instruction and output"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path: Path, kind: Any, text: str, said: str) -> None:
    path = tmp_path / "data"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_questions(kind, path, "evaluation.benchmarks.x.data")
    assert str(caught.value).startswith("evaluation.benchmarks.x.data ")
    assert "\n" not in str(caught.value)


def test_its_judge_is_one_of_the_recipe() -> None:
    with pytest.raises(
        ValueError, match=r"benchmarks\.mt\.judge is 'gpt', and the judges are none"
    ):
        EvaluationSection.model_validate(
            {"benchmarks": {"mt": {"kind": "mt_bench", "data": "q", "judge": "gpt"}}}
        )


def test_answers_are_exported_as_the_benchmarks_read_them(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    version = demo_versions[1]
    rows = [
        ("mt", "00009", "turn_1", "2"),
        ("mt", "00009", "turn_2", "3"),
        ("mt", "00081", "turn_1", "a"),
    ]
    names = ("benchmark", "item", "metric", "response")
    columns: dict[str, list[Any]] = {
        name: list(each) for name, each in zip(names, zip(*rows, strict=True), strict=True)
    }
    columns |= {"value": [None] * 3, "question": ["q"] * 3, "target": [""] * 3}
    benchmarks = publish(store, "benchmarks", columns)
    subject = Exportable(
        "demo@2", version, {**version.content.datasets, "benchmarks": benchmarks}, None
    )
    for name in ("one", "two"):
        export_mt_bench(store, subject, tmp_path / f"{name}.jsonl")
        export_alpaca_eval(store, subject, tmp_path / f"{name}.json")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    answers = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [(each["question_id"], each["choices"]) for each in answers] == [
        (9, [{"index": 0, "turns": ["2", "3"]}]),
        (81, [{"index": 0, "turns": ["a"]}]),
    ]
    assert {(each["model_id"], each["tstamp"], len(each["answer_id"])) for each in answers} == {
        ("demo@2", 0.0, 22)
    }
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    (output,) = json.loads((tmp_path / "one.json").read_text())
    generations = store.frame(version.content.datasets["eval_generations"])
    assert output == {
        "instruction": "say c",
        "output": generations["response"][0],
        "generator": "demo@2",
        "dataset": "wind",
    }
    with pytest.raises(ConfigError, match=r"demo@2 has no benchmarks, which --format mt_bench"):
        export_mt_bench(store, Exportable.of(store, "demo@2"), tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
