"""Modules of the user's: they stand for none of ours or of Python's, and are found in folders of
any kind.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wind.code.functions import sources
from wind.errors import ConfigError

CONSOLE_SCRIPT = str(Path(sys.executable).with_name("wind"))
SHADOWS = (
    "flows/__init__.py",
    "wind/__init__.py",
    "tasks/__init__.py",
    "random.py",
    "typing_extensions.py",
    "numpy.py",
)


def shadowed(folder: Path) -> None:
    """Fill `folder` with modules whose import ends the process."""
    for name in SHADOWS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"raise SystemExit({name!r})\n")


@pytest.mark.parametrize("pythonpath", [None, ".", "{folder}", f"{{folder}}{os.pathsep}elsewhere"])
def test_the_console_script_runs_our_modules_wherever_it_is_called(
    tmp_path: Path, pythonpath: str | None
) -> None:
    shadowed(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if pythonpath:
        environment["PYTHONPATH"] = pythonpath.format(folder=tmp_path)
    command = [CONSOLE_SCRIPT, "versions"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_console_script_runs_in_a_folder_of_python_itself() -> None:
    """Without PYTHONPATH no folder of the import path is the user's, the current one neither."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = Path(math.__file__).parent
    ended = subprocess.run(
        [CONSOLE_SCRIPT, "--help"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_function_is_found_in_folders_without_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine/time").mkdir(parents=True)
    Path("mine/helper.py").write_text("LENGTH = len\n")
    Path("mine/time/rule.py").write_text(
        "from mine.helper import LENGTH\ndef reward(*batch): ...\n"
    )
    assert set(sources("reward.function", "mine.time.rule:reward")) == {
        "mine.time.rule",
        "mine.helper",
    }
    with pytest.raises(ConfigError, match=r"there is no module mine\.time\.other"):
        sources("reward.function", "mine.time.other:reward")
    with pytest.raises(ConfigError, match=r"there is no module mine\.time\.rule\.deeper"):
        sources("reward.function", "mine.time.rule.deeper:reward")
