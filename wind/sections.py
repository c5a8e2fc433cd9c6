"""What every part of the config is made of."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, closed part of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every setting of a section, and of those within it, as a mapping."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def shown(value: Any) -> str:
    """A value as a message shows it: short."""
    try:
        text = "empty" if value is None else repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."
