"""How the policy is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from wind.config.base import Name, Section
from wind.config.checks import Share
from wind.config.models import Attention, DType


class LoraConfig(Section):
    """Low-rank adapters instead of full training.

    The weight W of a layer is frozen, and W + (alpha/rank) B A is trained.
    """

    # columns of B and rows of A
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    # linear layers that get an adapter, such as q_proj; by default all but the head
    target_modules: tuple[Name, ...] = ()


class TrainingConfig(Section):
    """One DeepSpeed run over an iteration's generations."""

    epochs: int = Field(1, ge=1)
    # prompt groups of one optimizer step, over all ranks
    batch_prompts: int = Field(16, ge=1)
    # prompt groups of one forward pass on one rank
    micro_prompts: int = Field(4, ge=1)
    lr: float = Field(1e-5, gt=0)
    # for the head of a learned intercept, on the same schedule
    intercept_lr: float = Field(0.01, gt=0)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: Share = 0.1
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    # what ZeRO keeps in host memory
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    precision: DType = "float32"
    # as inference.attention
    attention: Attention = "auto"
    # auto: compute a prompt once for all its responses in a forward pass, where the policy's
    # attention allows it; the same numbers up to rounding, at a fraction of the time and memory
    prompt_sharing: Literal["off", "auto"] = "off"
    # most tokens, padding included, of one forward and backward pass on one rank; a micro-batch of
    # more is computed in pieces of its rows, with one more forward pass: the same gradient up to
    # rounding. By default a micro-batch is one pass.
    pass_tokens: int | None = Field(None, ge=1)
    # processes; part of the cache key, because the order of a sum changes floats
    ranks: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    # train adapters and publish the merged model; by default every weight is trained
    lora: LoraConfig | None = None
    # optimizer steps between checkpoints
    checkpoint_steps: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _shards_what_it_offloads(self) -> Self:
        least = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload {self.offload} needs zero_stage {least} or more: "
                "what is not sharded cannot be offloaded"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_prompts % (self.micro_prompts * self.ranks):
            raise ValueError("batch_prompts must be a multiple of micro_prompts * ranks")
        return self
