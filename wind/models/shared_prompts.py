"""Several responses to one prompt in one pass that computes the prompt once.

Prompts and responses stand end to end in a single row, without padding: each prompt, then its
responses. A prompt attends to itself; a response attends to its prompt and to itself, and its
positions continue from the prompt. So every token sees what it sees in a row of its own, and the
log-probabilities are those of padded rows. Where N responses share a prompt of P tokens, a padded
batch computes it N times.

Attention is the only operation that mixes tokens. It is registered with transformers under the name
`IMPLEMENTATION` and runs torch's scaled dot-product attention over each prompt, and over each
prompt's responses at once; anything but shared rows goes to transformers' own `sdpa`.
"""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION: Final = "sdpa_of_shared_prompts"
Tokens = Sequence[int] | np.ndarray[Any, np.dtype[np.integer]]


@dataclass(frozen=True)
class Group:
    """Lengths in tokens of one prompt and of its responses, which follow it in the row."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def answered(self) -> int:
        """Tokens of all responses."""
        return sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest response."""
        return max(self.responses)

    @property
    def is_even(self) -> bool:
        """Whether all responses have the same length."""
        return min(self.responses) == self.longest


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """A row of prompts, each with its responses.

    T counts tokens of the row, R response tokens in the order of the row, B responses, and L is the
    longest response.
    """

    groups: tuple[Group, ...]
    # [T]
    input_ids: torch.Tensor
    # of a token in its own prompt and response, [T]
    position_ids: torch.Tensor
    # token ids of the responses, [R]
    targets: torch.Tensor
    # place in the row of the token that predicts each of them, [R]
    predicting: torch.Tensor
    # whether a response has that many tokens, [B, L]
    response_mask: torch.Tensor
    # place in the row of the last token of each response's prompt, [B]
    prompt_end: torch.Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]], device: str
    ) -> "SharedPrompts":
        """Return the row of `prompts`, each with its own `responses`; none may be empty."""
        groups = tuple(
            Group(len(prompt), tuple(map(len, answers)))
            for prompt, answers in zip(prompts, responses, strict=True)
        )
        ids, positions, predicting, ends = [], [], [], []
        start = 0
        for group, prompt, answers in zip(groups, prompts, responses, strict=True):
            ids += [prompt, *answers]
            positions.append(np.arange(group.prompt))
            end = start + group.prompt - 1
            first = end + 1
            for length in group.responses:
                positions.append(group.prompt + np.arange(length))
                # the prompt's last token, then the response's own tokens but the last
                predicting.append(np.concatenate([[end], np.arange(first, first + length - 1)]))
                ends.append(end)
                first += length
            start = first
        lengths_B = np.concatenate([group.responses for group in groups])
        tensors = (
            np.concatenate(ids).astype(np.int64),
            np.concatenate(positions),
            np.concatenate([answer for answers in responses for answer in answers]).astype(
                np.int64
            ),
            np.concatenate(predicting).astype(np.int64),
            np.arange(lengths_B.max()) < lengths_B[:, None],
            np.array(ends),
        )
        return cls(groups, *(torch.from_numpy(tensor).to(device) for tensor in tensors))

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, and after it of all its responses."""
        return [length for group in self.groups for length in (group.prompt, group.answered)]

    @cached_property
    def paddings(self) -> list["Padding | None"]:
        """How to pad each group's responses; None for responses of one length."""
        device = self.input_ids.device
        return [None if group.is_even else Padding.of(group, device) for group in self.groups]


@dataclass(frozen=True, eq=False)
class Padding:
    """How the responses to one prompt are padded to the longest, and back.

    S counts the tokens of all responses, N responses, and L is the longest.
    """

    # place among the S tokens of each token of a padded response, [N, L]; any beyond its end
    places: torch.Tensor
    # place among the N L padded tokens of each of the S, [S]
    tokens: torch.Tensor

    @classmethod
    def of(cls, group: Group, device: torch.device) -> "Padding":
        """Return the padding of the responses of `group`."""
        lengths_N = np.array(group.responses)
        places_N_L = (np.cumsum(lengths_N) - lengths_N)[:, None] + np.arange(group.longest)
        is_token_N_L = np.arange(group.longest) < lengths_N[:, None]
        return cls(
            torch.from_numpy(np.minimum(places_N_L, group.answered - 1)).to(device),
            torch.from_numpy(np.flatnonzero(is_token_N_L)).to(device),
        )


@dataclass(frozen=True, eq=False)
class _Mask:
    """What takes the place of an attention mask in a shared pass."""

    shared: SharedPrompts
    # how many tokens back a token sees, itself included; None: all
    window: int | None
    used: "Use"

    @cached_property
    def responses(self) -> list[torch.Tensor]:
        """For each group, what a response's tokens see of prompt and response, `[L, P + L]`."""
        return [self._visible(group.longest, group.prompt) for group in self.shared.groups]

    @cached_property
    def prompts(self) -> list[torch.Tensor | None]:
        """For each group, what a prompt's tokens see, `[P, P]`; None: all before them."""
        return [
            self._visible(group.prompt, 0)
            if self.window is not None and group.prompt > self.window
            else None
            for group in self.shared.groups
        ]

    def _visible(self, length: int, before: int) -> torch.Tensor:
        device = self.shared.input_ids.device
        back = before + torch.arange(length, device=device)[:, None]
        back = back - torch.arange(before + length, device=device)
        visible = back >= 0
        return visible if self.window is None else visible & (back < self.window)


