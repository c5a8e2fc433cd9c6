"""Evaluation of any policy against any reference.

It goes through the same tasks that a run trains with.
"""

from collections.abc import Mapping
from typing import Any

from flows.matches import Contest, Evaluated
from tasks.benchmarks import ask_benchmarks
from tasks.checks import checked
from tasks.evaluation import evaluate_policy
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from tasks.run import current_run
from wind.benchmarks import BenchmarksSpec
from wind.benchmarks.records import Benchmark
from wind.config.recipe import DistillConfig
from wind.evaluation import EvaluationSpec, resolve_match
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.matches import Verdicts
from wind.rewards import Reward, RewardsSpec
from wind.store.handles import Dataset, Model


def evaluate(
    config: DistillConfig,
    iteration: int,
    *,
    prompts: Dataset,
    reward: Reward,
    policy: Model,
    reference: Model,
    contest: Contest | None = None,
    policies: Mapping[str, Model] | None = None,
) -> dict[str, Dataset]:
    """Evaluate `policy` against `reference` on the eval split.

    Returns the datasets by name. The reference's side is the same in every iteration, so its
    datasets are found in the cache. A `contest` adds matches, some of them with `policies` of the
    run: initial, previous and reference.
    """
    samples = config.evaluation.samples_per_prompt
    sampling = config.sampling.model_copy(update={"samples_per_prompt": samples})
    inputs: dict[str, Any] = {"prompts": prompts, "reward": reward}
    inputs |= {"policy": policy, "reference": reference, "split": "eval", "sampling": sampling}

    def sampled(policy: Model, iteration: int) -> Dataset:
        return sample_generations(
            GenerationsSpec.of(config, inputs, policy=policy, iteration=iteration)
        )

    def scored(generations: Dataset, opponents: Dataset | None = None) -> Dataset:
        spec = RewardsSpec.of(config, inputs, generations=generations, opponents=opponents)
        return checked(score_rewards(spec))

    ours, theirs = checked(sampled(policy, iteration)), checked(sampled(reference, 0))
    # Preferences over the reference's responses cover both sides.
    our_rewards = scored(ours, opponents=theirs) if reward.is_relative else scored(ours)
    their_rewards = None if reward.is_relative else scored(theirs)
    logps = checked(score_logps(LogpsSpec.of(config, inputs, generations=ours)))
    spec = EvaluationSpec(
        prompts=prompts,
        generations_policy=ours,
        generations_reference=theirs,
        rewards_policy=our_rewards,
        rewards_reference=their_rewards,
        logps=logps,
        evaluation=config.evaluation.content(),
        match_digest=resolve_match(config.evaluation),
    )
    made = {
        "eval_generations": ours,
        "eval_rewards": our_rewards,
        "eval_logps": logps,
        "evaluation": checked(evaluate_policy(spec)),
    }
    if contest is not None:
        verdicts = Verdicts(policy=our_rewards, opponent=their_rewards)
        against = config.evaluation.against
        evaluated = Evaluated(against, ours, theirs, verdicts, made["evaluation"])
        made["matches"] = contest.play(iteration, policies or {}, sampled, evaluated)
    return made


def ask(
    config: DistillConfig, policy: Model, benchmarks: Mapping[str, Benchmark]
) -> dict[str, Dataset]:
    """Ask `policy` the questions of `benchmarks`.

    Returns the dataset by its name, or nothing where there are none. Each benchmark is computed by
    itself, so that another one in the recipe asks no question again.
    """

    def asked(name: str) -> Dataset:
        inputs = {"policy": policy, "name": name, "benchmark": benchmarks[name]}
        return checked(ask_benchmarks(BenchmarksSpec.of(config, inputs)))

    if not benchmarks:
        return {}
    first, *others = sorted(benchmarks)
    if not others:
        return {"benchmarks": asked(first)}
    parts = {}
    for name in (first, *others):
        with current_run().beside(name):
            parts[name] = asked(name)
    return {"benchmarks": checked(ask_benchmarks(BenchmarksSpec(policy=policy, parts=parts)))}


def due(config: DistillConfig, iteration: int) -> list[str]:
    """List the benchmarks that are measured after `iteration`."""
    return [
        name
        for name, benchmark in config.evaluation.benchmarks.items()
        if iteration % benchmark.every == 0 or iteration == config.iterations
    ]
