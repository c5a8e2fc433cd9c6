"""Report a study as a terminal table and a page with figures."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from rich.table import Table

from wind import comparison
from wind.comparison.seed_averages import Estimate, SeedAverage, seed_averages
from wind.config.base import flattened
from wind.errors import ConfigError
from wind.files import atomic_write
from wind.machine.terminal import PlainConsole, say
from wind.metric_table import METRICS, Metric, shown_in
from wind.stages import costs
from wind.store.datasets import Store
from wind.store.handles import label
from wind.store.versions import Version

if TYPE_CHECKING:
    from flows.compare import Study

COSTS = (*comparison.COSTS, "seconds")


@dataclass(frozen=True)
class Report:
    """The averages of a study over seeds, and how to read them."""

    averages: Sequence[SeedAverage]
    target: float  # the win rate whose costs are reported
    metrics: Sequence[str]  # shown next to those of every report
    notes: Sequence[str]

    def header(self) -> list[str]:
        """Return the titles of the columns."""
        return [
            "recipe",
            "setting",
            *(metric.title for metric in self._columns()),
            "seconds",
            *(f"{cost.replace('_', ' ')} to {self.target:g}" for cost in COSTS),
        ]

    def rows(self) -> list[list[str]]:
        """Return one row per average.

        A row has the metrics after the last iteration, the seconds, and what the target cost.
        """
        return [
            [
                average.recipe,
                average.setting,
                *(_interval(average.last(each.name), each.digits) for each in self._columns()),
                _count(seconds.value if (seconds := average.last("seconds")) else None),
                *(_count(average.to_target.get(cost)) for cost in COSTS),
            ]
            for average in self.averages
        ]

    def _columns(self) -> list[Metric]:
        return list(dict.fromkeys([*shown_in("report"), *(METRICS[name] for name in self.metrics)]))


def known_metrics(text: str) -> list[str]:
    """Split a comma-separated list of metrics.

    Raises ConfigError if one is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(f"--metrics has {unknown[0]!r}: the metrics are {', '.join(METRICS)}")
    return names


def report(store: Store, found: "Study", *, target: float, metrics: Sequence[str]) -> Report:
    """Report on `found`, with `metrics` next to those of every report."""
    averages = seed_averages(numbers(store, found), target, COSTS)
    last = len(averages[0].curves["win_rate"]) - 1
    return Report(averages, target, metrics, _notes(store, found, target, last))


def numbers(store: Store, found: "Study") -> pl.DataFrame:
    """Return the reported rows of the comparison.

    They are in the order of the runs. The metric `seconds` is added here: no fingerprint covers it,
    so the dataset has no such rows.
    """
    rows = store.frame(found.comparison)
    parts = []
    for run in found.reported:
        here = {"recipe": run.cell.recipe, "setting": run.cell.setting, "seed": run.seed}
        spent = list(
            itertools.accumulate((_seconds(version) for version in run.versions), initial=0.0)
        )
        seconds = pl.DataFrame(
            [
                here | {"iteration": t, "metric": "seconds", "value": value}
                for t, value in enumerate(spent)
            ]
        )
        parts += [rows.filter(**here), seconds]
    return pl.concat(parts, how="diagonal_relaxed")


def show(report: Report) -> None:
    """Print the table and the notes on standard output, without empty columns."""
    columns = _filled_columns(report)
    table = Table(*(title for title, *_ in columns), box=None, pad_edge=False)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    PlainConsole(width=220).print(table)
    say(*report.notes)


def write(report: Report, found: "Study", command: str, folder: Path) -> None:
    """Write `folder`/README.md with its figures, and `folder`/index.html, one file by itself.

    The pages have the command, the table, and the notes.
    """
    columns = _filled_columns(report)
    lines = [
        f"    {command}",
        "",
        _markdown([title for title, *_ in columns]),
        _markdown(["---"] * len(columns)),
    ]
    lines += [_markdown(row) for row in zip(*(cells for _, *cells in columns), strict=True)]
    lines += ["", *(f"- {note}" for note in report.notes)]
    for name, caption in _draw(report, found, folder):
        lines += ["", f"![{caption}]({name}.svg)", "", caption]
    atomic_write(folder / "README.md", "\n".join(lines).encode() + b"\n")
    atomic_write(folder / "index.html", _page(report, found, command))


def _page(report: Report, found: "Study", command: str) -> bytes:
    from flows.pages.comparison import compare_recipes

    cells = {(run.cell.recipe, run.cell.setting): run.cell for run in found.reported}
    settings = {
        average.name(): dict(flattened(cells[average.recipe, average.setting].config.recipe()))
        for average in report.averages
    }
    table = list(zip(*_filled_columns(report), strict=True))
    return compare_recipes(report.averages, table, report.notes, report.metrics, settings, command)


