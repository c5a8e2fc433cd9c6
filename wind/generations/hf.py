"""Sampling with transformers, for CPUs and models that vLLM lacks.

A batched loop with a key-value cache replaces `generate`: every response draws from its own random
generator, so that its tokens do not depend on its neighbors. Each prompt is prefilled once, and its
cache copied to its N samples; rows that have ended leave the batch. Batches are formed by length
within the shard, the same way every time.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from wind.config.sampling import SamplingConfig
from wind.errors import InputError
from wind.generations import Request, Sample, not_finite
from wind.models import deterministic
from wind.models.sequence_logps import position_ids
from wind.stages import Progress

# ended rows are dropped once at most this share of the batch is still running
COMPACT_SHARE = 0.75
# decoding steps between two reports of progress
PROGRESS_STEPS = 16


@dataclass(frozen=True)
class Part:
    """Samples `start` to `stop` of request number `request`, all in one batch."""

    request: int
    start: int
    stop: int


class TransformersSampler:
    """A policy loaded with transformers.

    `batch_tokens` bounds the padded tokens, prompts and responses, of one batch. Raises InputError
    for an architecture that does not keep its state in a cache of transformers (RWKV,
    RecurrentGemma).
    """

    def __init__(self, model: Any, stop_token_ids: Sequence[int], batch_tokens: int) -> None:
        self._model = _Cached(model)
        self._stop = stop_token_ids
        self._batch_tokens = batch_tokens

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Progress,
        ahead: Sequence[Sequence[Request]] = (),
    ) -> list[list[Sample]]:
        """Return N samples of each request, in the order of `requests`.

        The unit of progress is one decoding step of one batch. Nothing is begun ahead.
        """
        lengths = [len(request.prompt_token_ids) for request in requests]
        batches = list(
            batched(lengths, sampling, self._batch_tokens, equal=self._model.is_recurrent)
        )
        found: dict[tuple[int, int], Sample] = {}
        total = len(batches) * sampling.max_new_tokens
        with torch.inference_mode(), deterministic():
            for number, parts in enumerate(batches):
                before = number * sampling.max_new_tokens
                keys = [
                    (part.request, index)
                    for part in parts
                    for index in range(part.start, part.stop)
                ]
                batch = _Batch(
                    self._model,
                    self._stop,
                    sampling,
                    [requests[part.request] for part in parts],
                    parts,
                )
                for step in range(sampling.max_new_tokens):
                    if not batch.step():
                        break
                    if step % PROGRESS_STEPS == 0:
                        progress(before + step, total)
                found.update(zip(keys, batch.samples(), strict=True))
                progress(before + sampling.max_new_tokens, total)
        return [
            [found[request, index] for index in range(sampling.samples_per_prompt)]
            for request in range(len(requests))
        ]


def batched(
    lengths: Sequence[int], sampling: SamplingConfig, batch_tokens: int, *, equal: bool = False
) -> Iterator[list[Part]]:
    """Yield batches of parts, longest prompts first.

    A batch has at most `batch_tokens` padded tokens. With `equal`, the prompts of a batch have the
    same length. A prompt's samples stay together unless they alone exceed the limit; a single
    sample that exceeds it runs by itself.
    """
    pending: list[Part] = []
    order = sorted(range(len(lengths)), key=lambda request: (-lengths[request], request))
    room = rows = 0
    for request in order:
        start = 0
        if equal and pending and lengths[pending[0].request] != lengths[request]:
            yield pending
            pending = []
        while start < sampling.samples_per_prompt:
            if not pending:
                # the first prompt is the longest: it sets the padded length
                rows = room = max(1, batch_tokens // (lengths[request] + sampling.max_new_tokens))
            left = sampling.samples_per_prompt - start
            if left > room and pending:
                yield pending
                pending = []
                continue
            taken = min(left, rows)
            pending.append(Part(request, start, start + taken))
            start += taken
            room -= taken
    if pending:
        yield pending


class _Cached:
    """A model that runs token by token with a cache.

    A recurrent layer (Mamba, and hybrids with attention) would absorb the padding in front of a
    prompt into its state. Batches of such a model have no padding, and need no mask.
    """

    def __init__(self, model: Any) -> None:
        names = inspect.signature(model.forward).parameters
        found = [name for name in ("past_key_values", "cache_params") if name in names]
        self._model = model
        self.device = model.device
        self.is_recurrent = bool(found) and any(
            isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.new_cache().layers
        )
        # A model that keeps state in its own modules would silently continue with that of other
        # rows.
        if not found or (getattr(model, "_is_stateful", False) and not self.is_recurrent):
            raise InputError(
                f"{type(model).__name__} keeps its state in no cache of transformers': "
                "sample it with vllm"
            )
        self._cache_name = found[0]

    def new_cache(self) -> DynamicCache:
        """Return an empty cache."""
        return DynamicCache(config=self._model.config)

    def logits(
        self,
        cache: DynamicCache,
        ids_B_T: torch.Tensor,
        mask_B_T: torch.Tensor,
        positions_B_T: torch.Tensor,
    ) -> torch.Tensor:
        """Return the logits of each row's last token, `[B, vocabulary]`.

        The cache grows by the given tokens.
        """
        outputs = self._model(
            input_ids=ids_B_T,
            attention_mask=None if self.is_recurrent else mask_B_T,
            position_ids=positions_B_T,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
        )
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits


class _Batch:
    """The state of one batch.

    The running rows, their cache, and what every row has drawn so far.
    """

    def __init__(
        self,
        model: _Cached,
        stop: Sequence[int],
        sampling: SamplingConfig,
        requests: Sequence[Request],
        parts: Sequence[Part],
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._requests = requests
        self._device = model.device
        self._stop = torch.tensor(stop, device=self._device)
        counts = torch.tensor([part.stop - part.start for part in parts], device=self._device)
        self._prompt_of_row = torch.arange(len(parts), device=self._device).repeat_interleave(
            counts
        )
        # the running rows, by original number
        self._rows = torch.arange(len(self._prompt_of_row), device=self._device)
        seeds = [
            request.seed + index
            for request, part in zip(requests, parts, strict=True)
            for index in range(part.start, part.stop)
        ]
        self._uniforms_B_T = torch.from_numpy(uniforms(seeds, sampling.max_new_tokens)).to(
            self._device
        )
        self._tokens_B_T = torch.zeros(
            self._uniforms_B_T.shape, dtype=torch.long, device=self._device
        )
        self._lengths = torch.zeros(len(seeds), dtype=torch.long, device=self._device)
        self._logps = torch.zeros(len(seeds), dtype=torch.float64, device=self._device)
        self._ended = torch.zeros(len(seeds), dtype=torch.bool, device=self._device)
        self._step = 0
        self._prefill()

    def step(self) -> bool:
        """Draw one token for every running row.

        Returns whether any row is left to run.
        """
        uniform = self._uniforms_B_T[self._rows, self._step]
        tokens, logps, is_finite = draw(self._logits, uniform, self._sampling)
        running = ~self._ended[self._rows]
        if not bool((is_finite | ~running).all()):
            row = int(self._rows[(~is_finite & running).nonzero()[0, 0]])
            raise not_finite(self._requests[int(self._prompt_of_row[row])])
        self._tokens_B_T[self._rows, self._step] = tokens
        self._logps[self._rows] += torch.where(running, logps, 0.0)
        self._lengths[self._rows] += running
        self._ended[self._rows] |= torch.isin(tokens, self._stop)
        self._step += 1
        if self._step == self._sampling.max_new_tokens or bool(self._ended[self._rows].all()):
            return False
        self._compact(tokens)
        return True

    def samples(self) -> list[Sample]:
        """Return what every row has drawn, in the order of the parts."""
        tokens, lengths = self._tokens_B_T.tolist(), self._lengths.tolist()
        ended, logps = self._ended.tolist(), self._logps.tolist()
        return [
            Sample(row[:length], logp, "stop" if is_stopped else "length")
            for row, length, logp, is_stopped in zip(tokens, lengths, logps, ended, strict=True)
        ]

    def _prefill(self) -> None:
        """Run every prompt once, for all its samples.

        Prompts are padded on the left; cache and logits are copied to the samples.
        """
        width = max(len(request.prompt_token_ids) for request in self._requests)
        ids = np.zeros((len(self._requests), width), dtype=np.int64)
        mask = np.zeros((len(self._requests), width), dtype=np.int64)
        for row, request in enumerate(self._requests):
            ids[row, width - len(request.prompt_token_ids) :] = request.prompt_token_ids
            mask[row, width - len(request.prompt_token_ids) :] = 1
        self._cache = self._model.new_cache()
        mask_P_T = torch.from_numpy(mask).to(self._device)
        # of the token drawn next
        self._positions = mask_P_T.sum(1)[self._prompt_of_row]
        logits = self._model.logits(
            self._cache, torch.from_numpy(ids).to(self._device), mask_P_T, position_ids(mask_P_T)
        )
        self._cache.reorder_cache(self._prompt_of_row)
        self._mask_B_T = mask_P_T[self._prompt_of_row]
        self._logits = logits[self._prompt_of_row]

    def _compact(self, tokens: torch.Tensor) -> None:
        """Drop ended rows if many have ended; advance the rest."""
        running = ~self._ended[self._rows]
        if int(running.sum()) <= COMPACT_SHARE * len(self._rows):
            kept = running.nonzero().squeeze(1)
            self._rows, tokens = self._rows[kept], tokens[kept]
            self._positions, self._mask_B_T = self._positions[kept], self._mask_B_T[kept]
            self._cache.reorder_cache(kept)
        self._mask_B_T = torch.nn.functional.pad(self._mask_B_T, (0, 1), value=1)
        self._logits = self._model.logits(
            self._cache, tokens[:, None], self._mask_B_T, self._positions[:, None]
        )
        self._positions = self._positions + 1


def uniforms(seeds: Sequence[int], steps: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return `steps` numbers in [0, 1) for each seed, `[B, steps]`.

    They are the only randomness of a response, and the same on every device.
    """
    return np.stack(
        [np.random.Generator(np.random.Philox(key=seed)).random(steps) for seed in seeds]
    )


