"""What a user's function uses is seen, whatever road it takes; and it is compared before a result
is taken again.
"""

import importlib.util
import os
import py_compile
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wind.code.functions import source_digest
from wind.code.observed import Observed, noting
from wind.rewards.functions import Responses, UserFunction
from wind.rewards.hosts import close

ROWS = Responses(["p"], [0], [[{"role": "user", "content": "what?"}]], ["one"], [None])
REWARD = "def reward(prompts, responses, answers):\n"
HELPER = "W = 1.0\n"


@dataclass(frozen=True)
class Way:
    """A rule that takes its weight from elsewhere, what lies there, and what an edit of it is
    reported as.
    """

    rule: str
    file: str  # that is edited
    content: str = HELPER
    reported: str = ""
    others: dict[str, str] = field(default_factory=dict)
    pythonpath: str = ""


WAYS = {
    "import statement": Way(f"from helper import W\n{REWARD}    return [W]\n", "helper.py"),
    "import within the function": Way(
        f"{REWARD}    from helper import W\n    return [W]\n", "helper.py"
    ),
    "import_module": Way(
        f"import importlib\nW = importlib.import_module('hel' + 'per').W\n{REWARD}    return [W]\n",
        "helper.py",
    ),
    "__import__": Way(f"W = __import__('helper').W\n{REWARD}    return [W]\n", "helper.py"),
    "folders without __init__": Way(
        f"from lib.rw.util import W\n{REWARD}    return [W]\n", "lib/rw/util.py"
    ),
    "package": Way(
        f"from kit import W\n{REWARD}    return [W]\n",
        "kit/deep.py",
        others={"kit/__init__.py": "from .deep import W\n"},
    ),
    "PYTHONPATH": Way(
        f"from helper import W\n{REWARD}    return [W]\n", "shared/helper.py", pythonpath="shared"
    ),
    "sys.path": Way(
        "import os, sys\nsys.path.insert(0, os.path.abspath('more'))\nfrom helper import "
        f"W\n{REWARD}    return [W]\n",
        "more/helper.py",
    ),
    "named as in the standard library": Way(
        f"import sys\nsys.path.insert(0, 'own')\nfrom sched import W\n{REWARD}    return [W]\n",
        "own/sched.py",
    ),
    "spec from a location": Way(
        "import importlib.util as u\ns = u.spec_from_file_location('h', 'helper.txt.py')\nm = "
        "u.module_from_spec(s)\n"
        f"s.loader.exec_module(m)\n{REWARD}    return [m.W]\n",
        "helper.txt.py",
    ),
    "run_path": Way(
        f"import runpy\nW = runpy.run_path('helper.py')['W']\n{REWARD}    return [W]\n", "helper.py"
    ),
    "exec": Way(f"exec(open('helper.py').read())\n{REWARD}    return [W]\n", "helper.py"),
    "open": Way(f"{REWARD}    return [float(open('weight.txt').read())]\n", "weight.txt", "1.0"),
    "pathlib": Way(
        f"from pathlib import Path\n{REWARD}    return [float(Path('a/weight.txt').read_text())]\n",
        "a/weight.txt",
        "1.0",
    ),
    "os.open": Way(
        f"import os\n{REWARD}    return [float(os.read(os.open('weight.txt', os.O_RDONLY), 9))]\n",
        "weight.txt",
        "1.0",
    ),
    "json beside the module": Way(
        "import json, os\n"
        + REWARD
        + "    with open(os.path.join(os.path.dirname(__file__), 'w.json')) as f:\n"
        "        return [json.load(f)['w']]\n",
        "w.json",
        '{"w": 1.0}',
    ),
    "pkgutil": Way(
        f"import pkgutil\n{REWARD}    return [float(pkgutil.get_data('kit', 'w.txt'))]\n",
        "kit/w.txt",
        "1.0",
        others={"kit/__init__.py": ""},
    ),
    "numpy": Way(
        f"import numpy\n{REWARD}    return [float(numpy.loadtxt('w.csv'))]\n", "w.csv", "1.0"
    ),
    "a folder's names": Way(
        f"import os\n{REWARD}    return [len(os.listdir('data'))]\n",
        "data/b",
        "",
        "data/ has other files",
        {"data/a": ""},
    ),
    "a file that is not there": Way(
        f"import os\n{REWARD}    try:\n        return [float(open('maybe').read())]\n    except "
        "OSError:\n        return [1.0]\n",
        "maybe",
        "",
        "maybe is there",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, for modules of the user's."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    close()


def observed(name: str = "rule:reward") -> tuple[float, Observed]:
    """What a new process of the function returns, and is seen to use."""
    close()
    function = UserFunction("reward.function", name, source_digest("reward.function", name), 60)
    with noting() as noted:
        columns = function(ROWS)
    return columns[""]["values"][0], noted.all()


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_edit_is_seen(way: Way, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "rule.py", way.rule)
    for name, content in way.others.items():
        write(folder / name, content)
    is_new = not way.content
    if not is_new:
        write(folder / way.file, way.content)
    if way.pythonpath:
        monkeypatch.setenv("PYTHONPATH", str(folder / way.pythonpath))
    value, before = observed()
    assert (value, before.changed()) == (1.0, [])
    assert observed() == (value, before)  # the next process has seen the same
    write(folder / way.file, (way.content or "2.0").replace("1.0", "2.0"))
    assert before.changed() == [way.reported or f"{way.file} was edited"]
    assert observed()[0] == 2.0
    write(folder / way.file, way.content) if not is_new else (folder / way.file).unlink()
    assert before.changed() == []


@pytest.mark.parametrize("linked", ["helper.py", "rule.py", "data/w.txt", "kit"])
def test_what_a_link_leads_to_is_seen(linked: str, folder: Path) -> None:
    rule = (
        f"from helper import W\nfrom kit import V\n{REWARD}    return [W * V * "
        "float(open('data/w.txt').read())]\n"
    )
    for name, content in {
        "rule.py": rule,
        "helper.py": HELPER,
        "data/w.txt": "1.0",
        "kit/__init__.py": "V = 1.0\n",
    }.items():
        write(folder / name, content)
    target = folder / "elsewhere" / Path(linked).name
    target.parent.mkdir()
    (folder / linked).rename(target)
    (folder / linked).symlink_to(target)
    value, before = observed()
    assert (value, before.changed()) == (1.0, [])
    edited = target / "__init__.py" if target.is_dir() else target
    edited.write_text(
        edited.read_text().replace("1.0", "2.0") + ""
        if linked != "rule.py"
        else rule.replace("[W *", "[2 * W *")
    )
    name = f"{linked}/__init__.py" if linked == "kit" else linked
    assert before.changed() == [f"{name} was edited"]
    assert observed()[0] == 2.0


def test_no_bytecode_beside_a_source_is_run(folder: Path) -> None:
    """A checkout or a container image may give an edited file its old time, and it may be as long
    as before.
    """
    write(folder / "rule.py", f"from helper import W\n{REWARD}    return [W]\n")
    for name, content in (("helper.py", "W = 1.0\n"), ("helper.py", "W = 2.0\n")):
        write(folder / name, content)
        os.utime(folder / name, (1e9, 1e9))
        if content == HELPER:
            py_compile.compile(str(folder / name))
            assert observed()[0] == 1.0
    assert observed()[0] == 2.0


def test_a_module_without_source_is_seen(folder: Path) -> None:
    write(
        folder / "rule.py",
        f"import sys\nsys.path.insert(0, 'z.zip')\nfrom a import V\nfrom b import W\n{REWARD}    "
        "return [V * W]\n",
    )
    write(folder / "b.source", HELPER)

    def put(weight: float) -> None:
        py_compile.compile(str(folder / "b.source"), cfile=str(folder / "b.pyc"))
        with zipfile.ZipFile(folder / "z.zip", "w") as archive:
            archive.writestr("a.py", f"V = {weight}\n")

    put(1.0)
    value, before = observed()
    assert (value, before.changed()) == (1.0, [])
    put(3.0)
    assert before.changed() == ["z.zip was edited"]
    put(1.0)
    write(folder / "b.source", "W = 2.0\n")
    put(3.0)
    assert sorted(before.changed()) == ["b.pyc was edited", "z.zip was edited"]
    assert observed()[0] == 6.0


def test_a_variable_counts_if_the_users_own_code_read_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import os, tempfile\nfrom os import environ, getenv\nT = tempfile.gettempdir()\n" + REWARD
    )
    source += (
        "    found = [os.environ.get('RULE_A'), getenv('RULE_B'), 'RULE_C' in environ, "
        "os.environ.get('OMP_NUM_THREADS')]\n"
    )
    write(
        folder / "rule.py",
        source + "    return [float(environ['RULE_D']) + float(os.environ.get('RULE_TOKEN', 0))]\n",
    )
    monkeypatch.setenv("RULE_D", "1.0")
    monkeypatch.setenv("RULE_TOKEN", "7")
    value, before = observed()
    assert value == 8.0
    assert sorted(before.variables) == ["RULE_A", "RULE_B", "RULE_C", "RULE_D", "RULE_TOKEN"]
    # whoever has the record could try what it might be
    assert before.variables["RULE_TOKEN"] == "set"
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RULE_TOKEN", "8")
    assert before.changed() == []
    monkeypatch.setenv("RULE_D", "2.0")
    monkeypatch.setenv("RULE_A", "")
    monkeypatch.delenv("RULE_TOKEN")
    assert sorted(before.changed()) == [
        f"variable {name} changed" for name in ("RULE_A", "RULE_D", "RULE_TOKEN")
    ]


def test_a_rank_asks_no_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun told the process that asks is kept from the user's code, which often looks for
    it.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "PYTHONPATH", "HF_HUB_OFFLINE")
    lines = "".join(f"    os.environ.get({name!r})\n" for name in names)
    write(
        folder / "rule.py",
        f"import os\n{REWARD}{lines}    return [float(os.environ.get('RANK', '1'))]\n",
    )
    for name in names:
        monkeypatch.setenv(name, "7")
    value, before = observed()
    assert (value, before.variables, before.changed()) == (1.0, {}, [])


