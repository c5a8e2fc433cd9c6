"""Log-probabilities of whole responses under a causal language model.

Scoring and training share this definition. log pi(y|x) is the sum over response tokens, including
the stop token, of log p(token | everything before it), at temperature 1 and never averaged over
length (MATH section 0). Only hidden states that predict a response token are projected onto the
vocabulary, one chunk at a time, so that no [tokens, vocabulary] float32 tensor is ever whole in
memory, neither forward nor backward.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from wind.errors import InputError, first_line
from wind.models.shared_prompts import IMPLEMENTATION, SharedPrompts, Use, shared_states

# nats per token; lower precisions round logits of size 10-30
PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
LOW_PRECISION_TOLERANCE = 0.2


class SequenceLogps(torch.nn.Module):
    """Wrap a causal language model to return the log-probability of each response.

    The model's own head module is called and its weight is never touched, so that ZeRO-3 can gather
    it. Under ZeRO-3 every rank must call forward together, as for any of its modules.
    """

    # transformers' PreTrainedModel, whose accessors have no types
    model: Any

    def __init__(self, model: torch.nn.Module, chunk_tokens: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        # set by `share_prompts`
        self.shares_prompts = False

    def forward(self, *rows: Any) -> torch.Tensor:
        """Return the log-probabilities of the responses, in nats, float64 `[B]`.

        `rows` are the three arguments of `padded`, or one `SharedPrompts`. Each token's
        log-probability is float32; the sum over a row is float64, so that a long response keeps the
        digits that log-ratios consist of.
        """
        return self.shared(*rows) if is_shared(rows) else self.padded(*rows)

    def padded(
        self,
        input_ids_B_T: torch.Tensor,
        attention_mask_B_T: torch.Tensor,
        response_mask_B_T: torch.Tensor,
    ) -> torch.Tensor:
        """Return the log-probabilities of the responses in rows of their own, `[B]`.

        `attention_mask_B_T` is false on padding, which may be on either side; `response_mask_B_T`
        is true on response tokens, including the stop token, and never on a row's first token,
        which nothing predicts.
        """
        return self.response_logps(
            self.states(input_ids_B_T, attention_mask_B_T), input_ids_B_T, response_mask_B_T
        )

    def shared(self, shared: SharedPrompts) -> torch.Tensor:
        """Return the log-probabilities of responses whose prompts are computed once, `[B]`.

        The model must be able to share prompts: see `share_prompts`.
        """
        return self.shared_response_logps(shared_states(self.model, shared), shared)

    def shared_response_logps(
        self, states_T_H: torch.Tensor, shared: SharedPrompts
    ) -> torch.Tensor:
        """Return the result of `shared` from the decoder's last hidden states."""
        token_logps_R = self._predicted(states_T_H[shared.predicting], shared.targets)
        return _row_sums(token_logps_R, shared.response_mask)

    def response_logps(
        self,
        states_B_T_H: torch.Tensor,
        input_ids_B_T: torch.Tensor,
        response_mask_B_T: torch.Tensor,
    ) -> torch.Tensor:
        """Return the result of `padded` from the decoder's last hidden states."""
        token_logps_R = self._token_logps(states_B_T_H, input_ids_B_T, response_mask_B_T)
        return _row_sums(token_logps_R, response_mask_B_T[:, 1:].bool())

    def states(self, input_ids_B_T: torch.Tensor, attention_mask_B_T: torch.Tensor) -> torch.Tensor:
        """Return the decoder's last hidden states, `[B, T, H]`."""
        assert input_ids_B_T.shape == attention_mask_B_T.shape
        # In a causal model no token sees the padding behind it. Without a mask, attention keeps its
        # fast path and the same values to the last bit; positions must then keep counting, since
        # transformers takes repeated positions for packed sequences.
        padded_behind = bool((attention_mask_B_T[:, 1:] <= attention_mask_B_T[:, :-1]).all())
        everywhere = torch.ones_like(attention_mask_B_T)
        states_B_T_H: torch.Tensor = self.model.get_decoder()(
            input_ids=input_ids_B_T,
            attention_mask=None if padded_behind else attention_mask_B_T.long(),
            position_ids=position_ids(everywhere if padded_behind else attention_mask_B_T),
            use_cache=False,
        ).last_hidden_state
        return states_B_T_H

    def token_logps(
        self,
        input_ids_B_T: torch.Tensor,
        attention_mask_B_T: torch.Tensor,
        response_mask_B_T: torch.Tensor,
    ) -> torch.Tensor:
        """Return the log-probabilities of the response tokens, row after row.

        The result is float32 `[response tokens]`; the arguments are those of `padded`.
        """
        return self._token_logps(
            self.states(input_ids_B_T, attention_mask_B_T), input_ids_B_T, response_mask_B_T
        )

    def _token_logps(
        self,
        states_B_T_H: torch.Tensor,
        input_ids_B_T: torch.Tensor,
        response_mask_B_T: torch.Tensor,
    ) -> torch.Tensor:
        assert input_ids_B_T.shape == response_mask_B_T.shape
        # the state at t predicts the token at t + 1
        mask_B_T = response_mask_B_T[:, 1:].bool()
        return self._predicted(states_B_T_H[:, :-1][mask_B_T], input_ids_B_T[:, 1:][mask_B_T])

    def _predicted(self, hidden_R_H: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target token, in chunks."""
        chunks = self._chunks(len(targets_R), targets_R.device)
        pieces = []
        for hidden, targets in zip(
            hidden_R_H.tensor_split(chunks), targets_R.tensor_split(chunks), strict=True
        ):
            if torch.is_grad_enabled() and hidden.requires_grad:
                # Recomputed in the backward pass, so that hidden states are kept rather than
                # logits.
                pieces.append(checkpoint(self._project, hidden, targets, use_reentrant=False))
            else:
                pieces.append(self._project(hidden, targets))
        return torch.cat(pieces)

    def _project(self, hidden_R_H: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        logits_R_V = postprocess(self.model, self.model.get_output_embeddings()(hidden_R_H).float())
        chosen_R = logits_R_V.gather(1, targets_R[:, None]).squeeze(1)
        return chosen_R - logits_R_V.logsumexp(dim=1)

    def _chunks(self, tokens: int, device: torch.device) -> int:
        """Return the number of chunks that this pass needs.

        A chunk has at most `chunk_tokens` tokens. Under ZeRO-3 the number is the most that any rank
        needs: every call of a ZeRO-3 module is a collective, so ranks with fewer tokens must call
        the head just as often, or all hang.
        """
        chunks = max(1, -(-tokens // self.chunk_tokens))
        is_partitioned = any(
            hasattr(parameter, "ds_id")
            for parameter in self.model.get_output_embeddings().parameters()
        )
        if is_partitioned and torch.distributed.is_initialized():
            most = torch.tensor(chunks, device=device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            chunks = int(most)
        return chunks


def is_shared(rows: tuple[Any, ...]) -> bool:
    """Return True if the arguments of a forward pass are one `SharedPrompts`."""
    return isinstance(rows[0], SharedPrompts)


def _row_sums(token_logps_R: torch.Tensor, mask_B_T: torch.Tensor) -> torch.Tensor:
    """Return the sum of every row's tokens, float64; they are where `mask_B_T` is true."""
    rows_B_T = torch.zeros(mask_B_T.shape, dtype=torch.float64, device=token_logps_R.device)
    return rows_B_T.masked_scatter(mask_B_T, token_logps_R.double()).sum(dim=1)


def position_ids(attention_mask_B_T: torch.Tensor) -> torch.Tensor:
    """Return each token's position among its row's real tokens, `[B, T]`.

    Padding may be on either side.
    """
    return (attention_mask_B_T.long().cumsum(dim=1) - 1).clamp(min=0)


def postprocess(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Apply the architecture's scalings to the head's logits.

    Granite divides, Cohere multiplies, Gemma caps softly.
    """
    config = model.config.get_text_config()
    if getattr(config, "logits_scaling", None) is not None:
        logits = logits / config.logits_scaling
    if isinstance(getattr(config, "logit_scale", None), int | float):
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def verify_head(model: Any) -> None:
    """Check the chunked log-probabilities against the model's own forward pass.

    Raises InputError for an architecture whose head is more than a projection and the scalings of
    `postprocess`: its log-probabilities would silently be wrong. Compares on a small probe, and
    leaves the model's training mode as it was.
    """
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    vocabulary = model.config.get_text_config().vocab_size
    ids_B_T = (torch.arange(16, device=device).reshape(2, 8) * 37 + 3) % vocabulary
    ones_B_T = torch.ones_like(ids_B_T)
    response_B_T = ones_B_T.bool()
    response_B_T[:, 0] = False
    try:
        ours = SequenceLogps(model, chunk_tokens=5).token_logps(ids_B_T, ones_B_T, response_B_T)
        logits = model(
            input_ids=ids_B_T,
            attention_mask=ones_B_T,
            position_ids=position_ids(ones_B_T),
            use_cache=False,
        ).logits
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{type(model).__name__} has no decoder and head that can be called apart: {error}"
        ) from error
    finally:
        model.train(was_training)
    theirs = logits[:, :-1].float().log_softmax(-1).gather(2, ids_B_T[:, 1:, None]).flatten()
    # a diverged model is not a model with another head: its rows are reported where they are used
    finite = theirs.isfinite()
    difference = float((ours - theirs)[finite].abs().max()) if finite.any() else 0.0
    if not difference <= PROBE_TOLERANCE.get(logits.dtype, LOW_PRECISION_TOLERANCE):
        raise InputError(
            f"{type(model).__name__} does more to its logits than a projection with a known "
            f"scaling: log-probabilities differ by {difference:.3g} nats on a probe; "
            "use a model whose head is a plain projection"
        )


@torch.no_grad()
def share_prompts(wrapped: SequenceLogps) -> str | None:
    """Prepare the wrapped model to share prompts; return why it cannot, or None if it can.

    The name of a family does not tell. A small probe must get the same log-probabilities in a
    shared row as in rows of its own, and every layer must attend by the shared mask, through
    transformers' interface. A model that cannot share is left as it was. Under ZeRO-3 every rank
    must call it.
    """
    model = wrapped.model
    attention = model.config.get_text_config()._attn_implementation
    if attention == IMPLEMENTATION:
        # another wrapper has proved it
        wrapped.shares_prompts = True
        return None
    if attention != "sdpa":
        return f"its attention is {attention}, and only sdpa shares prompts"
    if not model._can_set_attn_implementation():
        return "its family has an attention of its own"
    was_training = model.training
    model.eval()
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        reason = _why_not_shared(wrapped)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"a probe fails: {first_line(error)}"
    model.train(was_training)
    wrapped.shares_prompts = reason is None
    if reason is not None:
        model.set_attn_implementation(attention)
    return reason


def _why_not_shared(wrapped: SequenceLogps) -> str | None:
    """Return how a shared row differs from rows of their own, or None if it does not."""
    config = wrapped.model.config.get_text_config()
    device = wrapped.model.get_input_embeddings().weight.device
    prompts, responses = [
        [
            [(37 * (7 * row + place) + 3) % config.vocab_size for place in range(length)]
            for row, length in enumerate(lengths)
        ]
        for lengths in ((7, 5), (6, 2, 6, 1, 4))
    ]
    answers = [responses[:3], responses[3:]]
    shared, used = SharedPrompts.of(prompts, answers, device), Use()
    ours = wrapped.shared_response_logps(shared_states(wrapped.model, shared, used), shared)
    theirs = torch.cat(
        [
            _alone(wrapped, prompt, response, device)
            for prompt, responses_N in zip(prompts, answers, strict=True)
            for response in responses_N
        ]
    )
    if used.unknown:
        return f"it has {', '.join(sorted(used.unknown))}"
    if len(used.modules) != config.num_hidden_layers:
        return f"{len(used.modules)} of its {config.num_hidden_layers} layers have such attention"
    difference = float((ours - theirs).abs().max())
    tolerance = PROBE_TOLERANCE.get(wrapped.model.dtype, LOW_PRECISION_TOLERANCE)
    if not difference <= tolerance * shared.response_mask.shape[1]:
        return f"log-probabilities differ by {difference:.3g} nats on a probe"
    return None


def _alone(
    wrapped: SequenceLogps, prompt: list[int], response: list[int], device: torch.device
) -> torch.Tensor:
    ids_1_T = torch.tensor([prompt + response], device=device)
    is_response_1_T = torch.arange(ids_1_T.shape[1], device=device)[None] >= len(prompt)
    return wrapped.padded(ids_1_T, torch.ones_like(ids_1_T), is_response_1_T)
