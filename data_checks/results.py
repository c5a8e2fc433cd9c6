"""Where the result of a check lies and what it says; importable without Great Expectations.

Beside the datasets, `<root>/checks/<dataset>/<fingerprint>.json` holds the results of every expectation and
`<fingerprint>.html` the same as a page to open from disk. A result with `success: false` is the dataset's mark `failed`.
"""

import json
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from wind.config import ChecksConfig
from wind.datasets import Dataset, Store, label
from wind.errors import DatasetError
from wind.fingerprints import code_digest, digest


class CheckResult(BaseModel):
    """What a suite said of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    handle: Dataset
    success: bool
    expectations: int  # how many were judged
    key: str  # digest of all that the verdict depends on, see `key`
    suite: str  # digest of the expectations with their thresholds
    path: str  # of the page, relative to the root


def result_name(handle: Dataset, kind: str = "json") -> str:
    """The name in the store of the JSON result of `handle`, or, of kind `html`, of its page."""
    return f"checks/{handle.name}/{handle.fingerprint}.{kind}"


def recorded(store: Store, handle: Dataset) -> CheckResult | None:
    """The last result for `handle`, or None if it was never checked. Raises DatasetError if the file cannot be read."""
    name = result_name(handle)
    try:
        content = json.loads(store.storage.read(name))
        return CheckResult.model_validate({name: content[name] for name in CheckResult.model_fields})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise DatasetError(
            f"the check result {store.url}/{name} of {label(handle)} cannot be read: delete it and check again"
        ) from error


def key(store: Store, handle: Dataset, checks: ChecksConfig) -> str:
    """The digest of all that a verdict on `handle` depends on: its manifest, the thresholds, the suites and what runs them."""
    manifest = store.manifest(handle).model_dump(mode="json", exclude={"provenance"})
    return digest([manifest, checks.model_dump(mode="json"), code_digest(("data_checks",)), version("great_expectations")])


def passed(store: Store, handle: Dataset, checks: ChecksConfig) -> CheckResult | None:
    """The pass that these suites already gave `handle` under these thresholds, or None: then it has to be checked."""
    try:
        result = recorded(store, handle)
    except DatasetError:
        return None
    return result if result is not None and result.success and result.key == key(store, handle, checks) else None


def failed(store: Store, handle: Dataset) -> bool:
    """Whether the last check of `handle` failed; False where it was never checked."""
    result = recorded(store, handle)
    return result is not None and not result.success
