"""A recipe: one frozen record of small sections.

`wind.config.loading` reads it from YAML. A section holds exactly the values that determine a
stage's content, because it is part of that stage's cache key. What cannot change content (the
store, worker processes, interpreters) lives in `root` and in the sections of `wind.config.runs`,
which no key includes; a few settings inside a section name files or limit time, and are listed in
its `beside_content`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, model_validator

from wind.config.base import (
    Label,
    Section,
    at_defaults,
    drop_beside_content,
    setting_of,
    with_paths,
)
from wind.config.benchmarks import BenchmarkConfig
from wind.config.evaluation import EvaluationSection, OpponentConfig
from wind.config.gates import GateConfig
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
from wind.errors import shown
from wind.metric_table import METRICS, metric_named

# families of metrics that compare the policy with an opponent under a judge
OF_MATCHES: Final = ("win_rate", "lc_win_rate", "tie_share")


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
    # what an iteration has to reach for the run to go on from it, by name
    gates: dict[Label, GateConfig] = Field(default_factory=dict)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that determine content, as JSON.

        Left out: paths, names, the iteration count, thresholds, gates, timeouts, and how it is run.
        """
        fields = self.model_dump(
            mode="json", exclude={*RunConfig.model_fields, "iterations", "gates"}
        )
        drop_beside_content(self, fields)
        return fields

    def reward_sections(self) -> dict[str, RewardConfig]:
        """Return every reward of the recipe by name.

        `training` is the one that trains; the others are the judges of the evaluation.
        """
        return {"training": self.reward, **self.evaluation.judges}

    def benchmarks_due(self, iteration: int) -> list[str]:
        """List the benchmarks whose questions are asked after `iteration`."""
        return [
            name
            for name, benchmark in self.evaluation.benchmarks.items()
            if iteration % benchmark.every == 0 or iteration == self.iterations
        ]

    def repeated_sections(self) -> dict[str, RewardConfig]:
        """Return the rewards that judge once more, by name, each with the next seed.

        None unless the recipe asks for it, and only those that have a seed.
        """
        sections = self.reward_sections() if self.evaluation.repeat_judges else {}
        seeds = {name: getattr(section, "seed", None) for name, section in sections.items()}
        return {
            name: sections[name].model_copy(update={"seed": seed + 1})
            for name, seed in seeds.items()
            if isinstance(seed, int)
        }

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

    @model_validator(mode="after")
    def _gates_judge_what_is_measured(self) -> Self:
        for name, gate in self.gates.items():
            if gate.alarm is not None and self.evaluation.alarms is None:
                raise ValueError(
                    f"gates.{name} asks for an alarm, and evaluation.alarms is not set: "
                    "set it, {} for the defaults"
                )
            if gate.alarm is not None and gate.alarm not in (known := self._alarms()):
                raise ValueError(
                    f"gates.{name}.alarm is {shown(gate.alarm)}, which is no alarm of this recipe: "
                    f"they are {', '.join(known)}"
                )
            for field, metric in (("metric", gate.metric), ("by", gate.by)):
                if metric is not None and not self._measures(metric):
                    raise ValueError(
                        f"gates.{name}.{field} is {shown(metric)}, which is no metric of this "
                        f"recipe: they are {', '.join([*METRICS, *self._families()])}"
                    )
            directed = gate.by or (gate.metric if gate.drop is not None else None)
            if directed is not None and metric_named(directed).better is None:
                raise ValueError(
                    f"gates.{name}: neither more nor less of {directed} is better, so no version "
                    "is the best by it: choose another metric, or give min or max"
                )
        return self

    def _alarms(self) -> list[str]:
        """Return the names of alarms and of their families."""
        since = [self.evaluation.against, "previous"]
        about = ["length.controlled", "length.moved"]
        about += [f"reward_hacking.{judge}" for judge in ("gold", *self.evaluation.judges)]
        named = [f"{each}.{time}" for each in about for time in since]
        return ["length", "reward_hacking", *about, *named]

    def _families(self) -> list[str]:
        """Return the forms of the metrics that are named by judges, opponents and benchmarks."""
        judges = "|".join(["training", "gold", *self.evaluation.judges])
        opponents = "|".join([self.evaluation.against, *self.evaluation.opponents])
        benchmarks = "|".join(self.evaluation.benchmarks)
        matches = [f"{family}.({judges}).({opponents})" for family in OF_MATCHES]
        return [*matches, *([f"benchmark.({benchmarks}).METRIC"] if benchmarks else [])]

    def _measures(self, metric: str) -> bool:
        """Tell whether this recipe may measure `metric`."""
        forms = [form.replace("METRIC", ".+") for form in self._families()]
        return metric in METRICS or any(re.fullmatch(form, metric) for form in forms)
