"""Seals: digests of the manifests that a version relies on."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from wind.fingerprints import digest
from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, folder_of
from wind.store.layout import MANIFEST


class Seal(Record):
    """Digests of a manifest when a version relying on it was published."""

    digest: str  # the manifest's own
    claims: str  # the same without provenance, which a repair by the same computation changes


def seal_of(manifest: Mapping[str, Any]) -> Seal:
    """Return the seal of a manifest's fields."""
    fields = {name: value for name, value in manifest.items() if name != sealed_json.DIGEST}
    claims = {name: value for name, value in fields.items() if name != "provenance"}
    return Seal(digest=digest(fields), claims=digest(claims))


def seals_of(store: Store, handles: Iterable[AnyHandle], known: Collection[str]) -> dict[str, Seal]:
    """Seal the manifests of `handles` and of everything they were computed from.

    Returns the seals by the folder of the content. Folders in `known` are left out, with what only
    they lead to. So is content that is damaged, or that garbage collection removed: there is
    nothing to vouch for.
    """
    seals: dict[str, Seal] = {}
    waiting = list(handles)
    while waiting:
        handle = waiting.pop()
        name = folder_of(handle)
        if name in known or name in seals:
            continue
        try:
            fields = sealed_json.read(store.storage.read(f"{name}/{MANIFEST}"))
            manifest = store.manifest(handle)
        except (OSError, ValueError):
            continue
        seals[name] = seal_of(fields)
        waiting += [*manifest.parents.values(), *manifest.outputs.values()]
    return dict(sorted(seals.items()))
