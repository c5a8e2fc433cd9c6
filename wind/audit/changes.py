"""Changed values: how two records, or two recipes, differ by dotted name."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from wind.records import Record

# a recipe, and the dotted names of the settings in it that are at their defaults
Settings = tuple[Mapping[str, Any], Collection[str]]


class Change(Record):
    """A changed value; None on the side that lacks it."""

    name: str  # dotted
    before: Any
    after: Any

    def verb(self) -> str:
        """Return `added`, `removed` or `changed`."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    def is_input(self) -> bool:
        """Tell whether the value is a handle, the name of stored content."""
        return _is_handle(self.before) or _is_handle(self.after)


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[Change]:
    """Yield the values that differ, by dotted name.

    A handle counts as one value. What only one side has is None on the other.
    """
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and not _is_handle(old)
            and not _is_handle(new)
        ):
            yield from changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield Change(name=f"{prefix}{name}", before=old, after=new)


def setting_changes(before: Settings, after: Settings) -> Iterator[Change]:
    """Yield the settings that differ between two recipes.

    A setting that only one of them has, at its default, was added by another release. It changes
    nothing and is skipped.
    """
    for change in changes(before[0], after[0]):
        if not _is_added(change.name, before, after) and not _is_added(change.name, after, before):
            yield change


def _is_added(name: str, without: Settings, within: Settings) -> bool:
    """Tell whether only `within` has this setting, at its default."""
    parts = name.split(".")
    section: Any = without[0]
    for part in parts[:-1]:
        section = section.get(part, {})
    return parts[-1] not in section and any(
        ".".join(parts[: end + 1]) in within[1] for end in range(len(parts))
    )


def _is_handle(value: Any) -> bool:
    return isinstance(value, dict) and "fingerprint" in value
