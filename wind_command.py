"""The console script `wind`: clean the import path, then run.

Python puts PYTHONPATH before its own modules and ours, so that a user's `random.py` or `flows/` in
it would replace them. This module's name is unique, and until the path is right it imports only
what every Python has already imported. The user's folders are used where the user's code is
imported (`wind.machine.user_path`).
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
