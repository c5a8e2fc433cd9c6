"""Ask the nursery for a process; as a program, be one: `ask.py SOCKET -m MODULE ...` is to its parent what the process would be.

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
    address: str, module: str, arguments: list[str], folder: str, environment: dict[str, str], descriptors: tuple[int, int, int]
) -> socket.socket:
    """The connection to a new process that runs `module` in `folder`, with `descriptors` as its standard streams.

    From it come the process's id and at its end its wait status; to close it kills the process and its group.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    wanted = {"module": module, "arguments": arguments, "folder": folder, "environment": environment}
    socket.send_fds(connection, [json.dumps(wanted).encode()], descriptors)
    return connection


def main() -> None:
    """Stand in for the process: the same standard streams, and in the end the same end."""
    address, _, module, *arguments = sys.argv[1:]
    connection = ask(address, module, arguments, os.getcwd(), dict(os.environ) | {"CHAOS_WORKER": "1"}, (0, 1, 2))
    connection.recv(LARGEST)
    os.closerange(0, 3)  # nobody may wait for our ends of the pipes
    answer = connection.recv(LARGEST)
    code = os.waitstatus_to_exitcode(int(answer)) if answer else 1
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
