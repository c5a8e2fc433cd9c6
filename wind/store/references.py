"""References: how users name versions, datasets and models."""

import re

from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.handles import AnyHandle
from wind.store.versions import Version, Versions, everywhere, runs

REFERENCE = re.compile(
    r"^(?P<run>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})@(?P<tag>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})$"
)


def find_version(store: Store, name: str) -> Version:
    """Return the version that `name` refers to.

    `name` is RUN (its latest), RUN@latest, RUN@3, RUN@TAG, or at least six digits of an id. Raises
    ConfigError unless exactly one version matches.
    """
    match = REFERENCE.fullmatch(name if "@" in name else f"{name}@latest")
    if match and match["run"] in runs(store):
        versions = Versions(store, match["run"])
        found = versions.tagged(match["tag"])
        if found is None and match["tag"].isdigit():
            found = next(
                (version for version in versions if version.number == int(match["tag"])), None
            )
        if found is not None:
            return found
    elif re.fullmatch(r"[0-9a-f]{6,64}", name):
        matches = {
            version.id: version for version in everywhere(store) if version.id.startswith(name)
        }
        if len(matches) == 1:
            return next(iter(matches.values()))
    known = ", ".join(runs(store)) or "none"
    raise ConfigError(
        f"no version is called {name!r} in {store.url} (runs: {known}); `wind versions` lists them"
    )


def find_dataset(store: Store, name: str) -> AnyHandle:
    """Return the dataset or model that `name`, VERSION:NOUN or NOUN/DIGITS, refers to.

    Raises ConfigError if there is none, or several.
    """
    version, colon, dataset = name.rpartition(":")
    if colon:
        handles = find_version(store, version).handles()
        if dataset not in handles:
            raise ConfigError(f"{version} has no dataset {dataset!r}: it has {', '.join(handles)}")
        return handles[dataset]
    kind, _, digits = name.partition("/")
    matches = [
        handle for handle in store.handles(kind) if digits and handle.fingerprint.startswith(digits)
    ]
    if len(matches) != 1:
        raise ConfigError(
            f"{name!r} names {len(matches)} datasets in {store.url}: "
            "give VERSION:NOUN, or NOUN/ and more digits"
        )
    return matches[0]
