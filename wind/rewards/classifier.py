"""Classifier rewards: a stored sequence-classification model with one output reads prompt and response.

The model's own tokenizer and chat template are used, never the policy's. Its input has exactly one BOS where its tokenizer knows
one, is never truncated, and is scored in length-sorted batches of at most `batch_tokens` padded tokens; a reward does not depend
on the batch it was scored in. A checkpoint without a trained head is refused, because transformers would make one up at random.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification

from wind.config import DType, InferenceConfig
from wind.datasets import Store, label
from wind.errors import InputError
from wind.models import deterministic, load_tokenizer
from wind.rewards import Classifier
from wind.rewards.functions import Floats, Responses, first_line, refuse_non_finite
from wind.stages import Progress

Encoded = dict[str, list[int]]  # input_ids, and token_type_ids where the model tells two texts apart


class ClassifierReward:
    """A `RewardModel` that asks a sequence-classification model."""

    def __init__(self, name: str, model: Any, tokenizer: Any, template: str, batch_tokens: int) -> None:
        self._name = name
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._batch_tokens = batch_tokens
        self._pads_freely = model.config.get_text_config().pad_token_id is None

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """The model's output for each row, computed in its dtype and returned from float32.

        Raises InputError for a template that does not render, an input longer than the model's positions (naming row and
        lengths), and an output that is not finite.
        """
        inputs = self._one_bos(self._encode(rows), rows)
        self._refuse_long(inputs, rows)
        rewards = np.empty(len(inputs), dtype=np.float64)
        done = 0
        with torch.inference_mode(), deterministic():
            for batch in batches([len(row["input_ids"]) for row in inputs], self._batch_tokens):
                rewards[batch] = self._forward([inputs[row] for row in batch])
                done += len(batch)
                progress(done, len(inputs))
        refuse_non_finite(self._name, rewards, rows)
        return {"reward": rewards}

    def _encode(self, rows: Responses) -> list[Encoded]:
        if self._template == "none":
            return self._encode_pairs(rows)
        chats = [
            [
                *({"role": turn["role"], "content": turn["content"]} for turn in messages),
                {"role": "assistant", "content": response},
            ]
            for messages, response in zip(rows.messages, rows.responses, strict=True)
        ]
        template = None if self._template == "chat" else self._template
        if template is None and self._tokenizer.chat_template is None:
            raise InputError(f'{self._name} has no chat template: set reward.template to "none" or to a Jinja file')
        try:
            texts = self._tokenizer.apply_chat_template(chats, chat_template=template, tokenize=False)
        except TemplateError as error:
            raise InputError(f"reward.template does not render the chat of {rows.where(0)}: {first_line(error)}") from error
        # A template that writes BOS itself writes the other special tokens too; else the tokenizer adds its own.
        bos = self._tokenizer.bos_token
        has_bos = bos is not None and texts[0].startswith(bos)
        return _rows(self._tokenizer(texts, add_special_tokens=not has_bos))

    def _encode_pairs(self, rows: Responses) -> list[Encoded]:
        """Prompt and response as the tokenizer joins two texts; end to end where it would begin the second with another BOS."""
        prompts, responses = rows.prompts(), list(rows.responses)
        bos = self._tokenizer.bos_token_id
        if bos is None or self._tokenizer("a", "a")["input_ids"].count(bos) < 2:
            return _rows(self._tokenizer(prompts, responses))
        firsts = self._tokenizer(prompts)["input_ids"]
        seconds = self._tokenizer(responses, add_special_tokens=False)["input_ids"]
        return [{"input_ids": first + second} for first, second in zip(firsts, seconds, strict=True)]

    def _one_bos(self, inputs: list[Encoded], rows: Responses) -> list[Encoded]:
        """`inputs` with exactly one BOS at the start of each, where the tokenizer has one."""
        bos = self._tokenizer.bos_token_id
        if bos is None:
            return inputs
        for row, encoded in enumerate(inputs):
            if encoded["input_ids"][:2] == [bos, bos]:
                raise InputError(f"reward.template writes BOS where the tokenizer of {self._name} does too ({rows.where(row)})")
            if encoded["input_ids"][:1] != [bos]:
                for name, first in (("input_ids", bos), ("token_type_ids", 0)):
                    if name in encoded:
                        encoded[name].insert(0, first)
        return inputs

    def _refuse_long(self, inputs: list[Encoded], rows: Responses) -> None:
        positions = max_positions(self._model)
        longest = max(range(len(inputs)), key=lambda row: len(inputs[row]["input_ids"]))
        length = len(inputs[longest]["input_ids"])
        if positions is not None and length > positions:
            raise InputError(
                f"{rows.where(longest)} has {length} tokens with its prompt and {self._name} reads {positions}: "
                "lower prompts.max_prompt_tokens or sampling.max_new_tokens, or use a reward model with a longer context"
            )

    def _forward(self, batch: list[Encoded]) -> Floats:
        """The outputs [B] of one batch, padded on the right."""
        width = max(len(row["input_ids"]) for row in batch)
        config = self._model.config.get_text_config()
        if self._pads_freely:
            config.pad_token_id = self._unused_token(batch)
        padding = {"input_ids": config.pad_token_id, "token_type_ids": 0}
        inputs = {name: _padded([row[name] for row in batch], width, padding[name]) for name in batch[0]}
        inputs["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in batch], width, 0)
        device = self._model.device
        outputs_B_1 = self._model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        rewards_B: Floats = outputs_B_1.float().squeeze(-1).cpu().numpy().astype(np.float64)
        return rewards_B

    def _unused_token(self, batch: list[Encoded]) -> int:
        """A token id that is in no row of `batch`: padding with it, the model finds each row's true last token."""
        used = {token for row in batch for token in row["input_ids"]}
        free = next((token for token in range(self._model.config.get_text_config().vocab_size) if token not in used), None)
        if free is None:
            raise InputError(f"{self._name} has no padding token: set pad_token_id in its config.json")
        return free


