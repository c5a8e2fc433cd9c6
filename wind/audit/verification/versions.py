"""Verification of the records of versions: their ids, numbers, tags and chain."""

from dataclasses import dataclass, field

from pydantic import ValidationError

from wind.audit.verification.files import Files
from wind.audit.verification.records import verify_defaults
from wind.errors import first_line
from wind.store.tags import TAG, tag_text
from wind.store.versions import NUMBERED, USED_NUMBER, Version, runs

# what to say of records that an older release wrote
WITHOUT_DIGEST = "was published by an older release, without the digest of its record"
UNTIED_TAG = "was written by an older release, without the digest that ties it to its name"


@dataclass
class VersionRecords:
    """The records of versions in one store, each read once."""

    files: Files
    # files of versions with a gap in the chain before them: one was forgotten or lost
    incomplete: set[str] = field(default_factory=set)
    _records: dict[str, Version | None] = field(default_factory=dict)  # by file; None if damaged
    _by_run: dict[str, dict[str, Version]] = field(default_factory=dict)  # by run, then by id
    _tagged: set[str] = field(default_factory=set)  # runs whose numbers and tags were verified

    def record(self, run: str, name: str) -> Version | None:
        """Return the version in the file `name`, None if damaged."""
        if name not in self._records:
            self._records[name] = self._read(run, name)
        return self._records[name]

    def numbered(self, run: str) -> list[str]:
        """List the file names of the versions of `run`, in order."""
        return [
            name for name in self.files.names(f"runs/{run}/versions") if NUMBERED.fullmatch(name)
        ]

    def numbers_and_tags(self, run: str) -> None:
        """Verify that no version of `run` is missing, and its tags.

        Each tag must point to a version of the run.
        """
        if run in self._tagged:
            return
        self._tagged.add(run)
        names, tags = self.numbered(run), self.files.names(f"runs/{run}/tags")
        versions = self._of_run(run)
        self._verify_numbers(run, versions)
        for tag in tags:
            if TAG.fullmatch(tag):
                self._verify_tag(run, tag, set(versions), is_whole=len(versions) == len(names))
            else:
                self.files.find(f"runs/{run}/tags/{tag}", "has a name that no tag can have")
        if names and "latest" not in tags:
            self.files.find(
                f"runs/{run}/tags/latest", "is missing: publishing a version tags it so"
            )

    def chain(self, version: Version) -> list[Version]:
        """Return the versions before `version`, the newest first.

        Verifies that each is the record that the next was published after, and that each starts
        from the model that the one before it ended with.
        """
        chain: list[Version] = []
        first, seen = version.file(), {version.id}
        while version.content.previous is not None and version.content.previous not in seen:
            before = self._predecessor(version)
            if before is None:
                self.incomplete.add(first)
                break
            name = version.file()
            if (
                version.digest_before
                and before.digest != version.digest_before
                and not self._is_forgotten(before.id)
            ):
                self.files.find(
                    before.file(),
                    f"is not the record that {name} was published after: it was edited",
                )
            if before.content.model_out != version.content.model_in:
                self.files.find(
                    name, "starts from another model than the version before it ended with"
                )
            seen.add(before.id)
            chain.append(before)
            version = before
        return chain

    def _read(self, run: str, name: str) -> Version | None:
        fields = self.files.sealed(name, WITHOUT_DIGEST)
        if fields is None:
            return None
        try:
            version = Version.model_validate(fields)
        except ValidationError as error:
            self.files.find(name, f"is not a version: {first_line(error)}")
            return None
        content = version.content.id()
        if content != version.id:
            self.files.find(
                name, f"was edited: its content has the id {content[:12]}, not {version.id[:12]}"
            )
            return None
        verify_defaults(self.files, version)
        if (version.run, f"{version.number:04d}.json") != (run, name.rpartition("/")[2]):
            self.files.find(name, f"is {version.run}@{version.number}: it was moved")
            return None
        return version

    def _verify_numbers(self, run: str, versions: dict[str, Version]) -> None:
        """Verify that the numbers of the versions have no gaps.

        The number before each version must be taken, by a record or by a version that was
        forgotten.
        """
        used = {
            int(match[1])
            for match in map(USED_NUMBER.fullmatch, self.files.names(f"runs/{run}/versions"))
            if match
        }
        for version in versions.values():
            before = version.number - 1 if version.number_before is None else version.number_before
            if before and before not in used:
                self.files.find(
                    f"runs/{run}/versions/{before:04d}.json",
                    f"is missing: version {version.number} was published after it",
                )

    def _verify_tag(self, run: str, tag: str, ids: set[str], *, is_whole: bool) -> None:
        """Verify one tag; `is_whole` if no record of the run is damaged."""
        name = f"runs/{run}/tags/{tag}"
        text = self.files.read(name)
        if text is None:
            return
        words = text.decode(errors="replace").split()
        wanted = words[0] if words else ""
        if text == f"{wanted}\n".encode() and wanted in ids:
            self.files.note(name, UNTIED_TAG)
        elif text != tag_text(run, tag, wanted):
            self.files.find(
                name, "is not as it was written: it was edited, or is another tag's file"
            )
        elif wanted not in ids and is_whole:
            self.files.find(
                name,
                f"points to {wanted[:12]}, and no version of {run} has that id: "
                "one is missing or was forged",
            )

    def _of_run(self, run: str) -> dict[str, Version]:
        """Return the undamaged versions of `run`, by id."""
        if run not in self._by_run:
            records = [
                self.record(run, f"runs/{run}/versions/{name}") for name in self.numbered(run)
            ]
            self._by_run[run] = {version.id: version for version in records if version is not None}
        return self._by_run[run]

    def _predecessor(self, version: Version) -> Version | None:
        """Find the version that `version` continues, in its own run first.

        Of several with that id, the one whose record `version` was published after is returned. If
        there is none, that is a note where it was forgotten and otherwise a finding.
        """
        run, wanted = version.run, version.content.previous or ""
        is_whole = True
        found: list[Version] = []
        for other in (run, *(each for each in runs(self.files.store) if each != run)):
            if wanted in self._of_run(other):
                found.append(self._of_run(other)[wanted])
            is_whole &= len(self._of_run(other)) == len(self.numbered(other))
        if found:  # a run that was imported under another name has the same versions
            return next((each for each in found if each.digest == version.digest_before), found[0])
        if self._is_forgotten(wanted):
            self.files.note(
                f"runs/{run}/versions",
                f"has no version {wanted[:12]} any longer, although another continues it: it was "
                "forgotten",
            )
        elif is_whole:  # otherwise it may be the one that was found damaged
            self.files.find(
                f"runs/{run}/versions",
                f"has no version {wanted[:12]}, which another names as the one before it",
            )
        return None

    def _is_forgotten(self, wanted: str) -> bool:
        """Tell whether the version with the id `wanted` was forgotten.

        Looks in all runs.
        """
        return any(
            (self.files.read(f"runs/{run}/versions/{name}") or b"").decode(errors="replace").strip()
            == wanted
            for run in self.files.names("runs")
            for name in self.files.names(f"runs/{run}/versions")
            if name.endswith(".forgotten")
        )
