"""Evaluation of any policy against any reference.

It goes through the same tasks that a run trains with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flows.alarms import alarms
from flows.benchmarks import ask
from flows.health import examine
from flows.matches import Contest, Evaluated
from tasks.checks import checked
from tasks.evaluation import evaluate_policy
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.metrics import measure_metrics
from tasks.rewards import score_rewards
from tasks.sources import import_benchmarks
from wind.benchmarks.records import Benchmark
from wind.config.recipe import DistillConfig
from wind.evaluation import EvaluationSpec, resolve_match
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.matches import Verdicts
from wind.metrics import MetricsSpec
from wind.prompts import PromptsSpec
from wind.rewards import Reward, RewardsSpec
from wind.store.handles import Dataset, Model


@dataclass(frozen=True)
class Policies:
    """The policies of a run that one of its policies is compared with."""

    initial: Model  # that the run began with
    previous: Model  # that the iteration began with
    reference: Model  # that regularized its update

    @classmethod
    def only(cls, model: Model) -> Self:
        """Return `model` in every part: outside a run there is no other."""
        return cls(initial=model, previous=model, reference=model)


@dataclass(frozen=True)
class Evaluator:
    """What a recipe evaluates each policy by.

    All that can be imported or sampled beforehand is, so that whatever cannot be used ends a run
    before it trains.
    """

    config: DistillConfig
    prompts: Dataset
    reward: Reward
    benchmarks: Mapping[str, Benchmark]
    contest: Contest | None

    @classmethod
    def of(
        cls,
        config: DistillConfig,
        asked: PromptsSpec,
        prompts: Dataset,
        reward: Reward,
        *,
        is_alone: bool = False,
    ) -> Self:
        """Return the evaluator of `config`.

        `asked` is the spec of `prompts`. A policy that `is_alone` is evaluated against itself, which
        is no match.
        """
        benchmarks = import_benchmarks(config.evaluation)
        contest = Contest.of(config, asked, prompts, reward, is_alone=is_alone)
        return cls(config, prompts, reward, benchmarks, contest)

    def evaluate(
        self,
        iteration: int,
        policy: Model,
        policies: Policies,
        before: Mapping[str, Dataset] | None = None,
    ) -> dict[str, Dataset]:
        """Evaluate `policy`, which ends `iteration`, on the eval split.

        Returns the datasets by their names in versions. `before` are those of the iteration before,
        which alarms compare with.
        """
        config, section = self.config, self.config.evaluation
        against: Model = getattr(policies, section.against)
        made = self._compared(iteration, policy, against, policies)
        if section.health:
            made["health"] = examine(
                config,
                made,
                prompts=self.prompts,
                previous=policies.previous,
                reference=policies.reference,
                against=against,
            )
        due = {name: self.benchmarks[name] for name in config.benchmarks_due(iteration)}
        if due:
            made["benchmarks"] = ask(config, policy, due)
        if section.alarms is not None and policy != against:
            made["alarms"] = alarms(config, section.alarms, made, before or {})
        return made

    def _compared(
        self, iteration: int, policy: Model, against: Model, policies: Policies
    ) -> dict[str, Dataset]:
        """Compare `policy` with the one it is evaluated `against`, and with further opponents.

        The side of `against` is the same in every iteration, so its datasets are found in the cache.
        """
        config, reward = self.config, self.reward
        samples = config.evaluation.samples_per_prompt
        sampling = config.sampling.model_copy(update={"samples_per_prompt": samples})
        inputs: dict[str, Any] = {"prompts": self.prompts, "reward": reward}
        inputs |= {"policy": policy, "reference": against, "split": "eval", "sampling": sampling}

        def sampled(policy: Model, iteration: int) -> Dataset:
            return sample_generations(
                GenerationsSpec.of(config, inputs, policy=policy, iteration=iteration)
            )

        def scored(generations: Dataset, opponents: Dataset | None = None) -> Dataset:
            spec = RewardsSpec.of(config, inputs, generations=generations, opponents=opponents)
            return checked(score_rewards(spec))

        ours, theirs = checked(sampled(policy, iteration)), checked(sampled(against, 0))
        # Preferences over the reference's responses cover both sides.
        our_rewards = scored(ours, opponents=theirs) if reward.is_relative else scored(ours)
        their_rewards = None if reward.is_relative else scored(theirs)
        logps = checked(score_logps(LogpsSpec.of(config, inputs, generations=ours)))
        spec = EvaluationSpec(
            prompts=self.prompts,
            generations_policy=ours,
            generations_reference=theirs,
            rewards_policy=our_rewards,
            rewards_reference=their_rewards,
            logps=logps,
            evaluation=config.evaluation.content(),
            match_digest=resolve_match(config.evaluation),
        )
        made = {"eval_generations": ours, "eval_rewards": our_rewards, "eval_logps": logps}
        made["evaluation"] = checked(evaluate_policy(spec))
        if self.contest is not None:
            verdicts = Verdicts(policy=our_rewards, opponent=their_rewards)
            name = config.evaluation.against
            evaluated = Evaluated(name, ours, theirs, verdicts, made["evaluation"])
            made["matches"] = self.contest.play(iteration, vars(policies), sampled, evaluated)
        return made

    def measure(self, iteration: int, datasets: Mapping[str, Dataset], **given: Any) -> Dataset:
        """Measure the metrics of what `evaluate` returned, and of a training if there was one."""
        # What there is no dataset of is not looked up in the config, which has sections of its name.
        measured = {name: datasets.get(name) for name in ("training", "rewards", "win_rates")}
        inputs: dict[str, Any] = {**datasets, **measured}
        inputs["generations"] = datasets["eval_generations"]
        inputs |= {"evaluation_config": self.config.evaluation.content(), "iteration": iteration}
        return checked(measure_metrics(MetricsSpec.of(self.config, inputs, **given)))
