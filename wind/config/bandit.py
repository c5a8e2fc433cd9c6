"""The config of the contextual-bandit study."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from wind.config.base import Name, Section
from wind.config.runs import RunConfig

# Responses to one prompt: a win rate needs a sibling to win against.
Samples = Annotated[int, Field(ge=2)]


class BanditSection(Section):
    """The sizes of the contextual-bandit study, `wind.bandit`."""

    # prompts of each instance, and responses to each prompt
    prompts: int = Field(4, ge=1)
    responses: int = Field(10, ge=3)
    # KL weight towards the reference
    beta: float = Field(0.25, gt=0)
    # step size; linear convergence is proved up to 4 beta
    eta: float = Field(1.0, gt=0)
    # for sampled algorithms; exact ones run three times as long
    iterations: int = Field(16, ge=4)
    # responses drawn per prompt, each a study of its own
    samples: tuple[Samples, ...] = (4, 8, 16)
    # how often an iteration draws them for each prompt
    visits: int = Field(4, ge=1)
    # repetitions with different draws
    repeats: int = Field(2, ge=1)
    floor_responses: int = Field(6, ge=3)
    floor_iterations: int = Field(24, ge=3)
    floor_repeats: int = Field(6, ge=1)
    # prompts per iteration, at `floor_at_samples`
    floor_prompts: tuple[PositiveInt, ...] = (4, 8, 16, 32, 64, 128)
    # responses drawn per prompt, at `floor_at_prompts`
    floor_samples: tuple[Samples, ...] = (2, 4, 8, 16, 32, 64)
    floor_at_prompts: int = Field(32, ge=1)
    floor_at_samples: int = Field(8, ge=2)

    @model_validator(mode="after")
    def _floor_has_slopes(self) -> Self:
        if min(len(set(self.floor_prompts)), len(set(self.floor_samples))) < 3:
            raise ValueError(
                "floor_prompts and floor_samples need three different values each: "
                "a slope has a standard error"
            )
        asked = (*self.floor_prompts, self.floor_at_prompts)
        if any(count % self.prompts for count in asked):
            raise ValueError(
                f"floor_prompts and floor_at_prompts must be multiples of prompts, {self.prompts}"
            )
        return self


class BanditConfig(RunConfig):
    """The contextual-bandit study."""

    run: Name = "bandit"
    seed: int = Field(0, ge=0, lt=2**31)
    bandit: BanditSection = BanditSection()
