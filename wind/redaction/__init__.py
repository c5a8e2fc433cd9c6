"""Remove secrets from text before it is stored, logged or shown.

A secret is the value of an environment variable named like one (HF_TOKEN, AWS_SECRET_ACCESS_KEY,
...), also as URLs, JSON, HTML and base64 encode it; a private key; or anything that
`wind.redaction.forms` recognizes by its form. Only values are replaced, never the names that say
what was there. `redacted` handles whole texts, `redacted_lines` the output of a process as it is
printed.
"""

import base64
import codecs
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import IO, Any, Final, TypeVar, cast
from urllib.parse import quote, quote_plus, unquote

from wind.redaction.forms import Span, spans

T = TypeVar("T")

MARK: Final = "[redacted]"
# of a value from the environment: shorter ones are parts of ordinary words
LEAST_CHARACTERS: Final = 8
# characters held back until their line ends
LONGEST_LINE: Final = 2**16
# of those, characters still held back when part of a longer line is passed on
OVERLAP: Final = 2**13
# characters before a secret that may identify it as one
NAME: Final = 80
# a pattern that matches nothing
NOTHING: Final = r"(?!)"
# lines after the first one of a private key whose last line does not come
KEY_LINES: Final = 400

_VARIABLE = re.compile(
    r"^(?!.*_(?:FILE|PATH|DIR)$).*(?:(?:^|_)(?:TOKEN|SECRETS?|PASS|PASSCODE|PASSWD|CREDENTIALS?"
    r"|CREDS|KEY|APIKEY|PAT|JWT|DSN|COOKIES?|BEARER)(?:_|$)"
    r"|(?:TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|APIKEY|_PWD|_AUTH|AUTH_?STRING"
    r"|ACCESS_KEY_ID|CONN(?:ECTION)?_?STR(?:ING)?)$"
    r"|PASSWORD|PASSPHRASE)",
    re.IGNORECASE,
)
_PASSWORD_OF_URL = re.compile(r"://[^\s/?#:@]*:(?P<password>[^\s/?#]+)@")
_LINE = re.compile(r"[^\n]*\n")
_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}")
# long words, one in groups of four at the end of a line, or one on a line of its own
_OF_KEY = re.compile(
    r"(?<![\w+/=-])[A-Za-z0-9+/=_-]{16,}(?![\w+/=-])|(?<!\S)(?:[A-Za-z0-9+/=]{4})+(?=\s*$)"
    r"|^\s*[A-Za-z0-9+/=]+(?=\s*$)"
)
_TAIL_OF_KEY = re.compile(
    rf"(?:^[^\S\n]*[A-Za-z0-9+/=]{{16,}}[^\S\n]*\n)+(?:[A-Za-z0-9+/=]*\n)?(?={_END.pattern})",
    re.MULTILINE,
)


def redacted(value: T) -> T:
    """Return `value` without secrets.

    Handles a text, and every text in a mapping or list; leaves anything else unchanged.
    """
    return cast(T, _redacted(value, _of_environment()))


def is_secret_name(variable: str) -> bool:
    """Return True if a variable of this name holds a secret."""
    return _VARIABLE.search(variable) is not None


def redacted_lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the output of a process without secrets, line by line.

    Each line is passed on as soon as it is complete; a very long one in pieces.
    """
    decoder, redactor = codecs.getincrementaldecoder("utf-8")(errors="replace"), Redactor()
    for chunk in iter(lambda: stream.readline(LONGEST_LINE), b""):
        if said := redactor.feed(decoder.decode(chunk)):
            yield said
    if said := redactor.feed(decoder.decode(b"", final=True)) + redactor.end():
        yield said


def without_home(path: str) -> str:
    """Return `path` with this user's home folder, which is private, as `~`."""
    home = os.path.expanduser("~")
    return (
        f"~{path.removeprefix(home)}"
        if home != "/" and (path == home or path.startswith(f"{home}/"))
        else path
    )


