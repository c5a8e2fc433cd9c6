"""The code that computes a stage: found by its imports alone, as it was loaded, and refused once it
was edited.
"""

import ast
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tests.wind.audit_case import key, publish
from wind.code import digests, loading
from wind.code.digests import DECIDING, NEUTRAL, code_digest, code_of, is_neutral, refuse_edited
from wind.config.base import Section
from wind.config.objectives import WindObjectiveConfig
from wind.config.training import LoraConfig
from wind.errors import StageError
from wind.fingerprints import digest
from wind.machine.processes import environment, python
from wind.stages import Job, Place, Shard, run, stage_named
from wind.store.computations import recorded
from wind.store.datasets import Store
from wind.store.nouns import STAGES, STUDIES
from wind.win_rates import STAGE

ALL = (*STAGES, *STUDIES)


def modules() -> dict[str, Path]:
    """The file of every module of the project, by its name."""
    root = Path(loading.ROOT)
    files = [
        path.relative_to(root)
        for package in loading.PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    ]
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): root / path
        for path in files
    }


def by_syntax(path: Path) -> set[str]:
    """The modules of this project in the import statements of a file, and their packages."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path} imports relative to itself"
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in named]
    packages = {".".join(each[: end + 1]) for each in parts for end in range(len(each))}
    return packages & modules().keys()


def test_imports_are_read_as_python_reads_them() -> None:
    for name, path in modules().items():
        assert set(digests._imports(name)) == by_syntax(path), name


def test_nothing_is_imported_by_a_computed_name_but_stages_and_their_ranks() -> None:
    found = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                imported = node.args[0]
                if isinstance(imported, ast.Constant):
                    assert str(imported.value).partition(".")[0] not in loading.PACKAGES, (
                        f"{name}: say it plainly"
                    )
                else:
                    found.add((name, ast.unparse(imported)))
    assert found == {
        ("wind.store.nouns", "f'wind.{noun}'"),
        ("data_checks.validation", "f'data_checks.{noun}'"),
        ("wind.training.rank", "module"),
        ("wind.rewards.host", "module"),  # the user's
        # told after a version is published, which no dataset depends on
        ("flows.trackers.__main__", "f'flows.trackers.{message.tracker}'"),
    }


def test_what_is_neutral_is_there_and_says_why() -> None:
    assert {*NEUTRAL, *DECIDING} <= modules().keys()
    assert all(NEUTRAL.values())


def sections_in(annotation: Any) -> set[type[Section]]:
    """The sections that a field can hold, and those within them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        below = set().union(*(sections_in(field.annotation) for field in fields))
        return below | ({annotation} if issubclass(annotation, Section) else set())
    return set().union(*map(sections_in, get_args(annotation)))


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_has_its_own_module_and_its_settings_in_its_key(stage: str) -> None:
    key = code_of(f"wind.{stage}")
    settings = {section.__module__ for section in sections_in(stage_named(stage).spec)}
    assert {f"wind.{stage}", "wind.store.schemas", *settings} <= key.keys()
    assert not any(map(is_neutral, key))


