"""What a user asks for: the flows, each on one screen, and the commands that start them."""

import os

from wind.machine.environment import built

# Light stages are computed in this process: before any library reads how many threads it may have.
_environment = built(os.environ)
for _name in os.environ.keys() - _environment.keys():
    del os.environ[_name]
os.environ.update(_environment)
