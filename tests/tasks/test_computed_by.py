"""A task names every module whose edit could change what it computes: the imports are followed and compared."""

import ast
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import tasks
from wind.processes import SOURCE

# They carry data in and out and decide nothing about its values: what they changed would show in a schema or a handle.
CARRIERS = {
    "wind",
    "wind.computations",
    "wind.config",
    "wind.datasets",
    "wind.environment",
    "wind.errors",
    "wind.files",
    "wind.fingerprints",
    "wind.handles",
    "wind.incoming",
    "wind.lifeline",
    "wind.nesting",
    "wind.objective_config",
    "wind.processes",
    "wind.provenance",
    "wind.redaction",
    "wind.schemas",
    "wind.sections",
    "wind.stages",
    "wind.storage",
    "wind.terminal",
    "wind.user_path",
}


def task_modules() -> list[str]:
    names = [f"tasks.{module.name}" for module in pkgutil.iter_modules(tasks.__path__)]
    return [name for name in names if hasattr(importlib.import_module(name), "COMPUTED_BY")]


def is_module(name: str) -> bool:
    """Whether there is a file of that name; to ask the import system would import its parents, engines among them."""
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, at its top or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wind":
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part for part in parts if is_module(part)} or {node.module}
    return {name for name in found if name.split(".")[0] == "wind"}


def files_of(module: str) -> list[Path]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


@pytest.mark.parametrize("task", task_modules())
def test_every_module_that_computes_is_named(task: str) -> None:
    named: tuple[str, ...] = importlib.import_module(task).COMPUTED_BY
    reached = {name for module in named for path in files_of(module) for name in imported(path)} - CARRIERS
    assert {name for name in reached if not any(name == module or name.startswith(f"{module}.") for module in named)} == set()
    assert any(module == f"wind.{task.removeprefix('tasks.')}" for module in named)
