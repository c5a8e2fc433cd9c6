"""Where the results of checks lie and what they say; importable without Great Expectations.

`<root>/checks/<dataset>/<fingerprint>/<key>.json` holds the results of every expectation and
`<key>.html` the same as a page to open from disk. The key is the digest of all that the verdict
depends on, so that a check under other thresholds, or by other suites, stands beside the ones
before it. `latest` names the key of the last one: `success: false` there is the dataset's mark
`failed`.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

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

# Datasets whose drift since the iteration before is judged, see `data_checks.drift`.
DRIFTING: Final = frozenset(
    {"generations", "rewards", "win_rates", "evaluation", "rollouts", "metrics"}
)


class CheckResult(Record):
    """What a suite said of a dataset."""

    handle: Dataset
    success: bool  # no expectation failed that may not
    expectations: int  # how many were judged
    key: str  # digest of all that the verdict depends on, see `key`
    suite: str  # digest of the expectations with their thresholds
    path: str  # of the page, relative to the root
    warnings: tuple[str, ...] = ()  # what failed and may, one line each
    failures: tuple[str, ...] = ()  # what failed and may not
    previous: Dataset | None = None  # that of the iteration before, which drift was judged against


def result_name(handle: Dataset, key: str) -> str:
    """The file of the JSON result of `handle` under `key`; the page lies beside it as .html."""
    return f"{_folder(handle)}/{key}.json"


def contents(store: Store, handle: Dataset, key: str | None = None) -> dict[str, Any] | None:
    """The JSON of the last result for `handle`, or of the one under `key`; None if there is none.

    Raises DatasetError if the file cannot be read.
    """
    names = (
        [result_name(handle, key)] if key else [f"checks/{handle.name}/{handle.fingerprint}.json"]
    )  # until 0.1, one per dataset
    if key is None and (latest := _latest(store, handle)):
        names = [result_name(handle, latest)]
    try:
        content = sealed_json.read(store.storage.read(names[0]))
        CheckResult.model_validate(_fields(content))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        where = f"{store.url}/{names[0]}"
        raise DatasetError(
            f"the check result {where} of {label(handle)} cannot be read: delete it and check again"
        ) from error
    return content


def recorded(store: Store, handle: Dataset, key: str | None = None) -> CheckResult | None:
    """The last result for `handle`, or the one under `key`; None if there is none. Raises
    DatasetError as `contents` does.
    """
    content = contents(store, handle, key)
    return None if content is None else CheckResult.model_validate(_fields(content))


def all_recorded(store: Store, handle: Dataset) -> list[CheckResult]:
    """Every result for `handle`, in order of their keys. Raises DatasetError as `contents` does."""
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
    """The digest of all that a verdict on `handle` depends on.

    That is its manifest, the dataset of the iteration before, the thresholds, the suites, the
    user's own files and what runs them. Raises ConfigError if one of those files cannot be read.
    """
    return digest(
        [
            store.manifest(handle).model_dump(mode="json", exclude={"provenance", "digest"}),
            None if previous is None else previous.model_dump(mode="json"),
            checks.model_dump(mode="json", exclude={"files"}),
            [files_digest("checks.files", Path(file)) for file in checks.files],
            code_of("data_checks.validation"),
            version("great_expectations"),
        ]
    )


def passed(
    store: Store, handle: Dataset, checks: ChecksConfig, previous: Dataset | None = None
) -> CheckResult | None:
    """The pass that these suites gave `handle` here, under these thresholds, now its last result;
    None if there is none.
    """
    wanted = key(store, handle, checks, previous)
    try:
        content = contents(store, handle, wanted)
    except DatasetError:
        return None
    if content is None or _page(store, content) is None:
        return None
    if not is_ours("check", content):  # what a sender says of what was sent
        refuse(store.address, result_name(handle, wanted))
        return None
    result = CheckResult.model_validate(_fields(content))
    if not result.success or result.key != wanted:
        return None
    if _latest(store, handle) != wanted:
        mark_latest(store, handle, wanted)
    return result


def failed(store: Store, handle: Dataset) -> bool:
    """Whether the last check of `handle` failed; False where it was never checked."""
    result = recorded(store, handle)
    return result is not None and not result.success


def mark_latest(store: Store, handle: Dataset, key: str) -> None:
    """Let the result under `key` be the last of `handle`."""
    store.storage.write(f"{_folder(handle)}/latest", f"{key}\n".encode())


def page_of(store: Store, result: CheckResult) -> bytes | None:
    """The page of `result` as we rendered it; None if it is gone, was edited, or is somebody
    else's, and may hold anything.
    """
    content = contents(store, result.handle, result.key)
    return _page(store, content) if content is not None and is_ours("check", content) else None


def _page(store: Store, content: dict[str, Any]) -> bytes | None:
    """The page beside a result, if it is still the one that was written with it."""
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
