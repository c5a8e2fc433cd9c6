"""The files of a store as verification reads them, and its findings."""

from dataclasses import dataclass, field
from typing import Any

from wind.store import sealed_json
from wind.store.datasets import Store


@dataclass(frozen=True)
class Finding:
    """A file that is not as it was published, and the reason."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


@dataclass
class Files:
    """The files of one store; an unreadable file is a finding."""

    store: Store
    findings: list[Finding]
    notes: list[Finding]
    _plain: dict[str, dict[str, int]] = field(default_factory=dict)  # by folder

    def find(self, name: str, reason: str) -> None:
        """Record that the file `name` is not as it was published."""
        self._add(self.findings, name, reason)

    def note(self, name: str, reason: str) -> None:
        """Record a remark about the file `name` that is not a finding."""
        self._add(self.notes, name, reason)

    def names(self, folder: str) -> list[str]:
        """List the names of the files and folders in `folder`, sorted."""
        return self.store.storage.names(folder)

    def plain(self, folder: str) -> dict[str, int]:
        """Return the sizes of the plain files in `folder`, by name.

        Links and folders are not plain files.
        """
        if folder not in self._plain:
            entries = self.store.storage.files(folder)
            self._plain[folder] = {
                entry.name.removeprefix(f"{folder}/"): entry.bytes for entry in entries
            }
        return self._plain[folder]

    def read(self, name: str) -> bytes | None:
        """Return the content of the file `name`.

        If it cannot be read or is not a plain file, that is a finding, and None is returned.
        """
        folder, _, leaf = name.rpartition("/")
        if leaf not in self.names(folder):
            self.find(name, "is missing")
            return None
        if leaf not in self.plain(folder):
            self.find(name, "is not a plain file")
            return None
        try:
            return self.store.storage.read(name)
        except OSError as error:
            self.find(name, f"cannot be read ({error.strerror or error})")
            return None

    def sealed(self, name: str, old: str) -> dict[str, Any] | None:
        """Return the fields of a sealed JSON record, None if damaged.

        `old` is the note about a record without a seal, which an older release wrote.
        """
        text = self.read(name)
        if text is None:
            return None
        try:
            fields = sealed_json.read(text)
        except ValueError as error:
            self.find(name, str(error))
            return None
        if sealed_json.DIGEST not in fields:
            self.note(name, old)
        return fields

    def _add(self, to: list[Finding], name: str, reason: str) -> None:
        finding = Finding(f"{self.store.storage.url}/{name}", " ".join(reason.split()))
        if finding not in to:
            to.append(finding)
