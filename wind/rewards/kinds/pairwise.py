"""Pairwise rewards: a stored model that compares two responses to a prompt."""

import datetime
import json
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc

from wind.config.models import DType, InferenceConfig
from wind.config.rewards import PairwiseRewardConfig
from wind.config.templates import TODAY
from wind.errors import ConfigError
from wind.rewards.folders import Architecture, pairwise_architecture
from wind.rewards.kinds.base import (
    Judge,
    RewardKind,
    import_model,
    inference_of,
    template_text,
)
from wind.store.datasets import Store
from wind.store.handles import Model

# source_maxlength and candidate_maxlength of llm-blender/PairRM's published configuration
PAIRRM_PROMPT_TOKENS = 1224
PAIRRM_RESPONSE_TOKENS = 412


class Pairwise(RewardKind):
    """A stored model, and how its input is made.

    The input is a prompt and two responses.
    """

    kind: Literal["pairwise"] = "pairwise"
    model: Model
    architecture: Architecture
    # cross-encoders only: "none", "chat", else Jinja text
    template: str = "none"
    # a JSON object
    template_arguments: str = "{}"
    date: datetime.date = TODAY
    # PairRM only, and set for every one
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None
    # None: those of `inference`
    dtype: DType | None = None
    batch_tokens: int | None = None

    @classmethod
    def resolve(cls, store: Store, config: PairwiseRewardConfig) -> Self:
        """Copy the model into the store, and read its architecture.

        Raises ConfigError for settings of the other architecture.
        """
        model = import_model(store, config.path, config.revision)
        architecture = pairwise_architecture(store.path(model), config.path, config.architecture)
        own: dict[str, Any] = {"dtype": config.dtype, "batch_tokens": config.batch_tokens}
        if architecture == "cross_encoder":
            _refuse_lengths(config)
            return cls(
                model=model,
                architecture=architecture,
                template=template_text(config.template),
                template_arguments=json.dumps(config.template_arguments, sort_keys=True),
                date=config.date,
                **own,
            )
        _refuse_template(config)
        return cls(
            model=model,
            architecture=architecture,
            max_prompt_tokens=config.max_prompt_tokens or PAIRRM_PROMPT_TOKENS,
            max_response_tokens=config.max_response_tokens or PAIRRM_RESPONSE_TOKENS,
            **own,
        )

    @property
    def gives_preferences(self) -> bool:
        """Whether it compares responses: it does nothing else."""
        return True

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Load the model, unless the last call of this process loaded it."""
        from wind.rewards.pairwise import pairwise_reward

        own = inference_of(inference, self.dtype, self.batch_tokens)
        return pairwise_reward(store.address, self, own, device).preferences

    def numbers(self, table: pa.Table) -> dict[str, float]:
        """Return the share of comparisons that read a text cut to fit."""
        return {"cut_share": pc.mean(table["cut_share"]).as_py()}


def _refuse_lengths(config: PairwiseRewardConfig) -> None:
    for name in ("max_prompt_tokens", "max_response_tokens"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"reward.{name} is PairRM's, and {config.path} is a cross-encoder, "
                "which is never cut: remove it"
            )


def _refuse_template(config: PairwiseRewardConfig) -> None:
    given = {
        "template": config.template != "none",
        "template_arguments": bool(config.template_arguments),
    }
    for name in given:
        if given[name]:
            raise ConfigError(
                f"reward.{name} is a cross-encoder's, and {config.path} is a PairRM "
                "with a layout of its own: remove it"
            )
