"""Texts with their special tokens, decoded from stored token ids."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from wind.errors import ConfigError, first_line
from wind.store.datasets import Store
from wind.store.handles import Model, folder_of, label

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Stretch(NamedTuple):
    """A special token, or the text between two."""

    text: str
    is_special: bool


def load_tokenizer(store: Store, model: Model) -> "Tokenizer":
    """Load the tokenizer of a stored model; its weights need not be there.

    Raises ConfigError if the model has no tokenizer.json that loads.
    """
    from tokenizers import Tokenizer

    name = f"{folder_of(model)}/tokenizer.json"
    if store.storage.size(name) is None:
        raise ConfigError(f"{label(model)} has no tokenizer.json to show tokens with")
    try:
        with store.storage.fetched(name) as path:
            return Tokenizer.from_file(str(path))
    # the library raises plain exceptions
    except Exception as error:
        raise ConfigError(f"the tokenizer of {label(model)}: {first_line(error)}") from error


def stretches(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[Stretch]:
    """Decode `ids` into special tokens and the texts between them.

    Bytes that are no UTF-8 become U+FFFD.
    """
    special = {
        number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
    }
    return [
        Stretch(tokenizer.decode([number], skip_special_tokens=False), True)
        if is_special
        else Stretch(tokenizer.decode(list(numbers), skip_special_tokens=False), False)
        for is_special, run in groupby(ids, special.__contains__)
        for number, numbers in (((each, [each]) for each in run) if is_special else [(0, run)])
    ]
