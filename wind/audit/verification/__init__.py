"""Verification: recompute every checksum, seal, chain and foreign key of a store.

Verification does not stop at the first finding, so one pass names every file that is not as it was
published, and why. Each link protects the next: a fingerprint binds the content of a dataset; a
seal binds the other fields of its manifest; the record of a version binds the seals of all the
manifests it relies on; the next version binds that record; and a tag binds its version. Someone
who rewrites all of these leaves no trace in the store itself, but the id of a version that was
written down elsewhere still gives them away.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from wind.audit.verification.files import Files, Finding
from wind.audit.verification.folders import FOLDERS, Folders
from wind.audit.verification.foreign_keys import ForeignKeys
from wind.audit.verification.records import verify_checks, verify_computation
from wind.audit.verification.versions import VersionRecords
from wind.errors import DatasetError
from wind.store.datasets import Store
from wind.store.handles import FINGERPRINT, AnyHandle, Dataset, folder_of
from wind.store.layout import MANIFEST
from wind.store.origins import not_computed_here
from wind.store.versions import Version


@dataclass
class Verification:
    """The findings of verifying one store; everything is verified once."""

    store: Store
    # The store is an excerpt of another: it need not hold a run's tags or all of its versions.
    is_excerpt: bool = False
    findings: list[Finding] = field(default_factory=list)
    # what cannot be verified because an older release did not record it, and other remarks
    notes: list[Finding] = field(default_factory=list)
    # files of versions whose seals were all compared
    _vouched: set[str] = field(default_factory=set)
    # folders that some version has the seal of
    _sealed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files = Files(self.store, self.findings, self.notes)
        self._foreign_keys = ForeignKeys(self._files)
        self._folders = Folders(self._files, self._foreign_keys)
        self._records = VersionRecords(self._files)

    @property
    def bytes_checked(self) -> int:
        """The total size of the files whose checksums were recomputed."""
        return self._folders.bytes_checked

    def report(self) -> dict[str, Any]:
        """Return the bytes checked, the findings and the notes, ready for JSON."""
        return {
            "bytes": self.bytes_checked,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": [asdict(note) for note in self.notes],
        }

    def require(self) -> None:
        """Raise DatasetError with the first finding, if there is one."""
        if self.findings:
            first, *others = self.findings
            raise DatasetError(f"{first}{f'; and {len(others)} more' if others else ''}")

    def everything(self) -> None:
        """Verify the whole store, including content that no version refers to."""
        for run in self._files.names("runs"):
            if any(self._files.names(f"runs/{run}/{folder}") for folder in ("versions", "tags")):
                self.run(run)
        for folder in (*(f"datasets/{name}" for name in self._files.names("datasets")), *FOLDERS):
            for name in self._files.names(folder):
                if FINGERPRINT.fullmatch(name):
                    self._folders.unreferenced(folder.removeprefix("datasets/"), f"{folder}/{name}")
                elif not name.endswith(".lock"):
                    self._files.find(
                        f"{folder}/{name}", "is not named for any content: it was added"
                    )

    def run(self, run: str) -> None:
        """Verify all versions of a run, and its tags."""
        self._records.numbers_and_tags(run)
        for name in self._records.numbered(run):
            self.version(run, int(name.removesuffix(".json")))

    def version(self, run: str, number: int) -> None:
        """Verify a version with all of its ancestors.

        This covers its record, the chain of versions before it, the run's tags, and every dataset,
        model and source that it names or that those were made from.
        """
        version = self._records.record(run, f"runs/{run}/versions/{number:04d}.json")
        if not self.is_excerpt:
            self._records.numbers_and_tags(run)
        if version is None:
            return
        chain = [version, *self._records.chain(version)]
        self._folders.lineage(version.handles().values())
        for each in chain:
            if each.file() not in self._vouched:
                self._compare_seals(each)
        self._vouched.add(version.file())
        self._require_seals(version)
        if not self.is_excerpt and (elsewhere := not_computed_here(self.store, version)):
            self._files.note(version.file(), f"is {elsewhere}")
        for name, dataset in version.content.datasets.items():
            verify_checks(self._files, version, name, dataset)
            verify_computation(self._files, version, name, dataset)
        self._content(version)
        self._foreign_keys.of_version(self._folders.whole(version.handles()))

    def dataset(self, handle: AnyHandle) -> None:
        """Verify a dataset, model or source, and its foreign keys.

        The foreign keys of a dataset refer to rows of its parents.
        """
        self._folders.dataset(handle)

    def _compare_seals(self, version: Version) -> None:
        """Compare the manifests with the seals that `version` was published with."""
        record = version.file()
        for folder, seal in version.manifests.items():
            now, name = self._folders.seals.get(folder), f"{folder}/{MANIFEST}"
            if now is not None and seal.claims != now.claims:
                self._files.find(
                    name,
                    f"is not what {record} was published with: "
                    "it was edited, or made by another computation",
                )
            elif now is not None and seal.digest != now.digest:
                self._files.note(
                    name,
                    f"has another provenance than when {record} was published: "
                    "its content was computed again",
                )
            self._sealed.add(folder)

    def _require_seals(self, version: Version) -> None:
        """Find what `version` names although its chain has no seal of it."""
        # What a forgotten version had the seals of is not known.
        if not version.digest or version.file() in self._records.incomplete:
            return
        for handle in self._folders.whole(version.handles()).values():
            if folder_of(handle) not in self._sealed:
                self._files.find(
                    version.file(),
                    f"names {folder_of(handle)}, whose manifest it was not published with: "
                    "one of the two was edited",
                )

    def _content(self, version: Version) -> None:
        """Verify what a record says about its datasets against the datasets themselves."""
        content, name = version.content, version.file()
        if not set(version.checks) <= set(content.datasets):
            self._files.find(name, "counts the checks of datasets that it does not have")
        if version.manifests and not version.digest:
            self._files.find(name, "lacks the digest of its record: it was edited")
        manifests, datasets = self._folders.manifests, content.datasets
        training = (
            manifests.get(folder_of(datasets["training"])) if "training" in datasets else None
        )
        if training is not None and training.outputs.get("model") != content.model_out:
            self._files.find(name, "has another model_out than its training made")
        metrics = datasets.get("metrics")
        if metrics is not None and manifests.get(folder_of(metrics)) is not None:
            stored = {row.pop("metric"): row for row in self._rows(metrics)}
            said = {
                metric: {key: value for key, value in row.items() if key != "iteration"}
                for metric, row in stored.items()
            }
            if said != version.metrics:
                self._files.find(name, "has other metrics than its dataset of metrics")
        alarms = datasets.get("alarms")
        if alarms is not None and manifests.get(folder_of(alarms)) is not None:
            rows = self.store.read(alarms).to_pylist()
            raised = {row["alarm"]: row["message"] for row in rows if row["is_raised"]}
            if raised != version.alarms:
                self._files.find(name, "has other alarms than its dataset of alarms")

    def _rows(self, metrics: Dataset) -> Iterator[dict[str, Any]]:
        """Yield rows of metrics, with None in place of NaN.

        Records of versions have None there, since JSON has no NaN.
        """
        for row in self.store.read(metrics).to_pylist():
            yield {
                key: None if isinstance(value, float) and value != value else value
                for key, value in row.items()
            }
