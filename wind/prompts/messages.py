"""Extract the conversation of a row for its chat template.

Messages are passed on as they are, with all their fields: `name`, `tool_calls`, ids,
`reasoning_content`. Content is a text, a list of parts of type text, or null if another field
carries the message. In Parquet and Arrow a null within a message stands for an absent field and is
left out; in JSON Lines somebody wrote it, and it stays. ShareGPT's `from` and `value` are read as
role and content.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wind.errors import InputError
from wind.prompts.rows import Row

if TYPE_CHECKING:
    from wind.prompts import PromptsSpec

Message = dict[str, Any]

SYSTEM = ("system", "developer")

# Values of `from` in ShareGPT and similar formats, as roles.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}


def conversation_of(row: Row, spec: "PromptsSpec") -> list[Message]:
    """Return the messages of `row`.

    They are its `spec.field` as it is, or one user message if that is a text. `spec.system` is
    prepended if the row has no system message of its own, and `spec.until` may cut what follows the
    last user message. Raises InputError, naming the row, if it holds no conversation or ends with
    the assistant's turn.
    """
    value = row.fields[spec.field]
    if isinstance(value, str):
        if not value.strip():
            raise InputError(
                f"{row.where} has a blank {spec.field!r}: remove the row or write a prompt"
            )
        messages = [{"role": "user", "content": value}]
    else:
        messages = _until(_listed(value, row, spec), row, spec.until)
    if spec.system is not None and not any(message["role"] in SYSTEM for message in messages):
        messages.insert(0, {"role": "system", "content": spec.system})
    return messages


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Reduce every message to its role and text.

    The parts of a content are concatenated; null becomes the empty text.
    """
    return [
        {"role": message["role"], "content": text_of(message.get("content"))}
        for message in messages
    ]


def text_of(content: Any) -> str:
    """Return the text of a message's content."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _listed(value: Any, row: Row, spec: "PromptsSpec") -> list[Message]:
    if not isinstance(value, list):
        raise InputError(
            f"{row.where} has {_kind(value)} as {spec.field!r}: "
            "a text or a list of messages is needed"
        )
    if spec.template == "none":
        raise InputError(
            f"{row.where} has messages, which prompts.template none cannot render: "
            "set it to chat or to a Jinja file"
        )
    if not value:
        raise InputError(
            f"{row.where} has an empty list of messages as {spec.field!r}: "
            "remove the row or write a message"
        )
    given = [_without_nulls(message) for message in value] if row.is_columnar else value
    messages = [
        _message(message, f"{row.where} message {number}")
        for number, message in enumerate(given, 1)
    ]
    if not any(turn["content"].strip() for turn in plain(messages)):
        raise InputError(
            f"{row.where} has no text in any message: remove the row or write a message"
        )
    return messages


def _until(messages: list[Message], row: Row, until: str) -> list[Message]:
    """Return `messages`, cut after the last user message if `until` says so.

    Raises InputError if the result ends with the assistant's turn.
    """
    if until == "last_user":
        users = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if not users:
            raise InputError(
                f"{row.where} has no user message, and prompts.until is last_user: remove the row"
            )
        return messages[: users[-1] + 1]
    if messages[-1]["role"] == "assistant":
        raise InputError(
            f"{row.where} ends with the assistant's turn: keep only the messages before the "
            "response, as prompts.until last_user does"
        )
    return messages


def _message(message: Any, where: str) -> Message:
    """Return `message` with role and content, converted from ShareGPT if need be.

    Raises InputError if no text can be read from it.
    """
    if not isinstance(message, dict):
        raise InputError(f"{where} is {_kind(message)}: an object with role and content is needed")
    message = _named(message, where) if "from" in message and "role" not in message else message
    if "role" not in message:
        has = ", ".join(map(repr, message)) or "nothing"
        raise InputError(f"{where} has no 'role' but {has}: role and content are needed")
    role = message["role"]
    if not isinstance(role, str) or not role.strip():
        raise InputError(f"{where} has {_kind(role)} as 'role': a name such as user is needed")
    _check_content(message, where)
    return dict(message)


def _named(message: Message, where: str) -> Message:
    """Rename ShareGPT's `from` and `value` to `role` and `content`."""
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise InputError(f"{where} is from {speaker!r}: {', '.join(SPEAKERS)} are known")
    further = {name: value for name, value in message.items() if name not in ("from", "value")}
    return {
        "role": SPEAKERS[speaker],
        **({"content": message["value"]} if "value" in message else {}),
        **further,
    }


def _check_content(message: Message, where: str) -> None:
    """Raise InputError unless the content is valid for the message's role.

    It must be text; only a message that is not the user's may lack it, if another field carries the
    message.
    """
    content, is_user = message.get("content"), message["role"] == "user"
    if isinstance(content, list):
        for part in content:
            _check_part(part, where)
    elif content is None:
        if is_user or not any(
            value for name, value in message.items() if name not in ("role", "content")
        ):
            has = (
                "null as 'content'"
                if "content" in message
                else f"no 'content' but {', '.join(map(repr, message))}"
            )
            raise InputError(f"{where} has {has}: role and content are needed")
    elif not isinstance(content, str):
        raise InputError(f"{where} has {_kind(content)} as 'content': a text is needed")
    if is_user and not text_of(content).strip():
        raise InputError(f"{where} has a blank 'content': remove the message or fill it")


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise InputError(
            f"{where} has {_kind(part)} as a part of its content: "
            '{"type": "text", "text": ...} is needed'
        )
    if part.get("type") != "text":
        raise InputError(
            f"{where} has a part of type {part.get('type')!r}, and only text is read: "
            "remove it or the row"
        )
    if not isinstance(part.get("text"), str):
        raise InputError(
            f"{where} has a part of type text with {_kind(part.get('text'))} as 'text': "
            "a text is needed"
        )


def _without_nulls(message: Any) -> Any:
    """Remove null fields at any depth, except the message's own `content`."""
    if not isinstance(message, dict):
        return message
    return {
        name: _present(item)
        for name, item in message.items()
        if item is not None or name == "content"
    }


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    """Return the kind of a value in the words of JSON."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return (
        "null"
        if value is None
        else names.get(type(value), f"a value of type {type(value).__name__}")
    )
