"""The console script `wind`: takes the user's PYTHONPATH off the import path, then runs the command
line.

PYTHONPATH comes before Python's own modules and before ours, so that a user's `random.py` or
`flows/` in it would stand for them. This module's name is nobody else's, and before the path is
right it imports only what every Python has imported by then. The user's folders are used where the
user's code is imported, see `wind.machine.user_path`.
"""

import os
import site
import sys


def main() -> None:
    """Run the command line."""
    source = os.path.dirname(os.path.abspath(__file__))
    own = {source, os.path.dirname(os.__file__), *site.getsitepackages()}
    given = os.environ.get("PYTHONPATH")
    users = (
        {os.path.abspath(folder) for folder in given.split(os.pathsep)} - own if given else set()
    )
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) not in users]
    from flows.cli import main as run

    run()
