"""Each planted fault of the prompts fires exactly the expectation that names it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data_checks.prompts import token_id

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

COPY = {"prompt": "<s>0 + 1", "prompt_token_ids": [1, 10, 3]}  # of the first prompt


def test_good_prompts_pass(chain: "Chain") -> None:
    assert chain.check("prompts").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[3].update(prompt_id=rows[2]["prompt_id"]),
            "rows.prompt_id: no two rows share prompt_id",
        ),
        (
            lambda rows: rows[3].update(prompt_id="prompt-3"),
            "rows.prompt_id: prompt_id is 32 hex digits",
        ),
        (
            lambda rows: [row.update(split="test") for row in rows[2:4]],
            "rows.split: split is train or eval",
        ),
        (
            lambda rows: rows[5].update(prompt=COPY["prompt"]),
            "rows.splits_of_prompt: train and eval are disjoint",
        ),
        (
            lambda rows: rows[5].update(prompt_token_ids=COPY["prompt_token_ids"]),
            "rows.splits_of_prompt: train and eval are disjoint",
        ),
        (
            lambda rows: rows[4].update(meta='{"pair": 0.0}'),
            "rows.splits_of_group: a group is in one split",
        ),
        (lambda rows: rows[1].update(COPY), "rows.split, text: no prompt is twice in a split"),
        (
            lambda rows: rows[3]["messages"][0].update(content=" \n"),
            "rows.content_characters: no prompt is empty",
        ),
        (
            lambda rows: rows[3].update(prompt_token_ids=[1, 7, 7, 7, 7]),
            "rows.prompt_tokens: no prompt is longer than max_prompt_tokens",
        ),
        (
            lambda rows: rows[3].update(prompt_token_ids=[1, 1, 7]),
            "rows.leading_bos: no prompt begins with two BOS",
        ),
        (
            lambda rows: rows.pop(3),
            "totals.source_rows, accounted_rows: rows of the source = prompts + dropped rows",
        ),
        (
            lambda rows: rows.append(
                rows[3] | {"prompt_id": "a" * 32, "prompt": "new", "prompt_token_ids": [1, 9]}
            ),
            "totals.source_rows, accounted_rows: rows of the source = prompts + dropped rows",
        ),
        (
            lambda rows: [row.update(split="train") for row in rows],
            "totals.eval_rows: the eval split has prompts",
        ),
        (
            lambda rows: [row.update(split="eval") for row in rows],
            "totals.train_rows: the train split has prompts",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("prompts", fault) == [fires]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "tokenizer_config.json": {"bos_token": "<s>"},
                "tokenizer.json": {"added_tokens": [{"id": 7, "content": "<s>"}]},
            },
            7,
        ),
        (
            {
                "tokenizer_config.json": {"bos_token": {"content": "<s>"}},
                "tokenizer.json": {"model": {"vocab": {"<s>": 3}}},
            },
            3,
        ),
        # Unigram: the id is the position in the list.
        (
            {
                "special_tokens_map.json": {"bos_token": "<s>"},
                "tokenizer.json": {"model": {"vocab": [["a", 0.0], ["<s>", 0.0]]}},
            },
            1,
        ),
        ({"tokenizer_config.json": {"bos_token": "<s>"}, "config.json": {"bos_token_id": 5}}, 5),
        ({"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 5}}, None),
    ],
)
def test_bos_token_id_is_read_from_the_tokenizer(
    tmp_path: Path, files: dict[str, Any], expected: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert token_id(tmp_path, "bos_token") == expected


@pytest.mark.parametrize("ids", [[7, 8], [7, 1, 1], [1, 7, 1], [1]])
def test_bos_may_stand_wherever_the_template_puts_it(chain: "Chain", ids: list[int]) -> None:
    assert chain.check("prompts", lambda rows: rows[3].update(prompt_token_ids=ids)).success


def test_without_a_bos_token_nothing_is_doubled(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_checks.prompts.token_id", lambda folder, name: None)
    assert chain.check("prompts", lambda rows: rows[3].update(prompt_token_ids=[1, 1, 8])).success


def test_where_bos_ends_turns_the_second_may_be_the_end_of_an_empty_one(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_checks.prompts.token_id", lambda folder, name: 1)
    assert chain.check("prompts", lambda rows: rows[3].update(prompt_token_ids=[1, 1, 8])).success
    chain.template = "none"
    assert chain.failures("prompts", lambda rows: rows[3].update(prompt_token_ids=[1, 1, 7])) == [
        "rows.leading_bos: no prompt begins with two BOS"
    ]


def test_prompts_without_groups_are_each_their_own(chain: "Chain") -> None:
    chain.group_field = None
    assert chain.check("prompts", lambda rows: rows[4].update(meta='{"pair": 0}')).success
