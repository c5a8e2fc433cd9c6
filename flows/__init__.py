"""The flows, each on one screen, and the commands that start them."""

import os

from wind.machine.environment import built

# Light stages are computed in this process: before any library reads its number of threads.
_environment = built(os.environ)
for _name in os.environ.keys() - _environment.keys():
    del os.environ[_name]
os.environ.update(_environment)
