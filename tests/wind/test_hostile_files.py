"""Whatever lies in a store or a recipe: reading it ends in content or in one of the project's own
errors, within the root.
"""

import copy
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.wind.verification_case import finished
from wind.audit.verification import Verification
from wind.audit.verification.files import Finding
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, WindError
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, StoredFile, folder_of
from wind.store.references import find_version
from wind.store.versions import Versions, runs

some = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
many = settings(some, max_examples=30)

HOSTILE_NAMES = [
    "../secret",
    "../../secret",
    "/etc/hostname",
    "a/../../secret",
    "..",
    ".",
    "",
    "x\0y",
    "manifest.json",
    "sub/file",
    "x" * 300,
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(HOSTILE_NAMES)
    | st.sampled_from(["0" * 64, "models", "datasets/../..", "9" * 400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be replaced within a JSON value."""
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, inner in items:
        yield from places(inner, (*path, name))


def mutated(data: st.DataObject, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with one to three values replaced, removed or doubled."""
    fields = copy.deepcopy(fields)
    for _ in range(data.draw(st.integers(1, 3))):
        every = list(places(fields))
        if not every:
            break
        *above, last = data.draw(st.sampled_from(every))
        owner = fields
        for step in above:
            owner = owner[step]
        how = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "remove":
            del owner[last]
        elif how == "add" and isinstance(owner, dict):
            owner[data.draw(st.text(max_size=4))] = data.draw(values)
        else:
            owner[last] = data.draw(values)
    return fields


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    finished(Store(folder / "store"), folder, few=True)
    (folder / "secret").write_text("nobody may read this")
    return folder / "store"


@pytest.fixture
def store(origin: Path, tmp_path: Path) -> Store:
    """A store whose files are linked: tests put new ones in their place."""
    shutil.copytree(origin, tmp_path / "store", copy_function=os.link)
    (tmp_path / "secret").write_text("nobody may read this")
    return Store(tmp_path / "store")


_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.remove",
        "os.rename",
        "os.mkdir",
        "shutil.rmtree",
    ):
        with suppress(TypeError):
            _opened.append(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(_listen)


@contextmanager
def within(store: Store) -> Iterator[None]:
    """Nothing beside the root is opened in the block, but for Python's own files."""
    global _opened
    _opened = []
    try:
        yield
        beside = store.root.parent
        assert [
            path
            for path in _opened
            if Path(path).is_relative_to(beside) and not Path(path).is_relative_to(store.root)
        ] == []
        assert not {"/etc/hostname"} & set(_opened)
    finally:
        _opened = None


def written(fields: dict[str, Any], *, is_sealed: bool) -> bytes:
    return sealed_json.encode(fields) if is_sealed else json.dumps(fields).encode()


def rewrite(store: Store, name: str, content: bytes) -> None:
    (store.root / name).unlink(missing_ok=True)
    (store.root / name).write_bytes(content)


def use(store: Store, *handles: AnyHandle) -> list[Finding]:
    """Do with a store what commands do; only the project's own errors come out. What verification
    says of it.
    """
    with within(store):
        verification = Verification(store)
        verification.everything()
        for handle in handles:
            store.is_whole(handle)
            for act in (store.manifest, store.verify):
                with suppress(WindError):
                    act(handle)
            with suppress(WindError):
                if isinstance(handle, Dataset):
                    store.read(handle).to_pylist()
            with suppress(WindError):
                list(store.handles(folder_of(handle).removeprefix("datasets/").split("/")[0]))
        for run in runs(store):
            with suppress(WindError):
                list(Versions(store, run))
            for tag in ("latest", "good", "2"):
                with suppress(WindError):
                    find_version(store, f"{run}@{tag}")
    return [*verification.findings, *verification.notes]


@given(st.data(), st.booleans())
@some
def test_any_manifest(origin: Path, tmp_path: Path, data: st.DataObject, is_sealed: bool) -> None:
    store = _fresh(origin, tmp_path)
    handles = list(find_version(store, "tiny").handles().values())
    handle = data.draw(st.sampled_from(handles))
    name = f"{folder_of(handle)}/manifest.json"
    before = store.storage.read(name)
    content = written(mutated(data, json.loads(before)), is_sealed=is_sealed)
    rewrite(store, name, content)
    assert any(folder_of(handle) in finding.file for finding in use(store, handle)) == (
        content != before
    )


@given(st.data(), st.booleans())
@some
def test_any_version(origin: Path, tmp_path: Path, data: st.DataObject, is_sealed: bool) -> None:
    store = _fresh(origin, tmp_path)
    first, last = "runs/tiny/versions/0001.json", "runs/tiny/versions/0002.json"
    name, newest = data.draw(st.sampled_from([first, last])), find_version(store, "tiny")
    before = store.storage.read(name)
    content = written(mutated(data, json.loads(before)), is_sealed=is_sealed)
    rewrite(store, name, content)
    # only the version after it vouches for what stands beside the content
    if not use(store) and content != before:
        assert (is_sealed, name) == (True, last)
        assert find_version(store, "tiny").content == newest.content


@given(st.data(), st.binary(max_size=80))
@some
def test_any_bytes_in_any_small_file(
    origin: Path, tmp_path: Path, data: st.DataObject, content: bytes
) -> None:
    store = _fresh(origin, tmp_path)
    small = sorted(
        path
        for path in store.root.rglob("*")
        if path.is_file() and path.suffix in (".json", "", ".lock", ".html")
    )
    path = data.draw(st.sampled_from(small))
    before = path.read_bytes()
    cut = data.draw(st.integers(0, len(before)))
    changed = before[:cut] + content + data.draw(st.sampled_from([b"", before[cut:]]))
    rewrite(store, str(path.relative_to(store.root)), changed)
    said = use(store, *find_handles(store))
    assert (
        said
        or changed == before
        or (path.name == "latest" and changed == before.removesuffix(b"\n"))
    )


def find_handles(store: Store) -> list[AnyHandle]:
    with suppress(WindError):
        return list(find_version(store, "tiny").handles().values())
    return []


@given(st.data())
@settings(some, max_examples=10)
def test_any_shard(origin: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The manifest says that the bytes are right, so that whoever reads them has to find out that
    the rows are not.
    """
    store = _fresh(origin, tmp_path)
    handle = find_version(store, "tiny").content.datasets[
        data.draw(st.sampled_from(["prompts", "generations", "rewards"]))
    ]
    rows = store.read(handle)
    name = f"{folder_of(handle)}/part-00000.arrow"
    content = bytearray(store.storage.read(name))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f"])
        )
        content[start : start + len(patch)] = patch
    rewrite(store, name, bytes(content))
    manifest = json.loads(store.storage.read(f"{folder_of(handle)}/manifest.json"))
    manifest["files"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(store, f"{folder_of(handle)}/manifest.json", sealed_json.encode(manifest))
    use(store, handle)
    with suppress(WindError):
        store.verify(handle)
        assert store.read(handle).equals(rows)


def _fresh(origin: Path, tmp_path: Path) -> Store:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    shutil.copytree(origin, tmp_path / "store", copy_function=os.link)
    (tmp_path / "secret").write_text("nobody may read this")
    return Store(tmp_path / "store")


# ------------------------------------------------------------------------------ names that lead out


@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if name not in ("manifest.json",)])
def test_a_file_is_named_within_its_folder(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        StoredFile(name=name, bytes=1, sha256="0" * 64)
    handle = find_version(store, "tiny").content.datasets["rewards"]
    path = f"{folder_of(handle)}/manifest.json"
    fields = json.loads(store.storage.read(path))
    fields["files"][0]["name"] = name
    rewrite(store, path, sealed_json.encode(fields))
    use(store, handle)
    with pytest.raises(WindError):
        store.read(handle)


@pytest.mark.parametrize(
    "name", ["../latest", "/tmp/x", "a/b", "", ".", "..", "x\n", "x\0", "é", "x" * 65]
)
def test_a_tag_is_a_plain_name(store: Store, name: str) -> None:
    version = find_version(store, "tiny")
    with within(store), pytest.raises(ConfigError, match="cannot be a tag"):
        Versions(store, "tiny").tag(name, version)
    with within(store), pytest.raises(ConfigError):
        find_version(store, f"tiny@{name}" if name else "tiny@")
    with within(store), pytest.raises(ConfigError):
        find_version(store, f"{name}@latest")


def test_a_link_is_not_followed_by_verification(store: Store) -> None:
    handle = find_version(store, "tiny").content.datasets["rewards"]
    for name in ("part-00000.arrow", "manifest.json"):
        path = store.root / folder_of(handle) / name
        path.unlink()
        path.symlink_to(store.root.parent / "secret")
        with within(store):
            verification = Verification(store)
            verification.everything()
        assert any(
            f"{path} is not a plain file" in str(finding) for finding in verification.findings
        )


def test_a_manifest_that_names_itself_ends(store: Store) -> None:
    handle = find_version(store, "tiny").content.datasets["rewards"]
    path = f"{folder_of(handle)}/manifest.json"
    fields = json.loads(store.storage.read(path))
    fields["outputs"]["itself"] = handle.model_dump(mode="json")
    fields["parents"]["itself"] = handle.model_dump(mode="json")
    rewrite(store, path, sealed_json.encode(fields))
    assert store.is_whole(handle)
    use(store, handle)


# ------------------------------------------------------------------------------------------ recipes

RECIPE = """run: demo
policy: {path: models/base}
prompts: {source: prompts.jsonl, eval_fraction: 0.1}
reward: {kind: rule, function: "module:function"}
sampling: {samples_per_prompt: 8, temperature: 1.0}
objective: {name: wind, beta: 0.1}
"""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def refused(path: Path, content: bytes) -> str:
    """What is said of a recipe."""
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return one_line(error.value)


def one_line(error: ConfigError) -> str:
    line = str(error)
    assert line.splitlines() == [line]
    assert len(line) < 600
    return line


def loaded_or_refused(path: Path, overrides: Sequence[str] = ()) -> None:
    """A config that its own JSON gives again, as a rerun reads it, or one short line that says
    where it is wrong.
    """
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        one_line(error)
    else:
        assert DistillConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, "values once its aliases are put in"),
        (f"run: {BOMB.splitlines()[0][3:]}\n", ""),
        ("run: &a [*a]\n", ""),
        ("run: &a {b: *a}\n", ""),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("run: " + "{a: " * 900 + "}" * 900, "nested too deeply"),
        (f"run: [&a {'[' * 40}{']' * 40}, {'[' * 40}*a{']' * 40}]", "nested too deeply"),
        (f"seed: {'9' * 10_000}\n", ""),
        (f"{RECIPE}seed: {'9' * 4_000}\n", "seed"),
        (f"{RECIPE}seed: 0x{'f' * 5_000}\n", ""),
        (f"{RECIPE}seed: 1e400\n", "seed"),
        (f"{RECIPE}run: other\n", "run is set twice"),
        (f"{RECIPE}\trun: demo\n", "line"),
        ("run:\tdemo\n\tseed: 1\n", "line"),
        ("a\0b", "not YAML"),
        (b"run: \xff\xfe", "cannot be read"),
        (b"\xff\xfer\0u\0n\0", "cannot be read"),
        ("", "must be a mapping"),
        ("---\nrun: a\n---\nrun: b\n", "found another document"),
        ("? [a, b]\n: 1\n", ""),
        ("? {a: b}\n: 1\n", ""),
        ("1: 2\n", ""),
        ("null: 2\n", ""),
        ("run: !!python/object/apply:os.system ['false']\n", "could not determine a constructor"),
        ("run: !!binary '???'\n", ""),
        ("seed: 2001-99-99\n", ""),
        ("<<: 3\n", ""),
        ('"a\\nb": 1\n', r"'a\nb' is not a setting"),
        ('"a\\nb": 1\n"a\\nb": 2\n', r"'a\nb' is set twice"),
        ("<<: [&a {<<: *a}]\n", ""),
        ("run: *nobody\n", "undefined alias"),
        (f"{RECIPE}root: 'a\\0b'\n", ""),
    ],
)
def test_pathological_yaml(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = tmp_path / "x.yaml"
    if isinstance(content, str) and content.startswith(RECIPE) and "root" in content:
        path.write_text(content)
        load_config(path)  # a name like any other, for the file system to refuse
        return
    assert says in refused(path, content if isinstance(content, bytes) else content.encode())


@given(st.data(), st.text(st.sampled_from(list("{}[]:,-&*!|>'\"%@`#?<=~ \n\ta0.e")), max_size=12))
@many
def test_any_yaml(tmp_path: Path, data: st.DataObject, patch: str) -> None:
    start = data.draw(st.integers(0, len(RECIPE)))
    end = data.draw(st.integers(start, min(start + 20, len(RECIPE))))
    path = tmp_path / "x.yaml"
    path.write_text(RECIPE[:start] + patch + RECIPE[end:])
    loaded_or_refused(path)


@given(st.binary(max_size=60))
@many
def test_any_bytes_as_a_recipe(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "x.yaml", content)


OVERRIDES: list[Callable[[str], str]] = [
    lambda text: f"training.lr={text}",
    lambda text: text,
    lambda text: f"{text}=1",
]


@given(st.text(max_size=12), st.sampled_from(OVERRIDES))
@example("a\nb", OVERRIDES[2])
@many
def test_any_override(tmp_path: Path, text: str, override: Callable[[str], str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(RECIPE)
    loaded_or_refused(path, [override(text)])
