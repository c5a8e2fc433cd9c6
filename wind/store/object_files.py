"""Objects as files: how pyarrow and other readers see an object store."""

import io
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.fs
from typing_extensions import override

from wind.store.storage import CHUNK_BYTES, Storage

RANGE_BYTES: Final = 4 * CHUNK_BYTES  # of one request
READ_AHEAD_BYTES: Final = 2**20


class RangedStorage(Storage, Protocol):
    """A storage that reads parts of files."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Read up to `length` bytes of the file `name` from `start`."""


class ObjectFiles(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]
    """A file system for pyarrow that reads objects and refuses to write."""

    def __init__(self, storage: RangedStorage) -> None:
        self._storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFiles) and other._storage.url == self._storage.url

    def __hash__(self) -> int:
        return hash(self._storage.url)

    @override
    def get_type_name(self) -> str:
        return self._storage.url.partition(":")[0]

    @override
    def normalize_path(self, path: str) -> str:
        return path

    @override
    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        return [self._info(path) for path in paths]

    @override
    def get_file_info_selector(
        self, selector: pyarrow.fs.FileSelector
    ) -> list[pyarrow.fs.FileInfo]:
        folder = selector.base_dir.strip("/")
        if selector.recursive:
            entries = self._storage.files(folder)
            return [
                pyarrow.fs.FileInfo(entry.name, pyarrow.fs.FileType.File, size=entry.bytes)
                for entry in entries
            ]
        return self.get_file_info(
            [f"{folder}/{name}".lstrip("/") for name in self._storage.names(folder)]
        )

    @override
    def open_input_file(self, path: str) -> pa.NativeFile:
        size = self._storage.size(path)
        if size is None:
            raise FileNotFoundError(path)
        return pa.PythonFile(
            io.BufferedReader(_Reader(self._storage, path, size), READ_AHEAD_BYTES), mode="r"
        )

    open_input_stream = open_input_file

    def _info(self, path: str) -> pyarrow.fs.FileInfo:
        size = self._storage.size(path)
        if size is not None:
            return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=size)
        is_folder = bool(self._storage.names(path))
        return pyarrow.fs.FileInfo(
            path, pyarrow.fs.FileType.Directory if is_folder else pyarrow.fs.FileType.NotFound
        )

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise pa.ArrowNotImplementedError(
            "datasets are written through Store, never through this file system"
        )

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = (
        move
    ) = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse


class _Reader(io.RawIOBase):
    """An object as a seekable file, where each read is one request."""

    def __init__(self, storage: RangedStorage, name: str, size: int) -> None:
        self._storage, self._name, self._size, self._position = storage, name, size, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        return self._position

    @override
    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position, RANGE_BYTES)
        if length <= 0:
            return 0
        content = self._storage.read_range(self._name, self._position, length)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
