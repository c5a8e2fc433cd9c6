"""Render conversations to the texts and token ids of prompts.

The template decides, as explained in `wind.models.templates`: a prompt's ids are exactly those of
`apply_chat_template(messages, add_generation_prompt=True)`, and for plain text exactly those of the
tokenizer. The template or the tokenizer decides whether a prompt starts with a BOS (Zephyr's
template leaves it out; in ChatML models it can mark every turn).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wind.errors import InputError
from wind.models.templates import Template, begins_with_two, two_bos
from wind.prompts.messages import Message
from wind.prompts.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK_PROMPTS = 1024
# text and token ids
Rendered = tuple[str, list[int]]


def render(
    tokenizer: "PreTrainedTokenizerBase",
    template: Template | None,
    rows: Sequence[Row],
    conversations: Sequence[list[Message]],
) -> Iterator[Rendered]:
    """Yield the text and the token ids of every row's prompt.

    Without a template, the text is that of its one message. Raises ConfigError if the template is
    missing or wrong, and InputError, naming the row, if the template refuses it, if it renders to
    nothing, or if it starts with two BOS tokens.
    """
    for start in range(0, len(rows), BLOCK_PROMPTS):
        block, chats = (
            rows[start : start + BLOCK_PROMPTS],
            conversations[start : start + BLOCK_PROMPTS],
        )
        yield from (
            _plain(tokenizer, block, chats)
            if template is None
            else _templated(template, block, chats)
        )


def _plain(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], chats: Sequence[list[Message]]
) -> Iterator[Rendered]:
    """Yield texts unchanged, with the special tokens that the tokenizer adds."""
    texts = [chat[0]["content"] for chat in chats]
    encoded = tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    for row, text, ids in zip(rows, texts, encoded["input_ids"], strict=True):
        if not ids:
            raise InputError(
                f"{row.where} has no token in the tokenizer's vocabulary: remove the row"
            )
        if begins_with_two(tokenizer.bos_token_id, ids):
            raise two_bos(tokenizer, row.where, "the row: the tokenizer adds its own")
        yield text, ids


def _templated(
    template: Template, rows: Sequence[Row], chats: Sequence[list[Message]]
) -> Iterator[Rendered]:
    texts = template.texts(chats, lambda number: rows[number].where, add_generation_prompt=True)
    for row, chat, text, ids in zip(
        rows, chats, texts, template.token_ids(texts)["input_ids"], strict=True
    ):
        template.check(chat, ids, row.where, add_generation_prompt=True)
        yield text, ids
