"""How a classifier reward scores: a sequence-classification model reads prompt and response.

It uses its own tokenizer and chat template, never the policy's, exactly as they are (see
`wind.models.templates`). Inputs are never truncated; `wind.rewards.scorer` runs them.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from wind.config.models import DType, InferenceConfig
from wind.errors import InputError
from wind.models import load_tokenizer, make_room
from wind.models.templates import Template
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.pairwise import Pairwise
from wind.rewards.scorer import Encoded, Scorer, encode_chats, encode_pairs, load_scored
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import label


class ClassifierReward:
    """A `RewardModel` that runs a sequence-classification model.

    Without a template it reads text pairs.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, template: Template | None, batch_tokens: int
    ) -> None:
        self._scorer = Scorer(name, model, batch_tokens)
        self._tokenizer = tokenizer
        self._template = template

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the model's output for each row.

        It is computed in the model's dtype and widened to float32. Raises ConfigError for a missing
        or wrong template. Raises InputError, naming the row, for a response that the template
        refuses, an input longer than the model's positions, or an output that is not finite.
        """
        inputs = self._encode(rows)
        return {"reward": self._scorer.outputs(inputs, rows.prompt_ids, rows.where, progress)}

    def _encode(self, rows: Responses) -> list[Encoded]:
        if self._template is None:
            return encode_pairs(self._tokenizer, rows.prompts(), list(rows.responses), rows.where)
        chats = [
            [*rows.conversation(row), {"role": "assistant", "content": response}]
            for row, response in enumerate(rows.responses)
        ]
        return encode_chats(self._template, chats, rows.where)


@lru_cache(maxsize=1)
def classifier(
    root: str, reward: Classifier, inference: InferenceConfig, device: str
) -> ClassifierReward:
    """Load the reward model on `device`, and keep it loaded.

    It is in the store at `root`, and kept for the next shard. Raises InputError, in one line, if
    the folder does not load, does not have exactly one output, or lacks weights.
    """
    store = Store(root)
    name = f"reward model {label(reward.model)}"
    make_room(store.path(reward.model), inference.dtype, device)
    model = load_classifier(store.path(reward.model), name, inference.dtype).to(device)
    tokenizer = load_tokenizer(store, reward.model)
    return ClassifierReward(
        name, model, tokenizer, template_of(reward, tokenizer, name), inference.batch_tokens
    )


def template_of(reward: Classifier | Pairwise, tokenizer: Any, name: str) -> Template | None:
    """Return the template by which a reward model reads conversations.

    None if it reads plain texts.
    """
    if reward.template == "none":
        return None
    arguments = json.loads(reward.template_arguments)
    return Template(
        tokenizer, reward.template, reward.date, arguments, setting="reward.template", owner=name
    )


def load_classifier(folder: Path, name: str, dtype: DType) -> Any:
    """Load the sequence-classification model in `folder` by `load_scored`.

    Raises InputError unless it has exactly one output.
    """
    model = load_scored(folder, name, dtype)
    if model.config.num_labels != 1:
        raise InputError(
            f"{name} has {model.config.num_labels} outputs: "
            "name a sequence-classification model with one"
        )
    return model
