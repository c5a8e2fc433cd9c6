"""Processes end with the one that started them, however it ends, and so does all that they start."""

import ast
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from wind.machine import processes
from wind.machine.processes import Process, python, start

SECONDS_TO_DIE = 10.0
SLEEPS = "import time\nprint('on', flush=True)\ntime.sleep(600)"
# A program that leaves a detached grandchild, whose parent has ended, and a child that ignores all
# it can.
LEAVES_OTHERS = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(600)
if os.fork() == 0:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    time.sleep(600)
os.wait()
print("on", flush=True)
"""
PARENT = """
import sys, threading, time
from wind.machine.processes import environment, python, start
def begin():
    process = start(python("-c", sys.argv[1]), env=environment(), descendants=sys.argv[2] == "kept")
    print(process.pid, flush=True)
threading.Thread(target=begin).start()
time.sleep(600)
"""

FORKS = """
import os
import re
from wind.machine.processes import environment, python, start
def say_its_exit_code():
    print(start(python("-c", "import sys; sys.exit(3)"), env=environment()).wait(), flush=True)
say_its_exit_code()
if child := os.fork():
    os.waitpid(child, 0)
else:
    say_its_exit_code()
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What all processes of the test have in their environment; none must be left in the end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("MARK", mark)
    yield mark
    assert_ended(mark)


def marked(mark: str) -> list[int]:
    """The process ids of all living processes with the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def assert_ended(mark: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def said(process: Process) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def begun(program: str, *, descendants: bool = False) -> Process:
    return start(
        python("-c", program),
        env=processes.environment(),
        stdout=subprocess.PIPE,
        descendants=descendants,
    )


def children(process: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


@pytest.mark.parametrize("descendants", [False, True])
def test_a_command_is_given_its_streams_and_tells_how_it_ended(
    mark: str, descendants: bool
) -> None:
    reads = "import sys; print(len(sys.stdin.read())); sys.exit(7)"
    with begun(reads, descendants=descendants) as process:
        assert said(process) == b"0\n"
    assert process.returncode == 7
    for death in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        with begun(f"import os; os.kill(os.getpid(), {death})", descendants=descendants) as process:
            assert said(process) == b""
        assert process.returncode == -death
    echo = "import sys; print(sys.stdin.read(), end='')"
    given = start(
        python("-c", echo),
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        descendants=descendants,
    )
    assert given.communicate(b"one\ntwo\n")[0] == b"one\ntwo\n"


@pytest.mark.parametrize("descendants", [False, True])
def test_a_command_starts_with_the_signals_of_a_new_process(mark: str, descendants: bool) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and what is ignored or blocked would outlast exec. The
    rest is as it is here.
    """
    with start(
        ["/bin/cat", "/proc/self/status"], env={}, stdout=subprocess.PIPE, descendants=descendants
    ) as process:
        assert process.stdout is not None
        of_command = signal_masks(process.stdout.read())
    of_python = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    here = signal_masks(Path("/proc/self/status").read_bytes())
    assert here["SigIgn"] & of_python == of_python
    assert (of_command["SigBlk"], of_command["SigIgn"]) == (0, here["SigIgn"] & ~of_python)


def signal_masks(status: bytes) -> dict[str, int]:
    """The sets of signals in what the kernel says of a process, by name; bit 0 is signal 1."""
    lines = dict(line.split(":\t", 1) for line in status.decode().splitlines())
    return {name: int(lines[name], 16) for name in ("SigBlk", "SigIgn")}


@pytest.mark.parametrize("descendants", [False, True])
def test_what_cannot_be_started_is_named(descendants: bool) -> None:
    with pytest.raises(FileNotFoundError, match="No such program"):
        start(["/no/such/program"], env=os.environ, descendants=descendants)


@pytest.mark.parametrize("descendants", [False, True])
def test_only_the_descriptors_that_are_passed_reach_a_command(mark: str, descendants: bool) -> None:
    """The keepers hold none: the pipe ends with the command."""
    (read, write), (other, another) = os.pipe(), os.pipe()
    program = (
        f"import os, time; os.write({write}, b'%d' % len(os.listdir('/dev/fd'))); "
        f"os.close({write}); time.sleep(600)"
    )
    process = start(
        python("-c", program), env=os.environ, pass_fds=(write,), descendants=descendants
    )
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"5"  # standard ones, this one, and the listing's own
    process.end()
    os.close(other)
    os.close(another)


@pytest.mark.parametrize("descendants", [False, True])
def test_a_process_outlives_the_thread_that_asked_for_it(mark: str, descendants: bool) -> None:
    """The kernel's binding is to the thread that forked."""
    begun_by_thread: list[Process] = []
    thread = threading.Thread(
        target=lambda: begun_by_thread.append(begun(SLEEPS, descendants=descendants))
    )
    thread.start()
    thread.join()
    with begun_by_thread.pop() as process:
        assert said(process) == b"on\n"
        time.sleep(0.2)
        assert process.poll() is None
        process.end()
        assert process.returncode == (-signal.SIGTERM if descendants else -signal.SIGKILL)
        assert said(process) == b""


