import importlib
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][a-z0-9.]*(\+cpu)?")


@pytest.mark.parametrize("package", ["flows", "tasks", "data_checks", "wind"])
def test_generic_names_resolve_inside_this_repository(package: str) -> None:
    module = importlib.import_module(package)
    assert [Path(folder).resolve() for folder in module.__path__] == [ROOT / package]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_locks_hold_sorted_name_and_version_and_nothing_else(lock: Path) -> None:
    pins = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    names = [pin.split("==")[0] for pin in pins]
    assert names == sorted(set(names))
    assert [pin for pin in pins if not PIN.fullmatch(pin)] == []
    assert "://" not in lock.read_text()


def test_the_test_lock_only_adds_to_the_cpu_lock() -> None:
    cpu, test = (
        {
            line.split("==")[0]
            for line in (ROOT / "requirements" / name).read_text().splitlines()
            if "==" in line
        }
        for name in ("cpu.txt", "test.txt")
    )
    assert cpu & test == set()


def test_a_cpu_environment_names_no_cuda_library() -> None:
    pins = (ROOT / "requirements" / "cpu.txt").read_text() + (
        ROOT / "requirements" / "test.txt"
    ).read_text()
    assert re.findall(r"^(?:nvidia|cuda|triton)[a-z0-9-]*", pins, flags=re.MULTILINE) == []
    assert re.findall(r"^torch==.*", pins, flags=re.MULTILINE)[0].endswith("+cpu")


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    heavy = [
        "datasets",
        "duckdb",
        "great_expectations",
        "pandas",
        "polars",
        "prefect",
        "torch",
        "transformers",
    ]
    code = f"import sys, flows.cli; print(*(name for name in {heavy} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []


def test_an_environment_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    """Making one anew empties its folder: here that would be somebody else's."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(other)
    made = subprocess.run(
        ["make", "setup"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert ".venv is a link" in made.stderr
    assert (other / "precious").exists()


PACKAGES = ("flows", "tasks", "data_checks", "wind")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `wind` of an environment that has the wheel, and sees the locked packages."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # the packages of this environment, without the .pth file that puts the checkout on the path
    (site / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    install = ["install", "-q", "--no-deps", "--no-index", "--no-compile", "--ignore-installed"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    return folder / "bin/wind"


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(held) == sorted(
        [*(name for name in listed if (ROOT / name).exists()), "wind_command.py"]
    )


@pytest.mark.slow
def test_what_is_installed_works_from_any_folder(
    installed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def ran(*arguments: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(
            [str(installed), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [str(installed.with_name("python")), "-c", "import flows; print(flows.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(installed.parents[1])
    assert "Usage" in ran("--help")
    assert "wind run mine.yaml" in ran("init", "mine", "--policy", str(tiny_model))
    assert "14 datasets to compute" in ran("plan", "mine.yaml", folder=tmp_path / "mine")
