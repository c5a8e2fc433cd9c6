"""The base policy, the reference, and how frozen models run."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from wind.config.base import Section
from wind.config.checks import Share

DType = Literal["float32", "bfloat16"]
Attention = Literal[
    "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
]


class PolicyConfig(Section):
    """The base policy."""

    beside_content: ClassVar = frozenset({"path"})

    # a local Hugging Face folder, or a Hub id
    path: str
    # Hub revision; pin a commit for reproducibility
    revision: str | None = None


class InferenceConfig(Section):
    """How frozen models run while they sample and score.

    Part of every cache key, because dtype and batch shape change floats.
    """

    dtype: DType = "float32"
    # as transformers names them; auto: its own choice, or eager where only eager is correct
    attention: Attention = "auto"
    # upper bound on the padded tokens of one forward batch
    batch_tokens: int = Field(16384, ge=1)


class ReferenceConfig(Section):
    """The frozen policy that regularizes the update."""

    # initial: the base policy (the paper's pi_ref); previous: the policy the iteration starts from;
    # ema: a moving average of the policy's weights, J-BOND's anchor
    kind: Literal["initial", "previous", "ema"] = "initial"
    # ema only: each optimizer step moves the average this share of the way to the policy
    rate: Share | None = None

    @model_validator(mode="after")
    def _only_an_average_has_a_rate(self) -> Self:
        if self.kind == "ema" and self.rate is None:
            raise ValueError(
                "kind ema needs a rate: J-BOND's authors take 0.02, and try 0.01 to 0.1"
            )
        if self.kind != "ema" and self.rate is not None:
            raise ValueError(f"rate is for kind ema, and the kind is {self.kind}: remove the rate")
        return self