class Redactor:
    """Removes secrets from text that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        # the line that has not ended yet
        self._kept = ""
        # lines of a private key still expected
        self._key_lines = 0

    def feed(self, text: str) -> str:
        """Add `text`, and return what can be passed on now."""
        text = self._kept + text
        whole = text.rfind("\n") + 1
        of_environment = _of_environment()
        passed, self._kept = (
            "".join(self._line(line, of_environment) for line in _LINE.findall(text, 0, whole)),
            text[whole:],
        )
        if len(self._kept) > LONGEST_LINE:
            cut = _cut(self._kept, len(self._kept) - OVERLAP, of_environment)
            passed, self._kept = (
                passed + self._line(self._kept[:cut], of_environment),
                self._kept[cut:],
            )
        return passed

    def end(self) -> str:
        """Return the remaining text once no more comes."""
        text, self._kept = self._kept, ""
        return self._line(text, _of_environment())

    def _line(self, line: str, of_environment: re.Pattern[str]) -> str:
        found = [*_secrets(line, of_environment)]
        if self._key_lines:
            end = _END.search(line)
            found += [
                each.span()
                for each in _OF_KEY.finditer(line)
                if end is None or each.end() <= end.start()
            ]
            self._key_lines = 0 if end else self._key_lines - 1
        begun = [each.end() for each in _BEGIN.finditer(line)]
        if begun and not _END.search(line, begun[-1]):
            self._key_lines = KEY_LINES
        return _without(line, found)


def _redacted(value: Any, of_environment: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return _without(value, _secrets(value, of_environment))
    if isinstance(value, Mapping):
        return {name: _redacted(content, of_environment) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(content, of_environment) for content in value)
    return value


def _secrets(text: str, of_environment: re.Pattern[str]) -> Iterator[Span]:
    """Yield the locations of secrets in `text`.

    They come in any order and may overlap.
    """
    yield from (found.span() for found in of_environment.finditer(text))
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    yield from spans(text)


def _private_keys(text: str) -> Iterator[Span]:
    """Yield the bodies of private keys, and apparent parts of one.

    Parts lack the key's first or last line.
    """
    for begin in _BEGIN.finditer(text):
        end = _END.search(text, begin.end())
        if end is not None:
            yield begin.end(), end.start()
            continue
        position = begin.end()
        for line in text[position:].splitlines(keepends=True)[:KEY_LINES]:
            yield from (
                (position + each.start(), position + each.end()) for each in _OF_KEY.finditer(line)
            )
            position += len(line)
    yield from (found.span() for found in _TAIL_OF_KEY.finditer(text))


def _without(text: str, found: Iterable[Span]) -> str:
    """Replace every stretch in `found` with the mark."""
    parts, last = [], 0
    for start, end in _merged(found):
        if MARK not in text[start:end].strip():
            parts += [text[last:start], MARK]
        else:
            parts.append(text[last:end])
        last = end
    return "".join([*parts, text[last:]])


def _merged(found: Iterable[Span]) -> Iterator[Span]:
    """Yield the stretches in order, with overlapping ones merged."""
    current: Span | None = None
    for start, end in sorted(found):
        if start == end:
            continue
        if current is not None and start < current[1]:
            current = current[0], max(current[1], end)
            continue
        if current is not None:
            yield current
        current = start, end
    if current is not None:
        yield current


def _cut(text: str, wanted: int, of_environment: re.Pattern[str]) -> int:
    """Return a cut near `wanted` that splits no secret.

    Nor does it split a secret from its name.
    """
    before = text.rfind(" ", 0, wanted) + 1
    place = before if before > wanted - OVERLAP else wanted
    last = 0
    for start, end in _merged(_secrets(text, of_environment)):
        if start - NAME < place < end:
            place = max(start - NAME, last)
        last = end
    return place or wanted


def _of_environment() -> re.Pattern[str]:
    """Return a pattern for the values of secret variables in all encodings."""
    # another thread may remove one
    return _finder(frozenset((name, os.environ.get(name, "")) for name in os.environ))


@lru_cache(maxsize=4)
def _finder(environment: frozenset[tuple[str, str]]) -> re.Pattern[str]:
    values = {value.strip() for name, value in environment if _VARIABLE.search(name)}
    for _, url in environment:
        if (found := _PASSWORD_OF_URL.search(url)) is not None:
            values |= {found["password"], unquote(found["password"])}
    spelt = {
        each for value in values if len(value) >= LEAST_CHARACTERS for each in _spellings(value)
    }
    long = [each for each in spelt if len(each) >= LEAST_CHARACTERS]
    return re.compile(
        "|".join(map(re.escape, sorted(long, key=lambda each: (-len(each), each)))) or NOTHING
    )


def _spellings(value: str) -> Iterator[str]:
    """Yield the encodings of `value`, whole and line by line."""
    lines = [line.strip() for line in value.splitlines()] if "\n" in value else []
    for each in (value, *(line for line in lines if not line.startswith("-----"))):
        yield each
        if each.isascii() and each.isalnum():
            yield from _in_base64(each.encode())
            continue
        plain = each.encode(errors="surrogateescape")
        in_url = quote(plain, safe="")
        yield from (in_url, in_url.lower(), quote(plain), quote_plus(plain))
        escaped = [
            json.dumps(each)[1:-1],
            json.dumps(each, ensure_ascii=False)[1:-1],
            repr(each)[1:-1],
        ]
        yield from (*escaped, json.dumps(json.dumps(each))[3:-3])
        yield from (html.escape(each), html.escape(each, quote=False), *map(html.escape, escaped))
        yield from _in_base64(plain)


def _in_base64(content: bytes) -> Iterator[str]:
    """Yield the base64 forms of `content` at any offset within longer content.

    Only the characters that do not depend on the surrounding content are included.
    """
    for before in range(3):
        padded = bytes(before) + content
        whole = base64.b64encode(padded).decode().rstrip("=")
        inner = whole[-(-before * 8 // 6) : len(padded) * 8 // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")
