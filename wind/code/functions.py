"""The source of a user's function, found and digested without running it.

The digest covers the module's source and every module from the same folder that its import
statements reach, so that editing a helper counts as editing the function. Data files and imports by
a computed name are out of its sight.
"""

import ast
import importlib
import importlib.util
import symtable
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from wind.errors import ConfigError
from wind.fingerprints import digest, file_digest
from wind.machine.user_path import user_path


def source_digest(setting: str, function: str) -> str:
    """Return the digest of the code behind `module:function`.

    `setting` is its name in the config, for messages. The current folder comes last on the import
    path, as it does when the function runs. Raises ConfigError, in one line, if there is no such
    module or function, or if the source does not parse.
    """
    name = function.partition(":")[0]
    # without sources, the module is built in, or compiled for this Python
    return digest(sources(setting, function) or [name, sys.version])


def sources(setting: str, function: str) -> dict[str, str]:
    """Return the sha256 of each source file behind `module:function`, by module name.

    A module without Python source has none. Raises ConfigError like `source_digest`.
    """
    name, _, attribute = function.partition(":")
    importlib.invalidate_caches()  # the module may be younger than the last look into its folder
    spec = find_module(name)
    if spec is None:
        raise ConfigError(
            f"{setting} {function}: there is no module {name} in {Path.cwd()} "
            "or among the installed packages"
        )
    source = source_file(spec)
    if source is None:
        return {}
    if not _binds(_text(setting, source), str(source), attribute):
        raise ConfigError(f"{setting} {function}: {shown_path(str(source))} defines no {attribute}")
    return {module: file_digest(path) for module, path in _beside(setting, name, source).items()}


def files_digest(setting: str, path: Path) -> str:
    """Return the digest of a Python file and its imports.

    Only modules beside the file count. Raises ConfigError, in one line, if there is no such file,
    or if it does not parse.
    """
    importlib.invalidate_caches()
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"{setting} {path} is no Python file: give the path of one")
    return digest(
        {
            module: file_digest(file)
            for module, file in _beside(setting, path.stem, path.resolve()).items()
        }
    )


def find_module(name: str) -> ModuleSpec | None:
    """Return the spec of a dotted module name, or None.

    Unlike importlib's own `find_spec`, this imports no parent package.
    """
    top, *rest = name.split(".")
    spec = _top_level(top)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # Search by the last name only: a folder without `__init__.py` would look for its parent
        # among the imported packages.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _top_level(name: str) -> ModuleSpec | None:
    """Return what `import name` finds.

    The user's folders come last on the import path.
    """
    for finder in sys.meta_path:
        spec = finder.find_spec(name, [*sys.path, *user_path()] if finder is PathFinder else None)
        if spec is not None:
            return spec
    return None


def source_file(spec: ModuleSpec) -> Path | None:
    """Return the path of a module's Python source.

    None for built-in and extension modules, and for folders without `__init__.py`.
    """
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def shown_path(path: str) -> str:
    """Return a path as the user would type it.

    It is relative if it is below the current folder.
    """
    return (
        str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
    )


def _text(setting: str, source: Path) -> str:
    """Return the decoded source. Raises ConfigError if it does not parse."""
    try:
        text = importlib.util.decode_source(source.read_bytes())
        ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(
            f"{setting}: {shown_path(str(source))}:{error.lineno} does not parse: {error.msg}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: {shown_path(str(source))} cannot be read: {error}"
        ) from error
    return text


def _binds(text: str, filename: str, name: str) -> bool:
    """Return whether the module's top level defines, assigns or imports `name`.

    A module that imports `*` is assumed to.
    """
    if any(
        isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        for node in ast.walk(ast.parse(text))
    ):
        return True
    table = symtable.symtable(text, filename, "exec")
    if name not in table.get_identifiers():
        return False
    symbol = table.lookup(name)
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _beside(setting: str, name: str, source: Path) -> dict[str, Path]:
    """Return the sources of a module and its imports, by module name.

    Only imports from the same folder count. Imports are followed transitively.
    """
    folder = _folder(name, source)
    found: dict[str, Path] = {}
    waiting = [(name, source)]
    while waiting:
        module, path = waiting.pop()
        if module in found:
            continue
        found[module] = path
        for imported in _imports(_text(setting, path), module, path):
            spec = find_module(imported)
            beside = source_file(spec) if spec is not None else None
            if (
                beside is not None
                and _folder(imported, beside) == folder
                and _is_own(imported, name, folder)
            ):
                waiting.append((imported, beside))
    return found


def _folder(name: str, source: Path) -> Path:
    """Return the folder on the import path that holds `name`.

    It holds the top-level module.
    """
    depth = name.count(".") + (source.name == "__init__.py")
    return source.resolve().parents[depth]


def _is_own(imported: str, name: str, folder: Path) -> bool:
    """Return whether `imported` belongs to the user's code.

    Of installed packages, only the function's own package does.
    """
    is_installed = (
        folder.name in ("site-packages", "dist-packages")
        or imported.split(".")[0] in sys.stdlib_module_names
    )
    return not is_installed or imported.split(".")[0] == name.split(".")[0]


def _imports(text: str, module: str, path: Path) -> Iterator[str]:
    """Yield every name that a source imports as a possible module.

    The parents of a dotted name are yielded, too.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = [part for part in name.split(".") if part]
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module that an import statement is from.

    Leading dots are resolved against `package`.
    """
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    return ".".join(
        [*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])]
    )
