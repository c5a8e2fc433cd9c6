"""What a judge is asked, and what its answer says.

A template turns a prompt and one or two responses into the text of one user message. Responses are
data: the template encloses them in lines with a code that is a digest of what is enclosed, so that
no response can hold it. A verdict is read from the judge's answer alone, strictly: its last line is
the verdict and nothing else, or the answer is a JSON object that holds it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wind.errors import ConfigError, InputError, first_line
from wind.files import plain_text
from wind.fingerprints import digest
from wind.nesting import json_value

Mode = Literal["pairwise", "scalar"]

# what a template of each mode must read
RESPONSES: Final[Mapping[Mode, tuple[str, ...]]] = {
    "pairwise": ("response_a", "response_b"),
    "scalar": ("response",),
}
# what it may read besides
FURTHER: Final = ("messages", "answer", "boundary", "low", "high")
CHOICES: Final = ("A", "B", "tie")
# the preference for the first response
VERDICTS: Final = {"a": 1.0, "b": 0.0, "tie": 0.5}

_VERDICT: Final = re.compile(
    r"[*_`#\s]*(?:(?:final )?verdict\s*:)?[*_`\s]*\[{0,2}(a|b|tie)\]{0,2}[*_`.\s]*", re.IGNORECASE
)
_SCORE: Final = re.compile(
    r"[*_`#\s]*(?:(?:final )?score\s*:)?[*_`\s]*\[{0,2}([-+]?\d{1,9}(?:\.\d{1,9})?)"
    r"(?:\s*/\s*(\d{1,9}))?\]{0,2}[*_`.\s]*",
    re.IGNORECASE,
)


def question_template(mode: Mode, path: str | None) -> str:
    """Return the text of the template at `path`, or of the mode's own.

    Raises ConfigError if it cannot be read, is no Jinja, or reads other variables than it may.
    """
    if path is None:
        return (resources.files("wind.rewards") / "templates" / f"{mode}.jinja").read_text("utf-8")
    try:
        text = plain_text(Path(path).expanduser())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.template {path} cannot be read: name a Jinja file ({first_line(error)})"
        ) from error
    try:
        read = jinja2.meta.find_undeclared_variables(_environment().parse(text))
    except jinja2.TemplateError as error:
        raise ConfigError(f"reward.template {path} is no template: {first_line(error)}") from error
    known = (*RESPONSES[mode], *FURTHER)
    if unread := [name for name in RESPONSES[mode] if name not in read]:
        raise ConfigError(
            f"reward.template {path} does not read {unread[0]}: "
            f"a {mode} one reads {' and '.join(RESPONSES[mode])}"
        )
    if unknown := sorted(read.difference(known)):
        raise ConfigError(
            f"reward.template {path} reads {unknown[0]}, which is not there: "
            f"it may read {', '.join(known)}"
        )
    return text


class Questions:
    """The questions of one template."""

    def __init__(self, text: str, scale: tuple[int, int]) -> None:
        self._template = _environment().from_string(text)
        self._scale = scale

    def __call__(
        self,
        messages: Sequence[Mapping[str, str]],
        answer: str | None,
        responses: Mapping[str, str],
        where: str,
    ) -> str:
        """Return the text of a question; `where` names its row in messages.

        Raises InputError if the template fails.
        """
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
        low, high = self._scale
        try:
            return self._template.render(
                **responses,
                messages=turns,
                answer=answer,
                boundary=digest([turns, answer, sorted(responses.values())])[:16],
                low=low,
                high=high,
            )
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError) as error:
            raise InputError(
                f"reward.template fails on {where} ({first_line(error)}): correct it"
            ) from error


def parsed_verdict(text: str) -> float | None:
    """Return the preference for the first response that an answer states: 1, 0 or 1/2.

    None if it does not state one.
    """
    found = _VERDICT.fullmatch(_stated(text, "verdict"))
    return VERDICTS[found[1].lower()] if found else None


def parsed_score(text: str, scale: tuple[int, int]) -> float | None:
    """Return the score that an answer states, if it is on the scale.

    It may be stated as a fraction of the highest one, such as 7/10.
    """
    found = _SCORE.fullmatch(_stated(text, "score"))
    low, high = scale
    if found is None or (found[2] is not None and int(found[2]) != high):
        return None
    score = float(found[1])
    return score if low <= score <= high else None


def restriction(
    form: Literal["free", "choice", "json_schema"], mode: Mode, scale: tuple[int, int]
) -> dict[str, Any]:
    """Return the fields of a request that restrict the answer."""
    if form == "free":
        return {}
    scores = range(scale[0], scale[1] + 1)
    if form == "choice":
        choices = CHOICES if mode == "pairwise" else tuple(map(str, scores))
        return {"structured_outputs": {"choice": list(choices)}}
    name, type_, values = (
        ("verdict", "string", list[Any](CHOICES))
        if mode == "pairwise"
        else ("score", "integer", list[Any](scores))
    )
    schema = {
        "type": "object",
        "properties": {name: {"type": type_, "enum": values}},
        "required": [name],
        "additionalProperties": False,
    }
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": name, "strict": True, "schema": schema},
        }
    }


def _stated(text: str, name: str) -> str:
    """Return the last line of an answer, or the field `name` if it is a JSON object."""
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            value = json_value(stripped.encode(errors="replace"))
        except ValueError:
            value = None
        stated = value.get(name) if isinstance(value, dict) else None
        is_plain = isinstance(stated, str | int | float) and not isinstance(stated, bool)
        return (stated if isinstance(stated, str) else json.dumps(stated)) if is_plain else ""
    return stripped.splitlines()[-1] if stripped else ""


def _environment() -> ImmutableSandboxedEnvironment:
    # what a judge reads is plain text, so nothing is escaped
    return ImmutableSandboxedEnvironment(
        autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=False
    )
