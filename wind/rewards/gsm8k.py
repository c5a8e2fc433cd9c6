"""Exact match on GSM8K (arXiv 2110.14168), for `reward.function` and `evaluation.match`.

The gold answer is the number after `####`, the response's answer its last number. Numbers are
compared as numbers: 1,200 is 1200.00, currency signs and a percent sign do not count, and a minus
is a sign unless a number, word or bracket stands before it.
"""

import re
from decimal import Decimal
from typing import Final

NUMBER: Final = re.compile(r"(?:(?<![\w)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
SPELLING: Final = str.maketrans({"\N{MINUS SIGN}": "-", "$": None, "£": None, "€": None})


def exact_match(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    """Return 1 for each response with the right last number, else 0.

    The right number is that of the gold answer. A response without a number is wrong. Raises
    ValueError for a gold answer without a number.
    """
    return [
        float(last_number(response) == _gold(answer))
        for response, answer in zip(responses, answers, strict=True)
    ]


def last_number(text: str) -> Decimal | None:
    """Return the last number in `text`, None if there is none."""
    numbers = NUMBER.findall(text.translate(SPELLING))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _gold(answer: str | None) -> Decimal:
    number = last_number((answer or "").rpartition("####")[2])
    if number is None:
        raise ValueError(
            f"the gold answer {answer!r} has no number after ####: set prompts.answer_field"
        )
    return number
