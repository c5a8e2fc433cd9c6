"""Batches of frozen models, in which what rows begin with in common is computed once.

The N responses to a prompt begin with the same tokens, and in a causal model nothing that follows
changes the states of a token. So the tokens that a group of rows shares run once and fill a cache
of keys and values; then each row of the group runs from there. A batch holds groups that share
about as many tokens, cut to the shortest among them: positions count from zero, no row has padding
in front or inside, and no attention mask is needed.

Batches run with the one that takes most memory first, so that memory runs out at once or not at
all. If it does, the batches that are left are made half as large.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from transformers import DynamicCache

from wind.errors import StageError, first_line
from wind.machine.terminal import complain
from wind.models.memory import is_out_of_memory, release

# Fewer tokens in common are computed again: a pass of its own costs more.
LEAST_SHARED: Final = 16
# the share of a batch's tokens that may be computed again where prefixes are cut to one length
CUT_SHARE: Final = 1 / 16
# A pass ends where rows are this much shorter than its longest, if it has enough tokens already.
LENGTH_RATIO: Final = 0.8
PASS_TOKENS: Final = {"cpu": 512, "cuda": 8192}
# A CPU is fastest on batches that fit its caches, however much memory there is.
CPU_BATCH_TOKENS: Final = 2048
# relative to the size of the states of a probe
STATE_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-4}
LOW_PRECISION_TOLERANCE: Final = 0.05

_said: set[str] = set()
# the largest batch that memory had room for, by owner and limit
_fitting: dict[tuple[str, int], int] = {}


@dataclass(frozen=True)
class Group:
    """Numbers of rows whose first `shared` tokens are the same, with at least one left in each."""

    rows: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Batch:
    """Groups of rows that run together, each from its first `shared` tokens on."""

    groups: tuple[tuple[int, ...], ...]
    shared: int

    @property
    def rows(self) -> list[int]:
        """Numbers of all rows."""
        return [row for group in self.groups for row in group]

    def padded(self, lengths: Sequence[int]) -> int:
        """Return the tokens of all rows if each were as long as the longest."""
        return len(self.rows) * max(lengths[row] for row in self.rows)


class Forward(Protocol):
    """Runs rows through a model from one of their tokens on."""

    def __call__(self, rows: list[int], start: int, past: Mapping[str, Any]) -> list[float]:
        """Return a number for each of `rows`, which run from their token `start` on.

        `past` holds arguments of the model: a cache of what comes before, if there is anything.
        """


def batches(
    lengths: Sequence[int], groups: Sequence[Group], batch_tokens: int, target: int | None = None
) -> list[Batch]:
    """Return the rows of `groups` in batches of at most `batch_tokens` padded tokens.

    `lengths` holds the tokens of each row, by its number. A row longer than that runs alone. Groups
    are added to a batch up to `target` tokens, `batch_tokens` if it is None. The batch that takes
    most memory comes first.
    """
    target = min(batch_tokens, target or batch_tokens)
    made: list[list[Group]] = []
    for part in _parts(lengths, groups, batch_tokens):
        if not made or not _fits([*made[-1], part], lengths, target):
            made.append([])
        made[-1].append(part)
    joined = [
        Batch(tuple(part.rows for part in parts), min(part.shared for part in parts))
        for parts in made
    ]
    return sorted(joined, key=lambda batch: -batch.padded(lengths))


def _parts(lengths: Sequence[int], groups: Sequence[Group], batch_tokens: int) -> list[Group]:
    """Return groups no larger than a batch, those that share most first, then the longest."""
    parts = []
    for group in groups:
        rows = sorted(group.rows, key=lambda row: (-lengths[row], row))
        shares = group.shared >= LEAST_SHARED
        size = max(1, batch_tokens // lengths[rows[0]]) if shares else 1
        for start in range(0, len(rows), size):
            part = tuple(rows[start : start + size])
            parts.append(Group(part, group.shared if len(part) > 1 else 0))
    return sorted(parts, key=lambda part: (-part.shared, -lengths[part.rows[0]], part.rows[0]))


def _fits(parts: Sequence[Group], lengths: Sequence[int], target: int) -> bool:
    """Return True if `parts` are a batch: small enough, with little computed twice."""
    shared = parts[-1].shared
    rows = [row for part in parts for row in part.rows]
    own = sum(lengths[row] - shared for row in rows)
    again = sum((part.shared - shared) * (len(part.rows) - 1) for part in parts)
    if (shared == 0) != (parts[0].shared == 0) or again > CUT_SHARE * (own + shared * len(parts)):
        return False
    return len(rows) * max(lengths[row] for row in rows) <= target


def passes(
    batch: Batch, lengths: Sequence[int], pass_tokens: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the rows of `batch` in passes of similar lengths, longest first.

    Each row comes with the number of its group in the batch. A pass has at least `pass_tokens`
    tokens if its rows are not similar.
    """
    members = [(row, number) for number, group in enumerate(batch.groups) for row in group]
    members.sort(key=lambda member: (-lengths[member[0]], member[0]))
    made: list[tuple[int, int]] = []
    for member in members:
        own = lengths[member[0]] - batch.shared
        longest = lengths[made[0][0]] - batch.shared if made else own
        if len(made) * longest >= pass_tokens and own < LENGTH_RATIO * longest:
            yield made
            made = []
        made.append(member)
    yield made


