"""The import contracts fail on what they are there for: planted, and seen to be found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the packages and of the contracts they stand under."""
    for package in ("flows", "tasks", "data_checks", "wind"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(house: Path) -> str:
    """What `lint-imports` says, empty where every contract is kept."""
    program = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; "
    program += "sys.exit(lint_imports(no_cache=True))"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=house, capture_output=True, text=True
    )
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def test_a_module_without_a_room_and_an_import_upwards_are_found(house: Path) -> None:
    assert broken_contracts(house) == ""
    homeless = house / "wind" / "homeless.py"
    homeless.write_text('"""A module that stands in no room."""\n')
    assert "homeless" in broken_contracts(house)
    homeless.unlink()
    pins = house / "wind" / "store" / "pins.py"
    pins.write_text(f"from wind.audit import verification as verification\n{pins.read_text()}")
    assert "wind.store is not allowed to import wind.audit" in broken_contracts(house)