def test_a_copy_of_the_environment_is_no_look_at_each_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = ["dict(os.environ)", "{**os.environ}", "os.environ.copy()", "list(os.environ.items())"]
    lines = "".join(f"    kept = {copy}\n" for copy in copies)
    write(folder / "rule.py", f"import os\n{REWARD}{lines}    return [float(os.environ['RULE'])]\n")
    monkeypatch.setenv("RULE", "1.0")
    _, before = observed()
    assert list(before.variables) == ["RULE"]
    assert "environment" in before.unobserved


UNSEEN = {
    "subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)\n",
    "network": "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept "
    "OSError:\n    pass\n",
    "files opened by pyarrow": "import pyarrow\n",
    "files that it also writes": "open('log').read()\nopen('log', 'a').close()\n",
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_followed_is_said(what: str, folder: Path) -> None:
    write(folder / "log", "before")
    write(folder / "rule.py", f"{UNSEEN[what]}{REWARD}    return [1.0]\n")
    assert what in observed()[1].unobserved


def test_what_the_code_makes_itself_is_no_dependency(folder: Path) -> None:
    source = (
        "import os, sqlite3, tempfile\n"
        + REWARD
        + "    with tempfile.TemporaryDirectory() as place:\n"
    )
    source += (
        "        path = os.path.join(place, 'x')\n        open(path, 'w').write('1.0')\n   "
        "     os.listdir(place)\n"
    )
    source += (
        "        weight = float(open(path).read())\n    with open('calls.log', 'a') as "
        "log:\n        log.write('one')\n"
    )
    write(folder / "rule.py", f"{source}    return [weight]\n")
    value, before = observed()
    assert (value, sorted(before.files)) == (1.0, ["rule.py"])


def test_an_installed_package_counts_by_its_version(folder: Path) -> None:
    write(folder / "rule.py", f"import numpy, yaml\n{REWARD}    return [1.0]\n")
    _, before = observed()
    assert before.packages["numpy"] == importlib.metadata.version("numpy")
    assert before.packages["yaml"] == importlib.metadata.version("PyYAML")
    older = before.model_copy(
        update={"packages": before.packages | {"numpy": "1.0", "yaml": "1.0"}}
    )
    assert older.other_packages() == {
        name: ("1.0", before.packages[name]) for name in ("numpy", "yaml")
    }
    assert (older.changed(), before.other_packages()) == ([], {})


def test_what_is_edited_while_the_process_is_warm_is_loaded_anew(folder: Path) -> None:
    write(
        folder / "rule.py",
        f"import importlib\nW = importlib.import_module('helper').W\n{REWARD}    return [W]\n",
    )
    write(folder / "helper.py", HELPER)
    assert observed()[0] == 1.0
    function = UserFunction(
        "reward.function", "rule:reward", source_digest("reward.function", "rule:reward"), 60
    )
    write(folder / "helper.py", "W = 2.0\n")
    assert function(ROWS)[""]["values"] == [2.0]


def test_the_same_in_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "one/rule.py", f"from helper import W\n{REWARD}    return [W]\n")
    write(folder / "one/helper.py", HELPER)
    monkeypatch.chdir(folder / "one")
    _, before = observed()
    shutil.copytree(folder / "one", folder / "two")
    shutil.rmtree(folder / "one")
    monkeypatch.chdir(folder / "two")
    assert before.changed() == []
    assert sorted(before.files) == ["helper.py", "rule.py"]
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert sorted(before.changed()) == ["helper.py is gone", "rule.py is gone"]
    monkeypatch.setenv("PYTHONPATH", str(folder / "two"))
    assert (before.changed(), observed()) == ([], (1.0, before))
    write(folder / "elsewhere/helper.py", "W = 2.0\n")  # it comes first
    assert before.changed() == ["helper.py was edited"]
    assert observed()[0] == 2.0
