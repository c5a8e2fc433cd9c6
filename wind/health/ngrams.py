"""Repetition within a response, and likeness to its siblings, both by n-grams.

Neither compares pairs of responses: each n-gram gets a number, and what is left is sorting, so the
cost is T log T in the T tokens of all responses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ORDER: Final = 4
# In place of a count of no matching n-grams: method 1 of Chen and Cherry (WMT 2014, W14-3346).
SMOOTHING: Final = 0.1


def repetition(token_ids: pl.Series) -> pl.Series:
    """Return each response's share of 4-grams of tokens that it had before.

    It is 1 minus distinct by all 4-grams (seq-rep-4 of Welleck et al., arXiv 1908.04319), and 0 for
    a response of fewer than four tokens. `token_ids` has a list of each response's tokens.
    """
    texts = _Texts.of(token_ids)
    *_, (grams, rows) = texts.orders()
    distinct = np.unique(rows * (grams.max(initial=0) + 1) + grams)
    counts = np.bincount(distinct // (grams.max(initial=0) + 1), minlength=len(texts.lengths))
    repeated = 1 - counts / np.maximum(texts.totals(ORDER), 1)
    return pl.Series(np.where(texts.totals(ORDER) > 0, repeated, 0.0), dtype=pl.Float64)


def self_bleu(prompts: pl.Series, responses: pl.Series) -> pl.Series:
    """Return the BLEU-4 of each response against its siblings, in [0, 1].

    Self-BLEU (Zhu et al., arXiv 1802.01886) within each prompt: the higher, the less diverse. The
    siblings, all other responses with the same value in `prompts`, are the references. Words are
    separated by white space. A response shorter than four words is judged by the orders it has, and
    an order without a match counts as 0.1 matches (sacreBLEU's `effective_order` and `floor`); one
    that shares no word with a sibling has 0. Null for a response without words or siblings.
    """
    words = responses.str.extract_all(r"\S+")
    texts = _Texts.of(words)
    prompt_of = prompts.rank("dense").to_numpy().astype(np.int64) - 1
    lengths, closest = texts.lengths, _closest_lengths(prompt_of, texts.lengths)
    log_sum, orders = np.zeros(len(lengths)), np.zeros(len(lengths))
    is_matched = np.zeros(len(lengths), dtype=bool)
    for order, (grams, rows) in enumerate(texts.orders(), start=1):
        matches, totals = _matches(prompt_of, grams, rows), texts.totals(order)
        has_order = totals > 0
        precisions = np.where(matches > 0, matches, SMOOTHING) / np.maximum(totals, 1)
        log_sum += np.where(has_order, np.log(precisions), 0.0)
        orders += has_order
        is_matched |= matches > 0
    penalty = np.minimum(1 - closest / np.maximum(lengths, 1), 0.0)
    scores = np.where(is_matched, np.exp(log_sum / np.maximum(orders, 1) + penalty), 0.0)
    is_defined = (lengths > 0) & (np.bincount(prompt_of)[prompt_of] > 1)
    return pl.Series(scores.clip(max=1.0)).set(pl.Series(~is_defined), None)


@dataclass(frozen=True)
class _Texts:
    """Responses as one row of tokens, each a number."""

    tokens: Ints  # of all responses, one after the other, 0 .. V-1
    row_of: Ints  # the response of each token
    left: Ints  # tokens from each one to the end of its response
    lengths: Ints  # of each response

    @classmethod
    def of(cls, tokens: pl.Series) -> "_Texts":
        """Number the tokens in lists of anything that can be sorted."""
        lengths = tokens.list.len().to_numpy().astype(np.int64)
        flat = tokens.explode(empty_as_null=False).rank("dense").to_numpy().astype(np.int64) - 1
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))
        return cls(flat, row_of, left, lengths)

    def totals(self, order: int) -> Ints:
        """Count the n-grams of each response."""
        return np.maximum(self.lengths - order + 1, 0)

    def orders(self) -> Iterator[tuple[Ints, Ints]]:
        """Yield the n-grams of each order up to 4: their numbers, and their responses.

        Equal n-grams have equal numbers, whichever response they are in.
        """
        numbers = self.tokens
        known = int(self.tokens.max(initial=0)) + 1
        for order in range(1, ORDER + 1):
            starts = np.flatnonzero(self.left >= order)
            if order > 1:
                longer = numbers[starts] * known + self.tokens[starts + order - 1]
                numbers = np.zeros_like(self.tokens)
                numbers[starts] = np.unique(longer, return_inverse=True)[1]
            yield numbers[starts], self.row_of[starts]


def _matches(prompt_of: Ints, grams: Ints, rows: Ints) -> Ints:
    """Count each response's n-grams that a sibling has, too.

    An n-gram counts at most as often as the sibling that has it most often does.
    """
    size = len(prompt_of)
    if not len(grams):
        return np.zeros(size, dtype=np.int64)
    shared = np.unique(prompt_of[rows] * (grams.max() + 1) + grams, return_inverse=True)[1]
    pairs, counts = np.unique(shared * size + rows, return_counts=True)
    gram, row = pairs // size, pairs % size
    # By falling count: the first has the most, and the second the most of its siblings.
    order = np.lexsort((-counts, gram))
    gram, row, counts = gram[order], row[order], counts[order]
    is_first = np.append(True, gram[1:] != gram[:-1])
    first = np.flatnonzero(is_first)
    most = counts[first][gram]
    is_last = np.append(is_first[1:], True)
    second = np.where(is_last[first], 0, np.append(counts[1:], 0)[first])[gram]
    clipped = np.minimum(counts, np.where(is_first, second, most))
    return np.bincount(row, weights=clipped, minlength=size).astype(np.int64)


def _closest_lengths(prompt_of: Ints, lengths: Ints) -> Ints:
    """Return the length of each response's sibling that is closest in length.

    Of two that are, it is the shorter; 0 without siblings.
    """
    order = np.lexsort((lengths, prompt_of))
    prompts, sorted_lengths = prompt_of[order], lengths[order]
    far = np.iinfo(np.int64).max // 4
    is_next = np.append(prompts[1:] == prompts[:-1], False)
    above = np.where(is_next, np.append(sorted_lengths[1:], 0), far)
    below = np.where(np.append(False, is_next[:-1]), np.append(0, sorted_lengths[:-1]), -far)
    is_below = sorted_lengths - below <= above - sorted_lengths
    closest = np.where(is_below, below, above)
    result = np.empty_like(lengths)
    result[order] = np.where(np.abs(closest) == far, 0, closest)
    return result
