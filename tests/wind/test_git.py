"""A checkout's revision and patch, however git was configured: the patch applies, gives back every
byte, and nothing was run.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from wind.store.git import Changes, changes

CLEAN = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": os.devnull,
}
USER = ("-c", "user.name=a", "-c", "user.email=a@b.c")
LATIN = os.fsdecode(b"caf\xe9.py")
ODD = [
    LATIN,
    "with space.py",
    ":colon.py",
    "-dash.py",
    'quote"back\\slash.py',
    "tab\tline\nend.py",
    "漢.py",
]
PROGRAMS = (
    "core.fsmonitor",
    "core.pager",
    "core.editor",
    "core.sshCommand",
    "core.alternateRefsCommand",
    "core.gitProxy",
    "credential.helper",
    "diff.external",
    "diff.planted.command",
    "diff.planted.textconv",
    "filter.planted.clean",
    "filter.planted.smudge",
    "filter.planted.process",
    "pager.diff-index",
    "alias.diff-index",
    "uploadpack.packObjectsHook",
)
HOSTILE = {
    "color.ui": "always",
    "color.diff": "always",
    "diff.noprefix": "true",
    "diff.mnemonicPrefix": "true",
    "diff.renames": "copies",
    "diff.context": "0",
    "diff.interHunkContext": "50",
    "diff.algorithm": "patience",
    "diff.wordRegex": ".",
    "diff.submodule": "log",
    "diff.relative": "true",
    "diff.orderFile": "nowhere",
    "diff.ignoreSubmodules": "none",
    "diff.autoRefreshIndex": "false",
    "core.quotePath": "false",
    "core.autocrlf": "true",
    "core.safecrlf": "true",
    "core.eol": "crlf",
    "core.fileMode": "false",
    "core.symlinks": "false",
    "core.ignoreStat": "true",
    "core.trustctime": "false",
    "core.checkStat": "minimal",
    "core.untrackedCache": "true",
    "core.attributesFile": "nowhere",
    "core.worktree": "/nowhere",
    "core.bare": "true",
    "index.sparse": "true",
    "filter.planted.required": "true",
    "safe.directory": "/nowhere",
    "submodule.recurse": "true",
    "remote.origin.promisor": "true",
    "remote.origin.url": "ssh://nowhere/x",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a commit and, since then, every kind of change."""
    tree = tmp_path_factory.mktemp("original")
    (tree / "wind").mkdir()
    for name in ("wind/file.py", "renamed.py", "gone.py", "mode.sh", "becomes link.py", *ODD):
        (tree / name).write_bytes(b"one\ntwo\nthree\n")
    (tree / "dos.py").write_bytes(b"one\r\ntwo\r\n")
    (tree / "becomes dos.py").write_bytes(b"one\ntwo\n")
    (tree / "mixed.py").write_bytes(b"one\r\ntwo\n")
    (tree / "rows.bin").write_bytes(bytes(range(256)) * 8)
    (tree / "link.py").symlink_to("gone.py")
    (tree / ".gitattributes").write_text(
        "*.py filter=planted diff=planted text ident\n*.bin diff=planted\n"
    )
    (tree / ".gitignore").write_text("ignored.*\n")
    git(tree, "init", "-q")
    git(tree, "-c", "core.attributesFile=/dev/null", *USER, "add", "-A")
    git(tree, *USER, "commit", "-q", "-m", "first")
    # `text` took CRLF out of what was added: put it there as it is.
    for name in ("dos.py", "mixed.py"):
        blob = git(tree, "hash-object", "-w", "--no-filters", name).strip()
        git(tree, "update-index", "--cacheinfo", f"100644,{blob},{name}")
    git(tree, *USER, "commit", "-q", "-m", "second")
    change(tree)
    return tree


@pytest.fixture(scope="module")
def plain(original: Path) -> Changes:
    """What git tells of it without any configuration."""
    return seen(original)


@pytest.fixture
def checkout(original: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(original, tmp_path / "tree", symlinks=True)


def change(tree: Path) -> None:
    """Change files in every way, without git's knowing."""
    for name in ("wind/file.py", *ODD):
        (tree / name).write_bytes(b"one\n$Id$ \xff2\nthree")
    (tree / "dos.py").write_bytes(b"one\r\n2\r\n")
    (tree / "becomes dos.py").write_bytes(b"one\r\ntwo\r\n")
    (tree / "mixed.py").write_bytes(b"one\ntwo\r\n3\r\r\n")
    (tree / "rows.bin").write_bytes(bytes(range(255, -1, -1)) * 9)
    (tree / "renamed.py").rename(tree / "wind" / "renamed to.py")
    (tree / "gone.py").unlink()
    (tree / "mode.sh").chmod(0o755)
    (tree / "becomes link.py").unlink()
    (tree / "becomes link.py").symlink_to("wind/file.py")
    (tree / "link.py").unlink()
    (tree / "link.py").symlink_to("dos.py")
    (tree / "empty.py").touch()
    (tree / "new.py").write_bytes(b"four\r\nfive")
    (tree / "new.py").chmod(0o755)
    (tree / ":new and [odd]*.py").write_bytes(b"\x1b[31m\0\n")
    (tree / "ignored.py").write_bytes(b"six\n")


def git(tree: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=tree, env=CLEAN, capture_output=True, check=True)
    return ran.stdout.decode(errors="surrogateescape")


def seen(tree: Path) -> Changes:
    found = changes(tree, tree / "wind" / "file.py", 2**20)
    assert found is not None
    return found


def content(tree: Path) -> dict[str, tuple[bool, bytes]]:
    """Every file of a checkout: whether it can be executed, and its bytes or where it leads."""
    found = {}
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name != ".git"]
        for path in (Path(folder, name) for name in names if name not in (".git", "ignored.py")):
            link = path.is_symlink()
            state = os.fsencode(os.readlink(path)) if link else path.read_bytes()
            found[path.relative_to(tree).as_posix()] = (
                not link and bool(path.stat().st_mode & 0o100),
                state,
            )
    return found


