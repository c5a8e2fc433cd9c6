"""Stamps: how our own records differ from those of others.

A store is data, and anybody may write data. So every record that a run relies on (of a computation,
a check, a finished shard, a checkpoint, a version, a verdict) has a stamp: an HMAC over all its
other fields with a key that is in no store. A record without our stamp is read, shown and verified,
but it is neither a cache hit nor a passed check.

The key is a file of this user, created when it is first needed. Machines that share a store need
the same key: `WIND_KEY_FILE` names a copy.
"""

import contextlib
import hmac
import os
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel

from wind.errors import ConfigError
from wind.fingerprints import digest
from wind.machine.user_path import state_folder
from wind.store import sealed_json

VARIABLE: Final = "WIND_KEY_FILE"
STAMP: Final = "stamp"
LEAST_BYTES: Final = 32

Kind = Literal["computation", "check", "shard", "checkpoint", "version", "verdict"]

_refused: dict[str, set[str]] = {}  # by root
_unkept: dict[Path | None, str] = {}  # why no key could be kept, by the place


def stamp_of(kind: Kind, record: BaseModel | Mapping[str, Any]) -> str:
    """Compute our stamp for a record.

    Raises ConfigError if the file that `WIND_KEY_FILE` names cannot be used.
    """
    fields = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    content = digest(
        [
            kind,
            {
                name: value
                for name, value in fields.items()
                if name not in (STAMP, sealed_json.DIGEST)
            },
        ]
    )
    return hmac.new(_key(), content.encode(), "sha256").hexdigest()


def stamped(kind: Kind, record: BaseModel | Mapping[str, Any]) -> bytes:
    """Encode `record` as sealed JSON with our stamp.

    Raises what `stamp_of` and `sealed_json.encode` raise.
    """
    stamp = stamp_of(kind, record)
    return sealed_json.encode(
        record.model_copy(update={STAMP: stamp})
        if isinstance(record, BaseModel)
        else {**record, STAMP: stamp}
    )


def is_ours(kind: Kind, fields: Mapping[str, Any]) -> bool:
    """Return whether a record, in its `fields` as written, has our stamp.

    Raises ConfigError as `stamp_of` does.
    """
    return hmac.compare_digest(stamp_of(kind, fields), str(fields.get(STAMP, "")))


def restamped(kind: Kind, text: bytes) -> bytes:
    """Put our stamp on the record `text` of a trusted sender.

    Raises ValueError if it is damaged.
    """
    return stamped(kind, sealed_json.read(text))


def refuse(root: str, name: str) -> None:
    """Remember that the record `name` was not used, lacking our stamp."""
    _refused.setdefault(root, set()).add(name)


def refused(root: str) -> list[str]:
    """Return the records of the store at `root` that this process refused."""
    return sorted(_refused.get(root, ()))


def lacks_key() -> str | None:
    """Return why no key can be kept, or None if one is.

    Without it, nothing computed now will be known as ours later.
    """
    _key()
    return _unkept.get(_place())


def _key() -> bytes:
    named = os.environ.get(VARIABLE)
    return _named(named) if named else _own(_place())


def _place() -> Path | None:
    """Return the file of this user's key; None without a home folder."""
    folder = state_folder()
    return None if folder is None else folder / "key"


@lru_cache(maxsize=4)
def _named(name: str) -> bytes:
    path = Path(name)
    try:
        content = path.read_bytes().strip()
        if path.stat().st_mode & 0o007:
            raise ConfigError(f"{VARIABLE}: {name} is open to everybody: run `chmod 600 {name}`")
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}: {name} cannot be read ({error.strerror}): "
            "name a copy of the key of your other machines"
        ) from error
    if len(content) < LEAST_BYTES:
        raise ConfigError(
            f"{VARIABLE}: {name} holds {len(content)} bytes, a key has at least {LEAST_BYTES}: "
            "`openssl rand -hex 32` makes one"
        )
    return content


@lru_cache(maxsize=4)
def _own(path: Path | None) -> bytes:
    """Return the key in the file `path`, creating it if need be.

    Where it cannot be kept, the key is for this process alone.
    """
    try:
        if path is None:
            raise OSError(0, "there is no home folder")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            _make(path)
        content = path.read_bytes().strip()
        if len(content) < LEAST_BYTES:
            raise OSError(0, "it holds no key")
        return content
    except OSError as error:
        _unkept[path] = f"{path or 'no file'}: {error.strerror}"
        return secrets.token_bytes(LEAST_BYTES)


def _make(path: Path) -> None:
    """Write a new key to `path`, atomically and by one process only.

    Raises FileExistsError if there is one.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(
        os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
    ) as file:
        try:
            file.write(f"{secrets.token_hex(LEAST_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
            os.link(partial, path)
        finally:
            partial.unlink()