@dataclass(frozen=True)
class Use:
    """What a decoder did with the masks of one shared pass."""

    # attention modules that followed one
    modules: set[int] = field(default_factory=set)
    # what it asked of attention that shared rows do not have
    unknown: set[str] = field(default_factory=set)


_sharing: ContextVar[tuple[SharedPrompts, Use] | None] = ContextVar("_sharing", default=None)


def shared_states(model: Any, shared: SharedPrompts, used: Use | None = None) -> torch.Tensor:
    """Return the last hidden states of the decoder of `model`, `[T, H]`.

    The model's attention must be `IMPLEMENTATION`. What it does is noted in `used`.
    """
    # Layers keep the masks that the decoder builds here, also for a recomputation in the backward
    # pass.
    token = _sharing.set((shared, used or Use()))
    try:
        states_T_H: torch.Tensor = model.get_decoder()(
            input_ids=shared.input_ids[None],
            position_ids=shared.position_ids[None],
            use_cache=False,
        ).last_hidden_state[0]
    finally:
        _sharing.reset(token)
    return states_T_H


def _mask(**settings: Any) -> Any:
    """Return the mask of a decoder: ours while sharing, else that of `sdpa`."""
    sharing = _sharing.get()
    if sharing is None:
        return sdpa_mask(**settings)
    shared, used = sharing
    return _Mask(shared, settings.get("local_size"), used)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `attention_mask` says: transformers' interface of an attention function.

    Query `[1, heads, T, D]`, key and value `[1, key heads, T, D]`; the result is `[1, T, heads,
    D]`.
    """
    if not isinstance(attention_mask, _Mask):
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        return attended
    attention_mask.used.modules.add(id(module))
    attention_mask.used.unknown.update(_unknown(attention_mask.window, settings))
    return _attend(attention_mask, query, key, value, scaling), None


def _unknown(window: int | None, settings: dict[str, Any]) -> Iterator[str]:
    """Yield the settings of attention that would change what is computed."""
    # Positions are in queries and keys already, and the mask says what is visible.
    known = {"position_ids", "is_causal", "use_cache", "output_attentions", "sliding_window"}
    for name, value in settings.items():
        if name not in known and (isinstance(value, torch.Tensor) or value):
            yield name
    if window != settings.get("sliding_window"):
        yield "local attention of its own kind"
    if settings.get("is_causal") is False:
        yield "attention that is not causal"


def _attend(
    mask: _Mask,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    shared = mask.shared
    heads = query.shape[1] // key.shape[1]
    parts = zip(
        *(
            tensor.split(shared.lengths, dim=2)  # type: ignore[no-untyped-call]
            for tensor in (query, key, value)
        ),
        strict=True,
    )
    outputs = []
    for number, group in enumerate(shared.groups):
        (prompt_q, prompt_k, prompt_v), (own_q, own_k, own_v) = next(parts), next(parts)
        visible = mask.prompts[number]
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                prompt_q,
                _repeated(prompt_k, heads),
                _repeated(prompt_v, heads),
                attn_mask=visible,
                is_causal=visible is None,
                scale=scaling,
            )[0].transpose(0, 1)
        )
        padding = shared.paddings[number]
        attended_N_H_L_D = torch.nn.functional.scaled_dot_product_attention(
            _by_response(own_q, group, padding),
            _repeated(_after(prompt_k, _by_response(own_k, group, padding)), heads),
            _repeated(_after(prompt_v, _by_response(own_v, group, padding)), heads),
            attn_mask=mask.responses[number],
            scale=scaling,
        )
        attended_NL_H_D = attended_N_H_L_D.transpose(1, 2).flatten(0, 1)
        outputs.append(
            attended_NL_H_D if padding is None else attended_NL_H_D.index_select(0, padding.tokens)
        )
    return torch.cat(outputs)[None]


def _by_response(own: torch.Tensor, group: Group, padding: Padding | None) -> torch.Tensor:
    """Return `[1, heads, tokens of all responses, D]` as `[N, heads, longest, D]`."""
    own_H_S_D = own[0]
    if padding is not None:
        own_H_S_D = own_H_S_D.index_select(1, padding.places.flatten())
    heads, _, width = own_H_S_D.shape
    return own_H_S_D.reshape(heads, len(group.responses), group.longest, width).transpose(0, 1)


def _after(prompt: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return `own`, `[N, heads, L, D]`, with the prompt's `[1, heads, P, D]` before each."""
    return torch.cat([prompt.expand(len(own), -1, -1, -1), own], dim=2)


def _repeated(keys: torch.Tensor, times: int) -> torch.Tensor:
    """Return keys or values with each head as often as query heads share it."""
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
