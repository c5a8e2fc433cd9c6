"""Ask the nursery for a process; as a program, be one: `ask.py SOCKET ... -m MODULE ...` is to its
parent what that would be.

Of the standard library alone, so that it starts in no time.
"""

import json
import os
import resource
import signal
import socket
import sys

LARGEST = 2**18


def ask(
    address: str,
    module: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    descriptors: dict[int, int],
) -> socket.socket:
    """The connection to a new process that runs `module` in `folder`, with the keys of
    `descriptors` open: ours that they map to.

    From it come the process's id and at its end its wait status; to close it kills the process and
    its group.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    numbers = list(descriptors)
    wanted = {
        "module": module,
        "arguments": arguments,
        "folder": folder,
        "environment": environment,
        "descriptors": numbers,
    }
    socket.send_fds(connection, [json.dumps(wanted).encode()], list(descriptors.values()))
    return connection


def main() -> None:
    """Stand in for the process: the same open descriptors, and in the end the same end."""
    address, *options = sys.argv[1:]
    module, *arguments = options[options.index("-m") + 1 :]
    given = [
        number for number in map(int, os.listdir("/dev/fd")) if os.path.exists(f"/dev/fd/{number}")
    ]
    environment = dict(os.environ) | {"CHAOS_WORKER": "1"}
    connection = ask(
        address, module, arguments, os.getcwd(), environment, {number: number for number in given}
    )
    connection.recv(LARGEST)
    for number in given:
        os.close(number)  # nobody may wait for our ends of the pipes
    answer = connection.recv(LARGEST)
    code = os.waitstatus_to_exitcode(int(answer)) if answer else 1
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (
            signal.SIGKILL,
            signal.SIGSTOP,
        ) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
