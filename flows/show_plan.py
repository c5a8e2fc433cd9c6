"""Terminal view of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows import show
from flows.estimates import CHECKS_SECONDS, SERVER_SECONDS
from wind.machine.terminal import PlainConsole, say

TITLES = (
    "iteration",
    "dataset",
    "outcome",
    "rows",
    "tokens",
    "megabytes",
    "seconds",
    "memory, GB",
    "why",
)
NUMBERS = ("rows", "tokens", "megabytes", "seconds", "gigabytes_of_memory")


def plan(steps: Sequence[Mapping[str, Any]], price: float | None = None) -> None:
    """Print what a run would do, stage by stage, and what it takes in all.

    `price` is in dollars per hour of all the hardware.
    """
    table = Table(*TITLES, box=None, pad_edge=False)
    for step in steps:
        cells = (step.get(name) for name in NUMBERS)
        table.add_row(
            str(step["iteration"] or ""),
            step["dataset"],
            step["outcome"],
            *("?" if cell is None else f"{cell:g}" for cell in cells),
            show.reasons(step["why"]),
        )
    PlainConsole().print(table)
    _compared(steps)
    say(*_memory(steps))
    waiting = [step for step in steps if step["outcome"] == "run"]
    known = [step["seconds"] for step in waiting if step["seconds"] is not None]
    estimate = (
        f"about {sum(known):.0f} s"
        if len(known) == len(waiting)
        else f"about {sum(known):.0f} s and those that nothing is known of"
        if known
        else "some have no run yet to estimate their time from"
    )
    say(f"{len(waiting)} datasets to compute, {len(steps) - len(waiting)} in the cache; {estimate}")
    if known:
        say(*_totals(waiting, price))


def totals(steps: Sequence[Mapping[str, Any]], price: float | None = None) -> dict[str, float]:
    """Return seconds, disk, engine starts, and dollars of all that would run."""
    waiting = [step for step in steps if step["outcome"] == "run"]
    beside = SERVER_SECONDS + CHECKS_SECONDS * len(waiting) if waiting else 0.0
    seconds = sum(step["seconds"] or 0.0 for step in waiting) + beside
    found = {
        "seconds": round(seconds, 1),
        "seconds_beside_stages": round(beside, 1),
        "gigabytes_of_disk": round(sum(step["megabytes"] or 0.0 for step in waiting) / 1e3, 3),
        "gigabytes_meanwhile": round(
            max((step.get("megabytes_meanwhile", 0.0) for step in waiting), default=0.0) / 1e3, 3
        ),
        "starts": sum(step.get("starts", 0) for step in waiting),
    }
    return found | ({} if price is None else {"dollars": dollars(seconds, price)})


def dollars(seconds: float | None, price: float) -> float:
    """Return what so many seconds cost at `price` an hour."""
    return round((seconds or 0.0) / 3600 * price, 2)


def _totals(waiting: Sequence[Mapping[str, Any]], price: float | None) -> list[str]:
    found = totals(waiting, price)
    lines = [
        f"with Prefect and checks about {_duration(found['seconds'])}; "
        f"{found['gigabytes_of_disk']:g} GB of disk and {found['gigabytes_meanwhile']:g} of "
        f"checkpoints meanwhile, {found['starts']:g} starts of engines or ranks"
    ]
    return lines + (
        [] if price is None else [f"{found['dollars']:.2f} dollars at {price:g} an hour"]
    )


def _memory(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the arithmetic of the stage that needs the most, and what does not fit."""
    known = [step for step in steps if step.get("memory")]
    lines = {
        step[
            "dataset"
        ]: f"{step['dataset']} does not fit ({step['memory']}): {step['does_not_fit']}"
        for step in known
        if step.get("does_not_fit")
    }
    if known and not lines:
        most = max(known, key=lambda step: float(step["gigabytes_of_memory"]))
        return [f"most memory: {most['dataset']}, {most['memory']}"]
    return list(lines.values())


def _compared(steps: Sequence[Mapping[str, Any]]) -> None:
    """Print planned beside actual, where the plan was asked to."""
    finished = [step for step in steps if step.get("took")]
    if not finished:
        return
    titles = ("dataset", "planned s", "took s", "planned GB", "took GB")
    table = Table(*titles, box=None, pad_edge=False)
    for step in finished:
        cells = [
            step[which][name]
            for name in ("seconds", "gigabytes_of_memory")
            for which in ("planned", "took")
        ]
        table.add_row(step["dataset"], *("" if cell is None else f"{cell:g}" for cell in cells))
    for name in ("planned", "took"):
        sums = sum(step[name]["seconds"] for step in finished)
        say(f"{name}: {_duration(sums)} of stages")
    PlainConsole().print(table)


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
