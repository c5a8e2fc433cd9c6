"""Revision and uncommitted changes of a checkout, independent of git's configuration.

Git never runs in the checkout's own repository. It runs in a temporary one of ours, with an empty
configuration, an index made from the commit, and links to the refs and objects of the real one. So
no configuration of a user, a system, a repository or a variable affects the patch, and nothing that
they name is run: file system monitors, filters, external diffs, hooks, transports.

A patch leads from the bytes of the commit to those on disk. Filters and line-end conversions are
not applied, and the real index's flags for files to assume unchanged are ignored.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wind.machine import processes

SECONDS: Final = 30.0
# Suffixes of untracked files that are source.
SOURCES: Final = {
    ".py",
    ".j2",
    ".jinja",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
    ".json",
    ".sh",
    ".txt",
    ".md",
}
# Attributes that leave every byte as it is.
EXACT: Final = "* -text !ident !filter !working-tree-encoding !diff\n"
ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "HOME": os.devnull,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",  # a ref could put other objects in place of the commit's
}


@dataclass(frozen=True)
class Changes:
    """The commit of a source tree, and its changes since."""

    revision: str
    size: int | None = None  # of the patch in bytes; None where git could not make one
    # for `git apply`, empty without changes; None where it is too large
    patch: bytes | None = None


def changes(tree: Path, file: Path, most_bytes: int) -> Changes | None:
    """Return the commit that `tree` is in, and a patch since then.

    The patch is left out if it is larger than `most_bytes`. It includes new files that are staged,
    or that are source and not ignored by git. None if `tree` is in no checkout, or if the commit
    does not contain its `file`: then it is an installed copy within somebody else's checkout.
    """
    top = next(
        (folder for folder in (tree, *tree.parents) if _is_repository(folder / ".git")), None
    )
    if top is None:
        return None
    try:
        with _repository(tree, top) as repository:
            revision = repository.run("rev-parse", "--verify", "HEAD").decode().strip()
            repository.run("read-tree", "HEAD")
            committed = set(repository.names("--cached"))
            if file.relative_to(tree).as_posix() not in committed:
                return None
            try:
                patch = repository.diff(_new(repository) - committed)
                size = patch.stat().st_size
                return Changes(revision, size, patch.read_bytes() if size <= most_bytes else None)
            except (OSError, subprocess.SubprocessError):
                return Changes(revision)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class _Repository:
    """A temporary repository that stands in for a checkout's own."""

    tree: Path
    top: Path  # of the checkout
    folder: Path

    def run(self, *arguments: str, index: str = "index") -> bytes:
        """Run a git command and return its output."""
        places = {
            "GIT_DIR": self.folder,
            "GIT_WORK_TREE": self.top,
            "GIT_INDEX_FILE": self.folder / index,
        }
        environment = ENVIRONMENT | {name: os.fspath(place) for name, place in places.items()}
        environment["PATH"] = os.environ.get("PATH", os.defpath)
        return processes.run(
            ["git", *arguments], cwd=self.tree, env=environment, timeout=SECONDS
        ).stdout

    def names(self, *which: str, index: str = "index") -> list[str]:
        """Return the files, relative to the tree, that `git ls-files` lists."""
        listed = self.run("ls-files", "-z", *which, index=index)
        return [os.fsdecode(name) for name in listed.split(b"\0") if name]

    def diff(self, new: Set[str]) -> Path:
        """Write the patch from the commit to the disk; return its path.

        It includes the files called `new`.
        """
        if new:
            listed = self.folder / "new"
            listed.write_bytes(b"\0".join(map(os.fsencode, sorted(new))))
            self.run(
                "add",
                "--force",
                "--intent-to-add",
                f"--pathspec-from-file={listed}",
                "--pathspec-file-nul",
            )
        self.run("update-index", "-q", "--refresh")
        patch = self.folder / "patch"
        options = (
            "--patch",
            "--binary",
            "--full-index",
            "--no-renames",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
        )
        self.run(
            "diff-index",
            *options,
            "--ignore-submodules=all",
            f"--output={patch}",
            "HEAD",
            "--",
            ".",
        )
        return patch


