"""The page that answers, at a glance, whether a run made the policy better."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml
from markupsafe import Markup

from data_checks.results import all_recorded, recorded
from flows.pages import Link, lineage, render
from flows.pages.changes import changes_between
from flows.pages.environment import commands, environment, packages, settings
from flows.pages.figures import figures, points
from flows.pages.labels import (
    against,
    between,
    compared_with,
    difference,
    judge_and_opponent,
    judged_by,
    known,
    longer_title,
    names,
    number,
)
from wind.audit.lineage import chain, named, of_version
from wind.errors import DatasetError
from wind.metric_table import shown_in
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.origins import not_computed_here
from wind.store.versions import Version

TILES: Final = 6
JUDGES: Final = 3  # of those, at most of one kind
SPARK: Final = (96, 26)  # pixels


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    title: str
    value: str
    interval: str
    change: str  # since the iteration before; empty if there is none
    arrow: str
    verdict: str  # good, bad or nothing
    spark: Markup


@dataclass(frozen=True)
class Alarm:
    """A raised alarm of one iteration."""

    version: str
    name: str
    message: str
    is_now: bool  # whether the iteration is the last one


@dataclass(frozen=True)
class Embedded:
    """A part of another page: its content, and the files that it needs."""

    html: Markup
    styles: Sequence[str] = ()
    scripts: Sequence[str] = ()


def glance(
    store: Store,
    version: Version,
    *,
    links: Sequence[Link] = (),
    checks_page: str | None = None,
    samples: Embedded | None = None,
    sources: Mapping[str, str] | None = None,
) -> bytes:
    """Render the page of `version` and the iterations that it continues.

    Args:
        store: where they are.
        version: the last iteration to show.
        links: to other pages.
        checks_page: where the page of all data checks is, if it is somewhere.
        samples: the page on which samples are read, to be part of this one.
        sources: what the page's policy allows beyond its own content.
    """
    versions = chain(store, version)
    before = versions[-2] if len(versions) > 1 else None
    alarms, tests = _alarms(store, versions)
    graph, datasets = of_version(store, version), named(store, version)
    return render(
        "glance.html.j2",
        title=f"{version.run}@{version.number}: at a glance",
        links=links,
        styles=("glance.css", *(samples.styles if samples else ())),
        scripts=samples.scripts if samples else (),
        sources=sources,
        version=version,
        versions=versions,
        name=f"{version.run}@{version.number}",
        verdict=list(_verdict(version, tests, alarms)),
        alarms=alarms,
        tiles=_tiles(versions),
        figures=figures(store, versions),
        table=_table(versions),
        metrics=_all_metrics(versions),
        checks=_checks(store, versions),
        checks_page=checks_page,
        changes=changes_between(store, before, version) if before else None,
        before=f"{before.run}@{before.number}" if before else "",
        lineage=lineage.drawn(graph, version, before, datasets),
        steps=lineage.steps(graph, version, before, datasets),
        damage=[node.damage for node in graph.nodes.values() if node.damage],
        chosen=yaml.safe_dump(version.content.chosen(), sort_keys=False, allow_unicode=True),
        settings=list(settings(version.content.recipe, version.content.defaults)),
        environment=environment(store, version),
        packages=packages(store, version),
        commands=commands(store, version, before),
        elsewhere=not_computed_here(store, version),
        samples=samples.html if samples else None,
    )


# ------------------------------------------------------------------------------------ the first look


def _verdict(version: Version, tests: int, alarms: Sequence[Alarm]) -> Iterator[str]:
    """Yield the sentences that say how the last iteration did."""
    found = version.metrics
    iteration = version.content.iteration
    opponent = compared_with(against(version))
    for place, name in enumerate(_win_rates(version)):
        span = between(name, found[name])
        share = f"{number(name, found[name]['value'])}{f' ({span})' if span else ''}"
        judge = judged_by(judge_and_opponent(name, version)[0])
        low, high = _ends(found[name])
        verb = "wins" if low > 0.5 else "wins only" if high < 0.5 else "is on a par, winning"
        if place:
            yield f"By {judge} it {verb} {share}."
        else:
            yield f"Iteration {iteration} {verb} {share} of comparisons with {opponent} by {judge}."
    if (gain := found.get("accuracy_gain")) and "accuracy_reference" in found:
        after, before = (
            number("accuracy", found[name]["value"]) for name in ("accuracy", "accuracy_reference")
        )
        low, high = _ends(gain)
        whose = f"{compared_with(against(version))}'s {before}"
        if low <= 0 <= high:
            yield f"Gold accuracy is {after}, no measurable change from {whose}."
        else:
            yield f"Gold accuracy is {after}, {'up' if gain['value'] > 0 else 'down'} from {whose}."
    warned = sum(map(len, version.warnings.values()))
    raised = sum(alarm.is_now for alarm in alarms)
    if raised:
        yield f"ALARM: {raised} of {tests} tests of reward hacking found something."
    elif tests:
        yield f"None of {tests} tests of reward hacking raised an alarm."
    if warned:
        yield f"The data checks passed, with {warned} warning{'s' if warned > 1 else ''}."
    elif version.checks:
        yield f"All {sum(version.checks.values())} expectations of the data checks were met."


def _win_rates(version: Version) -> list[str]:
    """Return the win rates against the main opponent: the training reward's, then the judges'.

    Gold answers have sentences and tiles of their own, in accuracies.
    """
    found = [
        name
        for name in names([version])
        if name.partition(".")[0] == "win_rate" and version.metrics[name]["value"] is not None
    ]
    judges = {name: judge_and_opponent(name, version) for name in found}
    return [
        name
        for name, (judge, opponent) in judges.items()
        if opponent == against(version) and judge != "gold"
    ]


def _ends(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval of a metric; without one, its value twice."""
    low, high = entry.get("low"), entry.get("high")
    value = float(entry["value"])
    return (value, value) if low is None or high is None else (float(low), float(high))


