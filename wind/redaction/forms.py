"""Secrets that can be recognized by their form alone.

A value beside a name such as password is a secret unless it looks like code or prose. A value
beside a name such as token, which this project's texts are full of, is one only if it also looks
like one.
"""

import re
from collections.abc import Iterator
from typing import Final

Span = tuple[int, int]

_STRONG = (
    r"pass(?:word|wd|phrase|code)s?|secrets?|credentials?|auth[_-]?string|pwd(?<![a-z]pwd)"
    r"|(?:db|database|user|smtp|mail|ftp|https?|proxy|admin|root|auth|login|key|keystore|ssl|tls"
    r"|ssh|redis|mysql|pg|postgres|mongo"
    r"|ldap|rabbitmq|service|app|basic)[_-]?pass"
)
_OF_TOKENIZERS = (
    "bos",
    "eos",
    "pad",
    "unk",
    "sep",
    "cls",
    "mask",
    "start",
    "end",
    "stop",
    "special",
    "image",
    "per",
    "next",
)
_WEAK = (
    rf"token{''.join(f'(?<!{kind}_token)' for kind in _OF_TOKENIZERS)}"
    r"|(?:api|access|secret|private|account|auth|encryption|signing)[ _-]?key(?:[ _-]?id)?"
    r"|shared[_-]?access[_-]?(?:key|signature)"
)
# only in names of variables
_SHOUTED = r"_(?:PASS|PWD|AUTH|DSN|CREDS|KEY|PAT|COOKIE|JWT)"
_NAME = rf"(?:(?P<strong>{_STRONG})|{_WEAK}|(?P<shouted>{_SHOUTED}))(?!\w)"
_QUOTED = (
    r"[rbfu]{0,2}(?:\"(?P<double>(?:\\.|[^\"\\\n])+)\"|'(?P<single>(?:\\.|[^'\\\n])+)'"
    r"|(?P<quote>\\+[\"'])(?P<escaped>(?:(?!(?P=quote)).)+?)(?P=quote))"
)
_BESIDE_NAME = re.compile(
    rf"{_NAME}(?P<close>(?:\\*[\"'])?\]?)(?:: ?(?:str|bytes|SecretStr|Final|Optional\[str\]"
    rf"|str \| None))?"
    rf"(?P<sign>[ \t]*(?:=>|:=|=(?!=)|:)[ \t]*)(?:{_QUOTED}|(?P<bare>[^\s\"'`]+))",
    re.IGNORECASE,
)
_ARGUMENT = re.compile(
    rf"(?<![\w-])--?[\w-]*?{_NAME}(?P<sign>[ \t]+|=|[\"'],?[ \t]*[\"'])(?P<value>[^\s\"'`]+)",
    re.IGNORECASE,
)
_ELEMENT = re.compile(rf"<(?P<tag>[\w:.-]*{_NAME})>(?P<value>[^<\n]+)</(?P=tag)>", re.IGNORECASE)
_HEADER = re.compile(
    r"\b(?:X-[\w-]{0,40}(?:key|token|secret|auth)|private-token"
    r"|api-key)(?:\\?[\"'])?\s*:\s*(?:\\?[\"'])?(?P<value>[^\s\"'\\,]+)",
    re.IGNORECASE,
)
# values that stand for a type, a state or nothing, and words that continue a sentence
_ORDINARY = re.compile(
    r"(?:str|string|bytes|int|integer|float|bool|boolean|none|null|nil|true|false|any|text|yes|no"
    r"|on|off|default|prompt|hidden"
    r"|optional|required|needed|missing|wrong|incorrect|invalid|denied|expired|failed|empty|unset"
    r"|set|unknown|refused|rejected|ok"
    r"|to|and|or|is|are|was|for|with|in|of|as|at|by|from|the|a|an|this|that|first|again"
    r"|it)[.,;:]*$",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\W*$|[$%{<\[(*]|x+$|\.\.\.")
_OF_USAGE = re.compile(r"[A-Z_]+[.,;:)]*$")
_CALL = re.compile(r"[(\[{]|^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$")
_VARIABLE = re.compile(r"^[a-z_]*(?:token|pass|secret|key|credential)[a-z_]*$|^self\b")
_NUMBER = re.compile(r"[-+.,\d]+$")
_BEFORE_ALONE = re.compile(r"[\s>+*#|-]*[\w.-]*[\"']?$")

_HINT = re.compile(
    r"pass|pwd|secret|credential|token|key|auth|cookie|bearer|basic|account|signature|sig=|_pat"
    r"|_dsn|_creds|_jwt|curl|machine",
    re.IGNORECASE,
)
_ANYWHERE: Final = tuple(
    re.compile(pattern)
    for pattern in (
        # Tokens that services give out.
        r"\b(?P<secret>hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
        r"|glpat-[\w-]{16,}|[sr]k[-_][\w-]{20,}"
        r"|xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}"
        r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}|ya29\.[\w-]{20,}"
        r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dop_v1_[0-9a-f]{40,}|SG\.[\w-]{16,}\.[\w-]{16,}"
        r"|nvapi-[\w-]{20,}|gsk_[A-Za-z0-9]{20,}"
        r"|whsec_[\w+/=]{20,}|shp(?:at|ss)_[0-9a-f]{20,}|pnu_[A-Za-z0-9]{16,})(?![A-Za-z0-9])",
        # of a session on AWS
        r"(?<![A-Za-z0-9+/])(?P<secret>(?:IQoJ|FwoG|FQoG)[A-Za-z0-9+/]{60,}=*)",
        r"(?<=://)(?P<secret>[^\s/?#\"'<>|\\]*[^\s/?#\"'<>|\\@])(?=@)",  # the user of a URL
    )
)
_INTRODUCED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i:[?&;](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|sig|signature"
        r"|AWSAccessKeyId|key"
        rf"|[\w-]{{0,40}}(?:{_STRONG}|{_WEAK}))=)(?P<secret>[^\s&;#\"'<>\\]+)",
        r"(?i:\b(?:Proxy-)?Authorization[\"']?\s*[:=]\s*\\?[\"']?(?:Digest|AWS4-HMAC-SHA256"
        r"|OAuth)\s+)(?P<secret>[^\r\n]+)",
        r"(?i:\b(?:Proxy-)?Authorization[\"']?\s*[:=]\s*\\?[\"']?(?:Bearer|Basic|Token|ApiKey|Key"
        r"|Negotiate|NTLM)\s+)"
        r"(?P<secret>[^\s\"'\\,;]+)",
        r"(?i:\b(?:Proxy-)?Authorization[\"']?\s*[:=]\s*\\?[\"']?)(?P<secret>(?=\S*\d"
        r"|\S{16})[^\s\"'\\,;(){}]{6,}(?![(\w]))",
        r"(?i:\b(?:Bearer|Basic)\s+)(?P<secret>(?=\S*[\d=]|[\w.~+/-]{20})[\w.~+/-]{8,}=*)",
        r"(?i:\b(?:Set-)?Cookie2?\\?[\"']?\s*[:=]\s*\\?[\"']?)(?P<secret>[^\s=;,\"'\\(){}]+=[^\r\n"
        r"\"'\\]+)",
        r"(?i:\bcookies?\\?[\"']?\s*[:=]\s*\{)(?P<secret>[^{}\n]*[:=][^{}\n]+)(?=\})",
        r"\bmachine\s+\S+\s+(?:login\s+\S+\s+)?password\s+(?P<secret>\S+)",
        r"(?m:^[ \t]*(?:login[ \t]+\S+[ \t]+)?(?:password"
        r"|account)[ \t]+)(?P<secret>(?=\S*[^A-Za-z\s])\S{4,})(?=[ \t]*$)",
        r"\bcurl\b[^\n]*?\s(?:-u|--user)[ =]\s*[\"']?[^\s:\"']+:(?P<secret>(?!\d+\b)[^\s\"']+)",
    )
)


def spans(text: str) -> Iterator[Span]:
    """Yield the locations of secrets in `text`, except private keys.

    Private keys may span several lines.
    """
    for pattern in _ANYWHERE:
        yield from (found.span("secret") for found in pattern.finditer(text))
    for first, last in _hinted(text):
        part = text[first:last]
        for pattern in _INTRODUCED:
            yield from (
                (first + start, first + end)
                for start, end in (found.span("secret") for found in pattern.finditer(part))
            )
        yield from ((first + start, first + end) for start, end in _beside_names(part))


def _hinted(text: str) -> Iterator[Span]:
    """Yield lines that may introduce a secret, with the next one.

    Most patterns need to look at no others.
    """
    begin = end = 0
    for hint in _HINT.finditer(text):
        if hint.start() >= end:
            line = text.rfind("\n", 0, hint.start()) + 1
            if line > end:
                yield begin, end
                begin = line
        if hint.end() >= end:
            own = text.find("\n", hint.end())
            end = text.find("\n", own + 1) + 1 if own >= 0 else 0
            end = end or len(text)
    yield begin, end


def _beside_names(text: str) -> Iterator[Span]:
    for found in _BESIDE_NAME.finditer(text):
        if found["bare"] is not None:
            yield from _bare(text, found)
        elif _is_told(text, found):
            group = next(
                group for group in ("double", "single", "escaped") if found[group] is not None
            )
            if _is_quoted_secret(found[group], is_strong=found["strong"] is not None):
                yield found.span(group)
    for pattern in (_ARGUMENT, _ELEMENT):
        for found in pattern.finditer(text):
            value, is_strong = found["value"], found["strong"] is not None
            # as in "--secrets of"
            is_prose = (
                pattern is _ARGUMENT
                and found["sign"].isspace()
                and text[found.start("sign") - 1] in "sS"
            )
            is_prose = (
                is_prose
                or value.startswith("-")
                or (pattern is _ARGUMENT and _OF_USAGE.match(value) is not None)
            )
            if not is_prose and not _is_no_secret(value, is_strong=is_strong):
                yield found.span("value")
    for found in _HEADER.finditer(text):
        if not _is_no_secret(found["value"], is_strong=False):
            yield found.span("value")


def _is_told(text: str, found: re.Match[str]) -> bool:
    """Return True if the name counts as one.

    Short ones, such as KEY, do only in capitals.
    """
    return found["shouted"] is None or (
        found["shouted"].isupper() and text[found.start() - 1 : found.start()].isupper()
    )


def _is_quoted_secret(value: str, *, is_strong: bool) -> bool:
    if _PLACEHOLDER.match(value) or _ORDINARY.match(value):
        return False
    return is_strong or (
        len(value) >= 6 and not any(map(str.isspace, value)) and not _NUMBER.match(value)
    )


def _bare(text: str, found: re.Match[str]) -> Iterator[Span]:
    """Yield the unquoted value beside a name if it looks secret."""
    if not _is_told(text, found):
        return
    start, end = found.span("bare")
    line = text.rfind("\n", 0, found.start()) + 1
    rest = text[end : end + 80].split("\n")[0].strip()
    ends_line = not rest or rest.startswith("#")
    is_alone = ends_line and _BEFORE_ALONE.match(text[line : found.start()]) is not None
    name, sign = text[found.start() : found.start("close")], found["sign"]
    is_shell = sign == "=" and name.isupper()
    value = found["bare"]
    if not (is_alone and sign.startswith(":")):
        value = re.split(r"[;&]", value)[0]
    value = value.rstrip(",)]}.\\")
    behind = found["bare"][len(value) : len(value) + 1]
    is_code = not is_shell and (
        behind in (",", ")") or sign.startswith(" ") or found["close"] != ""
    )
    if (is_code and _VARIABLE.match(value)) or (
        name.lower() == "pwd" and value[:1] in ("/", "~", ".")
    ):
        return
    is_loose = (
        is_shell
        or is_alone
        or behind in (";", "&")
        or (ends_line and sign.startswith(":") and not found["close"])
    )
    if _is_bare_secret(
        value, is_strong=found["strong"] is not None or _is_short(found), is_loose=is_loose
    ):
        yield start, start + len(value)


def _is_short(found: re.Match[str]) -> bool:
    return found["shouted"] in ("_PASS", "_PWD", "_AUTH", "_DSN", "_CREDS")


def _is_bare_secret(value: str, *, is_strong: bool, is_loose: bool) -> bool:
    if _is_no_secret(value, is_strong=is_strong):
        return False
    if is_strong:
        return is_loose or re.search(r"[^A-Za-z_./:]", value) is not None
    return len(value) >= 6 and any(map(str.isdigit, value))


def _is_no_secret(value: str, *, is_strong: bool) -> bool:
    """Return True for a placeholder, prose, code or a count."""
    return (
        _PLACEHOLDER.match(value) is not None
        or _ORDINARY.match(value) is not None
        or _CALL.search(value) is not None
        or (_NUMBER.match(value) is not None and (not is_strong or len(value) < 4))
    )
