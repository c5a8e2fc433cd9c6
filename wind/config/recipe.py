"""A recipe: one frozen record of small sections.

`wind.config.loading` reads it from YAML. A section holds exactly the values that determine a
stage's content, because it is part of that stage's cache key. What cannot change content (the
store, worker processes, interpreters) lives in `root` and in the sections of `wind.config.runs`,
which no key includes; a few settings inside a section name files or limit time, and are listed in
its `beside_content`.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from wind.config.base import Section, at_defaults, drop_beside_content, setting_of, with_paths
from wind.config.benchmarks import BenchmarkConfig
from wind.config.evaluation import EvaluationSection, OpponentConfig
from wind.config.models import InferenceConfig, PolicyConfig, ReferenceConfig
from wind.config.objectives import (
    ON_POLICY,
    ObjectiveConfig,
    SelectionConfig,
    WindObjectiveConfig,
)
from wind.config.prompts import PromptsConfig
from wind.config.rewards import RewardConfig, WinRateConfig
from wind.config.runs import RunConfig
from wind.config.sampling import SamplingConfig
from wind.config.training import TrainingConfig


class DistillConfig(RunConfig):
    """One recipe: the whole of a YAML file under `configs/`."""

    policy: PolicyConfig
    prompts: PromptsConfig
    reward: RewardConfig
    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(3, ge=1)
    reference: ReferenceConfig = ReferenceConfig()
    inference: InferenceConfig = InferenceConfig()
    sampling: SamplingConfig = SamplingConfig()
    win_rate: WinRateConfig = WinRateConfig()
    selection: SelectionConfig = SelectionConfig()
    objective: ObjectiveConfig = WindObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationSection = EvaluationSection()

    def recipe(self) -> dict[str, Any]:
        """Return the settings that determine content, as JSON.

        Left out: paths, names, the iteration count, thresholds, timeouts, and how it is run.
        """
        fields = self.model_dump(mode="json", exclude={*RunConfig.model_fields, "iterations"})
        drop_beside_content(self, fields)
        return fields

    def reward_sections(self) -> dict[str, RewardConfig]:
        """Return every reward of the recipe by name.

        `training` is the one that trains; the others are the judges of the evaluation.
        """
        return {"training": self.reward, **self.evaluation.judges}

    @classmethod
    def of_recipe(cls, chosen: Mapping[str, Any]) -> Self:
        """Return the config of a recorded recipe.

        Defaults are this release's, and paths are empty. `chosen` holds the settings that were not
        at their defaults. Raises ValidationError.
        """
        fields = {"run": "recorded", **chosen}
        sections: dict[str, type[Section]] = {"policy": PolicyConfig, "prompts": PromptsConfig}
        for name, section in sections.items():
            if isinstance(given := chosen.get(name, {}), Mapping):
                fields[name] = {**dict.fromkeys(section.paths(), ""), **given}
        if "reward" in chosen:
            fields["reward"] = with_paths(RewardConfig, chosen["reward"])
        for name, union in (
            ("judges", RewardConfig),
            ("opponents", OpponentConfig),
            ("benchmarks", BenchmarkConfig),
        ):
            if isinstance(named := setting_of(chosen, f"evaluation.{name}"), Mapping):
                whole = {key: with_paths(union, recorded) for key, recorded in named.items()}
                fields["evaluation"] = {**fields["evaluation"], name: whole}
        return cls.model_validate(fields)

    def defaults(self) -> tuple[str, ...]:
        """Return the dotted names of settings at their defaults.

        A version's id omits them.
        """
        return tuple(sorted(at_defaults(self, self.recipe())))

    def responses_per_prompt(self) -> int:
        """Return how many responses to a training prompt one iteration draws.

        On-policy objectives draw fresh ones in every epoch; samples of the anchor count too.
        """
        epochs = 1 if self.objective.steps_per_refresh is None else self.training.epochs
        samples = self.sampling.samples_per_prompt
        return epochs * (samples + self.objective.anchor_samples_for(samples))

    @model_validator(mode="after")
    def _trains_on_allowed_rows(self) -> Self:
        allowed = self.objective.facts.rows
        if self.selection.rows not in ("auto", *allowed):
            raise ValueError(
                f"selection.rows is {self.selection.rows!r}, and the objective "
                f"{self.objective.name} can train on {' or '.join(map(repr, allowed))}"
            )
        return self

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        samples, name = self.sampling.samples_per_prompt, self.objective.name
        least = self.objective.facts.least_samples
        if samples < least:
            why = (
                "a win rate needs a sibling to win against"
                if samples == 1
                else f"the objective {name} needs as many"
            )
            raise ValueError(f"sampling.samples_per_prompt must be at least {least}: {why}")
        least = self.objective.least_anchor_samples
        if self.objective.anchor_samples_for(samples) < least:
            raise ValueError(
                f"sampling.samples_per_prompt must be at least {least}: the objective {name} draws "
                f"as many samples of its anchor as of the policy, and needs {least} of it; "
                "or set objective.anchor_samples"
            )
        return self

    @model_validator(mode="after")
    def _moving_reference_is_sampled(self) -> Self:
        if self.reference.kind == "ema" and self.objective.steps_per_refresh is None:
            raise ValueError(
                "reference.kind ema moves during training, and the objective "
                f"{self.objective.name} compares with stored log-probabilities: "
                f"set objective.refresh_steps ({', '.join(ON_POLICY)}), or reference.kind previous"
            )
        return self
