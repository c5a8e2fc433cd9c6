"""From rows to conversations: what a template is given, what is stored of it, and what is said of
rows that are none.
"""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wind.config.prompts import PromptsConfig
from wind.errors import InputError
from wind.prompts import PromptsSpec
from wind.prompts.messages import conversation_of, plain
from wind.prompts.rows import Row
from wind.store.handles import Model, Source

USER = {"role": "user", "content": "1+1="}
ASSISTANT = {"role": "assistant", "content": "2"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "add", "arguments": {"b": None, "a": 1}}}],
}


def spec(**fields: Any) -> PromptsSpec:
    config = PromptsConfig(source="p.jsonl", **fields)
    named = {
        name: getattr(config, name) for name in PromptsSpec.model_fields if hasattr(config, name)
    }
    handles = {
        "source": Source(fingerprint="0" * 64, files=1),
        "tokenizer": Model(fingerprint="0" * 64, parameters=1),
    }
    return PromptsSpec(**(named | handles | {"seed": 0}))


def conversation(value: Any, *, is_columnar: bool = False, **fields: Any) -> list[dict[str, Any]]:
    return conversation_of(Row("row 1", {"prompt": value}, is_columnar), spec(**fields))


def test_a_text_is_one_user_message() -> None:
    assert conversation("1+1=") == [USER]


@pytest.mark.parametrize(
    "messages",
    [
        [USER | {"name": "Ann", "id": 7, "timestamp": "2026-01-02", "tool_calls": []}],
        [USER, CALL, {"role": "tool", "content": "", "tool_call_id": "x"}],
        [USER, ASSISTANT | {"reasoning_content": "one and one"}, USER],
        [{"role": "system", "content": ""}, USER],
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "1+"},
                    {"type": "text", "text": "1=", "cache": True},
                ],
            }
        ],
        [USER, {"role": "assistant", "function_call": {"name": "add"}}, USER],
        [USER | {"name": None}],
    ],
)
def test_messages_are_passed_on_as_they_are(messages: list[dict[str, Any]]) -> None:
    assert conversation(messages) == messages


def test_what_is_stored_is_role_and_text() -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}],
    }
    assert plain(
        [parts, CALL, {"role": "tool", "content": "2"}, {"role": "assistant", "refusal": "no"}]
    ) == [
        USER,
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": ""},
    ]


def test_null_is_how_columns_write_an_absent_field() -> None:
    given = [USER | {"name": None, "tool_calls": None}, CALL | {"name": None}, USER]
    without = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    }
    assert conversation(given, is_columnar=True) == [USER, without, USER]
    assert conversation(given) == given


def test_sharegpt_is_read() -> None:
    said = [("system", "s"), ("human", "a"), ("gpt", "b"), ("tool", "c"), ("human", "d")]
    turns = [{"from": speaker, "value": value, "weight": 1} for speaker, value in said]
    roles = ["system", "user", "assistant", "tool", "user"]
    assert conversation(turns) == [
        {"role": role, "content": value, "weight": 1}
        for role, (_, value) in zip(roles, said, strict=True)
    ]


def test_the_system_message_goes_where_there_is_none() -> None:
    brief = {"role": "system", "content": "be brief"}
    assert conversation("1+1=", system="be brief") == [brief, USER]
    assert conversation([USER], system="be brief") == [brief, USER]
    assert conversation([USER], system="") == [{"role": "system", "content": ""}, USER]
    for role in ("system", "developer"):
        own = {"role": role, "content": ""}
        assert conversation([own, USER], system="be brief") == [own, USER]


def test_last_user_cuts_what_follows() -> None:
    assert conversation([USER, ASSISTANT], until="last_user") == [USER]
    assert conversation(
        [USER, ASSISTANT, USER, CALL, {"role": "tool", "content": "2"}, ASSISTANT],
        until="last_user",
    ) == [
        USER,
        ASSISTANT,
        USER,
    ]
    assert conversation("1+1=", until="last_user") == [USER]


@pytest.mark.parametrize(
    ("value", "fields", "message"),
    [
        (
            [USER, ASSISTANT],
            {},
            "ends with the assistant's turn: keep only the messages before the response, as "
            "prompts.until",
        ),
        (
            [ASSISTANT],
            {"until": "last_user"},
            "has no user message, and prompts.until is last_user: remove the row",
        ),
        (
            [USER, {"role": "assistant", "content": None}, USER],
            {},
            "message 2 has null as 'content'",
        ),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": []}, USER],
            {},
            "message 2 has null as 'content'",
        ),
        ([{"role": "user", "content": None, "name": "x"}], {}, "message 1 has null as 'content'"),
        (
            [{"role": "", "content": "x"}],
            {},
            "message 1 has a text as 'role': a name such as user is needed",
        ),
        ([{"role": 1, "content": "x"}], {}, "message 1 has a number as 'role'"),
        (
            [{"role": "system", "content": ""}],
            {},
            "has no text in any message: remove the row or write a message",
        ),
        ([{"from": "alien", "value": "x"}], {}, "message 1 is from 'alien': human, user, gpt,"),
        ([{"from": ["human"], "value": "x"}], {}, "message 1 is from ['human']"),
        ([{"from": "human"}], {}, "message 1 has no 'content' but 'role'"),
        (
            [USER | {"content": [{"type": "image_url"}]}],
            {},
            "message 1 has a part of type 'image_url', and only text is read",
        ),
        ([USER | {"content": ["1="]}], {}, "message 1 has a text as a part of its content"),
        (
            [USER | {"content": [{"type": "text"}]}],
            {},
            "message 1 has a part of type text with null as 'text'",
        ),
        (
            [USER | {"content": [{"type": "text", "text": " "}]}],
            {},
            "message 1 has a blank 'content'",
        ),
        ([USER | {"content": []}], {}, "message 1 has a blank 'content'"),
    ],
)
def test_what_is_no_conversation_is_named(value: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        conversation(value, **fields)
    assert str(error.value).startswith(f"row 1 {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"system": ""}, {"template_arguments": {"x": 1}}])
def test_without_a_template_its_settings_are_refused(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(
        ValidationError, match=f"{next(iter(fields))} is for a chat template, and template is none"
    ):
        PromptsConfig(source="p.jsonl", template="none", **fields)
