"""`python -m tests.releases 0.2` keeps a run of today's code as `tests/releases/0.2.tar.xz`, for
all later releases to read.

To be run once for every release, from a clean checkout: the archive has the recipe of the flows'
tests with its prompts, its reward and its model, and the store of its one iteration.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests import leftovers

# which gives this process a home of its own: no key of ours stamps the records
from tests.conftest import save_tiny_model
from tests.flows.conftest import write_recipe

OF_THIS_MACHINE = ("logs", "partial", "prefect")  # no version names what lies there


def main(release: str) -> None:
    """Make the archive of `release`."""
    made = Path(__file__).with_name(f"{release}.tar.xz")
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder, release))
        with tarfile.open(Path(folder, made.name), "w:xz") as archive:
            archive.add(Path(folder, release), release, filter=_of_nobody)
        shutil.copyfile(Path(folder, made.name), made)


def _run(folder: Path) -> None:
    model = folder / "model"
    model.mkdir(parents=True)
    save_tiny_model(model)
    write_recipe(folder, Path(model.name))
    subprocess.run(
        [Path(sys.executable).with_name("wind"), "run", "tiny.yaml"],
        cwd=folder,
        env=os.environ,
        check=True,
    )
    for name in OF_THIS_MACHINE:
        shutil.rmtree(folder / "store" / name, ignore_errors=True)


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    return entry.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)


main(*sys.argv[1:])
leftovers.end(is_good=True)
