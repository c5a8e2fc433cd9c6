"""Users' functions: what they may do, what they may return, and how they end, without touching the
process that asks them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wind.code.functions import source_digest
from wind.errors import InputError
from wind.machine.user_path import user_path
from wind.rewards.functions import Responses, UserFunction, checked_numbers
from wind.rewards.hosts import Host, close, warm_host

RESPONSES = ["one", "", "three"]  # 3, 0 and 5 characters
LENGTHS = [3.0, 0.0, 5.0]
ROWS = Responses(
    ["p"] * 3,
    [0, 1, 2],
    [[{"role": "user", "content": "what?"}]] * 3,
    RESPONSES,
    ["gold", None, "\N{SNOWMAN}"],
)
HEADER = "def reward(prompts, responses, answers):\n"

Asked = Callable[..., list[float]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, for modules of the user's."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    close()


@pytest.fixture
def asked(folder: Path) -> Asked:
    """What the function `reward` of a module with that source returns for ROWS."""

    def ask(source: str, seconds: float | None = 60, name: str = "rule") -> list[float]:
        (folder / f"{name}.py").write_text(source)
        return answer(f"{name}:reward", seconds)

    return ask


def answer(name: str, seconds: float | None = 60, rows: Responses = ROWS) -> list[float]:
    function = UserFunction(
        "reward.function", name, source_digest("reward.function", name), seconds
    )
    [(_, column)] = function(rows).items()
    return list(map(float, checked_numbers("it", column, rows)))


def descendants() -> set[int]:
    """The process ids of all that this process has started and that still runs, and of what that
    has started.
    """
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            with_name, _, rest = path.read_text().rpartition(")")
            parents[int(with_name.split()[0])] = int(rest.split()[1])
    found: set[int] = set()
    while (
        more := {pid for pid, parent in parents.items() if parent in found | {os.getpid()}} - found
    ):
        found |= more
    return found


# ----------------------------------------------------------------------------------- what it may do

PROGRAMS = {
    "reads_its_input": HEADER
    + "    import sys\n    assert sys.stdin.read() == ''\n    return [len(r) for r in responses]\n",
    "runs_programs_that_read_theirs": (
        "import subprocess, sys\n"
        + HEADER
        + "    program = 'import sys; print(len(sys.stdin.read()))'\n"
        "    done = [subprocess.run([sys.executable, '-c', program], stdout=-1, text=True, "
        "check=True) for r in responses]\n"
        "    return [len(r) + int(each.stdout) for r, each in zip(responses, done)]\n"
    ),
    "forks_a_pool": (
        "from concurrent.futures import ProcessPoolExecutor\n"
        + HEADER
        + "    with ProcessPoolExecutor(2) as pool:\n"
        "        return list(pool.map(len, responses))\n"
    ),
    "spawns_a_pool": (
        "import multiprocessing\ndef length(text):\n    return len(text)\n"
        + HEADER
        + "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        return "
        "pool.map(length, responses)\n"
    ),
    "uses_threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        + HEADER
        + "    with ThreadPoolExecutor(2) as pool:\n        return list(pool.map(len, responses))\n"
    ),
    "is_alone_on_the_main_thread": (
        "import threading\n"
        + HEADER
        + "    assert threading.enumerate() == [threading.main_thread()]\n"
        "    assert threading.current_thread() is threading.main_thread()\n    return [len(r) "
        "for r in responses]\n"
    ),
    "sets_alarms": (
        "import signal, time\nclass Late(Exception): pass\ndef late(*arguments): raise Late\n"
        + HEADER
        + "    signal.signal(signal.SIGALRM, late)\n    signal.setitimer(signal.ITIMER_REAL, "
        "0.05)\n"
        "    try:\n        time.sleep(20)\n    except Late:\n        return [len(r) for r in "
        "responses]\n"
    ),
    "leaves_an_alarm": "import signal\n"
    + HEADER
    + "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    return [len(r) for r in responses]\n",
    "is_a_coroutine_function": (
        "import asyncio\nasync def reward(prompts, responses, answers):\n    await "
        "asyncio.sleep(0)\n"
        "    return [len(r) for r in responses]\n"
    ),
    "returns_coroutines": (
        "import asyncio\nasync def one(text):\n    await asyncio.sleep(0)\n    return len(text)\n"
        + HEADER
        + "    return [one(r) for r in responses]\n"
    ),
    "keeps_a_client": (  # of the loop that it was first used in
        "import asyncio\nloops = set()\nasync def reward(prompts, responses, answers):\n"
        "    loops.add(asyncio.get_running_loop())\n    assert len(loops) == 1\n    return "
        "[len(r) for r in responses]\n"
    ),
    "runs_its_own_loop": (
        "import asyncio\nasync def score(texts):\n    return [len(text) for text in texts]\n"
        + HEADER
        + "    return asyncio.run(score(responses))\n"
    ),
    "prints": (
        "import os\nprint('imported')\n"
        + HEADER
        + "    print('{\"columns\": {}}', flush=True)\n    os.write(1, b'\\n{}\\n' * 9999)\n"
        "    os.write(2, b'\\xff')\n    return [len(r) for r in responses]\n"
    ),
    "forks_and_comes_back": (
        "import os\n"
        + HEADER
        + "    child = os.fork()\n    if child:\n        assert os.waitpid(child, 0)[1] == 0\n"
        "    return [len(r) for r in responses]\n"
    ),
    "leaves_a_fork_behind": (
        "import os, time\n"
        + HEADER
        + "    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)\n"
        "    return [len(r) for r in responses]\n"
    ),
    "loses_its_folder": (
        "import os, tempfile\n"
        + HEADER
        + "    assert os.path.exists('rule.py')\n    folder = tempfile.mkdtemp()\n"
        "    os.chdir(folder)\n    os.rmdir(folder)\n    return [len(r) for r in responses]\n"
    ),
    "changes_its_process": (
        "import locale, os, random, resource, signal, sys, warnings\n"
        "os.environ.clear()\nsys.path.clear()\nos.umask(0)\nwarnings.simplefilter('error')\nsys.setrecursionlimit(200)\n"
        "signal.signal(signal.SIGINT, "
        "signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "random.seed(0)\nsys.stdout = sys.stderr = sys.stdin = None\n"
        + HEADER
        + "    return [len(r) for r in responses]\n"
    ),
    "parses_arguments": (
        "import argparse\narguments = argparse.ArgumentParser().parse_args()\n"
        + HEADER
        + "    return [len(r) for r in responses]\n"
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_may_do_what_a_program_does(asked: Asked, program: str) -> None:
    others = descendants()
    for _ in range(3):  # the second and third time in the same process
        assert asked(PROGRAMS[program]) == LENGTHS
    close()
    assert descendants() <= others


def test_what_it_changes_is_its_own(
    asked: Asked, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    before = (
        dict(os.environ),
        list(sys.path),
        sys.getrecursionlimit(),
        os.umask(0o22),
        signal.getsignal(signal.SIGINT),
    )
    assert asked(PROGRAMS["changes_its_process"]) == LENGTHS
    after = (
        dict(os.environ),
        list(sys.path),
        sys.getrecursionlimit(),
        os.umask(0o22),
        signal.getsignal(signal.SIGINT),
    )
    assert before == after
    assert "rule" not in sys.modules
    assert Path.cwd() == folder
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.slow
def test_torch_is_as_it_was(asked: Asked) -> None:
    import torch

    source = (
        "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\ntorch.set_num_threads(2)\n"
        "torch.manual_seed(0)\ntorch.use_deterministic_algorithms(True)\n"
        + HEADER
        + "    return torch.tensor([float(len(r)) for r in responses])\n"
    )
    state = torch.get_rng_state()
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert asked(source) == LENGTHS
    assert before == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


def test_it_sees_the_environment_as_it_was_given(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "of_users_own.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", "lib")
    monkeypatch.setenv("GREETING", "hello")
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.setenv(name, "1")  # a library would wait for the other ranks
    source = (
        "import os, subprocess, sys\nimport of_users_own\n"
        + HEADER
        + "    assert os.environ['GREETING'] == 'hello'\n"
        "    assert not [name for name in os.environ if name.startswith(('TORCHELASTIC', "
        "'MASTER', 'WIND_PYTHONPATH'))]\n"
        "    assert not {'RANK', 'LOCAL_RANK', 'WORLD_SIZE'} & set(os.environ)\n"
        "    subprocess.run([sys.executable, '-c', 'import of_users_own'], check=True)\n"
        "    return [len(r) for r in responses]\n"
    )
    assert asked(source) == LENGTHS


def test_files_of_the_users_stand_for_no_module_of_others(asked: Asked, folder: Path) -> None:
    for name in ("random", "json", "asyncio", "numpy", "functions", "hosts", "wind"):
        (folder / f"{name}.py").write_text("raise ImportError('the wrong one')\n")
    (folder / "helper.py").write_text("def length(text):\n    return len(text)\n")
    source = "import json, random, numpy, wind.rewards.gsm8k\nfrom helper import length\n"
    assert asked(source + HEADER + "    return [length(r) for r in responses]\n") == LENGTHS


def test_an_edited_helper_is_loaded_anew(asked: Asked, folder: Path) -> None:
    source = (
        "from helper import PER_CHARACTER\n"
        + HEADER
        + "    return [PER_CHARACTER * len(r) for r in responses]\n"
    )
    for factor in (1, 2, 3):
        # of the same size, in the same second
        (folder / "helper.py").write_text(f"PER_CHARACTER = {factor}\n")
        assert asked(source) == [factor * length for length in LENGTHS]


def test_only_the_last_ones_stay_warm(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wind.rewards.hosts.WARM", 2)
    for name in ("first", "second", "third"):
        assert asked(HEADER + "    return [len(r) for r in responses]\n", name=name) == LENGTHS

    def host(name: str) -> Host | None:
        return warm_host(
            (
                f"{name}:reward",
                source_digest("reward.function", f"{name}:reward"),
                "cpu",
                *user_path(),
            )
        )

    assert [host(name) is not None for name in ("first", "second", "third")] == [False, True, True]


# ------------------------------------------------------------------------------- what it may return

KINDS = """
import array, decimal, enum, fractions
import numpy as np, pandas as pd, polars as pl, pyarrow as pa, torch

