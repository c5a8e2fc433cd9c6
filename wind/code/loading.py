"""This project's modules as this process loaded them: compiled from the source whose digest is
kept, and from no other.

Python takes bytecode for current by the size and time of its source, and a source may be edited
after it was imported. So each module's source is read once, hashed and compiled; bytecode beside it
counts only if it carries the hash of these bytes (PEP 552), which any other Python may use too.
"""

import hashlib
import marshal
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from types import CodeType, ModuleType
from typing import Final

PACKAGES: Final = ("data_checks", "flows", "tasks", "wind")
# the folder that they are in
ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# of a bytecode file: it is named by its source's hash, to be compared on import
CHECKED: Final = (0b11).to_bytes(4, "little")

# sha256 of the source of each of these modules that was loaded, by its name
loaded: Final[dict[str, str]] = {}


class SourceLoader(SourceFileLoader):
    """Loads a module from the bytes that are hashed."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module's source as it is now; its digest is kept in `loaded`."""
        path = self.get_filename(fullname)
        source = self.get_data(path)
        code = self._cached(path, source)
        loaded[fullname] = hashlib.sha256(source).hexdigest()
        return code

    def _cached(self, path: str, source: bytes) -> CodeType:
        header, bytecode = MAGIC_NUMBER + CHECKED + source_hash(source), cache_from_source(path)
        try:
            content = self.get_data(bytecode)
            if content.startswith(header):
                cached: CodeType = marshal.loads(memoryview(content)[len(header) :])
                return cached
        except (OSError, ValueError, EOFError, TypeError):  # there is none, or it is damaged
            pass
        code: CodeType = self.source_to_code(source, path)
        if not sys.dont_write_bytecode:
            # all or nothing; where it cannot be written it is left out
            self.set_data(bytecode, header + marshal.dumps(code))
        return code


class Finder:
    """Finds this project's modules as `PathFinder` does, and has a `SourceLoader` load them."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of ours; None for any other, which the next finder is asked for."""
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or not isinstance(spec.loader, SourceFileLoader)
            or not spec.loader.path.startswith(f"{ROOT}{os.sep}")
        ):
            return None
        spec.loader = SourceLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Load what this process imports of this project from now on by `Finder`; the modules that came
    before are hashed now.
    """
    if Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, Finder)
    for name in ("wind", __package__, __name__):
        with open(str(sys.modules[name].__file__), "rb") as source:
            loaded[name] = hashlib.sha256(source.read()).hexdigest()
