"""Scores of a frozen model with one output.

Token ids go in, in batches of similar lengths, and floats come out. Classifiers and pairwise reward
models share this. The model's own template or tokenizer turns texts into inputs (see
`wind.models.templates`), which are never truncated here. What inputs of one prompt begin with in
common is computed once, if the model is causal (`wind.models.shared_prefixes`). The batch changes a
score by rounding at most. A checkpoint without a trained head is refused, because transformers would initialize one at
random.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wind.config.models import DType
from wind.errors import InputError
from wind.models import attention_of, deterministic, positions_of
from wind.models.pretrained import load_model
from wind.models.shared_prefixes import Group, SharedPrefixes
from wind.models.templates import Template, Where, begins_with_two, two_bos
from wind.rewards.functions import Floats, refuse_non_finite
from wind.stages import Progress

# input_ids, and token_type_ids if the model distinguishes two texts
Encoded = dict[str, list[int]]


class Scorer:
    """A model on its device, called `name` in messages.

    `batch_tokens` bounds the padded tokens of one batch.
    """

    def __init__(self, name: str, model: Any, batch_tokens: int) -> None:
        self.name = name
        self._model = model
        self._batch_tokens = batch_tokens
        self._pads_freely = model.config.get_text_config().pad_token_id is None
        self._prefixes = SharedPrefixes(name, model, model.base_model)

    def outputs(
        self, inputs: list[Encoded], prompts: Sequence[str], where: Where, progress: Progress
    ) -> Floats:
        """Return the outputs [B] for `inputs`.

        `prompts` tells which inputs may begin with the same tokens. Outputs are computed in the
        model's dtype and widened to float32. Equal inputs are computed once: in batches of
        different shapes their last bits would differ, and equal responses would not tie. Raises
        InputError for an input longer than the model's positions, a token id that it does not
        embed, or an output that is not finite.
        """
        self._refuse_long(inputs, where)
        self._refuse_unknown(inputs, where)
        numbers: dict[tuple[int, ...], int] = {}
        number_of_row = [
            numbers.setdefault(tuple(itertools.chain(*row.values())), len(numbers))
            for row in inputs
        ]
        firsts = np.unique(number_of_row, return_index=True)[1]
        distinct = [inputs[row] for row in firsts]
        members: dict[str, list[int]] = {}
        for number, row in enumerate(firsts):
            members.setdefault(prompts[row], []).append(number)
        with torch.inference_mode(), deterministic():
            outputs = self._prefixes.outputs(
                [row["input_ids"] for row in distinct],
                [self._group(distinct, numbers) for numbers in members.values()],
                self._batch_tokens,
                lambda rows, start, past: self._forward(
                    [distinct[row] for row in rows], start, past
                ),
                lambda done: progress(done, len(distinct)),
            )
        outputs_B: Floats = np.array(outputs)[number_of_row]
        refuse_non_finite(self.name, outputs_B, where)
        return outputs_B

    def _group(self, inputs: list[Encoded], rows: list[int]) -> Group:
        """Return what the inputs `rows` share: token ids at the beginning, if there is no more.

        A model may read a row at its last token that is no padding, so each keeps that one.
        """
        if len(rows) == 1 or "token_type_ids" in inputs[rows[0]]:
            return Group(tuple(rows), 0)
        # a free padding token is none of theirs
        padding = None if self._pads_freely else self._model.config.get_text_config().pad_token_id
        ids = [inputs[row]["input_ids"] for row in rows]
        last = [
            max((place for place, token in enumerate(row) if token != padding), default=0)
            for row in ids
        ]
        return Group(tuple(rows), min(_common(ids), *last))

    def _refuse_unknown(self, inputs: list[Encoded], where: Where) -> None:
        vocabulary = self._model.get_input_embeddings().num_embeddings
        for row, encoded in enumerate(inputs):
            if max(encoded["input_ids"], default=0) >= vocabulary:
                raise InputError(
                    f"{where(row)} has token id {max(encoded['input_ids'])} and {self.name} embeds "
                    f"{vocabulary}: its tokenizer has tokens that the model was never resized for; "
                    "use the tokenizer that belongs to it"
                )

    def _refuse_long(self, inputs: list[Encoded], where: Where) -> None:
        positions = max_positions(self._model)
        longest = max(range(len(inputs)), key=lambda row: len(inputs[row]["input_ids"]))
        length = len(inputs[longest]["input_ids"])
        if positions is not None and length > positions:
            raise InputError(
                f"{where(longest)} has {length} tokens with its prompt "
                f"and {self.name} reads {positions}: "
                "lower prompts.max_prompt_tokens or sampling.max_new_tokens, "
                "or use a reward model with a longer context"
            )

    def _forward(
        self, batch: list[Encoded], start: int = 0, past: Mapping[str, Any] | None = None
    ) -> list[float]:
        """Return the output of each row of one batch, padded on the right.

        Rows run from their token `start` on, after what `past` holds. A model that can do so is
        causal: no token sees the padding behind it, and attention without a mask keeps its fast
        path.
        """
        width = max(len(row["input_ids"]) for row in batch)
        config = self._model.config.get_text_config()
        if self._pads_freely:
            config.pad_token_id = self._unused_token(batch)
        padding = {"input_ids": config.pad_token_id, "token_type_ids": 0}
        inputs = {
            name: _padded([row[name] for row in batch], width, padding[name])[:, start:]
            for name in batch[0]
        }
        if self._prefixes.why_not is not None:
            mask = _padded([[1] * len(row["input_ids"]) for row in batch], width, 0)
            inputs["attention_mask"] = mask
        device = self._model.device
        outputs_B_1 = self._model(
            **{name: tensor.to(device) for name, tensor in inputs.items()}, **(past or {})
        ).logits
        outputs: list[float] = outputs_B_1.float().squeeze(-1).tolist()
        return outputs

    def _unused_token(self, batch: list[Encoded]) -> int:
        """Return a token id that is in no row of `batch`.

        Padded with it, the model finds the true last token of each row.
        """
        used = {token for row in batch for token in row["input_ids"]}
        free = next(
            (
                token
                for token in range(self._model.config.get_text_config().vocab_size)
                if token not in used
            ),
            None,
        )
        if free is None:
            raise InputError(
                f"{self.name} has no padding token: set pad_token_id in its config.json"
            )
        return free


def load_scored(folder: Path, name: str, dtype: DType, loader: Any = None) -> Any:
    """Load the sequence-classification model in `folder`, frozen, in `dtype`, on the CPU.

    `loader` replaces transformers' own class. Raises InputError if the folder does not load, or
    lacks weights that would be initialized at random.
    """
    model, info = load_model(
        "AutoModelForSequenceClassification",
        folder,
        name,
        loader,
        dtype=getattr(torch, dtype),
        attn_implementation=attention_of(folder, "auto"),
    )
    missing = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if missing:
        raise InputError(
            f"{name} has no trained {missing[0]}, which would be made up at random "
            f"({len(missing)} such weights): "
            "name a checkpoint that was trained as a reward model"
        )
    return model.eval().requires_grad_(False)


def encode_chats(
    template: Template, chats: list[list[dict[str, Any]]], where: Where, **variables: Any
) -> list[Encoded]:
    """Encode conversations as the template lays them out.

    `variables` are for the template. Raises InputError naming the first one that the template
    refuses, that renders to nothing, or that begins with two BOS tokens.
    """
    texts = template.texts(chats, where, **variables)
    encoded = _rows(template.token_ids(texts))
    for row, (chat, inputs) in enumerate(zip(chats, encoded, strict=True)):
        template.check(chat, inputs["input_ids"], where(row), **variables)
    return encoded


def encode_pairs(
    tokenizer: Any, firsts: list[str], seconds: list[str], where: Where
) -> list[Encoded]:
    """Encode pairs of texts as the tokenizer joins them.

    Raises InputError naming the first pair that begins with two BOS tokens.
    """
    encoded = _rows(tokenizer(firsts, seconds))
    for row, inputs in enumerate(encoded):
        if begins_with_two(tokenizer.bos_token_id, inputs["input_ids"]):
            raise two_bos(
                tokenizer, where(row), "the row: the reward model's tokenizer adds its own"
            )
    return encoded


def max_positions(model: Any) -> int | None:
    """Return the longest input the model has positions for.

    In tokens; None if there is no limit.
    """
    config = model.config.get_text_config()
    if getattr(config, "relative_attention", False) and not getattr(
        config, "position_biased_input", True
    ):
        # DeBERTa-v3 encodes only distances, in buckets that grow with them
        return None
    positions = positions_of(config.to_dict())
    embedding: Any = getattr(
        getattr(model.base_model, "embeddings", None), "position_embeddings", None
    )
    # RoBERTa and its relatives count positions from the padding index.
    offset = 0 if getattr(embedding, "padding_idx", None) is None else embedding.padding_idx + 1
    return None if positions is None else positions - offset


def _common(rows: list[list[int]]) -> int:
    """Return how many tokens all `rows` begin with in common."""
    # what the first and the last in order have in common, all have
    first, last = min(rows), max(rows)
    return next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1),
        min(len(first), len(last)),
    )


def _rows(encoding: Any) -> list[Encoded]:
    """Split a tokenizer's batch into one record per row.

    The padding mask is left out.
    """
    names = [name for name in ("input_ids", "token_type_ids") if name in encoding]
    return [
        {name: list(encoding[name][row]) for name in names}
        for row in range(len(encoding["input_ids"]))
    ]


def _padded(rows: list[list[int]], width: int, value: int) -> torch.Tensor:
    """Return right-padded integers [B, T]."""
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.long)
