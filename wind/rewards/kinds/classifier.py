"""Classifier rewards: a stored sequence-classification model with one output."""

import datetime
import json
from typing import Literal, Self

from wind.config.models import DType, InferenceConfig
from wind.config.rewards import ClassifierRewardConfig, CorruptionConfig
from wind.config.templates import TODAY
from wind.rewards.folders import check_one_output
from wind.rewards.kinds.base import (
    Judge,
    RewardKind,
    import_model,
    inference_of,
    scalar_judge,
    template_text,
)
from wind.store.datasets import Store
from wind.store.handles import Model


class Classifier(RewardKind):
    """A stored model, and how its input is made.

    The input is a prompt and a response.
    """

    kind: Literal["classifier"] = "classifier"
    model: Model
    # "chat": the model's own; "none": prompt and response as a text pair; else Jinja text
    template: str = "chat"
    # a JSON object
    template_arguments: str = "{}"
    date: datetime.date = TODAY
    corruption: CorruptionConfig | None = None
    # None: those of `inference`
    dtype: DType | None = None
    batch_tokens: int | None = None

    @classmethod
    def resolve(cls, store: Store, config: ClassifierRewardConfig) -> Self:
        """Copy the model into the store.

        Raises InputError if its files say that it does not have one output.
        """
        model = import_model(store, config.path, config.revision)
        check_one_output(store.path(model), config.path)
        return cls(
            model=model,
            template=template_text(config.template),
            template_arguments=json.dumps(config.template_arguments, sort_keys=True),
            date=config.date,
            corruption=config.corruption,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
        )

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Load the model, unless the last call of this process loaded it."""
        from wind.rewards.classifier import classifier

        own = inference_of(inference, self.dtype, self.batch_tokens)
        return scalar_judge(classifier(store.address, self, own, device), self.corruption)
