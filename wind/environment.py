"""Environment variables, changed for a block; and those that let this machine be reached directly, whatever proxy there is."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
NO_PROXY: Final = ("NO_PROXY", "no_proxy")  # libraries read one or the other, or the first that is set


def direct() -> dict[str, str]:
    """The variables that keep requests to this machine from the proxies of the environment; none if that names none."""
    if not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return {}
    given = [host.strip() for name in NO_PROXY for host in os.environ.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(filter(None, [*given, *LOOPBACK])))
    return dict.fromkeys(NO_PROXY, hosts)


def unset(wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables `wanted` that the environment does not have."""
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def variables(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Give variables these values for the block, None for not being set; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
