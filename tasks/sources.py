"""Imports of what a run takes from outside.

The base policy, the reward, the prompt files and the questions of benchmarks are each copied into
the store first.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import wind.benchmarks
import wind.models
import wind.prompts
import wind.responses
import wind.rewards
from tasks.run import current_run
from wind.benchmarks.records import Benchmark
from wind.config.evaluation import (
    EvaluationSection,
    ModelOpponentConfig,
    ResponsesOpponentConfig,
    VersionOpponentConfig,
)
from wind.config.models import PolicyConfig
from wind.config.prompts import PromptsConfig
from wind.config.rewards import RewardConfig
from wind.errors import ConfigError, DatasetError, WindError
from wind.prompts import PromptsSpec
from wind.rewards import Reward
from wind.store.handles import Model, Source, label
from wind.store.references import find_version


def import_policy(config: PolicyConfig) -> Model:
    """Import the base policy and return the stored copy.

    The copy is named by its content, so an edited folder is a different policy.
    """
    return wind.models.import_policy(current_run().store, config)


def import_reward(config: RewardConfig, setting: str = "reward") -> Reward:
    """Import the reward that the recipe has as `setting`.

    It is named by the content of its model or the source of its function.
    """
    return wind.rewards.resolve_reward(current_run().store, config, setting)


def import_judges(sections: Mapping[str, RewardConfig]) -> dict[str, Reward]:
    """Import rewards that judge an evaluation, by their names in the recipe.

    They are those of `DistillConfig.reward_sections`, or the same with other seeds.
    """
    return {name: import_reward(section, judge_setting(name)) for name, section in sections.items()}


def judge_setting(name: str) -> str:
    """Return the setting that holds the judge called `name`."""
    return "reward" if name == "training" else f"evaluation.judges.{name}"


def import_opponent(setting: str, config: ModelOpponentConfig | VersionOpponentConfig) -> Model:
    """Import an opponent's model, or find the one that a version ended with.

    Raises ConfigError, which names `setting`, if there is none; DatasetError if its weights were
    dropped.
    """
    here = current_run()
    if config.kind == "model":
        with settings_named("policy", setting):
            return import_policy(PolicyConfig(path=config.path, revision=config.revision))
    try:
        model = find_version(here.store, config.version).content.model_out
    except ConfigError as error:
        raise ConfigError(f"{setting}.version: {error}") from error
    if not here.store.pin_if_whole(model):
        why = (
            "was dropped by a retention policy" if here.store.is_dropped(model) else "is not whole"
        )
        raise DatasetError(
            f"{setting}.version {config.version}: its {label(model)} {why}; `wind rerun RUN --from "
            "training` first"
        )
    return model


def import_stored_responses(setting: str, config: ResponsesOpponentConfig) -> Source:
    """Import an opponent's stored responses and return the stored copy."""
    return wind.responses.import_responses(current_run().store, f"{setting}.path", config.path)


@contextmanager
def settings_named(section: str, name: str) -> Iterator[None]:
    """Call the settings of `section` in errors of the block those of `name`.

    The messages were written for the recipe's own section of that kind; one that has no setting in
    it begins with `name`.
    """
    try:
        yield
    except WindError as error:
        said = re.sub(rf"\b{section}\.(?=[a-z])", f"{name}.", str(error))
        is_about = section == name or f"{name}." in said
        raise type(error)(said if is_about else f"{name}: {said}") from error


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
    sections = {name: judge for name, judge in config.judges.items() if name in judging}
    judges = import_judges(sections)
    return wind.benchmarks.resolve_benchmarks(here.store, config.benchmarks, judges, interpreter)
