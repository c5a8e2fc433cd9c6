"""Matches of any policy with its opponents, under every judge.

What is the same in every iteration, the judges and the responses of fixed opponents, is made once
and first, so that what cannot be used ends a run before it trains.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from tasks.checks import checked
from tasks.generations import sample_generations
from tasks.matches import match_policy
from tasks.prompts import load_prompts
from tasks.responses import load_responses
from tasks.rewards import score_rewards
from tasks.run import current_run
from tasks.sources import (
    import_judges,
    import_opponent,
    import_stored_responses,
    judge_setting,
    settings_named,
)
from wind.config.evaluation import OpponentConfig
from wind.config.recipe import DistillConfig
from wind.errors import WindError
from wind.evaluation import resolve_match
from wind.generations import GenerationsSpec
from wind.matches import MatchesSpec, Opponent, Verdicts
from wind.prompts import PromptsSpec, read_by
from wind.responses import ResponsesSpec
from wind.rewards import Reward, RewardsSpec
from wind.store.handles import Dataset, Model

# Samples responses of a policy, as it is in an iteration, to the held-out prompts.
Sampled = Callable[[Model, int], Dataset]


def once_checked(dataset: Dataset) -> Dataset:
    """Return `dataset` once it passes its suite, unless it did so in this run.

    What was checked as part of a version is not checked again, without its drift, as a parent of
    matches.
    """
    return dataset if dataset.fingerprint in current_run().checks else checked(dataset)


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Begin errors of the block with the setting that it is about."""
    try:
        yield
    except WindError as error:
        raise type(error)(f"{setting}: {error}") from error


@dataclass(frozen=True)
class Evaluated:
    """A policy's evaluation against one opponent, under the training reward."""

    opponent: str
    generations: Dataset
    opponents_generations: Dataset
    verdicts: Verdicts
    evaluation: Dataset


@dataclass(frozen=True)
class Contest:
    """The judges of a run, and its fixed opponents."""

    config: DistillConfig
    asked: PromptsSpec
    prompts: Dataset
    judges: Mapping[str, Reward]
    # those that judge the policy's responses once more, with another seed
    repeated: Mapping[str, Reward]
    fixed: Mapping[str, Opponent]
    # whether the policy is evaluated against itself, which is no match
    is_alone: bool = False

    @classmethod
    def of(
        cls,
        config: DistillConfig,
        asked: PromptsSpec,
        prompts: Dataset,
        reward: Reward,
        *,
        is_alone: bool = False,
    ) -> Self | None:
        """Return the contest that the recipe asks for, if any.

        The fixed opponents answer the held-out prompts, each by its own tokenizer.
        """
        section = config.evaluation
        if not section.opponents and (is_alone or not section.judges):
            return None
        judges = {"training": reward, **import_judges(section.judges)}
        repeated = import_judges(config.repeated_sections())
        contest = cls(config, asked, prompts, judges, repeated, {})
        fixed = {
            name: contest._answered(name, opponent)
            for name, opponent in section.opponents.items()
            if opponent.kind != "policy"
        }
        return replace(contest, fixed=fixed, is_alone=is_alone)

    def play(
        self, iteration: int, policies: Mapping[str, Model], sampled: Sampled, ours: Evaluated
    ) -> Dataset:
        """Match the policy of `ours` with every opponent under every judge.

        `policies` are those of the run that an opponent may name.
        """
        against = Opponent(responses=ours.opponents_generations, has_tokens=True)
        opponents = {
            **({} if self.is_alone else {ours.opponent: against}),
            **dict(self._of_run(iteration, policies, sampled)),
            **self.fixed,
        }
        verdicts = {
            judge: {
                name: ours.verdicts
                if (judge, name) == ("training", ours.opponent)
                else self._judged(judge, name, opponent.responses, ours)
                for name, opponent in opponents.items()
            }
            for judge in self.judges
        }
        is_text = any(not opponent.has_tokens for opponent in opponents.values())
        spec = MatchesSpec(
            prompts=self.prompts,
            generations_policy=ours.generations,
            evaluation=ours.evaluation,
            opponents=opponents,
            verdicts=verdicts,
            tokenizer=self.asked.tokenizer if is_text else None,
            evaluation_config=self.config.evaluation.content(),
            match_digest=resolve_match(self.config.evaluation),
        )
        return checked(match_policy(spec))

    def _of_run(
        self, iteration: int, policies: Mapping[str, Model], sampled: Sampled
    ) -> Iterator[tuple[str, Opponent]]:
        """Yield the opponents that are policies of the run.

        The previous policy's responses are those of its own evaluation.
        """
        for name, section in self.config.evaluation.opponents.items():
            if section.kind == "policy":
                then = max(iteration - 1, 0) if section.policy == "previous" else 0
                with current_run().beside(name):
                    responses = once_checked(sampled(policies[section.policy], then))
                yield name, Opponent(responses=responses, has_tokens=True)

    def _answered(self, name: str, section: OpponentConfig) -> Opponent:
        """Return the responses of a fixed opponent."""
        setting = f"evaluation.opponents.{name}"
        with current_run().beside(name):
            if section.kind == "responses":
                source = import_stored_responses(setting, section)
                with naming(setting):
                    made = load_responses(ResponsesSpec(source=source, prompts=self.prompts))
                return Opponent(responses=once_checked(made), has_tokens=False)
            assert section.kind != "policy", "sampled anew in every iteration"
            model = import_opponent(setting, section)
            template = section.template if section.kind == "model" else None
            with naming(setting):
                reading = read_by(self.asked, model, template, f"{setting}.template")
                prompts = once_checked(load_prompts(reading))
                made = self._sampled(model, prompts)
        return Opponent(responses=made, has_tokens=prompts == self.prompts)

    def _sampled(self, model: Model, prompts: Dataset) -> Dataset:
        samples = self.config.evaluation.samples_per_prompt
        sampling = self.config.sampling.model_copy(update={"samples_per_prompt": samples})
        inputs: dict[str, Any] = {"prompts": prompts, "policy": model, "sampling": sampling}
        spec = GenerationsSpec.of(self.config, inputs, split="eval", iteration=0)
        return once_checked(sample_generations(spec))

    def _judged(self, judge: str, name: str, theirs: Dataset, ours: Evaluated) -> Verdicts:
        """Return what `judge` says of the policy and of the opponent called `name`."""
        reward = self.judges[judge]
        is_relative = reward.is_relative
        opponents = theirs if is_relative else None
        about = f"{name}.{judge}"
        if judge == "training" and not is_relative:
            policy = ours.verdicts.policy
        else:
            policy = self._scored(
                judge, about if is_relative else judge, reward, ours.generations, opponents
            )
        opponent = None if is_relative else self._scored(judge, about, reward, theirs)
        repeated = None
        if judge in self.repeated:
            purpose = f"{about if is_relative else judge}.again"
            repeated = self._scored(
                judge, purpose, self.repeated[judge], ours.generations, opponents
            )
        return Verdicts(policy=policy, opponent=opponent, repeated=repeated)

    def _scored(
        self,
        judge: str,
        purpose: str,
        reward: Reward,
        generations: Dataset,
        opponents: Dataset | None = None,
    ) -> Dataset:
        spec = RewardsSpec(
            prompts=self.prompts,
            generations=generations,
            opponents=opponents,
            reward=reward,
            inference=self.config.inference,
        )
        with (
            current_run().beside(purpose, judge),
            settings_named("reward", judge_setting(judge)),
        ):
            return once_checked(score_rewards(spec))