def _alarms(store: Store, versions: Sequence[Version]) -> tuple[list[Alarm], int]:
    """Return the raised alarms, the latest first, and the number of tests of the last iteration."""
    raised: list[Alarm] = []
    tests = 0
    for version in reversed(versions):
        handle = version.content.datasets.get("alarms")
        if handle is None:
            continue
        rows = store.read(handle, ["alarm", "is_raised", "message"]).to_pylist()
        tests = len(rows) if version is versions[-1] else tests
        raised += [
            Alarm(
                version=f"{version.run}@{version.number}",
                name=row["alarm"],
                message=f"{row['message'][:1].upper()}{row['message'][1:]}.",
                is_now=version is versions[-1],
            )
            for row in rows
            if row["is_raised"]
        ]
    return raised, tests


def _tiles(versions: Sequence[Version]) -> list[Tile]:
    """Return the headline numbers of the last iteration."""
    everything = names(versions[-1:])
    wanted = [
        *_win_rates(versions[-1])[:JUDGES],
        "accuracy",
        *[name for name in everything if name.startswith("benchmark.")][:JUDGES],
        "kl_k1",
        "response_tokens",
        "distinct_2",
        "mean_reward",
    ]
    return [_tile(versions, name) for name in wanted if name in everything][:TILES]


def _tile(versions: Sequence[Version], name: str) -> Tile:
    metric, entry = known(name), versions[-1].metrics[name]
    reached = points(versions, name)
    title = longer_title(metric)
    if name.partition(".")[0] in ("win_rate", "lc_win_rate"):
        judge, opponent = judge_and_opponent(name, versions[-1])
        title = f"win rate against {compared_with(opponent)}, by {judged_by(judge)}"
    change, arrow, verdict = "", "", ""
    if len(reached) > 1:
        before, after = reached[-2].value, reached[-1].value
        moved = difference(name, before, after)
        change = f"{moved} since iteration {reached[-2].iteration}"
        arrow = "→" if moved == "unchanged" else "↗" if after > before else "↘"
        if metric.better and moved != "unchanged":
            verdict = "good" if (after > before) == (metric.better == "higher") else "bad"
    return Tile(
        title=title[:1].upper() + title[1:],
        value=number(name, entry["value"]),
        interval=between(name, entry),
        change=change,
        arrow=arrow,
        verdict=verdict,
        spark=_spark([point.value for point in reached]),
    )


