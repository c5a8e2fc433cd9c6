"""HTTP endpoints: models and rewards that another process serves.

A reward that an endpoint computes has no address in its spec: an address does not determine
content. Resolving the reward remembers its connection here, by what identifies the reward; a run
hands all connections to its workers.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Final

from wind.config.endpoints import Connection
from wind.errors import StageError

_connections: dict[str, Connection] = {}
_counts: dict[str, float] = {}
_counting: Final = Lock()


def connect(connections: Mapping[str, Connection]) -> None:
    """Remember connections by the identity of what they lead to."""
    _connections.update(connections)


def connections() -> dict[str, Connection]:
    """Return all connections that this process knows."""
    return dict(_connections)


def connection_to(identity: str, name: str) -> Connection:
    """Return the connection to what has this identity, and `name` in messages.

    Raises StageError if this process knows none.
    """
    if identity not in _connections or not all(_connections[identity].urls):
        raise StageError(f"no address of {name} is known here: run the recipe that names it")
    return _connections[identity]


def count(**numbers: float) -> None:
    """Add to the counts of this process, such as of requests."""
    with _counting:
        for name, number in numbers.items():
            _counts[name] = _counts.get(name, 0) + number


def take_counts() -> dict[str, float]:
    """Return the counts since the last call."""
    with _counting:
        taken = dict(_counts)
        _counts.clear()
    return taken