def assert_gives_back(found: Changes, tree: Path, origin: Path, places: Path) -> None:
    """A clone at the revision, with the patch applied by plain git, has the bytes of the tree."""
    assert found.patch
    patch, again = places / "it.patch", places / "again"
    patch.write_bytes(found.patch)
    again.mkdir()
    git(again, "init", "-q", f"--object-format={'sha256' if len(found.revision) == 64 else 'sha1'}")
    git(again, "fetch", "-q", str(origin), found.revision)
    # else git writes into what it checks out
    (again / ".git" / "info" / "attributes").write_text("* !ident\n")
    git(again, "checkout", "-q", found.revision)
    git(again, "apply", str(patch))
    assert content(again) == content(tree)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A program that leaves a file behind when it is run, and that file."""
    ran, program = tmp_path / "RAN", tmp_path / "planted.sh"
    program.write_text(f"#!/bin/sh\necho $0 $* >> {ran}\ncat\n")
    program.chmod(0o755)
    return program, ran


def hooks(folder: Path, program: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in (
        "post-index-change",
        "reference-transaction",
        "pre-commit",
        "post-checkout",
        "fsmonitor-watchman",
    ):
        shutil.copy(program, folder / name)


def configured(program: Path) -> dict[str, str]:
    folder = program.parent / "hooks"
    hooks(folder, program)
    return HOSTILE | dict.fromkeys(PROGRAMS, str(program)) | {"core.hooksPath": str(folder)}


def test_changes_of_every_kind_come_back(original: Path, plain: Changes, tmp_path: Path) -> None:
    assert plain.revision == git(original, "rev-parse", "HEAD").strip()
    assert_gives_back(plain, original, original, tmp_path)
    assert b"ignored" not in (plain.patch or b"")


def in_its_own(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks(tree / ".git" / "hooks", program)
    (tree / ".git" / "info").mkdir(exist_ok=True)
    (tree / ".git" / "info" / "attributes").write_text(
        "* filter=planted diff=planted -diff text eol=crlf\n"
    )
    for name, value in configured(program).items():
        git(tree, "config", "--file", ".git/config", name, value)


def in_the_users(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = program.parent / "home"
    home.mkdir()
    for name, value in configured(program).items():
        git(tree, "config", "--file", str(home / ".gitconfig"), name, value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(home / ".gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))


def in_variables(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configured(program)
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for number, (name, value) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", name)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'color.ui=always' 'diff.noprefix=true'")
    for name in (
        "GIT_EXTERNAL_DIFF",
        "GIT_PAGER",
        "GIT_SSH_COMMAND",
        "GIT_SSH",
        "GIT_ASKPASS",
        "GIT_EDITOR",
        "GIT_PROXY_COMMAND",
    ):
        monkeypatch.setenv(name, str(program))
    for name in ("GIT_TRACE", "GIT_TRACE2_EVENT"):
        monkeypatch.setenv(name, str(program.parent / "RAN"))


def as_other_places(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = program.parent / "other"
    other.mkdir()
    git(other, "init", "-q")
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / "nothing"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_COMMON_DIR": str(other / ".git"),
        "GIT_NAMESPACE": "other",
        "GIT_CEILING_DIRECTORIES": str(tree),
        "GIT_EXEC_PATH": str(other),
        "GIT_DIFF_OPTS": "-u0",
        "GIT_ICASE_PATHSPECS": "1",
        "GIT_PREFIX": "wind/",
    }.items():
        monkeypatch.setenv(name, value)


def by_damage(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".git" / "index.lock").touch()
    (tree / ".git" / "index").write_bytes(b"DIRC no index at all")
    (tree / ".git" / "config").write_text(
        "[core]\n repositoryformatversion = 99\n bare = perhaps\n[extensions]\n nonsense = 1\n[a"
    )


def by_marks_of_the_index(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tree, "update-index", "--assume-unchanged", "--", "wind/file.py", "dos.py")
    git(tree, "update-index", "--skip-worktree", "rows.bin", LATIN)
    git(tree, "update-index", "--split-index")
    git(tree, "add", "--force", "new.py", "empty.py")


def by_replaced_objects(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tree, "replace", "HEAD", "HEAD~1")
    git(tree, "pack-refs", "--all")


def by_another_owner(tree: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (tree, tree / ".git"):
        os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "arrange",
    [
        in_its_own,
        in_the_users,
        in_variables,
        as_other_places,
        by_damage,
        by_marks_of_the_index,
        by_replaced_objects,
        by_another_owner,
    ],
    ids=lambda arrange: arrange.__name__,
)
def test_no_configuration_has_a_say(
    arrange: Callable[[Path, Path, pytest.MonkeyPatch], None],
    checkout: Path,
    plain: Changes,
    planted: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever it stands, and whatever it says: the same patch, which gives back every byte, and no
    program of it is run.
    """
    program, ran = planted
    arrange(checkout, program, monkeypatch)
    found = seen(checkout)
    assert not ran.exists(), ran.read_text()
    assert found == plain


