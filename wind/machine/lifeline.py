"""A process that ends when its parent does, however the parent ends.

`wind.machine.processes` runs this file as a plain script, before anything else in a new process:

    python -I -S lifeline.py bound PARENT COMMAND...
        binds itself to PARENT and becomes COMMAND
    python -I -S lifeline.py kept PARENT COMMAND...
        stays, as two keepers of COMMAND and of everything that it starts
    python -I -S lifeline.py watched PARENT COMMAND...
        stays and watches PARENT: the fallback for both on systems other than Linux

On Linux the kernel does the binding, and it survives `exec`. Keepers adopt descendants of the
command that lose their parent, and kill all that are left when the command ends, when PARENT ends,
or on SIGTERM. There are two, each in its own session, so that a SIGKILL to either leaves one to do
this. The file imports little, since every process waits for it, and nothing of this project.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.05
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
# a shell's exit code for a command that cannot be run
NOT_STARTED = 127


def _bind(parent: int, death: signal.Signals) -> bool:
    """Have the kernel send `death` when the parent ends, if it can.

    Returns True if it can. Kills this process now if the parent has already ended.
    """
    bound = _prctl(PR_SET_PDEATHSIG, death)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return bound


def _prctl(option: int, value: int) -> bool:
    """Set a process option; return True if this system knows it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return (
        prctl is not None
        and prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))) == 0
    )


def _main(mode: str, parent: int, command: list[str]) -> None:
    if mode == "watched" or not _bind(parent, signal.SIGKILL):
        _leave(_watch(parent, _begin(command)))
    elif mode == "kept":
        _leave(_keep(command))
    else:
        _become(command)


def _become(command: list[str]) -> None:
    """Become the command, with the signal handling of a new process."""
    # Python ignores these, and exec would pass that on
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        os._exit(NOT_STARTED)


def _begin(command: list[str]) -> int:
    """Start the command in its own session; return its process id.

    It is bound to this process.
    """
    parent = os.getpid()
    if (child := os.fork()) == 0:
        os.setsid()
        _bind(parent, signal.SIGKILL)
        _become(command)
    return child


def _keep(command: list[str]) -> int:
    """Run the command through a child keeper; return its exit code.

    Returns when everything that the command started has ended.
    """
    # if it were ignored, no child could be waited for
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGCHLD})
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    outer = os.getpid()
    if (child := os.fork()) == 0:
        os.setsid()
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _bind(outer, signal.SIGTERM)
        child = _begin(command)
    _release_descriptors()
    code = None
    while code is None:
        received = signal.sigwait({*ENDING, signal.SIGCHLD})
        code = _reaped(child) if received == signal.SIGCHLD else -received
    _end_descendants()
    return code


def _reaped(child: int) -> int | None:
    """Reap ended children; return the exit code of `child`.

    None if it still runs. A signal is returned as its negative number.
    """
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == child:
            code = os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    """Kill children until none are left; orphans of killed ones become ours."""
    while True:
        children = _children()
        for child in children:
            # only this function reaps, so the number is still the child's
            os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0 if children else os.WNOHANG)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Return the process ids of this process's children."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        # it has ended in the meantime
        except (OSError, IndexError):
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def _watch(parent: int, child: int) -> int:
    """Wait for `child` and return its exit code.

    Its process group is killed when it ends, when `parent` ends, or on SIGTERM.
    """
    ending: list[int] = []
    for each in ENDING:
        signal.signal(each, lambda received, frame: ending.append(received))
    _release_descriptors()
    while os.getppid() == parent and not ending:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _kill_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    # before its group: it may not have created one yet
    os.kill(child, signal.SIGKILL)
    _kill_group(child)
    os.waitpid(child, 0)
    return -ending[0] if ending else -signal.SIGKILL


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    # none is left; macOS reports zombies this way
    except (ProcessLookupError, PermissionError):
        return


def _release_descriptors() -> None:
    """Close everything shared with the command.

    Whoever reads from it or writes to it must see it end.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, max(map(int, os.listdir("/dev/fd"))) + 1)


def _leave(code: int) -> None:
    """End with the command's exit code or signal."""
    if code < 0:
        import resource

        # this process is not the one that failed
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