@pytest.mark.parametrize("mode", ["bound", "kept"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_parent_that_is_killed(
    mark: str, mode: str, how: signal.Signals
) -> None:
    program = LEAVES_OTHERS + "\ntime.sleep(600)" if mode == "kept" else SLEEPS
    command = [sys.executable, "-c", PARENT, program, mode]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(processes.SOURCE)}
    ) as parent:
        assert parent.stdout is not None
        try:
            # Of the parent and of the command, in either order; from here on the command has an
            # environment to look into.
            [number] = {parent.stdout.readline(), parent.stdout.readline()} - {b"on\n"}
            assert int(number) in marked(mark)
        finally:
            parent.send_signal(how)
    assert_ended(mark)


def test_nothing_outlives_a_parent_killed_while_it_starts_processes(mark: str) -> None:
    """At any moment of it: after 0 to 60 ms, in steps of 6."""
    env = {**os.environ, "PYTHONPATH": str(processes.SOURCE)}
    for milliseconds, mode in itertools.product(range(0, 60, 6), ["bound", "kept"]):
        with subprocess.Popen(
            [sys.executable, "-c", PARENT, SLEEPS, mode], stdout=subprocess.PIPE, env=env
        ) as parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            time.sleep(milliseconds / 1000)
            parent.kill()
        assert_ended(mark)


def test_a_process_whose_parent_is_gone_runs_nothing(mark: str, tmp_path: Path) -> None:
    for mode in ("bound", "kept"):
        command = [
            sys.executable,
            "-I",
            "-S",
            str(processes.LIFELINE),
            mode,
            "1",
            "/bin/touch",
            str(tmp_path / "ran"),
        ]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "ran").exists()


def test_descendants_end_with_the_command(mark: str) -> None:
    with begun(LEAVES_OTHERS, descendants=True) as process:
        assert said(process) == b"on\n"
    assert process.returncode == 0
    assert marked(mark) == []


def test_descendants_end_when_it_is_told_to(mark: str) -> None:
    with begun(LEAVES_OTHERS + "\ntime.sleep(600)", descendants=True) as process:
        assert said(process) == b"on\n"
        assert len(marked(mark)) == 5  # two keepers, the command, and its two
        process.end()
        assert marked(mark) == []


@pytest.mark.parametrize("which", ["outer", "inner", "command"])
def test_descendants_end_when_a_keeper_or_the_command_is_killed(mark: str, which: str) -> None:
    with begun(LEAVES_OTHERS + "\ntime.sleep(600)", descendants=True) as process:
        assert said(process) == b"on\n"
        (inner,) = children(process.pid)
        command = min(children(inner))
        os.kill({"outer": process.pid, "inner": inner, "command": command}[which], signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert_ended(mark)


def test_where_the_kernel_binds_nothing_a_watcher_does(mark: str) -> None:
    def watched(parent: int, program: str) -> "subprocess.Popen[bytes]":
        lifeline = [sys.executable, "-I", "-S", str(processes.LIFELINE), "watched", str(parent)]
        return subprocess.Popen(
            [*lifeline, *python("-c", program)], stdout=subprocess.PIPE, start_new_session=True
        )

    with watched(os.getpid(), "import sys; sys.exit(7)") as process:
        assert process.wait() == 7
    with watched(
        os.getpid(),
        "import os\nif os.fork(): print('on', flush=True)\nimport time\ntime.sleep(600)",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.terminate()
    assert process.returncode == -signal.SIGTERM
    with watched(1, SLEEPS) as process:  # as if its parent had just ended
        assert process.wait() == -signal.SIGKILL


def test_a_forked_process_starts_its_own(mark: str) -> None:
    """The thread that starts processes does not survive a fork."""
    with begun(FORKS) as process:
        assert (said(process), said(process)) == (b"3\n", b"3\n")


def test_a_short_command_is_run_to_its_end(mark: str) -> None:
    assert processes.run(python("-c", "print(1)"), env=os.environ, timeout=60).stdout == b"1\n"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        processes.run(python("-c", "import sys; sys.exit('no')"), env=os.environ, timeout=60)
    assert (failed.value.returncode, failed.value.stderr) == (1, b"no\n")
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(
            python("-c", LEAVES_OTHERS + "\ntime.sleep(600)"), env=os.environ, timeout=1.5
        )
    assert marked(mark) == []


def test_no_file_in_the_current_folder_stands_for_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "json", "tasks", "flows"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    asks = "import random, json, sys; print(json.dumps(sys.path))"
    done = processes.run(python("-c", asks), env=processes.environment(), timeout=60)
    assert str(tmp_path) not in json.loads(done.stdout)


# What begins a process in the standard library, and in what Prefect is built on.
STARTS = re.compile(
    r"subprocess\.(run|Popen|call|check_call|check_output|getoutput|getstatusoutput)|os\.(fork|forkpty|system|popen)"
    r"|os\.(spawn|exec|posix_spawn)\w*|pty\.\w+|.*(multiprocessing|context).*\.(Process|Pool)"
    r"|(\w+\.)*(ProcessPoolExecutor|create_subprocess_\w+|open_process)"
)


def test_all_processes_are_started_by_one_module() -> None:
    """It begins them with `lifeline`; nobody else names what could."""
    found = set()
    for path in sorted(
        file
        for name in ("flows", "tasks", "data_checks", "wind")
        for file in (processes.SOURCE / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name) and STARTS.fullmatch(ast.unparse(node)):
                found.add(path.relative_to(processes.SOURCE).as_posix())
    assert found == {
        "wind/machine/lifeline.py",
        "wind/machine/processes.py",
        # forks within a host of user functions, whose keeper ends all of its descendants
        "wind/rewards/mathematics.py",
    }