class SharedPrefixes:
    """A frozen model, called `name` in messages, and whether its rows can share what they begin
    with.

    `decoder` is the part of `model` that returns states. The name of a family does not tell: a
    small probe must give the same states with a cache as without one. Otherwise every row is
    computed as a whole; `why_not` says why.
    """

    def __init__(self, name: str, model: Any, decoder: Any) -> None:
        self.name = name
        self._decoder = decoder
        self.why_not = _why_not(model, decoder)

    def outputs(
        self,
        rows: Sequence[Sequence[int]],
        groups: Sequence[Group],
        batch_tokens: int,
        forward: Forward,
        progress: Callable[[int], None],
    ) -> list[float]:
        """Return what `forward` gives for each of `rows`, token ids that belong to `groups`.

        `progress` hears how many rows are done. If memory runs out, what is left goes on in batches
        of half the size, and a line says so. Raises StageError if a single row does not fit.
        """
        if self.why_not is not None:
            self._say_why_not(groups)
            groups = [Group(group.rows, 0) for group in groups]
        lengths = [len(row) for row in rows]
        limit = _fitting.get((self.name, batch_tokens), batch_tokens)
        values = [float("nan")] * len(rows)
        todo = self._batches(lengths, groups, limit)
        done = 0
        while todo:
            given = self._attempt(rows, lengths, todo[0], forward)
            if given is None:
                limit = self._halved(todo[0], lengths)
                _fitting[self.name, batch_tokens] = limit
                left = {row for batch in todo for row in batch.rows}
                groups = [
                    Group(kept, group.shared)
                    for group in groups
                    if (kept := tuple(row for row in group.rows if row in left))
                ]
                todo = self._batches(lengths, groups, limit)
                continue
            for row, value in given.items():
                values[row] = value
            done += len(given)
            progress(done)
            todo = todo[1:]
        return values

    def _batches(self, lengths: Sequence[int], groups: Sequence[Group], limit: int) -> list[Batch]:
        on_cpu = self._decoder.device.type == "cpu"
        return batches(lengths, groups, limit, CPU_BATCH_TOKENS if on_cpu else None)

    def _attempt(
        self,
        rows: Sequence[Sequence[int]],
        lengths: Sequence[int],
        batch: Batch,
        forward: Forward,
    ) -> dict[int, float] | None:
        """Return the output of each row of `batch`, or None if memory runs out."""
        try:
            return self._run(rows, lengths, batch, forward)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # only here, once the exception no longer holds the tensors of the pass
        release()
        return None

    def _run(
        self,
        rows: Sequence[Sequence[int]],
        lengths: Sequence[int],
        batch: Batch,
        forward: Forward,
    ) -> dict[int, float]:
        cache = None
        if batch.shared:
            prefixes = [rows[group[0]][: batch.shared] for group in batch.groups]
            cache = prefilled(self._decoder, torch.tensor(prefixes, device=self._decoder.device))
        values: dict[int, float] = {}
        for members in passes(batch, lengths, PASS_TOKENS[self._decoder.device.type]):
            numbers = [row for row, _ in members]
            past = {} if cache is None else past_of(cache, [group for _, group in members])
            values |= zip(numbers, forward(numbers, batch.shared, past), strict=True)
        return values

    def _halved(self, batch: Batch, lengths: Sequence[int]) -> int:
        """Return half the tokens of `batch`, and say so."""
        count, longest = len(batch.rows), max(lengths[row] for row in batch.rows)
        if count == 1:
            raise StageError(
                f"{self.name} runs out of memory on a single row of {longest} tokens: "
                "lower prompts.max_prompt_tokens or sampling.max_new_tokens, set the dtype to "
                "bfloat16, or use a device with more memory"
            )
        limit = count * longest // 2
        complain(
            f"{self.name} ran out of memory on {count} rows of up to {longest} tokens: "
            f"going on with batches of at most {limit} tokens"
        )
        return limit

    def _say_why_not(self, groups: Sequence[Group]) -> None:
        line = f"{self.name} computes a prompt anew for each of its responses: {self.why_not}"
        is_wanted = any(len(group.rows) > 1 and group.shared >= LEAST_SHARED for group in groups)
        if is_wanted and line not in _said:
            _said.add(line)
            complain(line)


