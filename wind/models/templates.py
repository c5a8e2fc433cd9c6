"""Chat templates: from a conversation to text and token ids.

The template decides. The ids are exactly those of `tokenizer.apply_chat_template(conversation,
tokenize=True)` with the same arguments: nothing is prepended. Only two BOS tokens at the very start
are refused, since no model was trained on them. Besides the conversation, a template gets the
arguments of the config and a fixed date, because with today's date the same conversation would be a
different text tomorrow.
"""

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from wind.errors import ConfigError, InputError, WindError

Conversation = Sequence[Mapping[str, Any]]
# names conversation number i in messages
Where = Callable[[int], str]

# Everything that running a template can raise: its own refusals, and what Python's operators raise
# on unexpected values.
REFUSALS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
MARK = "\0bos\0"


@dataclass(frozen=True)
class Template:
    """The template of a tokenizer, or Jinja text that replaces it.

    `source` is "chat" for the tokenizer's own (of several, the one named `default`), or the text of
    a Jinja template. `setting` and `owner` are its names in messages.
    """

    tokenizer: Any
    source: str
    date: datetime.date
    arguments: Mapping[str, Any] = field(default_factory=dict)
    setting: str = "prompts.template"
    owner: str = "the tokenizer"

    @functools.cached_property
    def text(self) -> str:
        """Jinja text of the template.

        Raises ConfigError if the tokenizer has none of its own and none is given.
        """
        if self.source != "chat":
            return self.source
        own = self.tokenizer.chat_template
        named = own if isinstance(own, dict) else {"default": own}
        if not named.get("default"):
            has = f" named default, only {', '.join(named)}" if isinstance(own, dict) else ""
            raise ConfigError(
                f"{self.owner} has no chat template{has}: "
                f'set {self.setting} to a Jinja file or to "none"'
            )
        return str(named["default"])

    def texts(
        self, conversations: Sequence[Conversation], where: Where, **variables: Any
    ) -> list[str]:
        """Render every conversation as text.

        `variables` are passed to the template in addition to those of the config. Raises
        ConfigError if the text is not a Jinja template, and InputError naming the first
        conversation that it refuses.
        """
        try:
            return self._rendered(conversations, variables)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{self.setting} is not a Jinja template (line {error.lineno}: {line(error)})"
            ) from error
        except WindError:
            # the template is missing
            raise
        except REFUSALS:
            return [
                self._one(conversation, where(row), variables)
                for row, conversation in enumerate(conversations)
            ]

    def token_ids(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return `input_ids` of rendered texts, and `token_type_ids` if there are any."""
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return dict(encoded)

    def check(
        self, conversation: Conversation, ids: Sequence[int], where: str, **variables: Any
    ) -> None:
        """Raise InputError if `ids` are empty or start with two BOS.

        `ids` are those of `conversation`. If BOS is also EOS, the second may be the end of an empty
        first turn, such as a system message without text: rendering the template once more then
        tells which it is.
        """
        if not ids:
            raise InputError(f"{where} renders to no token at all: check {self.setting}")
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if not begins_with_two(bos, ids):
            return
        if bos == eos and not self._rendered([conversation], variables | {"bos_token": MARK})[
            0
        ].startswith(MARK * 2):
            return
        raise two_bos(self.tokenizer, where, f"the row or {self.setting}")

    def _one(self, conversation: Conversation, where: str, variables: Mapping[str, Any]) -> str:
        try:
            return self._rendered([conversation], variables)[0]
        except REFUSALS as error:
            raise InputError(
                f"{where} does not fit {self.setting}: {line(error)}; "
                "change the row or the template"
            ) from error

    def _rendered(
        self, conversations: Sequence[Conversation], variables: Mapping[str, Any]
    ) -> list[str]:
        context = {"strftime_now": self.date.strftime, **self.arguments, **variables}
        chats = [list(conversation) for conversation in conversations]
        rendered = self.tokenizer.apply_chat_template(
            chats, chat_template=self.text, tokenize=False, **context
        )
        return list(rendered)


def begins_with_two(bos: int | None, ids: Sequence[int]) -> bool:
    """Return True if the first two of `ids` are `bos`."""
    return bos is not None and list(ids[:2]) == [bos, bos]


def two_bos(tokenizer: Any, where: str, what: str) -> InputError:
    """Return the error for an input that starts with two BOS tokens.

    `what` can be edited to remove one.
    """
    return InputError(
        f"{where} begins with two BOS tokens ({tokenizer.bos_token}): take one out of {what}"
    )


def line(error: BaseException) -> str:
    """Return an exception's message in one line, or its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__
