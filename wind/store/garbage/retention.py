"""Retention: the weights and optimizer states that policies keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wind.config.runs import RetentionConfig
from wind.nesting import json_value
from wind.store.datasets import Store
from wind.store.garbage.folders import Folders
from wind.store.handles import folder_of
from wind.store.versions import Version, Versions


@dataclass
class Retained:
    """The weights and states that policies keep, by model folder."""

    weights: set[str] = field(default_factory=set)
    states: set[str] = field(default_factory=set)  # of the trainings that produced these models


def retained(
    store: Store,
    folders: Folders,
    versions: Mapping[str, list[Version]],
    overrides: Mapping[str, Any],
) -> Retained:
    """Return what the policies of all runs keep.

    Args:
        store: where the runs are.
        folders: its stored folders.
        versions: the versions of each run, in the order they were published.
        overrides: settings in place of those of every policy.
    """
    kept = Retained()
    known = {version.id for published in versions.values() for version in published}
    for run, published in versions.items():
        policy = _policy(store, run).model_copy(update=overrides)
        tagged = set(Versions(store, run).tags().values())
        last = policy.weights if isinstance(policy.weights, int) else 0
        for age, version in enumerate(reversed(published)):
            trained = _trained(folders, version)
            # The first version, or one whose predecessor was forgotten: no training of a version
            # produces its start policy again.
            if version.content.previous not in known:
                kept.weights.add(folder_of(version.content.model_in))
            if policy.weights == "all" or version.id in tagged or age < last:
                kept.weights |= trained
            if age < policy.optimizer_states:
                kept.states |= trained
    return kept


def _trained(folders: Folders, version: Version) -> set[str]:
    """Return the models that the training of `version` produced, policy included."""
    datasets = [folder_of(dataset) for dataset in version.content.datasets.values()]
    return {folder_of(version.content.model_out), *folders.models_below(datasets)}


def _policy(store: Store, run: str) -> RetentionConfig:
    """Return the policy in the run's last config, or the default.

    The default, which keeps all weights, is for configs that are missing or cannot be read.
    """
    try:
        content = json_value(store.storage.read(f"runs/{run}/config.json"))
        return RetentionConfig.model_validate(content.get("retention", {}))
    except (OSError, ValueError, AttributeError):
        return RetentionConfig()
