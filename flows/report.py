"""What a study found: as a table in the terminal, and as a page with figures."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from rich.table import Table

from wind.comparison.seed_averages import Estimate, Standing, standings
from wind.errors import ConfigError
from wind.files import atomic_write
from wind.machine.terminal import PlainConsole, say
from wind.stages import costs
from wind.store.datasets import Store
from wind.store.handles import label
from wind.store.versions import Version

if TYPE_CHECKING:
    from flows.compare import Study

COLUMNS = {  # of the table: title and digits of a metric after the last iteration
    "win_rate": ("win rate", 3),
    "accuracy": ("gold accuracy", 3),
    "kl_k1": ("KL", 3),
    "entropy": ("entropy", 2),
    "entropy_per_token": ("entropy per token", 3),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "distinct_3": ("distinct-3", 3),
    "distinct_responses": ("distinct responses", 2),
    "mean_reward": ("reward", 3),
    "tie_share": ("ties", 3),
    "response_tokens": ("length", 1),
    "truncated_share": ("truncated", 3),
}
ALWAYS = ("win_rate", "accuracy", "kl_k1")
COSTS = {"samples": "samples", "reward_calls": "reward calls", "seconds": "seconds"}


@dataclass(frozen=True)
class Report:
    """A study's standings, and how they came about."""

    standings: Sequence[Standing]
    target: float
    metrics: Sequence[str]
    notes: Sequence[str]

    def header(self) -> list[str]:
        """The titles of the columns."""
        shown = [COLUMNS[metric][0] for metric in self._columns()]
        return [
            "recipe",
            "setting",
            *shown,
            "seconds",
            *(f"{title} to {self.target:g}" for title in COSTS.values()),
        ]

    def rows(self) -> list[list[str]]:
        """One row per standing: numbers after the last iteration, its seconds, and what the target
        cost.
        """
        return [
            [
                standing.recipe,
                standing.setting,
                *(
                    _interval(standing.last(metric), COLUMNS[metric][1])
                    for metric in self._columns()
                ),
                _count(seconds.value if (seconds := standing.last("seconds")) else None),
                *(_count(standing.to_target.get(cost)) for cost in COSTS),
            ]
            for standing in self.standings
        ]

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*ALWAYS, *self.metrics]))


def known_metrics(text: str) -> list[str]:
    """The metrics that `text` lists. Raises ConfigError for one that no report can show."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"--metrics has {unknown[0]!r}: the metrics are {', '.join(COLUMNS)}")
    return names


def report(store: Store, found: "Study", *, target: float, metrics: Sequence[str]) -> Report:
    """The report of `found`, with `metrics` beside those that every report has."""
    made = standings(numbers(store, found), target, tuple(COSTS))
    return Report(
        made, target, metrics, _notes(store, found, target, len(made[0].curves["win_rate"]) - 1)
    )


def numbers(store: Store, found: "Study") -> pl.DataFrame:
    """The rows of the comparison that are reported, in the order of the runs, and `seconds`, which
    no fingerprint covers.
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
    """The table on standard output, columns that are the same for all left out."""
    columns = [column for column in _said(report) if column[0] not in ("reward calls", "samples")]
    table = Table(*(title for title, *_ in columns), box=None, pad_edge=False)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    PlainConsole(width=220).print(table)
    say(*report.notes)


def write(report: Report, found: "Study", command: str, folder: Path) -> None:
    """`folder`/README.md: the command, the table and how to read it; and the figures beside it."""
    columns = _said(report)
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


def _draw(report: Report, found: "Study", folder: Path) -> list[tuple[str, str]]:
    """Draw the figures in `folder`; returns their names and captions."""
    from wind.comparison import figures  # matplotlib: a second to import, and only reports draw

    cells = {(run.cell.recipe, run.cell.setting): run.cell for run in found.reported}
    swept = [cells[standing.recipe, standing.setting].values for standing in report.standings]
    axes = list(swept[0]) if len({recipe for recipe, _ in cells}) == 1 and len(cells) > 1 else []
    drawn = []
    if len(axes) == 1:
        figures.draw_line(
            [values[axes[0]] for values in swept], report.standings, axes[0], report.metrics, folder
        )
        drawn.append(("sweep", f"After the last iteration, over {axes[0]}."))
    elif len(axes) == 2:
        grid = {
            (str(values[axes[0]]), str(values[axes[1]])): each
            for values, each in zip(swept, report.standings, strict=True)
        }
        figures.draw_heat(grid, (axes[0], axes[1]), report.metrics, report.target, folder)
        drawn.append(
            (
                "sweep",
                f"Over {axes[0]} and {axes[1]}: what the target cost, and where the last iteration ended.",
            )
        )
    figures.draw_frontier(report.standings, folder)
    drawn.append(
        (
            "frontier",
            "Win rate against KL to the initial policy; one path per row of the table, over iterations.",
        )
    )
    figures.draw_curves(report.standings, report.metrics, folder, "learning")
    drawn.append(("learning", "Over iterations; bars are the intervals after the last one."))
    if all(standing.last("accuracy") for standing in report.standings):
        figures.draw_gold(report.standings, folder)
        drawn.append(("gold", "What the reward says against what it stands for, over iterations."))
    return drawn


def _notes(store: Store, found: "Study", target: float, last: int) -> list[str]:
    """How the numbers came about: what a reader needs to trust them, or not to."""
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
        f"{shown}, after iteration {last}{brackets}. The seed decides the split of the prompts, the samples and the order of "
        "training.",
        "Win rate and KL are against the initial policy on held-out prompts: the win rate by the reward that was learnt from, "
        "ties one half; the KL in nats. Gold accuracy is by the gold answers.",
    ]
    chose = sorted({run.seed for run in found.runs} - set(seeds))
    if chose:
        settings = list(dict.fromkeys(run.cell.setting for run in found.runs))
        notes.append(
            f"Every recipe was tried with the same {len(settings)} settings ({', '.join(settings)}) on seed {chose[0]}, which is "
            "not reported; the one of the highest win rate there went on."
        )
    notes += [
        f"What a win rate of {target:g} cost is read off the mean curve, by straight lines between iterations; – means "
        "that it was not reached. Runs share what they have in common, and each is charged for all that it used.",
        "Seconds are those of sampling, rewards, win rates, log-probabilities and training when they were computed, without "
        "evaluation and checks.",
    ]
    manifest = store.manifest(found.comparison)
    revision = str(manifest.provenance.get("git_revision", ""))[:12]
    notes.append(
        f"All numbers, run by run: the dataset {label(found.comparison)}{f', made at revision {revision}' if revision else ''}."
    )
    return notes


def _said(report: Report) -> list[list[str]]:
    """The columns of the table that say something, each a title and its cells."""
    columns = [list(column) for column in zip(report.header(), *report.rows(), strict=True)]
    return [column for column in columns if any(cell not in ("", "-") for cell in column[1:])]


def _seconds(version: Version) -> float:
    """What sampling, judging and training took in the iteration of `version`, whenever that was."""
    learning = costs("training")
    spent = {noun: seconds for noun, seconds in version.seconds.items() if noun in learning}
    if "rollouts" in spent:
        del spent["training"]  # is part of it
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
