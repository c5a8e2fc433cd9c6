"""The SSH keys to trust, from a `.pub` or `allowed_signers` file.

An `allowed_signers` file is that of OpenSSH.

An option on a line is either honored or refused, never ignored: it may say when, or for what, a key
does not count.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm

from wind.audit.ssh_signatures import (
    KINDS,
    SignatureError,
    Wire,
    fingerprint,
    public_key,
    read_keys,
)
from wind.errors import ConfigError

WORD: Final = re.compile(r'(?:[^\s"]|"(?:\\.|[^"\\])*")+')
OPTION: Final = re.compile(r'(?P<name>[A-Za-z-]+)(?:="(?P<value>(?:\\.|[^"\\])*)")?(?:,|$)')
MOMENT: Final = re.compile(r"\d{8}(?:\d{4}(?:\d{2})?)?Z?")


@dataclass(frozen=True)
class Entry:
    """A trusted key, with the times and purposes it counts for."""

    principal: str
    blob: bytes
    namespaces: str | None = None  # patterns
    after: datetime | None = None
    before: datetime | None = None

    def refusal(self, namespace: str, now: datetime) -> str | None:
        """Return why the key does not count now, or None.

        `namespace` is the purpose that the signature was given for.
        """
        if self.namespaces is not None and not _matches(namespace, self.namespaces):
            return f"is for the namespaces {self.namespaces}, not for {namespace}"
        if self.after is not None and now < self.after:
            return f"is valid only after {self.after:%Y-%m-%d %H:%M:%S %Z}"
        if self.before is not None and now > self.before:
            return f"was valid before {self.before:%Y-%m-%d %H:%M:%S %Z}"
        return None


class Allowed:
    """The trusted keys of a `.pub` or `allowed_signers` file."""

    def __init__(self, path: Path) -> None:
        """Read the keys in the file at `path`.

        Raises ConfigError naming the line that is wrong.
        """
        content = read_keys(
            path,
            forbidden=0o002,
            remedy="can be written by everybody, and decides whom you believe: run `chmod o-w {}`",
        )
        self.path = path
        try:
            lines = content.decode().splitlines()
        except UnicodeError as error:
            raise ConfigError(
                f"{path} is not text: name a .pub file, or an allowed_signers file"
            ) from error
        if "PRIVATE KEY" in content[:200].decode(errors="replace"):
            raise ConfigError(f"{path} is a private key: name the public one, {path.name}.pub")
        self._entries = list(self._parsed(lines))
        if not self._entries:
            raise ConfigError(
                f"{path} has no key in it: name a .pub file, or an allowed_signers file"
            )

    def has(self, blob: bytes) -> bool:
        """Tell whether the file lists the key `blob`, whatever its limits."""
        return any(entry.blob == blob for entry in self._entries)

    def principal(self, blob: bytes, namespace: str) -> str:
        """Return the owner of the key `blob`.

        Raises SignatureError if the key is not listed, or does not count for `namespace` now.
        """
        now, reason = datetime.now(UTC), "is not in it"
        for entry in self._entries:
            if entry.blob == blob:
                if (refusal := entry.refusal(namespace, now)) is None:
                    return entry.principal
                reason = refusal
        raise SignatureError(
            f"is by a key that {self.path} does not allow: {fingerprint(blob)} {reason}"
        )

    def _parsed(self, lines: list[str]) -> Iterator[Entry]:
        written = [
            (number, line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip() and line.strip()[0] != "#"
        ]
        for number, line in written:
            try:
                yield _entry(line, is_alone=len(written) == 1)
            except ValueError as error:
                raise ConfigError(f"{self.path}, line {number}: {error}") from error


def _entry(line: str, *, is_alone: bool) -> Entry:
    """Parse a line of either kind of file.

    Raises ValueError saying what is wrong with it.
    """
    if WORD.sub("", line).strip():
        raise ValueError("a quotation mark in it is not closed")
    words = WORD.findall(line)
    if is_alone and _is_kind(words[0]) and not any(map(_is_kind, words[1:3])):
        blob = _blob(words, 0)
        return Entry(_named(" ".join(words[2:]) or fingerprint(blob)), blob)
    at = next((index for index, word in enumerate(words[1:3], 1) if _is_kind(word)), None)
    if at is None:
        raise ValueError(
            "it is not `PRINCIPALS [OPTIONS] TYPE KEY`, "
            "as ssh-keygen describes it under ALLOWED SIGNERS"
        )
    blob = _blob(words, at)
    patterns = [
        pattern
        for pattern in words[0].replace('"', "").split(",")
        if pattern and not pattern.startswith("!")
    ]
    if not patterns:
        raise ValueError("it names no principal")
    return Entry(_named(patterns[0]), blob, **(_options(words[1]) if at == 2 else {}))


def _is_kind(word: str) -> bool:
    return (
        word.encode() in KINDS
        or re.fullmatch(r"(?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+", word) is not None
    )


def _named(principal: str) -> str:
    if len(principal) > 255 or not principal.isprintable():
        raise ValueError("its principal is longer than 255 characters, or cannot be printed")
    return principal


def _blob(words: list[str], at: int) -> bytes:
    """Return the key that follows its type, which is word number `at`."""
    try:
        blob = base64.b64decode(words[at + 1], validate=True)
        if Wire(blob).string() != words[at].encode():
            raise ValueError("its type is not that of its key")
    except (IndexError, binascii.Error) as error:
        raise ValueError("its key is cut short or damaged") from error
    try:
        public_key(blob)
    except UnsupportedAlgorithm as error:
        raise ValueError("its key is damaged") from error
    return blob


def _options(text: str) -> dict[str, Any]:
    """Parse the options of a line into fields of an entry.

    Raises ValueError for an option that would have to be ignored.
    """
    found: dict[str, Any] = {}
    while text:
        match = OPTION.match(text)
        name = match["name"].lower() if match else text
        if (
            match is None
            or name not in ("namespaces", "valid-after", "valid-before")
            or match["value"] is None
        ):
            raise ValueError(
                f"the option {name} is not supported: "
                "namespaces, valid-after and valid-before are, with a value"
            )
        field = name.removeprefix("valid-")
        if field in found:
            raise ValueError(f"the option {name} is there twice")
        found[field] = match["value"] if field == "namespaces" else _moment(match["value"])
        text = text[match.end() :]
    return found


def _moment(text: str) -> datetime:
    """Parse a time that OpenSSH writes as YYYYMMDD[HHMM[SS]][Z].

    Without Z it is in the time zone of this machine.
    """
    try:
        if not MOMENT.fullmatch(text):
            raise ValueError("it has other characters, or another length")
        moment = datetime.strptime(text.removesuffix("Z").ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a time: write YYYYMMDD or YYYYMMDDHHMM, with Z for UTC"
        ) from error
    return moment.replace(tzinfo=UTC) if text.endswith("Z") else moment.astimezone()


def _matches(name: str, patterns: str) -> bool:
    """Tell whether `name` matches one of OpenSSH's `patterns`, and no negated one."""
    matched = False
    for pattern in patterns.split(","):
        is_not, glob = pattern.startswith("!"), pattern.removeprefix("!")
        if re.fullmatch(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."), name):
            if is_not:
                return False
            matched = True
    return matched