def _spark(values: Sequence[float]) -> Markup:
    """Draw values as a small line; nothing for fewer than two."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    width, height = SPARK
    places = [
        (
            3 + (width - 6) * index / (len(values) - 1),
            3 + (height - 6) * (1 - (value - low) / ((high - low) or 1)),
        )
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return Markup(
        f'<svg class="spark" width="{width}" height="{height}" aria-hidden="true">'
        f'<polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/></svg>'
    )


# ------------------------------------------------------------------------------------------- tables


def _table(versions: Sequence[Version]) -> dict[str, Any]:
    """Return the table of versions: its titles, and the cells of each row."""
    everything = names(versions)
    shown = [
        "win_rate",
        *(name for name in _win_rates(versions[-1]) if name != "win_rate"),
        *(name for name in everything if name.startswith("benchmark.")),
        *(metric.name for metric in shown_in("versions")),
    ]
    shown = [name for name in dict.fromkeys(shown) if name in everything]
    rows = []
    for each in versions:
        cells = [
            (number(name, entry["value"]), between(name, entry))
            if (entry := each.metrics.get(name)) and entry["value"] is not None
            else ("–", "")
            for name in shown
        ]
        rows.append(
            {
                "version": each,
                "cells": cells,
                "seconds": f"{sum(each.seconds.values()):,.0f}",
                "published": time.strftime("%Y-%m-%d %H:%M", time.gmtime(each.published)),
            }
        )
    return {"titles": [known(name).title for name in shown], "rows": rows}


def _all_metrics(versions: Sequence[Version]) -> list[tuple[str, ...]]:
    """Return every metric by its name, with its number in each version."""
    return [
        (
            name,
            *(
                " ".join(
                    filter(
                        None,
                        (
                            number(name, entry["value"]),
                            f"({span})" if (span := between(name, entry)) else "",
                        ),
                    )
                )
                if (entry := version.metrics.get(name)) and entry["value"] is not None
                else "–"
                for version in versions
            ),
        )
        for name in names(versions)
    ]


def _checks(store: Store, versions: Sequence[Version]) -> dict[str, Any]:
    """Return how the checks of each dataset turned out, by version, and what they found."""
    rows: dict[str, list[dict[str, Any] | None]] = {}
    findings = []
    for index, version in enumerate(versions):
        for name, handle in version.content.datasets.items():
            warnings = list(version.warnings.get(name, ()))
            try:
                failures = _failures(store, handle, version.check_results.get(name))
            except DatasetError as error:
                failures = [str(error)]
            verdict = "failed" if failures else "warned" if warnings else "passed"
            row = rows.setdefault(name, [None] * len(versions))
            missed, count = len(failures or warnings), version.checks.get(name, 0)
            text = f"{missed} of {count} {verdict}" if missed else f"{count} passed"
            row[index] = {"verdict": verdict, "text": text}
            where = f"{version.run}@{version.number}, {name}"
            findings += [(where, "failed", line) for line in failures]
            findings += [(where, "warned", line) for line in warnings]
    return {"rows": rows, "findings": findings}


def _failures(store: Store, handle: Dataset, key: str | None) -> list[str]:
    """List what later checks, under other thresholds or suites, found to be wrong."""
    own = recorded(store, handle, key)
    others = all_recorded(store, handle) if own else []
    return [
        line
        for each in others
        if own is not None and each.previous == own.previous
        for line in each.failures
    ]