def prefilled(decoder: Any, ids_G_S: torch.Tensor) -> DynamicCache:
    """Return the cache of `decoder` after the tokens `ids_G_S`."""
    cache = DynamicCache(config=decoder.config)
    decoder(input_ids=ids_G_S, past_key_values=cache, use_cache=True)
    return cache


def past_of(cache: DynamicCache, groups: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a model that continue `cache`, for rows of these groups.

    The cache itself is left as it is.
    """
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]
    part.reorder_cache(torch.tensor(groups))
    return {"past_key_values": part, "use_cache": True}


@torch.no_grad()
def _why_not(model: Any, decoder: Any) -> str | None:
    """Return why rows of `model` cannot share a prefix, or None if they can."""
    for module in (model, decoder):
        if "past_key_values" not in inspect.signature(module.forward).parameters:
            return f"{type(module).__name__} takes no cache of keys and values"
    if getattr(model, "_is_stateful", False):
        return f"{type(model).__name__} keeps a state besides keys and values"
    try:
        difference = _difference(decoder)
    # a family may take a cache and fail in it in ways of its own
    except Exception as error:
        return f"a probe fails: {first_line(error)}"
    if difference is None:
        # A diverged model is reported where its numbers are used.
        return "its states are not finite"
    if difference > STATE_TOLERANCE.get(decoder.dtype, LOW_PRECISION_TOLERANCE):
        return f"states of a probe differ by {difference:.2g} of their size"
    return None


def _difference(decoder: Any) -> float | None:
    """Return how much shared prefixes change the states of a probe, relative to their size.

    Two groups run in two passes, after prefixes of 9 tokens, whose own states must not hang on what
    follows. None if the states are not finite.
    """
    vocabulary = decoder.get_input_embeddings().num_embeddings
    device = decoder.device
    ids_B_T = (torch.arange(64, device=device).reshape(4, 16) * 37 + 3) % vocabulary
    ids_B_T[1, :9], ids_B_T[3, :9] = ids_B_T[0, :9], ids_B_T[2, :9]
    whole = decoder(input_ids=ids_B_T, use_cache=False).last_hidden_state.float()
    apart = torch.empty_like(whole)
    apart[:, :9] = decoder(input_ids=ids_B_T[:, :9], use_cache=False).last_hidden_state.float()
    cache = prefilled(decoder, ids_B_T[::2, :9])
    for rows in ([3, 0], [1, 2]):
        past = past_of(cache, [row // 2 for row in rows])
        apart[rows, 9:] = decoder(input_ids=ids_B_T[rows, 9:], **past).last_hidden_state.float()
    if not whole.isfinite().all():
        return None
    return float((apart - whole).norm() / whole.norm())