@lru_cache(maxsize=1)
def classifier(root: Path, reward: Classifier, inference: InferenceConfig, device: str) -> ClassifierReward:
    """The reward model of the store at `root`, loaded on `device` and kept for the next shard.

    Raises InputError in one line if the folder does not load, has not exactly one output, or lacks weights.
    """
    store = Store(root)
    name = f"reward model {label(reward.model)}"
    model = _load(store.path(reward.model), name, inference.dtype).to(device)
    return ClassifierReward(name, model, load_tokenizer(store, reward.model), reward.template, inference.batch_tokens)


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches, shortest rows first: rows times longest row at most `batch_tokens`, and one row at least."""
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if made and (len(made[-1]) + 1) * lengths[row] <= batch_tokens:
            made[-1].append(row)
        else:
            made.append([row])
    return made


def max_positions(model: Any) -> int | None:
    """The longest input the model has positions for, in tokens; None where it has no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    embedding: Any = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    # RoBERTa and its kin count positions from the padding index on.
    offset = 0 if getattr(embedding, "padding_idx", None) is None else embedding.padding_idx + 1
    return positions - offset if isinstance(positions, int) and positions > 0 else None


def _load(folder: Path, name: str, dtype: DType) -> Any:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"{name} does not load as a sequence-classification model: {first_line(error)}") from error
    missing = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if missing:
        raise InputError(
            f"{name} has no trained {missing[0]}, which would be made up at random ({len(missing)} such weights): "
            "name a checkpoint that was trained as a reward model"
        )
    if model.config.num_labels != 1:
        raise InputError(f"{name} has {model.config.num_labels} outputs: name a sequence-classification model with one")
    return model.eval().requires_grad_(False)


def _rows(encoding: Any) -> list[Encoded]:
    """A tokenizer's batch as one record per row, without its padding mask."""
    names = [name for name in ("input_ids", "token_type_ids") if name in encoding]
    return [{name: list(encoding[name][row]) for name in names} for row in range(len(encoding["input_ids"]))]


def _padded(rows: list[list[int]], width: int, value: int) -> torch.Tensor:
    """Right-padded integers [B, T]."""
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.long)
