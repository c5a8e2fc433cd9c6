"""A frozen copy of the policy that samples and scores.

Every rank has one of its own.

It is separate from the engine's model: sampling needs a key-value cache, no gradient checkpointing
and whole weights rather than partitions, and runs as often as this rank has prompts, whereas every
pass of the engine is collective. The price is a second set of weights in memory, in
`inference.dtype`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import polars as pl
import torch

from wind.errors import InputError, TrainingError
from wind.generations import Request, request_seed, response_text
from wind.generations.hf import TransformersSampler
from wind.logps import padded
from wind.models import deterministic, load_tokenizer, stop_token_ids
from wind.models.sequence_logps import SequenceLogps, verify_head
from wind.models.shared_prefixes import Group, batches
from wind.rollouts import RolloutsSpec
from wind.store.datasets import Store
from wind.training.batches import Rows
from wind.training.export import probe_logps
from wind.training.guards import culprit
from wind.training.policies import load_policy

DRAWN: Final[Mapping[str, Any]] = {
    "step": pl.Int32,
    "prompt_id": pl.String,
    "sample_index": pl.Int32,
    "drawn_from": pl.String,
    "response": pl.String,
    "response_token_ids": pl.List(pl.Int32),
    "finish_reason": pl.String,
    "seed": pl.Int64,
}


class FrozenPolicy:
    """A copy of the policy, loaded once and refilled with weights."""

    def __init__(self, spec: RolloutsSpec, store: Store, device: str) -> None:
        folder = store.path(spec.policy)
        self._spec = spec
        self._device = device
        self._model = (
            load_policy(folder, spec.inference.dtype, spec.inference.attention)
            .requires_grad_(False)
            .to(device)
        )
        verify_head(self._model)
        self._scorer = SequenceLogps(self._model)
        self._sampler = TransformersSampler(
            self._model, stop_token_ids(folder), spec.inference.batch_tokens
        )
        self._tokenizer = load_tokenizer(store, spec.policy)

    def fill(self, whole: Callable[[str], torch.Tensor]) -> None:
        """Copy in the weights that `whole` returns by name.

        Under ZeRO-3 every rank must call it.
        """
        with torch.no_grad():
            for name, weight in self._model.named_parameters():
                weight.copy_(whole(name))

    def draw(
        self, prompts: pl.DataFrame, drawn_from: str, samples: int, first_index: int = 0
    ) -> pl.DataFrame:
        """Sample `samples` responses to each of `prompts`.

        `prompts` has the columns step, prompt_id and prompt_token_ids, and the result those of
        DRAWN. `drawn_from` names the model whose weights are loaded, "policy" or "anchor";
        `first_index` is the first sample_index. Raises TrainingError, naming step and prompt, if
        the logits are not finite.
        """
        steps, prompt_ids, token_ids = (
            prompts[name].to_list() for name in ("step", "prompt_id", "prompt_token_ids")
        )
        seeds = [
            request_seed(self._spec.seed, self._spec.iteration, f"{drawn_from}/{step}", prompt_id)
            for step, prompt_id in zip(steps, prompt_ids, strict=True)
        ]
        requests = [Request(*request) for request in zip(prompt_ids, token_ids, seeds, strict=True)]
        sampling = self._spec.sampling.model_copy(update={"samples_per_prompt": samples})
        try:
            samples_P_N = self._sampler.sample(requests, sampling, lambda done, total: None)
        except InputError as error:
            raise TrainingError(
                f"no samples of the {drawn_from} for step {min(steps)}: {error}"
            ) from error
        rows = [
            (
                step,
                request.prompt_id,
                first_index + index,
                drawn_from,
                response_text(self._tokenizer, request.prompt_token_ids, sample),
                sample.token_ids,
                sample.finish_reason,
                request.seed + index,
            )
            for step, request, samples_N in zip(steps, requests, samples_P_N, strict=True)
            for index, sample in enumerate(samples_N)
        ]
        return pl.DataFrame(rows, DRAWN, orient="row")

    def score(self, rows: pl.DataFrame, *, was_trained: bool) -> pl.Series:
        """Return the log-probability of each of `rows`, in nats.

        `rows` has the columns step, prompt_id, prompt_token_ids and response_token_ids. Raises
        TrainingError, naming step and prompt, if a value is not finite; `was_trained` says whether
        optimizer steps have changed the weights.
        """
        prompts, responses = (
            rows["prompt_token_ids"].to_list(),
            rows["response_token_ids"].to_list(),
        )
        lengths = [
            len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)
        ]
        logps = torch.zeros(len(rows), dtype=torch.float64)
        with torch.inference_mode(), deterministic():
            # a rank has few rows of a prompt at a time
            alone = [Group((row,), 0) for row in range(len(lengths))]
            for batch in batches(lengths, alone, self._spec.inference.batch_tokens):
                kept = batch.rows
                tensors = padded([prompts[row] for row in kept], [responses[row] for row in kept])
                logps[kept] = self._scorer(*(tensor.to(self._device) for tensor in tensors)).cpu()
        if not logps.isfinite().all():
            step, prompt_id = rows.select("step", "prompt_id").row(
                int((~logps.isfinite()).nonzero()[0, 0])
            )
            raise TrainingError(
                f"a response to prompt {prompt_id} for step {step} has a log-probability that is "
                f"not finite: {culprit(was_trained, 'inference.dtype')}"
            )
        return pl.Series(logps.numpy())

    def probe(self, rows: Rows) -> list[float]:
        """Return the log-probabilities of the first groups of `rows`."""
        return probe_logps(self._scorer, rows, self._spec.training.micro_prompts, self._device)
