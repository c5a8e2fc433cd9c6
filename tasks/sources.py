"""Imports of what a run takes from outside.

The base policy, the reward, the prompt files and the questions of benchmarks are each copied into
the store first.
"""

import sys

import wind.benchmarks
import wind.models
import wind.prompts
import wind.rewards
from tasks.run import current_run
from wind.benchmarks.records import Benchmark
from wind.config.evaluation import EvaluationSection
from wind.config.models import PolicyConfig
from wind.config.prompts import PromptsConfig
from wind.config.rewards import RewardConfig
from wind.prompts import PromptsSpec
from wind.rewards import Reward
from wind.store.handles import Model


def import_policy(config: PolicyConfig) -> Model:
    """Import the base policy and return the stored copy.

    The copy is named by its content, so an edited folder is a different policy.
    """
    return wind.models.import_policy(current_run().store, config)


def import_reward(config: RewardConfig) -> Reward:
    """Import the reward.

    It is named by the content of its model or the source of its function.
    """
    return wind.rewards.resolve_reward(current_run().store, config)


def import_prompts(config: PromptsConfig, tokenizer: Model, seed: int) -> PromptsSpec:
    """Import the prompts and return their spec.

    The spec holds their stored source and how its rows become token ids.
    """
    store = current_run().store
    source = wind.prompts.import_prompts(store, config)
    return wind.prompts.prompts_spec(store, config, source, tokenizer, seed)


def import_benchmarks(config: EvaluationSection) -> dict[str, Benchmark]:
    """Import the task files and the questions of benchmarks, and return these by name.

    They are named by the content of those files and the version of what asks them.
    """
    here = current_run()
    interpreter = here.config.workers.python.get("benchmarks", sys.executable)
    judging = {each.judge for each in config.benchmarks.values() if each.kind != "harness"}
    judges = {name: import_reward(config.judges[name]) for name in judging if name is not None}
    return wind.benchmarks.resolve_benchmarks(here.store, config.benchmarks, judges, interpreter)
