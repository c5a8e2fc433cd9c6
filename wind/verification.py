"""Verification: every checksum, seal, chain and foreign key of what is stored, computed again.

It goes on after the first thing it finds, so that one pass names every file that is not as it was published, and why. A
fingerprint binds the content of a dataset, a seal the other fields of its manifest, the record of a version the seals of all
manifests it relies on, the next version that record, and a tag its version. Whoever rewrites all of them leaves nothing in the
store to tell; the id of a version, kept elsewhere, does.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from wind.datasets import (
    DROPPED,
    FINGERPRINT,
    MANIFEST,
    WEIGHTS,
    AnyHandle,
    Dataset,
    Manifest,
    Model,
    Store,
    StoredFile,
    count,
    folder_of,
    handle_of,
)
from wind.errors import DatasetError, explained
from wind.fingerprints import TableFingerprint, digest
from wind.schemas import FOREIGN_KEYS, PROMPT, SAMPLE, ForeignKey
from wind.seals import DIGEST, opened
from wind.versions import NUMBERED, TAG, USED_NUMBER, Seal, Version, runs, seal_of, tag_text

EXAMPLES = 3
FOLDERS = ("models", "sources")

# How the datasets that belong together are called where they are: by the names that foreign keys know them by.
TRAIN: Final = {
    name: name for name in ("prompts", "generations", "rewards", "win_rates", "selections", "logps", "rollouts", "policy")
}
POLICY: Final = {"prompts": "prompts", "generations": "generations_policy", "rewards": "rewards_policy", "logps": "logps"}
REFERENCE: Final = {"prompts": "prompts", "generations": "generations_reference", "rewards": "rewards_reference"}
ASSEMBLED: Final[dict[str, tuple[dict[str, str], ...]]] = {"training": (TRAIN,), "evaluation": (POLICY, REFERENCE)}
OF_VERSION: Final = (
    TRAIN | {"policy": "model_in"},
    {
        "prompts": "prompts",
        "policy": "model_out",
        "evaluation": "evaluation",
        **{name: f"eval_{name}" for name in ("generations", "rewards", "logps")},
        "generations_policy": "eval_generations",
        "rewards_policy": "eval_rewards",
    },
)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was published."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


@dataclass
class Verification:
    """What was verified so far in one store; each thing is looked at once, whoever names it."""

    store: Store
    is_excerpt: bool = False  # of a store: no run has its tags, nor all versions that were published before
    bytes_checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)  # what older releases left nothing to verify by
    _manifests: dict[str, Manifest | None] = field(default_factory=dict)  # by folder; None of what is damaged
    _seals: dict[str, Seal] = field(default_factory=dict)
    _versions: dict[str, Version | None] = field(default_factory=dict)  # by file
    _runs: dict[str, dict[str, Version]] = field(default_factory=dict)  # by id
    _tagged: set[str] = field(default_factory=set)  # runs
    _vouched: set[str] = field(default_factory=set)  # versions whose every seal was compared
    _listed: dict[str, dict[str, int]] = field(default_factory=dict)  # by folder, the sizes of its plain files
    _has_seal: set[str] = field(default_factory=set)  # folders
    _incomplete: set[str] = field(default_factory=set)  # files of versions before which one was forgotten or lost
    _walked: set[AnyHandle] = field(default_factory=set)
    _assembled: set[AnyHandle] = field(default_factory=set)
    _related: set[tuple[str, str, ForeignKey]] = field(default_factory=set)

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
        """Verify all versions, and all datasets, models and sources, whether or not a version names them."""
        for run in self.store.storage.names("runs"):
            if any(self.store.storage.names(f"runs/{run}/{folder}") for folder in ("versions", "tags")):
                self.run(run)
        for folder in (*(f"datasets/{name}" for name in self.store.storage.names("datasets")), *FOLDERS):
            for name in self.store.storage.names(folder):
                if FINGERPRINT.fullmatch(name):
                    self._stored(folder.removeprefix("datasets/"), f"{folder}/{name}")
                elif not name.endswith(".lock"):
                    self._find(f"{folder}/{name}", "is not named for any content: it was added")

    def run(self, run: str) -> None:
        """Verify all versions of a run, and its tags."""
        self._numbers_and_tags(run)
        for name in self._numbered(run):
            self.version(run, int(name.removesuffix(".json")))

    def version(self, run: str, number: int) -> None:
        """Verify a version: its record, the chain before it, the run's tags, and all that it names and that was made of."""
        version = self._record(run, f"runs/{run}/versions/{number:04d}.json")
        if not self.is_excerpt:
            self._numbers_and_tags(run)
        if version is None:
            return
        chain = [version, *self._chain(version)]
        self._lineage(version.handles().values())
        for each in chain:
            if self._file(each) not in self._vouched:
                self._vouch(each)
        self._vouched.add(self._file(version))
        self._unsealed(version)
        for name, dataset in version.content.datasets.items():
            self._check_result(version, name, dataset)
            self._recorded(version, name, dataset)
        self._content(version)
        for names in OF_VERSION:
            self._relate({role: version.handles()[called] for role, called in names.items() if called in version.handles()})

    def dataset(self, handle: AnyHandle) -> None:
        """Verify a dataset, model or source, and its foreign keys in what it was made of."""
        self._folder(handle)
        self._related_to_parents(handle)

    # ------------------------------------------------------------------------------------------ versions

    def _record(self, run: str, name: str) -> Version | None:
        """The version in the file `name`, None if it is damaged."""
        if name not in self._versions:
            self._versions[name] = self._read_version(run, name)
        return self._versions[name]

    def _read_version(self, run: str, name: str) -> Version | None:
        fields = self._sealed(name, "was published by an older release, without the digest of its record")
        if fields is None:
            return None
        try:
            version = Version.model_validate(fields)
        except ValidationError as error:
            self._find(name, f"is not a version: {explained(error)}")
            return None
        if version.content.id() != version.id:
            self._find(name, f"was edited: its content has the id {version.content.id()[:12]}, not {version.id[:12]}")
            return None
        if (version.run, f"{version.number:04d}.json") != (run, name.rpartition("/")[2]):
            self._find(name, f"is {version.run}@{version.number}: it was moved")
            return None
        return version

    def _numbered(self, run: str) -> list[str]:
        return [name for name in self.store.storage.names(f"runs/{run}/versions") if NUMBERED.fullmatch(name)]

    def _numbers_and_tags(self, run: str) -> None:
        """Verify that no version of the run is missing and that its tags point to one of them."""
        if run in self._tagged:
            return
        self._tagged.add(run)
        names, tags = self._numbered(run), self.store.storage.names(f"runs/{run}/tags")
        used = {int(match[1]) for match in map(USED_NUMBER.fullmatch, self.store.storage.names(f"runs/{run}/versions")) if match}
        versions = self._versions_of(run)
        for version in versions.values():
            before = version.number - 1 if version.number_before is None else version.number_before
            if before and before not in used:
                missing = f"runs/{run}/versions/{before:04d}.json"
                self._find(missing, f"is missing: version {version.number} was published after it")
        for tag in tags:
            if TAG.fullmatch(tag):
                self._tag(run, tag, set(versions), is_whole=len(versions) == len(names))
            else:
                self._find(f"runs/{run}/tags/{tag}", "has a name that no tag can have")
        if names and "latest" not in tags:
            self._find(f"runs/{run}/tags/latest", "is missing: publishing a version tags it so")

    def _tag(self, run: str, tag: str, ids: set[str], *, is_whole: bool) -> None:
        name = f"runs/{run}/tags/{tag}"
        text = self._read(name)
        if text is None:
            return
        words = text.decode(errors="replace").split()
        wanted = words[0] if words else ""
        if text == f"{wanted}\n".encode() and wanted in ids:
            self._note(name, "was written by an older release, without the digest that ties it to its name")
        elif text != tag_text(run, tag, wanted):
            self._find(name, "is not as it was written: it was edited, or is another tag's file")
        elif wanted not in ids and is_whole:
            self._find(name, f"points to {wanted[:12]}, and no version of {run} has that id: one is missing or was forged")

    def _chain(self, version: Version) -> list[Version]:
        """The versions before `version`, the last first; verifies that each is the one that the next was published after."""
        chain: list[Version] = []
        first, seen = self._file(version), {version.id}
        while version.content.previous is not None and version.content.previous not in seen:
            before = self._find_version(version)
            if before is None:
                self._incomplete.add(first)
                break
            name = self._file(version)
            if version.digest_before and before.digest != version.digest_before and not self._is_forgotten(before.id):
                self._find(self._file(before), f"is not the record that {name} was published after: it was edited")
            if before.content.model_out != version.content.model_in:
                self._find(name, "starts from another model than the version before it ended with")
            seen.add(before.id)
            chain.append(before)
            version = before
        return chain

    def _versions_of(self, run: str) -> dict[str, Version]:
        """The versions of `run` that are not damaged, by id."""
        if run not in self._runs:
            records = [self._record(run, f"runs/{run}/versions/{name}") for name in self._numbered(run)]
            self._runs[run] = {version.id: version for version in records if version is not None}
        return self._runs[run]

    def _find_version(self, version: Version) -> Version | None:
        """The version that `version` continues: the record that it was published after, else one with that content."""
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
            self._note(
                f"runs/{run}/versions", f"has no version {wanted[:12]} any more, which another continues: it was forgotten"
            )
        elif is_whole:  # otherwise it may be the one that was found damaged
            self._find(f"runs/{run}/versions", f"has no version {wanted[:12]}, which another names as the one before it")
        return None

    def _is_forgotten(self, wanted: str) -> bool:
        """Whether a version with the id `wanted` was forgotten, in any run."""
        return any(
            (self._read(f"runs/{run}/versions/{name}") or b"").decode(errors="replace").strip() == wanted
            for run in self.store.storage.names("runs")
            for name in self.store.storage.names(f"runs/{run}/versions")
            if name.endswith(".forgotten")
        )

    def _content(self, version: Version) -> None:
        """Verify what the record says beside its content by the datasets that it is about."""
        content, name = version.content, self._file(version)
        if not set(version.checks) <= set(content.datasets):
            self._find(name, "counts the checks of datasets that it does not have")
        if version.manifests and not version.digest:
            self._find(name, "lacks the digest of its record: it was edited")
        training = self._manifests.get(folder_of(content.datasets["training"])) if "training" in content.datasets else None
        if training is not None and training.outputs.get("model") != content.model_out:
            self._find(name, "has another model_out than its training made")
        metrics = content.datasets.get("metrics")
        if metrics is not None and self._manifests.get(folder_of(metrics)) is not None:
            stored = {row.pop("metric"): row for row in self._rows(metrics)}
            said = {metric: {key: value for key, value in row.items() if key != "iteration"} for metric, row in stored.items()}
            if said != version.metrics:
                self._find(name, "has other metrics than its dataset of metrics")

    def _rows(self, metrics: Dataset) -> Iterator[dict[str, Any]]:
        for row in self.store.read(metrics).to_pylist():
            yield {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}

    def _check_result(self, version: Version, called: str, handle: Dataset) -> None:
        """Verify the records and the pages of the checks of `handle`, among them what `version` says of it."""
        names = self.store.storage.names
        folder = f"checks/{handle.name}/{handle.fingerprint}"
        results = [f"{folder}/{name}" for name in names(folder) if name.endswith(".json")]
        if f"{handle.fingerprint}.json" in names(f"checks/{handle.name}"):
            results.append(f"{folder}.json")  # until 0.1
        key = version.check_results.get(called)
        if key is not None and f"{folder}/{key}.json" not in results:
            self._find(f"{folder}/{key}.json", f"is missing: {self._file(version)} was published with this check result")
        elif not results and called in version.checks:
            self._find(folder, f"is missing: {self._file(version)} counts the checks of this dataset")
        for name in results:
            self._judged(name, handle)
        if "latest" in names(folder):
            latest = (self._read(f"{folder}/latest") or b"").decode(errors="replace").removesuffix("\n")
            if f"{folder}/{latest}.json" not in results:
                self._find(f"{folder}/latest", "names no check result of this dataset: it was edited")

    def _recorded(self, version: Version, called: str, handle: Dataset) -> None:
        """Verify that the computation which gave `version` its `handle` has its record."""
        key = version.computations.get(called)
        folder = f"computations/{handle.name}/{handle.fingerprint}"
        if key is not None and f"{key}.json" not in self.store.storage.names(folder):
            self._find(f"{folder}/{key}.json", f"is missing: {self._file(version)} names this computation")

    def _judged(self, name: str, handle: Dataset) -> None:
        fields = self._sealed(name, "was written by an older release, without the digest of its content")
        if fields is None or DIGEST not in fields:
            return
        if fields.get("handle") != handle.model_dump(mode="json"):
            self._find(name, f"is not a check of {folder_of(handle)}: it was moved")
        if name.rpartition("/")[2] not in (f"{handle.fingerprint}.json", f"{fields.get('key')}.json"):
            self._find(name, "is the check under another key: it was moved")
        name = f"{name.removesuffix('.json')}.html"
        page = self._read(name)
        if page is not None and hashlib.sha256(page).hexdigest() != fields.get("page_sha256"):
            self._find(name, "does not have the sha256 of its check result: it was changed")

    def _file(self, version: Version) -> str:
        return f"runs/{version.run}/versions/{version.number:04d}.json"

    # ------------------------------------------------------------------------------------------ folders

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
        """Compare the manifests that were looked at with what `version` recorded of them when it was published."""
        record = self._file(version)
        for folder, seal in version.manifests.items():
            now, name = self._seals.get(folder), f"{folder}/{MANIFEST}"
            if now is not None and seal.claims != now.claims:
                self._find(name, f"is not what {record} was published with: it was edited, or made by another computation")
            elif now is not None and seal.digest != now.digest:
                self._note(name, f"has another provenance than when {record} was published: its content was computed again")
            self._has_seal.add(folder)

    def _unsealed(self, version: Version) -> None:
        """Find what `version` names and neither it nor a version before it has the seal of."""
        if not version.digest or self._file(version) in self._incomplete:  # what a forgotten version vouched for is not known
            return
        for handle in version.handles().values():
            if self._manifests.get(folder_of(handle)) is not None and folder_of(handle) not in self._has_seal:
                what = f"names {folder_of(handle)}, whose manifest it was not published with: one of the two was edited"
                self._find(self._file(version), what)

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
            self._find(folder, "is no folder of a dataset")
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
                self._files(handle, folder, manifest)
                self._computations(folder)
            if len(self.findings) == before:
                self._manifests[folder] = manifest
        manifest = self._manifests[folder]
        if manifest is not None and manifest.rows != count(handle):
            self._find(f"{folder}/{MANIFEST}", f"counts {manifest.rows}, and what names it {count(handle)}")
            return None
        return manifest

    def _manifest(self, folder: str) -> Manifest | None:
        name = f"{folder}/{MANIFEST}"
        if not self.store.storage.names(folder):
            self._find(folder, f"is not in the store {self.store.storage.url}: rerun the stage that makes it")
            return None
        fields = self._sealed(name, "was written by an older release, without the digest of its content")
        if fields is None:
            return None
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            self._find(name, f"is not a manifest: {explained(error)}")
            return None
        kind, _, fingerprint = folder.removeprefix("datasets/").partition("/")
        if (manifest.kind, manifest.fingerprint) != (kind, fingerprint):
            self._find(name, f"names {manifest.kind}/{manifest.fingerprint[:12]}: it was edited or moved")
            return None
        self._seals[folder] = seal_of(fields)
        return manifest

    def _files(self, handle: AnyHandle, folder: str, manifest: Manifest) -> None:
        """Verify that the folder holds the files of the manifest, byte for byte, and no others."""
        storage, before = self.store.storage, len(self.findings)
        plain = self._plain(folder)
        present = set(storage.names(folder))
        is_dropped = isinstance(handle, Model) and DROPPED in plain
        for name in sorted(present - {MANIFEST, *([DROPPED] if is_dropped else []), *(file.name for file in manifest.files)}):
            self._find(f"{folder}/{name}", "is not in its manifest: it was added")
        for file in manifest.files:
            if file.name not in present and is_dropped and file.name.endswith(WEIGHTS):
                self._note(f"{folder}/{file.name}", "was removed, as a retention policy says")
            elif file.name not in present:
                self._find(f"{folder}/{file.name}", "is missing")
            elif file.name not in plain:
                self._find(f"{folder}/{file.name}", "is not a plain file")
            elif plain[file.name] != file.bytes:
                self._find(f"{folder}/{file.name}", f"has {plain[file.name]} bytes, its manifest says {file.bytes}")
        if len(self.findings) > before:
            return
        self.bytes_checked += sum(file.bytes for file in manifest.files if file.name in present)
        try:
            self.store.verify(handle)
        except (DatasetError, OSError) as error:
            for file in (each for each in manifest.files if each.name in present):
                self._checksum(f"{folder}/{file.name}", file)
            if len(self.findings) == before:
                self._find(f"{folder}/{MANIFEST}", f"does not describe what lies beside it: {error}")

    def _checksum(self, name: str, file: StoredFile) -> None:
        hasher = hashlib.sha256()
        try:
            for chunk in self.store.storage.chunks(name):
                hasher.update(chunk)
        except OSError as error:
            self._find(name, f"cannot be read ({error.strerror or error})")
            return
        if hasher.hexdigest() != file.sha256:
            self._find(name, "does not have the sha256 of its manifest: its content was changed")

    def _computations(self, folder: str) -> None:
        """Verify the records of the computations that made what lies in `folder`, where there are any."""
        records = f"computations/{folder.removeprefix('datasets/')}"
        for name in self.store.storage.names(records):
            if name.endswith(".lock"):
                continue
            fields = self._sealed(f"{records}/{name}", "was written by an older release, without the digest of its content")
            outputs = (fields or {}).get("outputs")
            made = [(fields or {}).get("dataset"), *(outputs.values() if isinstance(outputs, dict) else ())]
            fingerprints = [handle.get("fingerprint") for handle in made if isinstance(handle, dict)]
            if fields is not None and folder.rpartition("/")[2] not in fingerprints:
                self._find(f"{records}/{name}", f"is no record of what made {folder}: it was moved")
            elif fields is not None and f"{digest([fields.get(part) for part in ('stage', 'spec', 'code')])}.json" != name:
                self._find(f"{records}/{name}", "is the record of another computation: it was moved")

    # ------------------------------------------------------------------------------------------ foreign keys

    def _related_to_parents(self, handle: AnyHandle) -> None:
        """Verify the foreign keys of `handle` in its parents, and those of its parents in one another."""
        manifest = self._manifests.get(folder_of(handle))
        if not isinstance(handle, Dataset) or manifest is None or handle in self._assembled:
            return
        self._assembled.add(handle)
        parents = {name: parent for name, parent in manifest.parents.items() if self._folder(parent) is not None}
        for key in FOREIGN_KEYS.get(handle.name, ()):
            if key.parent in parents:
                self._relation(handle, parents[key.parent], key)
        for names in ASSEMBLED.get(handle.name, ()):
            self._relate({role: parents[called] for role, called in names.items() if called in parents})
        prompts = parents.get("prompts")
        if handle.name == "generations" and isinstance(prompts, Dataset):
            self._sampled(handle, prompts, manifest)

    def _relate(self, handles: Mapping[str, AnyHandle]) -> None:
        """Verify the foreign keys between `handles`, by the names that foreign keys know them by."""
        whole = {name: handle for name, handle in handles.items() if self._manifests.get(folder_of(handle)) is not None}
        for handle in (each for each in whole.values() if isinstance(each, Dataset)):
            for key in FOREIGN_KEYS.get(handle.name, ()):
                if key.parent in whole:
                    self._relation(handle, whole[key.parent], key)

    def _relation(self, child: Dataset, parent: AnyHandle, key: ForeignKey) -> None:
        if (folder_of(child), folder_of(parent), key) in self._related:
            return
        self._related.add((folder_of(child), folder_of(parent), key))
        try:
            if isinstance(parent, Dataset):
                self._keys_in(child, parent, key)
            else:
                others = self._lazy(child, key.columns).filter(pl.col(key.columns[0]) != parent.fingerprint)
                self._offenders(child, others.unique(), key, f"is not {folder_of(parent)}")
        except (DatasetError, pl.exceptions.PolarsError, pa.ArrowException, ValueError) as error:
            self._find(f"{folder_of(child)}/{MANIFEST}", f"has keys that cannot be compared with {folder_of(parent)}: {error}")

    def _keys_in(self, child: Dataset, parent: Dataset, key: ForeignKey) -> None:
        is_key_of_both = key.columns == SAMPLE and key.is_one_to_one
        if is_key_of_both and self._keys(child) == self._keys(parent):
            return
        ours, theirs = self._lazy(child, key.columns), self._lazy(parent, key.columns)
        has_others = self._offenders(child, ours.join(theirs, on=key.columns, how="anti"), key, f"is not in {folder_of(parent)}")
        if key.is_one_to_one:
            missing = theirs.join(ours, on=key.columns, how="anti")
            has_others |= self._offenders(parent, missing, key, f"is not in {folder_of(child)}")
        if is_key_of_both and not has_others and child.rows != parent.rows:
            self._find(f"{folder_of(child)}/{MANIFEST}", f"has {child.rows} rows for the {parent.rows} of {folder_of(parent)}")

    def _sampled(self, generations: Dataset, prompts: Dataset, manifest: Manifest) -> None:
        """Verify that exactly the prompts that were due were answered."""
        from wind.generations import GenerationsSpec, sampled_prompts  # which most verifications do not need

        try:
            spec = GenerationsSpec.model_validate(manifest.computed_by.get("spec"))
            rows = self.store.frame(prompts, ["prompt_id", "split"])
        except (ValidationError, DatasetError):
            return  # published by hand, without a spec
        due = sampled_prompts(rows, spec.split, spec.seed, spec.iteration, spec.parts).select(PROMPT).lazy()
        answered, key = self._lazy(generations, PROMPT), ForeignKey(PROMPT, "prompts")
        self._offenders(generations, answered.join(due, on=PROMPT, how="anti"), key, f"was not due in {folder_of(prompts)}")
        self._offenders(
            prompts, due.join(answered, on=PROMPT, how="anti"), key, f"was due, and is not in {folder_of(generations)}"
        )

    def _lazy(self, dataset: Dataset, columns: Sequence[str]) -> pl.LazyFrame:
        return pl.scan_pyarrow_dataset(self.store.open(dataset)).select(columns)

    def _keys(self, dataset: Dataset) -> str:
        """The fingerprint of the key columns alone: rows are sorted by key, so equal keys have equal ones."""
        scanner = self.store.open(dataset).scanner(columns=list(SAMPLE))
        fingerprint = TableFingerprint(scanner.projected_schema)
        fingerprint.update(scanner.to_batches())
        return fingerprint.hexdigest()

    def _offenders(self, dataset: Dataset, rows: pl.LazyFrame, key: ForeignKey, what: str) -> bool:
        """Whether `rows` of `dataset` has any: a finding, with the first."""
        counted = rows.select(pl.struct(key.columns).alias("key"), pl.len().alias("count"))
        found = counted.head(EXAMPLES).collect(engine="streaming")
        if len(found):
            examples = ", ".join("/".join(str(value)[:12] for value in row.values()) for row in found["key"])
            what = f"has {found['count'][0]} rows whose {' and '.join(key.columns)} {what}: {examples}"
            self._find(f"{folder_of(dataset)}/{MANIFEST}", what)
        return bool(len(found))

    # ------------------------------------------------------------------------------------------ files

    def _sealed(self, name: str, old: str) -> dict[str, Any] | None:
        """The fields of the sealed JSON record `name`, None if it is damaged; `old` is what to say of one without a seal."""
        text = self._read(name)
        if text is None:
            return None
        try:
            fields = opened(text)
        except ValueError as error:
            self._find(name, str(error))
            return None
        if DIGEST not in fields:
            self._note(name, old)
        return fields

    def _read(self, name: str) -> bytes | None:
        """The content of the file `name`; None, and a finding, if it cannot be read or is no plain file."""
        folder, _, leaf = name.rpartition("/")
        storage = self.store.storage
        if leaf not in storage.names(folder):
            self._find(name, "is missing")
            return None
        if leaf not in self._plain(folder):
            self._find(name, "is not a plain file")
            return None
        try:
            return storage.read(name)
        except OSError as error:
            self._find(name, f"cannot be read ({error.strerror or error})")
            return None

    def _plain(self, folder: str) -> dict[str, int]:
        """The sizes of the plain files in `folder`, by name; links and folders are none."""
        if folder not in self._listed:
            entries = self.store.storage.files(folder)
            self._listed[folder] = {entry.name.removeprefix(f"{folder}/"): entry.bytes for entry in entries}
        return self._listed[folder]

    def _find(self, file: str, reason: str) -> None:
        self._add(self.findings, file, reason)

    def _note(self, file: str, reason: str) -> None:
        self._add(self.notes, file, reason)

    def _add(self, to: list[Finding], file: str, reason: str) -> None:
        finding = Finding(f"{self.store.storage.url}/{file}", " ".join(reason.split()))
        if finding not in to:
            to.append(finding)