@contextmanager
def _repository(tree: Path, top: Path) -> Iterator[_Repository]:
    """Create a temporary repository with the commits of the checkout at `top`.

    It sees nothing else of the checkout's own repository.
    """
    real = _pointed(top / ".git", "gitdir: ")
    common = _pointed(real / "commondir") if (real / "commondir").exists() else real
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(real / "HEAD", folder / "HEAD", follow_symlinks=False)
        for shared in [
            common / "refs",
            common / "packed-refs",
            common / "reftable",
            *real.glob("sharedindex.*"),
        ]:
            if shared.exists():
                (folder / shared.name).symlink_to(shared)
        (folder / "objects" / "info").mkdir(parents=True)
        # Git and JSON quote alike: a path may contain a line end.
        objects = json.dumps(os.fspath(common / "objects"), ensure_ascii=False)
        (folder / "objects" / "info" / "alternates").write_bytes(os.fsencode(f"{objects}\n"))
        (folder / "info").mkdir()
        (folder / "info" / "attributes").write_text(EXACT)
        for source, copy in (
            (common / "info" / "exclude", "info/exclude"),
            (real / "index", "staged"),
        ):
            if source.is_file():
                shutil.copyfile(source, folder / copy)
        (folder / "config").write_bytes(_config(common, is_reftable=(common / "reftable").exists()))
        yield _Repository(tree, top, folder)


def _pointed(path: Path, prefix: str = "") -> Path:
    """Return the folder `path`, or that named in the file `path`.

    The name in the file comes after `prefix`.
    """
    if path.is_dir():
        return path.resolve()
    return (
        path.parent / os.fsdecode(path.read_bytes()).rstrip("\n").removeprefix(prefix)
    ).resolve()


def _is_repository(path: Path) -> bool:
    return path.is_file() or (path / "HEAD").is_file()


def _config(common: Path, *, is_reftable: bool) -> bytes:
    """Return our repository's configuration: its formats, and the user's ignore file."""
    lines = [
        b"[core]",
        b"bare = false",
        b"repositoryformatversion = 1",
        b"excludesFile = " + _quoted(_ignored()),
        b"[extensions]",
    ]
    config = common / "config"
    if (
        b"sha256" in config.read_bytes()
        and _asked(f"--file={config}", "extensions.objectFormat") == b"sha256"
    ):
        lines.append(b"objectFormat = sha256")
    return b"\n".join([*lines, *([b"refStorage = reftable"] if is_reftable else []), b""])


def _ignored() -> bytes:
    """Return the user's global ignore file, which need not exist."""
    default = Path(
        os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser(), "git", "ignore"
    )
    return _asked("--global", "core.excludesFile") or os.fsencode(default)


def _asked(place: str, name: str) -> bytes:
    """Read the setting `name` from a configuration file; empty without one."""
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "XDG_CONFIG_HOME") if name in os.environ
    }
    command = ["git", "config", place, "--includes", "--type=path", "--get", name]
    try:
        return processes.run(command, cwd="/", env=environment, timeout=SECONDS).stdout.rstrip(
            b"\n"
        )
    except (OSError, subprocess.SubprocessError):
        return b""


def _quoted(value: bytes) -> bytes:
    return b'"%s"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")


def _new(repository: _Repository) -> set[str]:
    """Return staged files, and source files that are not ignored.

    These may not be in the commit.
    """
    found = {
        name
        for name in repository.names("--others", "--exclude-standard")
        if Path(name).suffix in SOURCES
    }
    # The index may be damaged, or written by a newer git.
    with suppress(subprocess.SubprocessError):
        found.update(repository.names("--cached", index="staged"))
    return {name for name in found if (repository.tree / name).is_file()}
