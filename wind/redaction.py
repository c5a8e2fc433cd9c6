"""Secrets are taken out of text before it is stored, logged or shown.

What counts as one: the value of an environment variable named like a secret (HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...); the user and
password of a URL, and signatures and tokens among its parameters; tokens that can be told by their form; quoted or exported
values beside a name such as password. Only values are replaced, never the names that say what was there.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

T = TypeVar("T")

MARK = "[redacted]"
LEAST_CHARACTERS = 8  # of a value from the environment: shorter ones are parts of ordinary words

_SECRET_NAME = (
    r"(?:tokens?|secrets?|passwords?|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key)"
)
_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|CREDENTIALS|KEY|APIKEY|PAT)(?:_|$)|ACCESS_KEY_ID$",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})(?![A-Za-z0-9])"
)
_USER_OF_URL = re.compile(r"(?<=://)[^\s/?#@\"'<>]+(?=@)")
_URL_PARAMETER = re.compile(
    rf"([?&;](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|sig|signature|AWSAccessKeyId|[\w-]{{0,40}}{_SECRET_NAME}|key)=)"
    r"[^\s&;#\"'<>\\]+",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"(\b(?:Bearer|Basic)\s+)[\w.~+/-]{8,}=*")
_QUOTED = re.compile(
    rf"(\b[\w-]{{0,40}}{_SECRET_NAME}\\?[\"']?\s*[:=]\s*\\?[\"'])(?!\[redacted\])[^\s\"'\\]{{6,}}(?=\\?[\"'])", re.IGNORECASE
)
_EXPORTED = re.compile(r"(\b[A-Z][A-Z0-9_]{0,60}(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY)=)(?!\[redacted\])[^\s\"'\\]{6,}")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redacted(value: T) -> T:
    """`value` without secrets: a text, or every text in a mapping or list; anything else as it is."""
    return cast(T, _redacted(value, _of_environment()))


def is_secret_name(variable: str) -> bool:
    """Whether the value of an environment variable of this name is a secret."""
    return _VARIABLE.search(variable) is not None


def without_home(path: str) -> str:
    """`path` with the home folder of this user, which is nobody else's business, written as `~`."""
    home = os.path.expanduser("~")
    return f"~{path.removeprefix(home)}" if home != "/" and (path == home or path.startswith(f"{home}/")) else path


def _redacted(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        text = _without_credentials(value)
        for secret in secrets:
            text = text.replace(secret, MARK)
        return text
    if isinstance(value, Mapping):
        return {name: _redacted(content, secrets) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(content, secrets) for content in value)
    return value


def _without_credentials(text: str) -> str:
    """`text` without what can be told to be a secret by its form alone, whatever the environment holds."""
    text = _PRIVATE_KEY.sub(rf"\1{MARK}\2", text)
    text = _USER_OF_URL.sub(MARK, text)
    for pattern in (_URL_PARAMETER, _AUTHORIZATION, _QUOTED, _EXPORTED):
        text = pattern.sub(rf"\1{MARK}", text)
    return _FORMS.sub(MARK, text)


def _of_environment() -> list[str]:
    """The values of secret variables, the longest first, since one may be part of another; each also as a URL spells it."""
    named = [os.environ.get(name, "") for name in os.environ if _VARIABLE.search(name)]  # another thread may take one away
    values = {value for value in named if len(value) >= LEAST_CHARACTERS}
    return sorted(values | {quote(value, safe="") for value in values}, key=lambda value: (-len(value), value))
