"""Verification of the records beside the content: check results, computations, and defaults."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from wind.audit.verification.files import Files
from wind.config.base import setting_of
from wind.config.recipe import DistillConfig
from wind.errors import shown
from wind.fingerprints import digest
from wind.store.handles import Dataset, folder_of
from wind.store.provenance import described_by, description_digest
from wind.store.sealed_json import DIGEST
from wind.store.versions import Version

OLD = "was written by an older release, without the digest of its content"


def verify_checks(files: Files, version: Version, called: str, handle: Dataset) -> None:
    """Verify the check results of `handle` and their pages.

    The result that `version` names must be among them.
    """
    folder = f"checks/{handle.name}/{handle.fingerprint}"
    results = [f"{folder}/{name}" for name in files.names(folder) if name.endswith(".json")]
    if f"{handle.fingerprint}.json" in files.names(f"checks/{handle.name}"):
        results.append(f"{folder}.json")  # as releases until 0.1 wrote it
    key = version.check_results.get(called)
    if key is not None and f"{folder}/{key}.json" not in results:
        files.find(
            f"{folder}/{key}.json",
            f"is missing: {version.file()} was published with this check result",
        )
    elif not results and called in version.checks:
        files.find(folder, f"is missing: {version.file()} counts the checks of this dataset")
    for name in results:
        _verify_check(files, name, handle)
    if "latest" in files.names(folder):
        latest = (files.read(f"{folder}/latest") or b"").decode(errors="replace").removesuffix("\n")
        if f"{folder}/{latest}.json" not in results:
            files.find(f"{folder}/latest", "names no check result of this dataset: it was edited")


def verify_defaults(files: Files, version: Version) -> None:
    """Verify the settings that a recipe records as being at their defaults.

    The id of a version leaves them out, so their values are compared with the defaults themselves,
    which no release changes. A recipe with settings that this release does not know is skipped.
    """
    content = version.content
    try:
        known = DistillConfig.of_recipe(content.chosen()).recipe()
    except ValidationError:
        return
    for name in content.defaults:
        said, default = setting_of(content.recipe, name), setting_of(known, name)
        for setting, value, real in _deviations(name, said, default):
            files.find(
                version.file(),
                f"was edited: its {setting} is {shown(value)} and at its default, "
                f"which is {shown(real)}",
            )


def _deviations(name: str, said: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ, with both of their values."""
    if isinstance(said, Mapping) and isinstance(default, Mapping):
        for each in said.keys() & default.keys():
            yield from _deviations(f"{name}.{each}", said[each], default[each])
    elif said != default:
        yield name, said, default


def verify_computation(files: Files, version: Version, called: str, handle: Dataset) -> None:
    """Verify that the computation that `version` names for `handle` has a record."""
    key = version.computations.get(called)
    folder = f"computations/{handle.name}/{handle.fingerprint}"
    if key is not None and f"{key}.json" not in files.names(folder):
        files.find(f"{folder}/{key}.json", f"is missing: {version.file()} names this computation")


def verify_computations(files: Files, folder: str) -> None:
    """Verify the records of the computations that made the content of `folder`."""
    records = f"computations/{folder.removeprefix('datasets/')}"
    for name in files.names(records):
        if name.endswith(".lock"):
            continue
        fields = files.sealed(f"{records}/{name}", OLD)
        outputs = (fields or {}).get("outputs")
        made = [
            (fields or {}).get("dataset"),
            *(outputs.values() if isinstance(outputs, dict) else ()),
        ]
        fingerprints = [handle.get("fingerprint") for handle in made if isinstance(handle, dict)]
        verify_descriptions(files, (fields or {}).get("provenance"))
        if fields is not None and folder.rpartition("/")[2] not in fingerprints:
            files.find(f"{records}/{name}", f"is no record of what made {folder}: it was moved")
        elif (
            fields is not None
            and f"{digest([fields.get(part) for part in ('stage', 'spec', 'code')])}.json" != name
        ):
            files.find(f"{records}/{name}", "is the record of another computation: it was moved")


def verify_descriptions(files: Files, provenance: Any) -> None:
    """Verify that the environments and patch of `provenance` hash to their names."""
    for name in described_by(provenance):
        folder, _, leaf = name.partition("/")
        if leaf not in files.names(folder):
            files.note(name, "is not here: what it describes cannot be told")
        elif (content := files.read(name)) is not None and description_digest(
            name, content
        ) != leaf.partition(".")[0]:
            files.find(name, "is not what its name says: it was changed")


def _verify_check(files: Files, name: str, handle: Dataset) -> None:
    fields = files.sealed(name, OLD)
    if fields is None or DIGEST not in fields:
        return
    if fields.get("handle") != handle.model_dump(mode="json"):
        files.find(name, f"is not a check of {folder_of(handle)}: it was moved")
    if name.rpartition("/")[2] not in (f"{handle.fingerprint}.json", f"{fields.get('key')}.json"):
        files.find(name, "is the check under another key: it was moved")
    name = f"{name.removesuffix('.json')}.html"
    page = files.read(name)
    if page is not None and hashlib.sha256(page).hexdigest() != fields.get("page_sha256"):
        files.find(name, "does not have the sha256 of its check result: it was changed")