class Level(enum.IntEnum):
    LOW = 2

class Own:
    def __float__(self):
        return 0.25

async def slowly():
    return 1.5

KINDS = {
    "floats": [0.1, -0.0, 1e100],
    "integers": (2**53, -(2**53) - 1, 10**99),
    "booleans": [True, False, np.True_],
    "mixed": [1, 2.5, True],
    "fractions": [fractions.Fraction(1, 3)] * 3,
    "decimals": [decimal.Decimal("0.1")] * 3,
    "enums": [Level.LOW] * 3,
    "own": [Own()] * 3,
    "scalars": [np.float16(0.1), np.int8(-3), np.uint64(2**64 - 1)],
    "long_doubles": np.array([0.1, 1, 2], dtype=np.longdouble),
    "float32": np.array([0.1, 1, 2], dtype=np.float32),
    "flags": np.array([True, False, True]),
    "objects": np.array([1, 2.5, fractions.Fraction(1, 4)], dtype=object),
    "points": [np.array(0.5), torch.tensor(0.5), torch.tensor(2, dtype=torch.bfloat16)],
    "bfloat16": torch.tensor([0.1, 1, 2], dtype=torch.bfloat16),
    "with_gradients": torch.tensor([0.5, 1, 2], requires_grad=True) * 1,
    "each_with_gradients": [torch.tensor(0.5, requires_grad=True)] * 3,
    "flags_of_torch": torch.tensor([True, False, True]),
    "polars": pl.Series([0.5, 1.0, 2.0]),
    "decimals_of_polars": pl.Series(["0.5", "1.0", "2.0"]).cast(pl.Decimal(10, 2)),
    "pandas": pd.Series([0.5, 1, 2], index=[7, 5, 3]),
    "nullable_of_pandas": pd.Series([1, 2, 3], dtype="Int64"),
    "pyarrow": pa.array([0.5, 1, 2]),
    "chunks_of_pyarrow": pa.chunked_array([[0.5], [1, 2]]),
    "array": array.array("f", [0.1, 1, 2]),
    "range": range(3),
    "values": {"x": 0.5, "y": 1, "z": 2}.values(),
}

