"""What every part of the config is made of."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from wind.records import Record


class Section(Record):
    """A part of the config."""

    model_config = ConfigDict(allow_inf_nan=False)


def flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every setting of a section, and of those within it, as a
    mapping.
    """
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def without_defaults(value: Any) -> Any:
    """A value as JSON has it, without the settings of its sections that are at their defaults; what
    tells its kind is kept.

    What this is made of does not change when a later release adds a setting.
    """
    if isinstance(value, BaseModel):
        fields = {
            name: (field, getattr(value, name)) for name, field in type(value).model_fields.items()
        }
        return {
            name: without_defaults(given)
            for name, (field, given) in fields.items()
            if not _is_default(field, given)
        }
    if isinstance(value, Mapping):
        return {str(name): without_defaults(given) for name, given in value.items()}
    if isinstance(value, list | tuple):
        return [without_defaults(given) for given in value]
    return to_jsonable_python(value)


def at_defaults(section: BaseModel, dumped: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of what a section, `dumped` as JSON has it, holds at defaults; a section
    wholly at defaults is one name.

    What tells the kind of a section is not among them, nor is a section that need not be there.
    """
    for name, field in type(section).model_fields.items():
        given = getattr(section, name)
        if name not in dumped:
            continue
        if isinstance(given, BaseModel):
            below = list(at_defaults(given, dumped[name]))
            is_whole = (
                isinstance(field.get_default(call_default_factory=True), BaseModel)
                and set(below) == dumped[name].keys()
            )
            yield from [name] if is_whole else (f"{name}.{each}" for each in below)
        elif _is_default(field, given):
            yield name


def setting_of(recorded: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted setting in a recorded recipe, whatever form that has; None where there
    is none.
    """
    value: Any = recorded
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def without(dumped: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A dumped section without the settings and sections of these dotted `names`."""
    return {
        name: without(value, names, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in dumped.items()
        if prefix + name not in names
    }


def _is_default(field: FieldInfo, given: Any) -> bool:
    tells_kind = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    return (
        not field.is_required()
        and not tells_kind
        and bool(given == field.get_default(call_default_factory=True))
    )