def draw(
    logits_B_V: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one token per row by the inverse CDF.

    It is taken in vocabulary order and float64. The distribution has temperature applied, then
    top-k, then top-p. `logits_B_V` is `[B, V]`, `uniform_B` `[B]` in [0, 1). Returns three `[B]`:
    the tokens, their log-probabilities in nats under the unfiltered distribution at temperature 1,
    and whether the logits were finite.
    """
    logits_B_V = logits_B_V.double()
    logits_B_V = logits_B_V - logits_B_V.amax(dim=1, keepdim=True)
    weights_B_V = logits_B_V.exp()
    raw_total_B = weights_B_V.sum(dim=1)
    if sampling.temperature != 1 or sampling.top_k or sampling.top_p < 1:
        weights_B_V = filtered_weights(
            logits_B_V / sampling.temperature, sampling.top_k, sampling.top_p
        )
    cdf_B_V = weights_B_V.cumsum(dim=1)
    total_B = cdf_B_V[:, -1]
    # Strictly below the total, so that a token of weight 0 at the end can never be hit.
    target_B = torch.minimum(
        uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B))
    )
    tokens_B = (
        torch.searchsorted(cdf_B_V, target_B[:, None], right=True)
        .squeeze(1)
        .clamp(max=cdf_B_V.shape[1] - 1)
    )
    logps_B = logits_B_V.gather(1, tokens_B[:, None]).squeeze(1) - raw_total_B.log()
    return tokens_B, logps_B, torch.isfinite(raw_total_B)


def filtered_weights(logits_B_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Return unnormalized probabilities `[B, V]` after top-k and then top-p filtering.

    They are 0 outside the top-k and, among those, outside the smallest set of mass `top_p`. Tokens
    tied with the k-th are kept, as in vLLM; in the nucleus, ties go to the lower token id.
    """
    weights_B_V = (logits_B_V - logits_B_V.amax(dim=1, keepdim=True)).exp()
    if 0 < top_k < weights_B_V.shape[1]:
        kth_B = weights_B_V.topk(top_k, dim=1).values[:, -1:]
        weights_B_V = weights_B_V.where(weights_B_V >= kth_B, 0.0)
    if top_p < 1:
        sorted_B_V, order_B_V = weights_B_V.sort(dim=1, descending=True, stable=True)
        # mass of the tokens ahead of each
        before_B_V = sorted_B_V.cumsum(dim=1) - sorted_B_V
        is_kept_B_V = before_B_V < top_p * sorted_B_V.sum(dim=1, keepdim=True)
        weights_B_V = weights_B_V.where(
            torch.zeros_like(is_kept_B_V).scatter(1, order_B_V, is_kept_B_V), 0.0
        )
    return weights_B_V
