"""The base of every section of the config, and comparison with defaults."""

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from wind.records import Record

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
# A name that is part of another, such as of a metric: lower case, without dots.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Function = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
# A folder whose files are code, and one such file with its digest.
CodeFolder = Annotated[str, StringConstraints(min_length=1)]
CodeFile = Annotated[str, StringConstraints(pattern=r"^[^/\x00-\x1f\x7f]+ sha256 [0-9a-f]{64}$")]


class Section(Record):
    """A part of the config."""

    model_config = ConfigDict(allow_inf_nan=False)

    # Settings that do not determine content by themselves: files and models enter a key by their
    # fingerprints, as datasets; time limits do not enter it at all.
    beside_content: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def paths(cls) -> list[str]:
        """Return the required settings that a recorded recipe omits: paths."""
        return [
            name
            for name, field in cls.model_fields.items()
            if name in cls.beside_content and field.is_required()
        ]


def drop_beside_content(section: BaseModel, dumped: dict[str, Any]) -> None:
    """Remove from a dumped section what does not determine content, at any depth.

    Subsections may be fields, or values of mappings.
    """
    if isinstance(section, Section):
        for name in section.beside_content:
            dumped.pop(name, None)
    for name, value in section:
        if not isinstance(below := dumped.get(name), dict):
            continue
        if isinstance(value, BaseModel):
            drop_beside_content(value, below)
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                if isinstance(entry, BaseModel):
                    drop_beside_content(entry, below[key])


def kinds_of(union: Any) -> dict[str, type[Section]]:
    """Return the sections of a union by the one value of their field `kind`."""
    return {
        get_args(section.model_fields["kind"].annotation)[0]: section
        for section in get_args(get_args(union)[0])
    }


def with_paths(union: Any, recorded: Any) -> Any:
    """Return a recorded section with empty paths where its kind requires them.

    `union` is the annotation of all kinds. Mappings of sections are completed likewise. Anything
    that is of no kind is returned as it is.
    """
    if not isinstance(recorded, Mapping):
        return recorded
    section = kinds_of(union).get(str(recorded.get("kind")), Section)
    whole = {**dict.fromkeys(section.paths(), ""), **recorded}
    for name, field in section.model_fields.items():
        named, below = whole.get(name), values_of(field)
        if below is not None and isinstance(named, Mapping):
            whole[name] = {key: with_paths(below, each) for key, each in named.items()}
    return whole


def values_of(field: FieldInfo) -> Any:
    """Return the annotation of a mapping's values if they are sections of several kinds.

    None for any other field.
    """
    if get_origin(field.annotation) is not dict:
        return None
    _, values = get_args(field.annotation)
    return values if get_origin(values) is Annotated else None


def flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of every setting.

    `section` is dumped; its subsections are included.
    """
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def without_defaults(value: Any) -> Any:
    """Return `value` as JSON, without settings at their defaults.

    A field that names the kind of a section is kept. The result does not change when a later
    release adds a setting.
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
    """Yield the dotted names of settings at their defaults.

    `dumped` is the section as JSON; settings missing from it are skipped. A section wholly at its
    defaults is one name, but not one that is optional and given. A field that names the kind of a
    section is never yielded.
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
        elif isinstance(given, Mapping):
            for key, entry in given.items():
                if isinstance(entry, BaseModel):
                    yield from (
                        f"{name}.{key}.{each}" for each in at_defaults(entry, dumped[name][key])
                    )


def setting_of(recorded: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted setting in a recorded recipe.

    The recipe may have any form; None if the setting is absent.
    """
    value: Any = recorded
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def without(dumped: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Return a dumped section without the settings `names`.

    Names are dotted, and may be those of subsections.
    """
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
