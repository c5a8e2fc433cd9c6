"""Resolve names of the command line for lineages and histories."""

import re
from collections.abc import Sequence

from wind.audit.lineage import Lineage, of_handle, of_prompt, of_version
from wind.audit.prompt_history import find_prompt
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.references import find_dataset, find_version
from wind.store.versions import Version

PROMPT_ID = re.compile(r"^[0-9a-f]{1,32}$")


def lineage_of(store: Store, name: str, run: str | None = None) -> Lineage:
    """Return the lineage of what is called `name`.

    That is a version, a dataset or model as in `named`, or a prompt by digits of its id.
    """
    version, colon, _ = name.rpartition(":")
    if colon or "/" in name:
        return of_handle(
            store, find_dataset(store, name), find_version(store, version) if colon else None
        )
    try:
        return of_version(store, find_version(store, name))
    except ConfigError:
        if not PROMPT_ID.fullmatch(name):
            raise
    versions, prompt_id = find_prompt(store, name, run)
    if len({version.content.datasets["prompts"] for version in versions}) > 1:
        raise several_runs(prompt_id, versions)
    return of_prompt(store, versions[0], prompt_id)


def prompt_of(store: Store, digits: str, run: str | None) -> tuple[Version, str]:
    """Return the latest version with the prompt, and the prompt's id.

    Raises ConfigError if several runs have the prompt.
    """
    versions, prompt_id = find_prompt(store, digits, run)
    if len(versions) > 1:
        raise several_runs(prompt_id, versions)
    return versions[0], prompt_id


def several_runs(prompt_id: str, versions: Sequence[Version]) -> ConfigError:
    """Return the error for a prompt of several runs."""
    names = ", ".join(version.run for version in versions)
    return ConfigError(f"prompt {prompt_id[:12]} is in the runs {names}: name one with --run")
