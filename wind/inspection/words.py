"""Word by word differences between two texts."""

import re
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple

WORD: Final = re.compile(r"\w+|\s+|[^\w\s]")
# More words than these on each side, beyond what is equal at both ends, are not compared: the time
# that it takes grows with their product.
MOST: Final = 4000


class Part(NamedTuple):
    """A stretch of text that both have, or that only one of them has."""

    sign: Literal["=", "-", "+"]
    text: str


def difference(before: str, after: str) -> list[Part]:
    """Return the parts of both texts, in order, removed words before added ones.

    Without those that were added it is `before`, without those that were removed `after`.
    """
    old, new = WORD.findall(before), WORD.findall(after)
    head = _equal(old, new)
    tail = _equal(old[head:][::-1], new[head:][::-1])
    parts = [Part("=", "".join(old[:head]))]
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(middle_old), len(middle_new)) > MOST:
        parts += [Part("-", "".join(middle_old)), Part("+", "".join(middle_new))]
    else:
        codes = SequenceMatcher(None, middle_old, middle_new, autojunk=True).get_opcodes()
        for _, a, b, c, d in codes:
            removed, added = "".join(middle_old[a:b]), "".join(middle_new[c:d])
            parts += (
                [Part("=", removed)] if removed == added else [Part("-", removed), Part("+", added)]
            )
    parts.append(Part("=", "".join(old[len(old) - tail :])))
    return [part for part in parts if part.text]


def lengths(parts: list[Part]) -> list[tuple[str, int]]:
    """Return the parts with lengths in UTF-16 code units, as a page counts, instead of texts."""
    return [(sign, len(text.encode("utf-16-le", "surrogatepass")) // 2) for sign, text in parts]


def _equal(one: list[str], other: list[str]) -> int:
    """Return how many words at the beginning are equal."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