def test_settings_are_found_within_unions_and_sections() -> None:
    assert {WindObjectiveConfig, LoraConfig} <= sections_in(stage_named("training").spec)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, which stands for this checkout; nothing of it is loaded."""
    for name, path in modules().items():
        target = tmp_path / path.relative_to(loading.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        assert name
    monkeypatch.setattr(loading, "ROOT", str(tmp_path))
    monkeypatch.setattr(loading, "loaded", {})
    return tmp_path


def test_a_changed_constant_in_any_module_moves_the_keys_of_what_it_computes_and_no_others(
    copy: Path,
) -> None:
    before = {stage: code_of(f"wind.{stage}") for stage in ALL}
    keys = {stage: code_digest(stage) for stage in ALL}
    everything = {module for each in before.values() for module in each}
    for module in everything:
        file = digests._file(module)
        source = file.read_bytes()
        file.write_bytes(source + b"\nCHANGED = 1\n")
        moved = {stage for stage in ALL if code_digest(stage) != keys[stage]}
        assert moved == {stage for stage in ALL if module in before[stage]}, module
        file.write_bytes(source)
    for module in filter(is_neutral, modules()):
        digests._file(module).write_bytes(b"")
    assert {stage: code_digest(stage) for stage in ALL} == keys


def test_what_was_loaded_counts_and_an_edit_of_it_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = code_digest("win_rates")
    refuse_edited("win_rates", planned)
    monkeypatch.setattr(loading, "loaded", code_of("wind.win_rates"))
    module = copy / "wind" / "win_rates.py"
    module.write_text(module.read_text().replace("0.5", "0.6"))
    assert code_digest("win_rates") == planned  # what this process computes with
    with pytest.raises(
        StageError, match=r"win_rates\.py was edited while win_rates ran: start the run again$"
    ):
        refuse_edited("win_rates", planned)
    monkeypatch.setattr(loading, "loaded", {})
    with pytest.raises(
        StageError, match="the code that computes win_rates was edited while the run went on"
    ):
        refuse_edited("win_rates", planned)  # in a process that loaded it after the edit
    refuse_edited("selections", code_digest("selections"))


def win_rates_job(store: Store) -> Job:
    rewards, _ = publish(store, "rewards", {**key(digest("p")[:32], 3), "reward": [1.0, 2.0, 2.0]})
    spec = {"rewards": rewards.model_dump(mode="json"), "win_rate": {}}
    return Job(
        stage="win_rates",
        spec=spec,
        place=Place(root=str(store.root)),
        code=code_digest("win_rates"),
    )


@pytest.mark.parametrize("edit", ["while it computes", "between plan and load"])
def test_nothing_is_filed_under_the_digest_of_another_code(
    copy: Path, edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, module = Store(copy / "store"), copy / "wind" / "win_rates.py"
    job = win_rates_job(store)

    def compute(*arguments: Any) -> Shard:
        module.write_text(f"{module.read_text()}\nEDITED = True\n")
        return STAGE.compute(*arguments)

    if edit == "while it computes":
        monkeypatch.setattr(loading, "loaded", code_of("wind.win_rates"))
        monkeypatch.setattr("wind.win_rates.STAGE", replace(STAGE, compute=compute))
    else:
        module.write_text(f"{module.read_text()}\nEDITED = True\n")
    with pytest.raises(StageError, match="edited while"):
        run(job, lambda done, total: None)
    assert list(store.handles("win_rates")) == []
    assert store.storage.names("computations/win_rates") == []
    with store.partial("win_rates", job.key()) as partial:
        assert partial.missing(1) == [0]


def test_a_stage_run_by_hand_is_filed_under_the_code_that_ran(copy: Path) -> None:
    """Its file is a manifest, which tells the code of then."""
    store = Store(copy / "store")
    made = run(win_rates_job(store), lambda done, total: None)
    then = store.manifest(made).computed_by["code"]
    module = copy / "wind" / "win_rates.py"
    module.write_text(f"{module.read_text()}\nEDITED = True\n")
    manifest = store.path(made) / "manifest.json"
    command = python("-m", "wind.stages", str(manifest), "--root", str(store.root))
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env=environment() | {"PYTHONPATH": str(copy)},
        cwd=copy,
    )
    assert [each.code for each in recorded(store, made)] == [then, code_digest("win_rates")]
    assert then != code_digest("win_rates")


def test_no_stale_bytecode_of_ours_is_run(tmp_path: Path) -> None:
    """An edit that keeps a file's length and time."""
    package = tmp_path / "wind"
    (package / "code").mkdir(parents=True)
    for name in ("wind", "wind.code", "wind.code.loading"):
        source = modules()[name]
        (tmp_path / source.relative_to(loading.ROOT)).write_bytes(source.read_bytes())
    said = []
    for value in ("1", "2", "2"):
        (package / "made.py").write_text(f"VALUE = {value}\n")
        subprocess.run(["touch", "-d", "2001-01-01", str(package / "made.py")], check=True)
        program = "from wind import made; from wind.code.loading import loaded; "
        program += "print(made.VALUE, loaded['wind.made'][:8])"
        command = python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}")
        said.append(
            subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=tmp_path
            ).stdout.split()
        )
    assert [value for value, _ in said] == ["1", "2", "2"]
    assert said[0][1] != said[1][1] == said[2][1]
    assert list((package / "__pycache__").glob("made.*.pyc"))


def test_every_stage_is_loaded_from_what_was_hashed() -> None:
    program = f"""
import sys
from wind.code import loading
from wind.stages import stage_named
for stage in {ALL!r}:
    stage_named(stage)
ours = {{name for name in sys.modules if name.partition(".")[0] in loading.PACKAGES}}
print(len(ours), *(ours - loading.loaded.keys()))
"""
    said = subprocess.run(
        python("-c", program), capture_output=True, text=True, check=True, env=environment()
    ).stdout.split()
    assert int(said[0]) > 40
    assert said[1:] == []