def test_what_is_planted_would_run(
    checkout: Path, planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs of the other tests are such as git runs when it is asked in the usual way."""
    program, ran = planted
    in_its_own(checkout, program, monkeypatch)
    git(checkout, "config", "--file", ".git/config", "core.bare", "false")
    git(checkout, "config", "--file", ".git/config", "--unset", "core.worktree")
    subprocess.run(
        ["git", "diff", "HEAD"], cwd=checkout, env=CLEAN, capture_output=True, check=False
    )
    assert ran.exists()


@pytest.mark.parametrize("kind", ["worktree", "submodule", "monorepo", "shared", "sha256"])
def test_repositories_of_every_form(kind: str, tmp_path: Path) -> None:
    """A linked worktree, a submodule, a part of a larger repository, borrowed objects, other
    hashes: refs packed in all.
    """
    first, top = tmp_path / "first", tmp_path / 'top "\\ü'
    tree = top / "part" if kind == "monorepo" else top
    source = first / "part" if kind == "monorepo" else first
    (source / "wind").mkdir(parents=True)
    (source / "wind" / "file.py").write_text("one\n")
    (first / "beside.py").write_text("one\n")
    git(first, "init", "-q", f"--object-format={'sha256' if kind == 'sha256' else 'sha1'}")
    git(first, "add", "-A")
    git(first, *USER, "commit", "-q", "-m", "first")
    git(first, "pack-refs", "--all")
    if kind == "worktree":
        git(first, "worktree", "add", "-q", "--detach", str(top))
    elif kind == "submodule":
        outer = tmp_path / "outer"
        outer.mkdir()
        git(outer, "init", "-q")
        git(
            outer,
            "-c",
            "protocol.file.allow=always",
            "submodule",
            "--quiet",
            "add",
            str(first),
            "inner",
        )
        tree = top = outer / "inner"
    else:
        git(
            tmp_path,
            "clone",
            "-q",
            *(["--shared"] if kind == "shared" else []),
            str(first),
            str(top),
        )
    assert seen(tree) == Changes(git(first, "rev-parse", "HEAD").strip(), 0, b"")
    (tree / "wind" / "file.py").write_text("two\n")
    (tree / "new.py").write_text("three\n")
    assert_gives_back(seen(tree), top, first, tmp_path)
    (top / "beside.py").write_text("two\n")
    assert (b"beside.py" in (seen(tree).patch or b"")) == (kind != "monorepo")


def test_what_the_user_ignores_everywhere_is_ignored(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[core]\n excludesFile = ~/my ignored\n")
    (tmp_path / "home" / "my ignored").write_text("new.py\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert b"b/new.py" not in (seen(checkout).patch or b"")
    (tmp_path / "home" / ".gitconfig").write_text("")
    assert b"b/new.py" in (seen(checkout).patch or b"")
    (tmp_path / "home" / ".config" / "git").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "git" / "ignore").write_text("new.py\n")
    assert b"b/new.py" not in (seen(checkout).patch or b"")


def test_no_file_is_waited_for(checkout: Path, plain: Changes) -> None:
    """A named pipe in place of a committed file, or beside it, has nobody who writes to it."""
    os.mkfifo(checkout / "pipe.py")
    assert seen(checkout) == plain
    (checkout / "dos.py").unlink()
    os.mkfifo(checkout / "dos.py")
    assert seen(checkout) == Changes(plain.revision)  # git has no patch for it


def test_a_folder_called_git_is_no_checkout(checkout: Path, tmp_path: Path) -> None:
    copy = checkout / "site-packages" / "copy"
    shutil.copytree(checkout / "wind", copy / "wind")
    (copy / ".git").mkdir()
    # the commit of the enclosing checkout does not have it
    assert changes(copy, copy / "wind" / "file.py", 2**20) is None
    assert changes(tmp_path, tmp_path / "wind" / "file.py", 2**20) is None
