"""The layout of an archive: its files, index and tar headers."""

import re
import tarfile
from typing import Annotated, Final

from pydantic import Field

from wind.config.base import Name
from wind.records import Record
from wind.store.computations import BESIDE
from wind.store.layout import MANIFEST, MODEL_FILES
from wind.store.provenance import ENVIRONMENTS, PATCHES

INDEX: Final = "archive.json"
FORMAT: Final = 1
BLOCK: Final = 512  # bytes; a tar pads everything to a multiple of this
SIZE_AT: Final = 124  # offset of a file's size in its tar header
END: Final = bytes(2 * BLOCK)
# The largest index, and the largest record, that is read: both are held in memory.
INDEX_BYTES: Final = 2**26

RUN: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
NOUN: Final = r"[a-z_]+(\.[a-z_]+)?"
DIGITS: Final = r"[0-9a-f]{64}"
LEAF: Final = r"(?!\.\.?$)[^/\\\x00-\x1f\x7f]{1,255}"
RECORDS: Final = re.compile(
    rf"runs/{RUN}/versions/[0-9]{{4,9}}\.json|"
    rf"runs/{RUN}/signatures/{DIGITS}/{DIGITS}\.(json|sig)|"
    rf"(datasets/{NOUN}|models|sources)/{DIGITS}/{re.escape(MANIFEST)}|"
    rf"{ENVIRONMENTS}/{DIGITS}\.json|{PATCHES}/{DIGITS}\.patch|"
    rf"({'|'.join(BESIDE)})/{NOUN}/{DIGITS}(/[A-Za-z0-9_-]{{1,128}})?\.(json|html)"
)
CONTENT: Final = re.compile(
    rf"datasets/{NOUN}/{DIGITS}/part-[0-9]{{5,9}}\.arrow|"
    rf"sources/{DIGITS}/{LEAF}|models/{DIGITS}/(?P<model>{LEAF})"
)


class Member(Record):
    """One file of an archive."""

    name: str  # its path in the store
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=f"^{DIGITS}$")]

    def is_expected(self) -> bool:
        """Tell whether a version can need this file.

        Its name must be one that a store uses, and a record must be small enough to hold in memory.
        """
        if RECORDS.fullmatch(self.name):
            return self.bytes <= INDEX_BYTES
        content = CONTENT.fullmatch(self.name)
        return content is not None and (
            content["model"] is None or MODEL_FILES.match(content["model"]) is not None
        )


class Index(Record):
    """The table of contents of an archive."""

    format: int
    run: Name
    version: str  # id
    files: list[Member]

    def text(self) -> bytes:
        """Return the content of `archive.json`."""
        return self.model_dump_json(indent=1).encode()

    def bytes_after(self) -> int:
        """Return how many bytes the archive has after its index."""
        return len(END) + sum(
            BLOCK + member.bytes + len(padding(member.bytes)) for member in self.files
        )


def header(name: str, size: int) -> bytes:
    """Return the tar header of a plain file.

    It depends on nothing but the name and the size.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of a file.

    `size` is that of the file, in bytes.
    """
    return bytes(-size % BLOCK)
