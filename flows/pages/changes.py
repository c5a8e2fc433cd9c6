"""What differs between two versions, and why, as a page shows it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from flows.show import reasons
from wind.audit.changes import Change, changes, setting_changes
from wind.audit.diff import Shift, shifts
from wind.audit.recomputation import ComputedVersion, Recomputed, recomputed
from wind.store.datasets import Store
from wind.store.versions import Version

LONGEST: Final = 160  # characters of a value in a table


@dataclass(frozen=True)
class Changes:
    """What differs between two versions, and why what was recomputed was."""

    settings: Sequence[tuple[str, str, str]]
    code: Sequence[tuple[str, str, str]]
    recomputed: Sequence[tuple[str, str]]
    shifts: Sequence[tuple[str, ...]]


def changes_between(store: Store, before: Version, after: Version) -> Changes:
    """Return what differs between two versions, and why what was recomputed was."""
    ours, theirs = ComputedVersion(store, before), ComputedVersion(store, after)
    settings = setting_changes(
        (before.content.recipe, before.content.defaults),
        (after.content.recipe, after.content.defaults),
    )
    both = [
        name
        for name in ours.computations
        if ours.knows_modules(name) and theirs.knows_modules(name)
    ]
    code = [
        *changes(ours.modules(both), theirs.modules(both)),
        *changes(ours.packages(), theirs.packages()),
    ]
    revisions = ours.provenance("git_revision"), theirs.provenance("git_revision")
    if revisions[0] != revisions[1]:
        code.append(Change(name="git revision", before=revisions[0], after=revisions[1]))
    moved: list[Shift] = []
    sides = [each.content.datasets.get("evaluation") for each in (before, after)]
    if sides[0] is not None and sides[1] is not None:
        moved = shifts(store, sides[0], sides[1])
    return Changes(
        settings=[changed(each) for each in settings],
        code=[changed(each) for each in code],
        recomputed=[_recomputed(each) for each in recomputed(ours, theirs)],
        shifts=[
            (
                each.quantity.replace("_", " "),
                f"{each.before:.4g}",
                f"{each.after:.4g}",
                f"{each.statistic:.3f}",
                f"{each.p_value:.2g}",
                f"{each.effect:+.2f}",
            )
            for each in moved
        ],
    )


def _recomputed(found: Recomputed) -> tuple[str, str]:
    return found.dataset, reasons(found.why)


def changed(change: Change) -> tuple[str, str, str]:
    """Return the name of a setting, and its two values as text."""
    return change.name, _value(change.before), _value(change.after)


def _value(value: Any) -> str:
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
