"""Verification: every checksum, seal, chain and foreign key of what is stored, computed again.

It goes on after the first thing it finds, so that one pass names every file that is not as it was
published, and why. A fingerprint binds the content of a dataset, a seal the other fields of its
manifest, the record of a version the seals of all manifests it relies on, the next version that
record, and a tag its version. Whoever rewrites all of them leaves nothing in the store to tell; the
id of a version, kept elsewhere, does.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from wind.audit.verification.files import Files, Finding
from wind.audit.verification.foreign_keys import ForeignKeys
from wind.audit.verification.records import (
    OLD,
    verify_checks,
    verify_computation,
    verify_computations,
    verify_defaults,
    verify_descriptions,
)
from wind.errors import DatasetError, first_line
from wind.store.datasets import Store
from wind.store.handles import (
    FINGERPRINT,
    AnyHandle,
    Dataset,
    Manifest,
    Model,
    StoredFile,
    count,
    folder_of,
    handle_of,
)
from wind.store.layout import DROPPED, MANIFEST, WEIGHTS
from wind.store.origins import not_computed_here
from wind.store.schemas import find_declaration
from wind.store.seals import Seal, seal_of
from wind.store.shards import check_order
from wind.store.tags import TAG, tag_text
from wind.store.versions import NUMBERED, USED_NUMBER, Version, runs

FOLDERS = ("models", "sources")


@dataclass
class Verification:
    """What was verified so far in one store; each thing is looked at once, whoever names it."""

    store: Store
    # of a store: no run has its tags, nor all versions that were published before
    is_excerpt: bool = False
    bytes_checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    # what older releases left nothing to verify by
    notes: list[Finding] = field(default_factory=list)
    # by folder; None of what is damaged
    _manifests: dict[str, Manifest | None] = field(default_factory=dict)
    _seals: dict[str, Seal] = field(default_factory=dict)
    _versions: dict[str, Version | None] = field(default_factory=dict)  # by file
    _runs: dict[str, dict[str, Version]] = field(default_factory=dict)  # by id
    _tagged: set[str] = field(default_factory=set)  # runs
    _vouched: set[str] = field(default_factory=set)  # versions whose every seal was compared
    _has_seal: set[str] = field(default_factory=set)  # folders
    # files of versions before which one was forgotten or lost
    _incomplete: set[str] = field(default_factory=set)
    _walked: set[AnyHandle] = field(default_factory=set)
    _assembled: set[AnyHandle] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files = Files(self.store, self.findings, self.notes)
        self._foreign_keys = ForeignKeys(self._files)

    def report(self) -> dict[str, Any]:
        """What was verified and found, as JSON holds it."""
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
        """Verify all versions, and all datasets, models and sources, whether or not a version names
        them.
        """
        for run in self._files.names("runs"):
            if any(self._files.names(f"runs/{run}/{folder}") for folder in ("versions", "tags")):
                self.run(run)
        for folder in (*(f"datasets/{name}" for name in self._files.names("datasets")), *FOLDERS):
            for name in self._files.names(folder):
                if FINGERPRINT.fullmatch(name):
                    self._stored(folder.removeprefix("datasets/"), f"{folder}/{name}")
                elif not name.endswith(".lock"):
                    self._files.find(
                        f"{folder}/{name}", "is not named for any content: it was added"
                    )

    def run(self, run: str) -> None:
        """Verify all versions of a run, and its tags."""
        self._numbers_and_tags(run)
        for name in self._numbered(run):
            self.version(run, int(name.removesuffix(".json")))

    def version(self, run: str, number: int) -> None:
        """Verify a version: its record, the chain before it, the run's tags, and all that it names
        and that was made of.
        """
        version = self._record(run, f"runs/{run}/versions/{number:04d}.json")
        if not self.is_excerpt:
            self._numbers_and_tags(run)
        if version is None:
            return
        chain = [version, *self._chain(version)]
        self._lineage(version.handles().values())
        for each in chain:
            if each.file() not in self._vouched:
                self._vouch(each)
        self._vouched.add(version.file())
        self._unsealed(version)
        if not self.is_excerpt and (elsewhere := not_computed_here(self.store, version)):
            self._files.note(version.file(), f"is {elsewhere}")
        for name, dataset in version.content.datasets.items():
            verify_checks(self._files, version, name, dataset)
            verify_computation(self._files, version, name, dataset)
        self._content(version)
        whole = {
            name: handle
            for name, handle in version.handles().items()
            if self._manifests.get(folder_of(handle)) is not None
        }
        self._foreign_keys.of_version(whole)

    def dataset(self, handle: AnyHandle) -> None:
        """Verify a dataset, model or source, and its foreign keys in what it was made of."""
        self._folder(handle)
        self._related_to_parents(handle)

    # ------------------------------------------------------------------------------------- versions

    def _record(self, run: str, name: str) -> Version | None:
        """The version in the file `name`, None if it is damaged."""
        if name not in self._versions:
            self._versions[name] = self._read_version(run, name)
        return self._versions[name]

    def _read_version(self, run: str, name: str) -> Version | None:
        fields = self._files.sealed(
            name, "was published by an older release, without the digest of its record"
        )
        if fields is None:
            return None
        try:
            version = Version.model_validate(fields)
        except ValidationError as error:
            self._files.find(name, f"is not a version: {first_line(error)}")
            return None
        if version.content.id() != version.id:
            self._files.find(
                name,
                f"was edited: its content has the id {version.content.id()[:12]}, not {version.id[:12]}",
            )
            return None
        verify_defaults(self._files, version)
        if (version.run, f"{version.number:04d}.json") != (run, name.rpartition("/")[2]):
            self._files.find(name, f"is {version.run}@{version.number}: it was moved")
            return None
        return version

    def _numbered(self, run: str) -> list[str]:
        return [
            name for name in self._files.names(f"runs/{run}/versions") if NUMBERED.fullmatch(name)
        ]

    def _numbers_and_tags(self, run: str) -> None:
        """Verify that no version of the run is missing and that its tags point to one of them."""
        if run in self._tagged:
            return
        self._tagged.add(run)
        names, tags = self._numbered(run), self._files.names(f"runs/{run}/tags")
        used = {
            int(match[1])
            for match in map(USED_NUMBER.fullmatch, self._files.names(f"runs/{run}/versions"))
            if match
        }
        versions = self._versions_of(run)
        for version in versions.values():
            before = version.number - 1 if version.number_before is None else version.number_before
            if before and before not in used:
                missing = f"runs/{run}/versions/{before:04d}.json"
                self._files.find(
                    missing, f"is missing: version {version.number} was published after it"
                )
        for tag in tags:
            if TAG.fullmatch(tag):
                self._tag(run, tag, set(versions), is_whole=len(versions) == len(names))
            else:
                self._files.find(f"runs/{run}/tags/{tag}", "has a name that no tag can have")
        if names and "latest" not in tags:
            self._files.find(
                f"runs/{run}/tags/latest", "is missing: publishing a version tags it so"
            )

    def _tag(self, run: str, tag: str, ids: set[str], *, is_whole: bool) -> None:
        name = f"runs/{run}/tags/{tag}"
        text = self._files.read(name)
        if text is None:
            return
        words = text.decode(errors="replace").split()
        wanted = words[0] if words else ""
        if text == f"{wanted}\n".encode() and wanted in ids:
            self._files.note(
                name, "was written by an older release, without the digest that ties it to its name"
            )
        elif text != tag_text(run, tag, wanted):
            self._files.find(
                name, "is not as it was written: it was edited, or is another tag's file"
            )
        elif wanted not in ids and is_whole:
            self._files.find(
                name,
                f"points to {wanted[:12]}, and no version of {run} has that id: one is missing or was forged",
            )

    def _chain(self, version: Version) -> list[Version]:
        """The versions before `version`, the last first; verifies that each is the one that the
        next was published after.
        """
        chain: list[Version] = []
        first, seen = version.file(), {version.id}
        while version.content.previous is not None and version.content.previous not in seen:
            before = self._find_version(version)
            if before is None:
                self._incomplete.add(first)
                break
            name = version.file()
            if (
                version.digest_before
                and before.digest != version.digest_before
                and not self._is_forgotten(before.id)
            ):
                self._files.find(
                    before.file(),
                    f"is not the record that {name} was published after: it was edited",
                )
            if before.content.model_out != version.content.model_in:
                self._files.find(
                    name, "starts from another model than the version before it ended with"
                )
            seen.add(before.id)
            chain.append(before)
            version = before
        return chain

    def _versions_of(self, run: str) -> dict[str, Version]:
        """The versions of `run` that are not damaged, by id."""
        if run not in self._runs:
            records = [
                self._record(run, f"runs/{run}/versions/{name}") for name in self._numbered(run)
            ]
            self._runs[run] = {version.id: version for version in records if version is not None}
        return self._runs[run]

    def _find_version(self, version: Version) -> Version | None:
        """The version that `version` continues: the record that it was published after, else one
        with that content.
        """
        run, wanted = version.run, version.content.previous or ""
        is_whole = True
        found: list[Version] = []
        for other in (run, *(each for each in runs(self.store) if each != run)):
            if wanted in self._versions_of(other):
                found.append(self._versions_of(other)[wanted])
            is_whole &= len(self._versions_of(other)) == len(self._numbered(other))
        if found:  # a run that was imported under another name has the same versions
            return next((each for each in found if each.digest == version.digest_before), found[0])
        if self._is_forgotten(wanted):
            self._files.note(
                f"runs/{run}/versions",
                f"has no version {wanted[:12]} any more, which another continues: it was forgotten",
            )
        elif is_whole:  # otherwise it may be the one that was found damaged
            self._files.find(
                f"runs/{run}/versions",
                f"has no version {wanted[:12]}, which another names as the one before it",
            )
        return None

    def _is_forgotten(self, wanted: str) -> bool:
        """Whether a version with the id `wanted` was forgotten, in any run."""
        return any(
            (self._files.read(f"runs/{run}/versions/{name}") or b"")
            .decode(errors="replace")
            .strip()
            == wanted
            for run in self._files.names("runs")
            for name in self._files.names(f"runs/{run}/versions")
            if name.endswith(".forgotten")
        )

    def _content(self, version: Version) -> None:
        """Verify what the record says beside its content by the datasets that it is about."""
        content, name = version.content, version.file()
        if not set(version.checks) <= set(content.datasets):
            self._files.find(name, "counts the checks of datasets that it does not have")
        if version.manifests and not version.digest:
            self._files.find(name, "lacks the digest of its record: it was edited")
        training = (
            self._manifests.get(folder_of(content.datasets["training"]))
            if "training" in content.datasets
            else None
        )
        if training is not None and training.outputs.get("model") != content.model_out:
            self._files.find(name, "has another model_out than its training made")
        metrics = content.datasets.get("metrics")
        if metrics is not None and self._manifests.get(folder_of(metrics)) is not None:
            stored = {row.pop("metric"): row for row in self._rows(metrics)}
            said = {
                metric: {key: value for key, value in row.items() if key != "iteration"}
                for metric, row in stored.items()
            }
            if said != version.metrics:
                self._files.find(name, "has other metrics than its dataset of metrics")

    def _rows(self, metrics: Dataset) -> Iterator[dict[str, Any]]:
        for row in self.store.read(metrics).to_pylist():
            yield {
                key: None if isinstance(value, float) and value != value else value
                for key, value in row.items()
            }

    # -------------------------------------------------------------------------------------- folders

    def _lineage(self, handles: Iterable[AnyHandle]) -> None:
        """Verify `handles` and all that they were made of."""
        waiting = list(handles)
        while waiting:
            handle = waiting.pop()
            if handle in self._walked:
                continue
            self._walked.add(handle)
            manifest = self._folder(handle)
            if manifest is not None:
                self._related_to_parents(handle)
                waiting += [*manifest.parents.values(), *manifest.outputs.values()]

    def _vouch(self, version: Version) -> None:
        """Compare the manifests that were looked at with what `version` recorded of them when it
        was published.
        """
        record = version.file()
        for folder, seal in version.manifests.items():
            now, name = self._seals.get(folder), f"{folder}/{MANIFEST}"
            if now is not None and seal.claims != now.claims:
                self._files.find(
                    name,
                    f"is not what {record} was published with: it was edited, or made by another computation",
                )
            elif now is not None and seal.digest != now.digest:
                self._files.note(
                    name,
                    f"has another provenance than when {record} was published: its content was computed again",
                )
            self._has_seal.add(folder)

    def _unsealed(self, version: Version) -> None:
        """Find what `version` names and neither it nor a version before it has the seal of."""
        # what a forgotten version vouched for is not known
        if not version.digest or version.file() in self._incomplete:
            return
        for handle in version.handles().values():
            if (
                self._manifests.get(folder_of(handle)) is not None
                and folder_of(handle) not in self._has_seal
            ):
                what = f"names {folder_of(handle)}, whose manifest it was not published with: one of the two was edited"
                self._files.find(version.file(), what)

    def _stored(self, noun: str, folder: str) -> None:
        """Verify a folder that no handle is known for."""
        if folder in self._manifests:
            return
        manifest = self._manifest(folder)
        if manifest is None:
            return
        try:
            handle = handle_of(noun, folder.rpartition("/")[2], manifest.rows)
        except ValidationError:
            self._files.find(folder, "is no folder of a dataset")
            return
        self.dataset(handle)

    def _folder(self, handle: AnyHandle) -> Manifest | None:
        """The manifest of `handle`, whose every file was verified; None if something was found."""
        folder = folder_of(handle)
        if folder not in self._manifests:
            self._manifests[folder] = None
            before = len(self.findings)
            manifest = self._manifest(folder)
            if manifest is not None:
                self._verify_files(handle, folder, manifest)
            if len(self.findings) == before:
                self._manifests[folder] = manifest
            if manifest is not None:
                verify_computations(self._files, folder)
                verify_descriptions(self._files, manifest.provenance)
        manifest = self._manifests[folder]
        if manifest is not None and manifest.rows != count(handle):
            self._files.find(
                f"{folder}/{MANIFEST}", f"counts {manifest.rows}, and what names it {count(handle)}"
            )
            return None
        return manifest

    def _manifest(self, folder: str) -> Manifest | None:
        name = f"{folder}/{MANIFEST}"
        if not self._files.names(folder):
            self._files.find(
                folder,
                f"is not in the store {self.store.storage.url}: rerun the stage that makes it",
            )
            return None
        fields = self._files.sealed(name, OLD)
        if fields is None:
            return None
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            self._files.find(name, f"is not a manifest: {first_line(error)}")
            return None
        kind, _, fingerprint = folder.removeprefix("datasets/").partition("/")
        if (manifest.kind, manifest.fingerprint) != (kind, fingerprint):
            self._files.find(
                name, f"names {manifest.kind}/{manifest.fingerprint[:12]}: it was edited or moved"
            )
            return None
        self._seals[folder] = seal_of(fields)
        return manifest

    def _verify_files(self, handle: AnyHandle, folder: str, manifest: Manifest) -> None:
        """Verify that the folder holds the files of the manifest, byte for byte, and no others."""
        storage, before = self.store.storage, len(self.findings)
        plain = self._files.plain(folder)
        present = set(storage.names(folder))
        is_dropped = isinstance(handle, Model) and DROPPED in plain
        for name in sorted(
            present
            - {
                MANIFEST,
                *([DROPPED] if is_dropped else []),
                *(file.name for file in manifest.files),
            }
        ):
            self._files.find(f"{folder}/{name}", "is not in its manifest: it was added")
        for file in manifest.files:
            if file.name not in present and is_dropped and file.name.endswith(WEIGHTS):
                self._files.note(f"{folder}/{file.name}", "was removed, as a retention policy says")
            elif file.name not in present:
                self._files.find(f"{folder}/{file.name}", "is missing")
            elif file.name not in plain:
                self._files.find(f"{folder}/{file.name}", "is not a plain file")
            elif plain[file.name] != file.bytes:
                self._files.find(
                    f"{folder}/{file.name}",
                    f"has {plain[file.name]} bytes, its manifest says {file.bytes}",
                )
        if len(self.findings) > before:
            return
        self.bytes_checked += sum(file.bytes for file in manifest.files if file.name in present)
        try:
            self.store.verify(handle)
        except (DatasetError, OSError) as error:
            for file in (each for each in manifest.files if each.name in present):
                self._checksum(f"{folder}/{file.name}", file)
            if len(self.findings) == before:
                self._files.find(
                    f"{folder}/{MANIFEST}", f"does not describe what lies beside it: {error}"
                )
            return
        if isinstance(handle, Dataset) and (known := find_declaration(handle.name)) is not None:
            self._order(handle, folder, manifest, known.key)

    def _order(
        self, handle: Dataset, folder: str, manifest: Manifest, key: tuple[str, ...]
    ) -> None:
        """Verify what joins rely on: the rows of each shard are in order of their key."""
        for index, file in enumerate(manifest.files):
            try:
                check_order(self.store.read(handle, key, shard=index), key)
            except DatasetError as error:
                self._files.find(f"{folder}/{file.name}", f"is out of order: {error}")

    def _checksum(self, name: str, file: StoredFile) -> None:
        hasher = hashlib.sha256()
        try:
            for chunk in self.store.storage.chunks(name):
                hasher.update(chunk)
        except OSError as error:
            self._files.find(name, f"cannot be read ({error.strerror or error})")
            return
        if hasher.hexdigest() != file.sha256:
            self._files.find(
                name, "does not have the sha256 of its manifest: its content was changed"
            )

    def _related_to_parents(self, handle: AnyHandle) -> None:
        """Verify the foreign keys of `handle` in its parents, and those of its parents in one
        another.
        """
        manifest = self._manifests.get(folder_of(handle))
        if not isinstance(handle, Dataset) or manifest is None or handle in self._assembled:
            return
        self._assembled.add(handle)
        whole = {
            name: parent
            for name, parent in manifest.parents.items()
            if self._folder(parent) is not None
        }
        self._foreign_keys.of_parents(handle, whole, manifest)
