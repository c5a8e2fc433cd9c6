"""This project's modules, compiled from exactly the source whose digest is kept.

Python considers bytecode current by the size and time of its source, and a source may be edited
after it was imported. So each module's source is read once, hashed and compiled; bytecode beside it
counts only if it carries the hash of these bytes (PEP 552), and any other Python may use it too.
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
# folder that contains the packages
ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# flags of a bytecode file that is checked on import against its source's hash
CHECKED: Final = (0b11).to_bytes(4, "little")

# SHA-256 of the source of each loaded module, by module name
loaded: Final[dict[str, str]] = {}


class SourceLoader(SourceFileLoader):
    """Load a module from the bytes that are hashed."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the module's current source, and record its digest in `loaded`."""
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
        # there is none, or it is damaged
        except (OSError, ValueError, EOFError, TypeError):
            pass
        code: CodeType = self.source_to_code(source, path)
        if not sys.dont_write_bytecode:
            # written whole or not at all; skipped where it cannot be written
            self.set_data(bytecode, header + marshal.dumps(code))
        return code


class Finder:
    """Find this project's modules like `PathFinder`, and load them by `SourceLoader`."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of ours, else None."""
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
    """Load this project's modules by `Finder` from now on.

    Modules that are already loaded are hashed now.
    """
    if Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, Finder)
    for name in ("wind", __package__, __name__):
        with open(str(sys.modules[name].__file__), "rb") as source:
            loaded[name] = hashlib.sha256(source.read()).hexdigest()
