"""Stored responses: whom they answer, in every form that they come in, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wind.errors import ConfigError, InputError
from wind.prompts.rows import Row
from wind.responses import ResponsesSpec, import_responses, responses_of
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

USER = {"role": "user", "content": "1+1="}
TURNS = [USER, {"role": "assistant", "content": "2"}, {"role": "user", "content": "and 2+2="}]
PROMPTS = pl.DataFrame(
    {
        "prompt_id": ["a", "b"],
        "prompt": ["<u>1+1=<a>", "<u>1+1=<a>2<u>and 2+2=<a>"],
        "messages": [[USER], TURNS],
    }
)
ONE, TWO = {"prompt": "1+1=", "response": "2"}, {"prompt_id": "b", "response": "4"}


def found(
    rows: Sequence[dict[str, Any]], prompts: pl.DataFrame = PROMPTS
) -> tuple[list[tuple[Any, ...]], int]:
    numbered = (Row(f"gpt.jsonl line {number}", fields) for number, fields in enumerate(rows, 1))
    frame, others = responses_of(numbered, prompts)
    return frame.rows(), others


@pytest.mark.parametrize(
    "named",
    [
        {"prompt_id": "a"},
        {"prompt": "1+1="},
        {"instruction": "1+1="},
        {"prompt": "<u>1+1=<a>"},
        {"prompt": [USER]},
        {"prompt": [{"content": "1+1=", "role": "user", "name": None}]},
        {"prompt_id": "a", "prompt": "of another wording"},
        {"prompt_id": None, "prompt": "1+1="},
    ],
)
@pytest.mark.parametrize("answered", ["response", "output"])
def test_a_prompt_is_named_in_many_ways(named: dict[str, Any], answered: str) -> None:
    assert found([{**named, answered: "2"}, TWO]) == ([("a", 0, "2"), ("b", 0, "4")], 0)


def test_a_conversation_is_named_by_its_messages() -> None:
    assert found([{"prompt": TURNS, "response": "4"}, ONE])[0] == [("a", 0, "2"), ("b", 0, "4")]


def test_several_responses_are_numbered_and_those_to_other_prompts_counted() -> None:
    rows = [TWO, ONE, {"prompt": "nobody asks", "response": "?"}, ONE | {"response": "two"}]
    assert found(rows) == ([("a", 0, "2"), ("a", 1, "two"), ("b", 0, "4")], 1)


def test_a_prompt_without_a_response_is_named() -> None:
    with pytest.raises(
        InputError,
        match=r"^1 of 2 held-out prompts have no stored response, the first is prompt b, "
        r"'<u>1\+1=<a>2<u>and 2\+2=<a>': add responses to them$",
    ):
        found([ONE])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "2"}, "has no prompt_id or prompt or instruction: it has text"),
        ({"prompt": "1+1="}, "has no response or output: it has prompt"),
        ({"prompt": "1+1=", "response": None}, "has no response or output"),
        ({"prompt": "1+1=", "response": ["2"]}, r"has \['2'\] as its response: a text is needed"),
        ({"prompt": 11, "response": "2"}, "has 11 as its prompt: a text or messages are needed"),
    ],
)
def test_a_row_that_says_too_little_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"^gpt.jsonl line 2 {says}"):
        found([ONE, row])


def test_a_text_that_two_prompts_ask_is_refused() -> None:
    other = [{"role": "system", "content": "Add."}, USER]
    both = pl.concat(
        [PROMPTS, pl.DataFrame({"prompt_id": ["c"], "prompt": ["Add."], "messages": [other]})]
    )
    with pytest.raises(
        InputError, match=r"^gpt.jsonl line 1 answers what 2 prompts ask: name one by its prompt_id"
    ):
        found([ONE], both)


def test_the_stage_reads_a_stored_file(store: Store, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "prompt_token_ids": [[1], [1], [1]],
        "split": ["eval", "eval", "train"],
    }
    train = pl.DataFrame(
        {"prompt_id": ["t"], "prompt": ["t"], "messages": [[USER | {"content": "t"}]]}
    )
    rows = pl.concat([PROMPTS, train]).with_columns(
        *(pl.Series(name, values) for name, values in columns.items()),
        answer=pl.lit(None, pl.String),
        meta=pl.lit("{}"),
    )
    with store.partial("prompts", "made") as partial:
        partial.write(0, rows.to_arrow())
        prompts = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    path = tmp_path / "gpt.jsonl"
    stored = [TWO, ONE, {"prompt": "t", "response": "of the train split"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in stored))
    source = import_responses(store, "evaluation.opponents.gpt.path", str(path))
    spec = ResponsesSpec(source=source, prompts=prompts)
    job = Job(
        stage="responses", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )
    made = run(job, lambda done, total: None)
    assert isinstance(made, Dataset)
    assert store.frame(made).rows() == [("a", 0, "2"), ("b", 0, "4")]
    assert store.manifest(made).numbers == {"source_rows": 3, "other_prompts": 1}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt.csv", r"gpt\.csv is none of \.jsonl, \.parquet, \.arrow: give such a file"),
        ("no.jsonl", r"no\.jsonl does not exist: give a file of \.jsonl"),
    ],
)
def test_a_file_that_is_not_there_or_of_another_kind_is_named(
    store: Store, tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^evaluation\.opponents\.gpt\.path .*{says}"):
        import_responses(store, "evaluation.opponents.gpt.path", str(tmp_path / name))