def _draw(report: Report, found: "Study", folder: Path) -> list[tuple[str, str]]:
    """Draw the figures in `folder`.

    Returns their names and captions.
    """
    from wind.comparison import figures  # imports matplotlib, which takes a second

    cells = {(run.cell.recipe, run.cell.setting): run.cell for run in found.reported}
    swept = [cells[average.recipe, average.setting].values for average in report.averages]
    axes = list(swept[0]) if len({recipe for recipe, _ in cells}) == 1 and len(cells) > 1 else []
    drawn = []
    if len(axes) == 1:
        figures.draw_line(
            [values[axes[0]] for values in swept], report.averages, axes[0], report.metrics, folder
        )
        drawn.append(("sweep", f"After the last iteration, over {axes[0]}."))
    elif len(axes) == 2:
        grid = {
            (str(values[axes[0]]), str(values[axes[1]])): each
            for values, each in zip(swept, report.averages, strict=True)
        }
        figures.draw_heat(grid, (axes[0], axes[1]), report.metrics, report.target, folder)
        drawn.append(
            (
                "sweep",
                f"Over {axes[0]} and {axes[1]}: "
                "what the target cost, and where the last iteration ended.",
            )
        )
    figures.draw_frontier(report.averages, folder)
    drawn.append(
        (
            "frontier",
            "Win rate against KL to the initial policy; "
            "one path per row of the table, over iterations.",
        )
    )
    figures.draw_curves(report.averages, report.metrics, folder, "learning")
    drawn.append(("learning", "Over iterations; bars are the intervals after the last one."))
    if all(average.last("accuracy") for average in report.averages):
        figures.draw_gold(report.averages, folder)
        drawn.append(("gold", "What the reward says against what it stands for, over iterations."))
    return drawn


def _notes(store: Store, found: "Study", target: float, last: int) -> list[str]:
    """Return the notes for below the table.

    They explain how its numbers were obtained.
    """
    seeds = sorted({run.seed for run in found.reported})
    shown = (
        f"Means over the seeds {', '.join(map(str, seeds))}"
        if len(seeds) > 1
        else f"Seed {seeds[0]} alone"
    )
    brackets = (
        "; brackets are 95% Student t intervals between seeds"
        if len(seeds) > 1
        else ", hence no intervals"
    )
    notes = [
        f"{shown}, after iteration {last}{brackets}. "
        "The seed decides the split of the prompts, the samples and the order of training.",
        "Win rate and KL are against the initial policy on held-out prompts: "
        "the win rate by the reward that was learned from, ties one half; the KL in nats. "
        "Gold accuracy is by the gold answers.",
    ]
    chose = sorted({run.seed for run in found.runs} - set(seeds))
    if chose:
        settings = list(dict.fromkeys(run.cell.setting for run in found.runs))
        notes.append(
            f"Every recipe was tried with the same {len(settings)} settings "
            f"({', '.join(settings)}) on seed {chose[0]}, which is not reported; "
            "the one of the highest win rate there went on."
        )
    notes += [
        f"What a win rate of {target:g} cost is read off the mean curve, "
        "by straight lines between iterations; – means that it was not reached. "
        "Runs share what they have in common, and each is charged for all that it used.",
        "Seconds are those of sampling, rewards, win rates, log-probabilities and training "
        "when they were computed, without evaluation and checks.",
    ]
    manifest = store.manifest(found.comparison)
    revision = str(manifest.provenance.get("git_revision", ""))[:12]
    notes.append(
        f"All numbers, run by run: the dataset {label(found.comparison)}"
        f"{f', made at revision {revision}' if revision else ''}."
    )
    return notes


def _filled_columns(report: Report) -> list[list[str]]:
    """Return the columns that contain a number or text.

    Each is a list of its title and its cells.
    """
    columns = [list(column) for column in zip(report.header(), *report.rows(), strict=True)]
    return [column for column in columns if any(cell not in ("", "-") for cell in column[1:])]


def _seconds(version: Version) -> float:
    """Sum the training seconds of the iteration of `version`.

    They cover sampling, judging, and training. A cached dataset counts with the seconds that it
    took when it was computed.
    """
    learning = costs("training")
    spent = {noun: seconds for noun, seconds in version.seconds.items() if noun in learning}
    if "rollouts" in spent:
        del spent["training"]  # included in the rollouts
    return sum(spent.values())


def _interval(entry: Estimate | None, digits: int) -> str:
    if entry is None:
        return "-"
    value = f"{entry.value:.{digits}f}"
    return (
        value if entry.low is None else f"{value} [{entry.low:.{digits}f}, {entry.high:.{digits}f}]"
    )


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
