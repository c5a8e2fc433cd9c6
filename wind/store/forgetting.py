"""Forgetting: removing versions from a run, so that collections free their data."""

from collections.abc import Mapping, Sequence

from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.tags import LATEST, Tags
from wind.store.versions import Version, Versions, everywhere


def forget(store: Store, run: str, versions: Sequence[Version], *, force: bool = False) -> None:
    """Remove versions of `run`; the next collection frees their data.

    Their numbers are never given again, and `latest` moves to the last version that stays. Raises
    ConfigError, unless `force`, if another tag points to one of `versions` and would go with it, or
    if a version that stays continues one of them.
    """
    storage, ours, tags = store.storage, Versions(store, run), Tags(store.storage, run)
    with storage.lock(f"runs/{run}/versions.lock"):
        names = {version.id: f"{run}@{version.number}" for version in versions}
        tagged = {
            tag: names[wanted]
            for tag, wanted in tags.ids().items()
            if wanted in names and tag != LATEST
        }
        if not force:
            _refuse_if_tagged(run, tagged)
            _refuse_if_continued(store, run, names)
        for tag in tagged:
            tags.remove(tag)
        numbers = {version.number for version in versions}
        rest = [other for other in ours if other.number not in numbers]
        if rest and tags.id_of(LATEST) in names:
            ours.set_latest(rest[-1])
        elif not rest:
            tags.remove(LATEST)
        # Last first: each may continue the one before.
        for version in sorted(versions, key=lambda version: -version.number):
            record = f"runs/{run}/versions/{version.number:04d}"
            storage.write(f"{record}.forgotten", f"{version.id}\n".encode())
            storage.delete(f"{record}.json")
            storage.delete(version.signatures())


def _refuse_if_tagged(run: str, tagged: Mapping[str, str]) -> None:
    for tag, name in tagged.items():
        raise ConfigError(
            f"{name} has the tag {tag!r}: `wind tag {run} {tag} --delete` first, or give --force"
        )


def _refuse_if_continued(store: Store, run: str, names: Mapping[str, str]) -> None:
    """Raise ConfigError if a version that stays continues one of `names`."""
    goes: list[Version] = []
    stays: list[Version] = []
    for version in everywhere(store):
        (goes if version.run == run and version.id in names else stays).append(version)
    for version in stays:
        for before in (each for each in goes if each.id == version.content.previous):
            # Another run may have the same content.
            has_other = any(each.id == before.id for each in stays)
            if version.digest_before == before.digest or not has_other:
                name = f"{version.run}@{version.number}"
                raise ConfigError(
                    f"{name} continues {names[before.id]}: forget it first, or give --force"
                )
