"""Tags: names that users give to versions of a run.

A tag is a small file, `<root>/runs/<run>/tags/<name>`, that holds the id of its version.
"""

import re
from typing import Final

from wind.errors import ConfigError, DatasetError
from wind.fingerprints import digest
from wind.store.storage import Storage

LATEST: Final = "latest"  # always the version published last
TAG: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


class Tags:
    """The tags of one run."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._run = run
        self._folder = f"runs/{run}/tags"

    def ids(self) -> dict[str, str]:
        """The version id that each tag points to."""
        names = filter(TAG.fullmatch, self._storage.names(self._folder))
        found = {name: self.id_of(name) for name in names}
        return {name: version for name, version in found.items() if version is not None}

    def id_of(self, name: str) -> str | None:
        """Return the version id of the tag `name`, or None without one.

        Raises DatasetError if the tag cannot be read.
        """
        try:
            words = self._storage.read(f"{self._folder}/{name}").decode(errors="replace").split()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatasetError(
                f"the tag {self._run}@{name} cannot be read ({error}): tag the version again"
            ) from error
        return words[0] if words else None

    def point(self, name: str, version: str) -> None:
        """Point the tag `name` to the version with the id `version`."""
        self._storage.write(f"{self._folder}/{name}", tag_text(self._run, name, version))

    def remove(self, name: str) -> None:
        """Remove the tag `name`, if there is one."""
        self._storage.delete(f"{self._folder}/{name}")


def tag_text(run: str, name: str, version: str) -> bytes:
    """Encode a tag: version id, and a digest of run, tag, id."""
    return f"{version} {digest([run, name, version])}\n".encode()


def check_tag(name: str) -> None:
    """Raise ConfigError if a user cannot give or remove the tag `name`."""
    if not TAG.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tag: use letters, digits, dot, dash and underscore"
        )
    if name.isdigit():
        raise ConfigError(
            f"{name!r} cannot be a tag: RUN@{name} is the version with that number; add a letter"
        )
    if name == LATEST:
        raise ConfigError(
            f"{LATEST!r} cannot be given or taken: it always points to the version published last"
        )
