"""From a row to a prompt: the text that the policy sees, and its token ids.

The template's word is law. A prompt's ids are exactly those of `apply_chat_template(messages, add_generation_prompt=True)`, and
for plain text exactly those that the tokenizer gives. Nothing is put in front: whether a prompt begins with a BOS is for the
template, or the tokenizer, to say (Zephyr's template leaves it out; in ChatML models it can be the mark of every turn).
"""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wind.errors import ConfigError, InputError
from wind.prompts.sources import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
BLOCK_PROMPTS = 1024

# What a template that asks for today's date is told: with the real one, the same row would be another prompt tomorrow.
TODAY = datetime.date(2024, 7, 26)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a stored model. Raises InputError if the folder has none that can be read without its own code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"no tokenizer can be loaded from {folder}: {_line(error)}") from error


def messages_of(row: Row, field: str, template: str) -> list[Message]:
    """The messages of `row`: its `field` as it is, or as one user message if it is a string.

    Raises InputError, naming the row, if the field is neither a text nor a list of {role, content}, if any of it is blank, if it
    ends with the assistant's turn, or if it is a list and `template` is "none".
    """
    value = row.fields[field]
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{row.where} has a blank {field!r}: remove the row or write a prompt")
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise InputError(f"{row.where} has {_kind(value)} as {field!r}: a text or a list of messages is needed")
    if template == "none":
        raise InputError(f"{row.where} has messages, and prompts.template none renders none: set it to chat or to a Jinja file")
    if not value:
        raise InputError(f"{row.where} has an empty list of messages as {field!r}: remove the row or write a message")
    messages = [_message(message, f"{row.where} message {number}") for number, message in enumerate(value, 1)]
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{row.where} ends with the assistant's turn: keep only the messages before the response")
    return messages


def render(
    tokenizer: "PreTrainedTokenizerBase", template: str, rows: Sequence[Row], messages: Sequence[list[Message]]
) -> Iterator[tuple[str, list[int]]]:
    """The text and the token ids of every row's prompt.

    `template` is "chat" for the tokenizer's own, "none" for the text as it is, or the text of a Jinja template. Raises
    ConfigError if the template is missing or wrong, and InputError, naming the row, if the template refuses it, if it renders to
    nothing, or if it begins with two BOS tokens.
    """
    if template == "chat" and tokenizer.chat_template is None:
        raise ConfigError('the tokenizer has no chat template: set prompts.template to a Jinja file or to "none"')
    bos = tokenizer.bos_token_id
    for start in range(0, len(rows), BLOCK_PROMPTS):
        block = rows[start : start + BLOCK_PROMPTS]
        texts = _render_block(tokenizer, template, block, messages[start : start + BLOCK_PROMPTS])
        # A template writes the special tokens itself; to plain text the tokenizer adds its own.
        encoded = tokenizer(
            texts, add_special_tokens=template == "none", return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        for row, text, ids in zip(block, texts, encoded["input_ids"], strict=True):
            if not ids:
                raise InputError(f"{row.where} renders to no token at all: check prompts.template")
            if bos is not None and ids[:2] == [bos, bos]:
                raise InputError(
                    f"{row.where} begins with two BOS tokens ({tokenizer.bos_token}): take one out of the row or of the template"
                )
            yield text, ids


def _render_block(
    tokenizer: "PreTrainedTokenizerBase", template: str, rows: Sequence[Row], messages: Sequence[list[Message]]
) -> list[str]:
    if template == "none":
        return [message[0]["content"] for message in messages]
    from jinja2 import TemplateError, TemplateSyntaxError

    def rendered(conversations: Sequence[list[Message]]) -> Any:
        return tokenizer.apply_chat_template(
            list(conversations),
            chat_template=None if template == "chat" else template,
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=TODAY.strftime,
        )

    try:
        return list(rendered(messages))
    except TemplateSyntaxError as error:
        raise ConfigError(f"prompts.template is not a Jinja template (line {error.lineno}: {_line(error)})") from error
    except (TemplateError, TypeError, ValueError):
        pass  # one of the rows; which one is found below
    texts = []
    for row, conversation in zip(rows, messages, strict=True):
        try:
            texts += rendered([conversation])
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"{row.where} does not fit the chat template: {_line(error)}") from error
    return texts


def _message(message: Any, where: str) -> Message:
    """One {role, content} of two texts; further keys may be there only without a value, since they would be lost."""
    if not isinstance(message, dict):
        raise InputError(f"{where} is {_kind(message)}: an object with role and content is needed")
    for name in ("role", "content"):
        if name not in message:
            raise InputError(
                f"{where} has no {name!r} but {', '.join(map(repr, message)) or 'nothing'}: role and content are needed"
            )
        if not isinstance(message[name], str):
            raise InputError(f"{where} has {_kind(message[name])} as {name!r}: a text is needed")
        if not message[name].strip():
            raise InputError(f"{where} has a blank {name!r}: remove the message or fill it")
    further = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if further:
        raise InputError(f"{where} has {further[0]!r} beside role and content, which would be lost: remove it")
    return {"role": message["role"], "content": message["content"]}


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a value of type {type(value).__name__}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
