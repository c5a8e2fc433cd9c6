"""Classifier rewards: a stored sequence-classification model with one output reads prompt and response.

The model's own tokenizer and chat template are used, never the policy's. Its input has exactly one BOS where its tokenizer knows
one, is never truncated, and is scored as `wind.rewards.scorer` says.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification

from wind.config import DType, InferenceConfig
from wind.datasets import Store
from wind.errors import InputError
from wind.handles import label
from wind.models import load_tokenizer
from wind.rewards import Classifier
from wind.rewards.functions import Floats, Responses, first_line
from wind.rewards.scorer import Encoded, Scorer, encode_pairs, encode_rendered, load_scored, with_one_bos
from wind.stages import Progress


class ClassifierReward:
    """A `RewardModel` that asks a sequence-classification model."""

    def __init__(self, name: str, model: Any, tokenizer: Any, template: str, batch_tokens: int) -> None:
        self._scorer = Scorer(name, model, batch_tokens)
        self._tokenizer = tokenizer
        self._template = template

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """The model's output for each row, computed in its dtype and returned from float32.

        Raises InputError for a template that does not render, an input longer than the model's positions (naming row and
        lengths), and an output that is not finite.
        """
        inputs = with_one_bos(self._tokenizer, self._encode(rows), self._scorer.name, rows.where)
        return {"reward": self._scorer.outputs(inputs, rows.where, progress)}

    def _encode(self, rows: Responses) -> list[Encoded]:
        if self._template == "none":
            return encode_pairs(self._tokenizer, rows.prompts(), list(rows.responses))
        chats = [
            [
                *({"role": turn["role"], "content": turn["content"]} for turn in messages),
                {"role": "assistant", "content": response},
            ]
            for messages, response in zip(rows.messages, rows.responses, strict=True)
        ]
        template = None if self._template == "chat" else self._template
        if template is None and self._tokenizer.chat_template is None:
            raise InputError(f'{self._scorer.name} has no chat template: set reward.template to "none" or to a Jinja file')
        try:
            texts = self._tokenizer.apply_chat_template(chats, chat_template=template, tokenize=False)
        except TemplateError as error:
            raise InputError(f"reward.template does not render the chat of {rows.where(0)}: {first_line(error)}") from error
        return encode_rendered(self._tokenizer, texts)


@lru_cache(maxsize=1)
def classifier(root: str, reward: Classifier, inference: InferenceConfig, device: str) -> ClassifierReward:
    """The reward model of the store at `root`, loaded on `device` and kept for the next shard.

    Raises InputError in one line if the folder does not load, has not exactly one output, or lacks weights.
    """
    store = Store(root)
    name = f"reward model {label(reward.model)}"
    model = load_classifier(store.path(reward.model), name, inference.dtype).to(device)
    return ClassifierReward(name, model, load_tokenizer(store, reward.model), reward.template, inference.batch_tokens)


def load_classifier(folder: Path, name: str, dtype: DType) -> Any:
    """The sequence-classification model in `folder`, as `load_scored` loads it. Raises InputError for more outputs than one."""
    model = load_scored(AutoModelForSequenceClassification, folder, name, dtype)
    if model.config.num_labels != 1:
        raise InputError(f"{name} has {model.config.num_labels} outputs: name a sequence-classification model with one")
    return model