def reward(prompts, responses, answers):
    kind = answers[0]
    if kind == "generator":
        return (each for each in [0.5, 1, 2])
    if kind == "awaitables":
        return [slowly(), 1, slowly()]
    return KINDS[kind]
"""
HALVES = [0.5, 1.0, 2.0]
# the nearest of each format
TENTH = {"half": 0.0999755859375, "single": 0.10000000149011612, "brain": 0.10009765625}
RETURNED = {
    "floats": [0.1, -0.0, 1e100],
    "integers": [2.0**53, -(2.0**53), 1e99],
    "booleans": [1.0, 0.0, 1.0],
    "mixed": [1.0, 2.5, 1.0],
    "fractions": [1 / 3] * 3,
    "decimals": [0.1] * 3,
    "enums": [2.0] * 3,
    "own": [0.25] * 3,
    "scalars": [TENTH["half"], -3.0, 2.0**64],
    "long_doubles": [0.1, 1.0, 2.0],
    "float32": [TENTH["single"], 1.0, 2.0],
    "flags": [1.0, 0.0, 1.0],
    "objects": [1.0, 2.5, 0.25],
    "points": [0.5, 0.5, 2.0],
    "bfloat16": [TENTH["brain"], 1.0, 2.0],
    "with_gradients": HALVES,
    "each_with_gradients": [0.5] * 3,
    "flags_of_torch": [1.0, 0.0, 1.0],
    "polars": HALVES,
    "decimals_of_polars": HALVES,
    "pandas": HALVES,
    "nullable_of_pandas": [1.0, 2.0, 3.0],
    "pyarrow": HALVES,
    "chunks_of_pyarrow": HALVES,
    "array": [TENTH["single"], 1.0, 2.0],
    "range": [0.0, 1.0, 2.0],
    "values": HALVES,
    "generator": HALVES,
    "awaitables": [1.5, 1.0, 1.5],
}


@pytest.mark.slow
def test_numbers_of_any_kind_come_back(folder: Path) -> None:
    (folder / "kinds.py").write_text(KINDS)
    found = {}
    for kind in RETURNED:
        rows = Responses(ROWS.prompt_ids, ROWS.sample_indexes, ROWS.messages, RESPONSES, [kind] * 3)
        found[kind] = answer("kinds:reward", rows=rows)
    assert found == RETURNED
    assert str(found["floats"][1]) == "-0.0"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1, '2', 3]", r"returned '2' for prompt p, sample 1: return numbers only$"),
        ("[1, b'2', 3]", r"returned b'2' for prompt p, sample 1"),
        ("[1, 2, 3j]", r"returned 3j for prompt p, sample 2"),
        (
            "[1, __import__('numpy').datetime64(0, 's'), 3]",
            r"returned .*datetime64.* for prompt p, sample 1",
        ),
        ("[1, 2, 10**400]", r"returned 1000.*\.\.\. for prompt p, sample 2"),
        ("[1, 2, 10**9999]", r"returned a int that cannot be printed for prompt p, sample 2"),
        ("[[1], [2], [3]]", r"returned \[1\] for prompt p, sample 0"),
        ("__import__('numpy').zeros((3, 1))", r"returned \[0.0\] for prompt p, sample 0"),
        ("__import__('numpy').array(1.0)", r"returned a ndarray: return one number per response$"),
        ("'123'", r"returned a str: return one number"),
        ("{1, 2, 3}", r"returned a set: return one number"),
        ("[1, 2, None]", r"returned None for prompt p, sample 2"),
        ("[1, 2, float('nan')]", r"gave nan for prompt p, sample 2"),
        (
            "[1, 2, __import__('decimal').Decimal('sNaN')]",
            r"returned Decimal\('sNaN'\) for prompt p, sample 2",
        ),
        ("[1, 2]", r"returned 2 values for 3 responses"),
        ("['a'] * 4", r"returned 4 values for 3 responses"),
        ("[{'a': 1}, {'a': 2}, {}]", r"returned None for prompt p, sample 2"),
    ],
)
def test_what_is_no_number_is_named(asked: Asked, returned: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked(f"{HEADER}    return {returned}\n")


@pytest.mark.parametrize(
    "returned",
    [
        "[{'reward': 1, 'style': 0.5}, {'style': 0.25, 'reward': 2}, {'reward': 3, 'style': 0}]",
        "__import__('pandas').DataFrame({'reward': [1, 2, 3], 'style': [0.5, 0.25, 0]}, "
        "index=[2, 1, 0])",
        "__import__('polars').DataFrame({'reward': [1, 2, 3], 'style': [0.5, 0.25, 0]})",
        "__import__('pyarrow').table({'reward': [1, 2, 3], 'style': [0.5, 0.25, 0]})",
        "__import__('collections').OrderedDict(reward=(1, 2, 3), style=[0.5, 0.25, 0])",
    ],
)
def test_components_come_by_column_or_by_row(folder: Path, returned: str) -> None:
    (folder / "parts.py").write_text(f"{HEADER}    return {returned}\n")
    columns = UserFunction(
        "reward.function", "parts:reward", source_digest("reward.function", "parts:reward"), 60
    )(ROWS)
    found = {name: checked_numbers("it", column, ROWS).tolist() for name, column in columns.items()}
    assert found == {"reward": [1.0, 2.0, 3.0], "style": [0.5, 0.25, 0.0]}


# -------------------------------------------------------------------------------------- how it ends

BATCH = r"on the 3 responses from prompt p, sample 0, 'what\?'"
ENDS = {
    "exits": (
        HEADER + "    import sys\n    sys.exit('enough')\n",
        rf"^reward.function rule:reward failed: SystemExit: enough \(rule.py:3\) {BATCH}: fix "
        r"the function$",
    ),
    "exits_at_once": (
        HEADER + "    import os\n    print('almost there')\n    os._exit(3)\n",
        rf"rule:reward ended its process with exit code 3 {BATCH}; its last words: almost there: "
        r"fix the function$",
    ),
    "crashes": (
        HEADER + "    import ctypes\n    ctypes.string_at(0)\n",
        rf"was killed by SIGSEGV {BATCH}; its last words: Fatal Python error: Segmentation fault",
    ),
    "runs_out_of_memory": (
        HEADER + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        rf"was killed by SIGKILL, as the system does when memory runs out {BATCH}; it said "
        r"nothing: fix the function$",
    ),
    "dies_while_imported": (
        "import os\nos._exit(0)\n" + HEADER + "    return [0.0] * 3\n",
        r"rule:reward ended its process with exit code 0 while it was imported; it said nothing: "
        r"fix the function$",
    ),
    "interrupts": (
        HEADER + "    raise KeyboardInterrupt\n",
        rf"failed: KeyboardInterrupt \(rule.py:2\) {BATCH}",
    ),
    "closes_what_is_not_its_own": (
        HEADER + "    import os\n    os.closerange(3, 4096)\n    return [0.0] * 3\n",
        rf"rule:reward ended its process with exit code 1 {BATCH}; its last words: .*Bad file "
        r"descriptor",
    ),
    "says_surrogates": (
        HEADER + "    raise ValueError('\\udcff')\n",
        rf"failed: ValueError: \? \(rule.py:2\) {BATCH}",
    ),
    "fails_in_a_coroutine": (
        "async def reward(prompts, responses, answers):\n    raise ValueError('late')\n",
        rf"failed: ValueError: late \(rule.py:2\) {BATCH}",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_its_end_is_one_line(asked: Asked, end: str) -> None:
    source, message = ENDS[end]
    with pytest.raises(InputError, match=message) as caught:
        asked(source)
    assert "\n" not in str(caught.value)
    assert asked(HEADER + "    return [len(r) for r in responses]\n") == LENGTHS


@pytest.mark.parametrize(
    "sleep",
    [
        "time.sleep(600)",
        "subprocess.run(['sleep', '600'])",
        "signal.pthread_sigmask(0, range(1, 65)) or time.sleep(600)",
    ],
)
def test_one_that_takes_too_long_ends_with_all_it_started(asked: Asked, sleep: str) -> None:
    message = (
        rf"^reward.function rule:reward took more than 0.5 seconds {BATCH}: make it "
        r"faster, or raise reward.timeout$"
    )
    others = descendants()
    with pytest.raises(InputError, match=message):
        asked(f"import signal, subprocess, time\n{HEADER}    {sleep}\n", seconds=0.5)
    assert descendants() <= others


def test_an_import_may_take_longer_than_a_call(asked: Asked) -> None:
    source = "import time\ntime.sleep(0.5)\n" + HEADER + "    return [len(r) for r in responses]\n"
    assert asked(source, seconds=0.3) == LENGTHS


def test_an_interrupt_leaves_no_process(asked: Asked) -> None:
    # A shell that starts pytest in the background has it ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    others = descendants()
    asked(HEADER + "    return [len(r) for r in responses]\n")
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        asked("import time\n" + HEADER + "    time.sleep(600)\n", name="long", seconds=None)
    signal.signal(signal.SIGINT, before)
    close()
    assert descendants() <= others


def test_it_ends_with_the_process_that_asks_it(folder: Path) -> None:
    (folder / "slow_rule.py").write_text(
        "import os, pathlib, time\n"
        + HEADER
        + "    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(600)\n"
    )
    program = "from tests.wind.test_user_functions import answer; answer('slow_rule:reward')"
    root = str(Path(__file__).resolve().parents[2])
    asker = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}
    )
    deadline = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host = Path("/proc", (folder / "pid").read_text())
    assert host.exists()
    asker.kill()
    asker.wait()
    while host.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
