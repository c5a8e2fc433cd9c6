"""Chat templates: how a conversation becomes a text, and the token ids of that text.

The template's word is law. The ids are exactly those of
`tokenizer.apply_chat_template(conversation, tokenize=True)`, with the same arguments: nothing is
put in front and nothing is counted. Only two BOS tokens at the very start are refused, which no
model was trained on. What a template is told beside the conversation is a date, because with
today's the same conversation would be another text tomorrow, and the arguments of the config.
"""

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from wind.errors import ConfigError, InputError, WindError

Conversation = Sequence[Mapping[str, Any]]
Where = Callable[[int], str]  # how conversation number i is named in messages

# What running a template can raise: its own refusals, and what Python's operators raise on values
# that it did not expect.
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
    """The template of a tokenizer, or Jinja text in its place; `setting` and `owner` are its names
    in messages.

    `source` is "chat" for the tokenizer's own (of several, the one named `default`), or the text of
    a Jinja template.
    """

    tokenizer: Any
    source: str
    date: datetime.date
    arguments: Mapping[str, Any] = field(default_factory=dict)
    setting: str = "prompts.template"
    owner: str = "the tokenizer"

    @functools.cached_property
    def text(self) -> str:
        """The Jinja text. Raises ConfigError if the tokenizer has none of its own and none is
        given.
        """
        if self.source != "chat":
            return self.source
        own = self.tokenizer.chat_template
        named = own if isinstance(own, dict) else {"default": own}
        if not named.get("default"):
            has = f" named default, only {', '.join(named)}" if isinstance(own, dict) else ""
            raise ConfigError(
                f'{self.owner} has no chat template{has}: set {self.setting} to a Jinja file or to "none"'
            )
        return str(named["default"])

    def texts(
        self, conversations: Sequence[Conversation], where: Where, **variables: Any
    ) -> list[str]:
        """Every conversation as text; `variables` are for the template, beside those of the config.

        Raises ConfigError for what is no Jinja template, and InputError naming the first
        conversation that it refuses.
        """
        try:
            return self._rendered(conversations, variables)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{self.setting} is not a Jinja template (line {error.lineno}: {line(error)})"
            ) from error
        except WindError:
            raise  # it is missing
        except REFUSALS:
            return [
                self._one(conversation, where(row), variables)
                for row, conversation in enumerate(conversations)
            ]

    def token_ids(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """`input_ids`, and `token_type_ids` where the tokenizer has them, of texts that the
        template has made.
        """
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return dict(encoded)

    def check(
        self, conversation: Conversation, ids: Sequence[int], where: str, **variables: Any
    ) -> None:
        """Raise InputError if `ids`, those of `conversation`, are none or begin with BOS twice.

        Where BOS is EOS too, the second may be the end of an empty first turn, such as a system
        message without text: then the template is asked which it is.
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
                f"{where} does not fit {self.setting}: {line(error)}; change the row or the template"
            ) from error

    def _rendered(
        self, conversations: Sequence[Conversation], variables: Mapping[str, Any]
    ) -> list[str]:
        told = {"strftime_now": self.date.strftime, **self.arguments, **variables}
        chats = [list(conversation) for conversation in conversations]
        rendered = self.tokenizer.apply_chat_template(
            chats, chat_template=self.text, tokenize=False, **told
        )
        return list(rendered)


def begins_with_two(bos: int | None, ids: Sequence[int]) -> bool:
    """True if the first two of `ids` are `bos`."""
    return bos is not None and list(ids[:2]) == [bos, bos]


def two_bos(tokenizer: Any, where: str, what: str) -> InputError:
    """The refusal of an input whose first two tokens are BOS; `what` can be edited to take one out."""
    return InputError(
        f"{where} begins with two BOS tokens ({tokenizer.bos_token}): take one out of {what}"
    )


def line(error: BaseException) -> str:
    """An exception's message in one line, or its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
