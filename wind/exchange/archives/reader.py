"""Reading an archive front to back, and refusing unexpected bytes.

Unexpected is whatever the index does not call for.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from pydantic import ValidationError

from wind.errors import InputError, first_line
from wind.exchange.archives.layout import (
    BLOCK,
    END,
    FORMAT,
    INDEX,
    INDEX_BYTES,
    SIZE_AT,
    Index,
    header,
    padding,
)
from wind.store.storage import CHUNK_BYTES


class ArchiveReader:
    """Reads an archive; each method continues where the last stopped."""

    def __init__(self, file: BinaryIO, archive: Path) -> None:
        self._file = file
        self._archive = archive

    def index(self) -> Index:
        """Read the first file, the index.

        Raises InputError unless it is the index of an archive that lists only files of a version,
        each once and in order.
        """
        head = self._take(BLOCK, "its head")
        digits = re.match(rb"[0-7]{11}\0", head[SIZE_AT:])
        size = int(digits[0][:-1], 8) if digits else 0
        if head != header(INDEX, size) or size > INDEX_BYTES:
            self.refuse(f"is not an archive of `wind export`: it does not begin with {INDEX}")
        content = self._take(size, INDEX)
        self._expect(padding(size), f"the end of {INDEX}")
        try:
            index = Index.model_validate_json(content)
        except ValidationError as error:
            raise InputError(
                f"{self._archive}: {INDEX} cannot be read: {first_line(error)}"
            ) from error
        self._require_export(index, content)
        return index

    def refuse_too_large(self, index: Index, folder: Path) -> None:
        """Raise InputError if the archive is cut short, or too large.

        Too large is what does not fit on the disk of `folder`.

        A sparse file can claim sizes that nobody wrote. Unpacking it would fill the disk before its
        end shows what it is.
        """
        wanted = index.bytes_after()
        if os.fstat(self._file.fileno()).st_size - self._file.tell() < wanted:
            self.refuse(f"ends before the {wanted} bytes that it lists: copy it again")
        existing = (each for each in (folder.absolute(), *folder.absolute().parents))
        free = shutil.disk_usage(next(each for each in existing if each.exists())).free
        if free < wanted:
            self.refuse(
                f"holds {wanted} bytes, but only {free} are free at {folder}: "
                "free space, or give another --root"
            )

    def unpack(self, index: Index, folder: Path) -> None:
        """Write every file of the index below `folder`; read to the end.

        Raises InputError if any of them has another size or sha256 than listed, or if anything
        follows.
        """
        for member in index.files:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._expect(
                header(member.name, member.bytes),
                f"the plain file {member.name} of {member.bytes} bytes",
            )
            hasher = hashlib.sha256()
            with path.open("xb") as copy:
                for chunk in self._chunks(member.bytes):
                    hasher.update(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())  # it is published by a rename, which must not come first
            if hasher.hexdigest() != member.sha256:
                self.refuse(f"has a {member.name} without the sha256 that it lists: it is damaged")
            self._expect(padding(member.bytes), f"the end of {member.name}")
        self._expect(END, "its end")
        if self._file.read(1):
            self.refuse("goes on after its end: it is damaged or not what it says")

    def refuse(self, why: str) -> NoReturn:
        """Raise InputError about the archive."""
        raise InputError(f"{self._archive} {why}")

    def _require_export(self, index: Index, content: bytes) -> None:
        """Raise InputError unless `wind export` could have written `index` as `content`."""
        if index.format != FORMAT:
            self.refuse(
                f"has format {index.format}, this release reads {FORMAT}: "
                "use the release that made it"
            )
        if index.text() != content:
            self.refuse(f"has an {INDEX} that no export wrote: it is damaged or not what it says")
        names = [member.name for member in index.files]
        if names != sorted(set(names)):
            self.refuse("lists a file twice or out of order")
        for member in index.files:
            if not member.is_expected():
                self.refuse(
                    f"lists {member.name!r} of {member.bytes} bytes, which is not a file of a "
                    "version"
                )

    def _chunks(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes in chunks."""
        while size:
            chunk = self._take(min(size, CHUNK_BYTES), "the content that it lists")
            size -= len(chunk)
            yield chunk

    def _expect(self, wanted: bytes, what: str) -> None:
        """Read `wanted`; raise InputError if anything else comes."""
        if self._take(len(wanted), what) != wanted:
            self.refuse(f"does not have {what} where it should: it is damaged or not what it says")

    def _take(self, size: int, what: str) -> bytes:
        content = self._file.read(size)
        if len(content) != size:
            self.refuse(f"ends before {what}: copy it again")
        return content
