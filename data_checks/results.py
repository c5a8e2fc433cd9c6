"""The stored results of checks, readable without Great Expectations.

`<root>/checks/<dataset>/<fingerprint>/<key>.json` has the result of every expectation, and
`<key>.html` the same as a page to open from disk. The key is the digest of everything that the
verdict depends on, so the result under other thresholds or suites lies beside the earlier ones.
`latest` has the key of the last result; if that says `success: false`, the dataset is marked as
failed.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wind.code.digests import code_of
from wind.code.functions import files_digest
from wind.config.checks import ChecksConfig
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import FINGERPRINT, Dataset, label
from wind.store.stamps import is_ours, refuse


class CheckResult(Record):
    """The verdict of a suite on a dataset."""

    handle: Dataset
    success: bool  # no critical expectation failed
    expectations: int  # how many were judged
    key: str  # digest of everything that the verdict depends on, by `key`
    suite: str  # digest of the expectations with their thresholds
    path: str  # of the page, relative to the root
    warnings: tuple[str, ...] = ()  # the other expectations that failed, one line each
    failures: tuple[str, ...] = ()  # the critical expectations that failed, one line each
    previous: Dataset | None = None  # the previous iteration's dataset, which drift is from


def result_name(handle: Dataset, key: str) -> str:
    """Return the file of the JSON result of `handle` under `key`.

    Its page lies beside it, with the ending .html.
    """
    return f"{_folder(handle)}/{key}.json"


def contents(store: Store, handle: Dataset, key: str | None = None) -> dict[str, Any] | None:
    """Read the JSON of a result for `handle`.

    It is the result under `key`, or without one the last result. None if there is none. Raises
    DatasetError if the file cannot be read.
    """
    wanted = key or _latest(store, handle)
    # release 0.1 kept one result per dataset, without a key
    name = (
        result_name(handle, wanted) if wanted else f"checks/{handle.name}/{handle.fingerprint}.json"
    )
    try:
        content = sealed_json.read(store.storage.read(name))
        CheckResult.model_validate(_fields(content))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        where = f"{store.url}/{name}"
        raise DatasetError(
            f"the check result {where} of {label(handle)} cannot be read: delete it and check again"
        ) from error
    return content


def recorded(store: Store, handle: Dataset, key: str | None = None) -> CheckResult | None:
    """Read a result for `handle`.

    It is the result under `key`, or without one the last result. None if there is none. Raises
    DatasetError if the file cannot be read.
    """
    content = contents(store, handle, key)
    return None if content is None else CheckResult.model_validate(_fields(content))


def all_recorded(store: Store, handle: Dataset) -> list[CheckResult]:
    """Read every result for `handle`, in the order of their keys.

    Raises DatasetError if a file cannot be read.
    """
    keys = [
        name.removesuffix(".json")
        for name in store.storage.names(_folder(handle))
        if name.endswith(".json")
    ]
    return [
        result
        for key in keys
        if FINGERPRINT.fullmatch(key) and (result := recorded(store, handle, key)) is not None
    ]


def key(
    store: Store, handle: Dataset, checks: ChecksConfig, previous: Dataset | None = None
) -> str:
    """Compute the digest of everything that a verdict on `handle` depends on.

    It covers the dataset's manifest, the dataset of the iteration before, the thresholds, the
    suites, the user's own files, and the version of Great Expectations. Raises ConfigError if one
    of the files cannot be read.
    """
    return digest(
        [
            store.manifest(handle).model_dump(mode="json", exclude={"provenance", "digest"}),
            None if previous is None else previous.model_dump(mode="json"),
            checks.model_dump(mode="json", exclude={"files"}),
            [files_digest("checks.files", Path(file)) for file in checks.files],
            code_of("data_checks.validation", f"data_checks.{handle.name}"),
            version("great_expectations"),
        ]
    )


def passed(
    store: Store, handle: Dataset, checks: ChecksConfig, previous: Dataset | None = None
) -> CheckResult | None:
    """Return the result if `handle` passed these suites here under these thresholds.

    It becomes the last result of `handle`. None if there is no such pass.
    """
    wanted = key(store, handle, checks, previous)
    try:
        content = contents(store, handle, wanted)
    except DatasetError:
        return None
    if content is None or _page(store, content) is None:
        return None
    # the sender of an archive may claim anything of what was sent
    if not is_ours("check", content):
        refuse(store.address, result_name(handle, wanted))
        return None
    result = CheckResult.model_validate(_fields(content))
    if not result.success or result.key != wanted:
        return None
    if _latest(store, handle) != wanted:
        mark_latest(store, handle, wanted)
    return result


def failed(store: Store, handle: Dataset) -> bool:
    """Return true if the last check of `handle` failed.

    False if it was never checked.
    """
    result = recorded(store, handle)
    return result is not None and not result.success


def mark_latest(store: Store, handle: Dataset, key: str) -> None:
    """Make the result under `key` the last one of `handle`."""
    store.storage.write(f"{_folder(handle)}/latest", f"{key}\n".encode())


def page_of(store: Store, result: CheckResult) -> bytes | None:
    """Return the page of `result` as it was rendered here.

    None if it is gone, was edited, or was rendered elsewhere, and so may contain anything.
    """
    content = contents(store, result.handle, result.key)
    return _page(store, content) if content is not None and is_ours("check", content) else None


def _page(store: Store, content: dict[str, Any]) -> bytes | None:
    """Return the page beside a result, or None if it was changed."""
    try:
        page = store.storage.read(content["path"])
    except (DatasetError, OSError):
        return None
    return page if hashlib.sha256(page).hexdigest() == content.get("page_sha256") else None


def _folder(handle: Dataset) -> str:
    return f"checks/{handle.name}/{handle.fingerprint}"


def _latest(store: Store, handle: Dataset) -> str | None:
    try:
        key = store.storage.read(f"{_folder(handle)}/latest").decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    return key if FINGERPRINT.fullmatch(key) else None


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in CheckResult.model_fields if name in content}
