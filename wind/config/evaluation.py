"""How a policy is evaluated on held-out prompts."""

from typing import ClassVar, Literal

from pydantic import Field

from wind.config.base import Function, Section


class EvaluationConfig(Section):
    """An evaluation of the new policy against a reference, on held-out prompts."""

    samples_per_prompt: int = Field(4, ge=1)
    against: Literal["reference", "initial"] = "initial"
    # resamples of prompts behind each 95% interval
    bootstrap_samples: int = Field(2000, ge=100)
    # module:function(prompts, responses, answers) -> 0/1; by default text equality after strip
    match: Function | None = None


class EvaluationSection(EvaluationConfig):
    """The evaluation in a recipe, including what does not determine content."""

    beside_content: ClassVar = frozenset({"match_timeout"})

    # seconds for one call of `match`
    match_timeout: float | None = Field(3600.0, gt=0)

    def content(self) -> EvaluationConfig:
        """Return the settings that determine the evaluation's content."""
        return EvaluationConfig.model_validate(
            self.model_dump(include=set(EvaluationConfig.model_fields))
        )
