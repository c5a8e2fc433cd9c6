"""The page that compares two versions, or the recipes of a study, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import polars as pl
import pyarrow.compute as pc

from flows.pages import Link, render
from flows.pages.changes import changed
from flows.pages.chart import Chart
from flows.pages.charts import Point, curves
from flows.pages.figures import distributions, frontier_of, overlaid
from flows.pages.labels import (
    FIRST,
    against,
    between,
    compared_with,
    difference,
    is_share,
    known,
    longer_title,
    names,
    number,
)
from wind.audit.changes import setting_changes
from wind.audit.lineage import chain
from wind.audit.paired import PairedDifference, moved_most, paired_differences
from wind.comparison.seed_averages import SeedAverage
from wind.metric_table import METRICS
from wind.store.datasets import Store
from wind.store.versions import Version

PROMPTS: Final = 12
LONGEST: Final = 600  # characters of a text
LINK: Final = "#read?"  # what follows it in an address is a view of the reading page


@dataclass(frozen=True)
class Row:
    """A metric of two versions."""

    title: str
    before: tuple[str, str]  # the value, and its interval
    after: tuple[str, str]
    difference: str
    interval: str  # of the difference, paired where prompts are shared
    prompts: int | None  # that it is paired over
    verdict: str  # good, bad or nothing
    decides: bool  # whether one chooses between versions by it


@dataclass(frozen=True)
class MovedPrompt:
    """A prompt with a response of either version to it."""

    prompt_id: str
    text: str
    before: str
    after: str
    values: tuple[str, str]
    link: str  # into the reading page; empty without one


def compare_versions(
    store: Store,
    before: Version,
    after: Version,
    *,
    links: Sequence[Link] = (),
    reading: str | None = None,
    sources: Mapping[str, str] | None = None,
) -> bytes:
    """Render the comparison of two versions.

    Args:
        store: where they are.
        before: the one that differences are taken from.
        after: the other one.
        links: to other pages.
        reading: where the reading page of `after` is, if it is somewhere.
        sources: what the page's policy allows beyond its own content.
    """
    name_before, name_after = (f"{each.run}@{each.number}" for each in (before, after))
    rows = list(_rows(before, after, paired_differences(store, before, after)))
    settings = setting_changes(
        (before.content.recipe, before.content.defaults),
        (after.content.recipe, after.content.defaults),
    )
    chains = {
        name: chain(store, each) for name, each in ((name_before, before), (name_after, after))
    }
    ids = [{each.id for each in versions} for versions in chains.values()]
    over_iterations = [] if ids[0] <= ids[1] or ids[1] <= ids[0] else overlaid(chains)
    drawn = [*over_iterations, *distributions(store, {name_before: before, name_after: after})]
    return render(
        "comparison.html.j2",
        title=f"{name_before} and {name_after}: compared",
        links=links,
        styles=("glance.css", "comparison.css"),
        sources=sources,
        names=(name_before, name_after),
        versions=(before, after),
        verdict=list(_verdict(name_before, name_after, rows)),
        notes=list(_notes(before, after)),
        rows=rows,
        settings=[changed(each) for each in settings],
        charts=drawn,
        prompts=list(_prompts(store, before, after, reading)),
    )


def compare_recipes(
    averages: Sequence[SeedAverage],
    table: Sequence[Sequence[str]],
    notes: Sequence[str],
    metrics: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    command: str,
) -> bytes:
    """Render the comparison of the recipes of a study.

    Args:
        averages: each recipe under one setting, over its seeds.
        table: the titles, then a row of cells for each of `averages`.
        notes: how the numbers were obtained.
        metrics: those to draw.
        settings: of each recipe, flat, by what tables call it.
        command: that made the study.
    """
    differing = [
        name
        for name in dict.fromkeys(name for each in settings.values() for name in each)
        if len({str(each.get(name)) for each in settings.values()}) > 1
    ]
    return render(
        "study.html.j2",
        title="Recipes compared",
        styles=("glance.css", "comparison.css"),
        titles=table[0],
        rows=table[1:],
        notes=notes,
        command=command,
        recipes=list(settings),
        settings=[
            (name, *("–" if name not in each else str(each[name]) for each in settings.values()))
            for name in differing
        ],
        charts=list(_of_averages(averages, metrics)),
    )


def _rows(
    before: Version, after: Version, differences: Sequence[PairedDifference]
) -> Iterator[Row]:
    paired = {each.metric: each for each in differences}
    for name in names([before, after]):
        entries = [each.metrics.get(name) for each in (before, after)]
        sides = [
            (number(name, entry["value"]), between(name, entry))
            if entry and entry["value"] is not None
            else ("–", "")
            for entry in entries
        ]
        text, interval, prompts, verdict = "–", "", None, ""
        if found := paired.get(name):
            text = difference(name, 0.0, found.difference)
            prompts = found.prompts
            if found.low is not None and found.high is not None:
                ends = [difference(name, 0.0, end) for end in (found.low, found.high)]
                if ends != ["unchanged"] * 2:
                    ends = ["0" if each == "unchanged" else each for each in ends]
                    interval = " to ".join(each.removesuffix(" points") for each in ends)
                verdict = _better(name, found.low, found.high)
        elif all(entry and entry["value"] is not None for entry in entries):
            text = difference(name, *(entry["value"] for entry in entries if entry))
        title = longer_title(known(name))
        yield Row(
            title=title[:1].upper() + title[1:],
            before=sides[0],
            after=sides[1],
            difference=text,
            interval=interval,
            prompts=prompts,
            verdict=verdict,
            decides=name.partition(".")[0] in FIRST or name in ("mean_reward", "truncated_share"),
        )


def _better(name: str, low: float, high: float) -> str:
    """Return whether an interval of differences is on one side of zero, and which one that is."""
    better = known(name).better
    if better is None or low <= 0 <= high:
        return ""
    return "good" if (low > 0) == (better == "higher") else "bad"


def _verdict(before: str, after: str, rows: Sequence[Row]) -> Iterator[str]:
    told: dict[str, list[str]] = {"good": [], "bad": []}
    for row in rows:
        if row.verdict and row.decides:
            title = row.title[:1].lower() + row.title[1:]
            told[row.verdict].append(f"{title} ({row.difference})")
    if told["good"]:
        yield f"{after} is better than {before} in {_listed(told['good'])}."
    if told["bad"]:
        yield f"{'It' if told['good'] else after} is worse in {_listed(told['bad'])}."
    if not told["good"] and not told["bad"]:
        yield f"No number of which a direction is better differs measurably between {before} and {after}."


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _notes(before: Version, after: Version) -> Iterator[str]:
    """Yield what a reader must know before comparing the numbers."""
    sides = (before, after)
    if len({str(each.content.recipe.get("reward")) for each in sides}) > 1 or (
        len({_reward(each) for each in sides}) > 1
    ):
        yield "The training rewards differ: numbers by the training reward measure different things."
    if against(before) != against(after):
        yield (
            f"One evaluation is against {compared_with(against(before))}, "
            f"the other against {compared_with(against(after))}."
        )
    first = [each.content.reference.fingerprint for each in sides]
    if against(before) == against(after) == "reference" and first[0] != first[1]:
        yield "The references differ: win rates are against different policies."


def _reward(version: Version) -> Any:
    return str(version.content.chosen().get("reward"))


def _prompts(
    store: Store, before: Version, after: Version, reading: str | None
) -> Iterator[MovedPrompt]:
    """Yield the prompts on which the mean reward moved most, with a response of each version."""
    moved = moved_most(store, before, after, "reward_policy", PROMPTS)
    ids = [each.prompt_id for each in moved]
    asked = dict(
        _rows_of(store, after, "prompts", ids, ["prompt"]).select("prompt_id", "prompt").iter_rows()
        if moved
        else ()
    )
    answered = _answered(store, before, after, ids) if moved else {}
    for each in moved:
        texts = answered.get(each.prompt_id, ("", ""))
        view = urlencode({"version": f"{after.run}@{after.number}", "prompt": each.prompt_id})
        yield MovedPrompt(
            prompt_id=each.prompt_id,
            text=_shortened(asked.get(each.prompt_id, "")),
            before=_shortened(texts[0]),
            after=_shortened(texts[1]),
            values=(f"{each.before:.3f}", f"{each.after:.3f}"),
            link=f"{reading}{LINK}{view}" if reading is not None else "",
        )


def _answered(
    store: Store, before: Version, after: Version, ids: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Return two responses to each prompt: of the sample whose reward differs most."""
    key = ["prompt_id", "sample_index"]
    sides = [
        _rows_of(store, version, "eval_generations", ids, ["sample_index", "response"])
        .join(
            _rows_of(store, version, "evaluation", ids, ["sample_index", "reward_policy"]), on=key
        )
        .rename({"response": name, "reward_policy": f"reward {name}"})
        for version, name in ((before, "before"), (after, "after"))
    ]
    rows = (
        sides[0]
        .join(sides[1], on=key)
        .sort(
            (pl.col("reward after") - pl.col("reward before")).abs(),
            *key,
            descending=[True, False, False],
        )
    )
    most = rows.unique("prompt_id", keep="first", maintain_order=True)
    return {
        prompt_id: (first, second)
        for prompt_id, first, second in most.select("prompt_id", "before", "after").iter_rows()
    }


def _rows_of(
    store: Store, version: Version, name: str, ids: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame:
    """Return the rows of some prompts; no others come into memory."""
    table = store.open(version.content.datasets[name]).to_table(
        columns=["prompt_id", *columns], filter=pc.field("prompt_id").isin(list(ids))
    )
    rows = pl.from_arrow(table)
    assert isinstance(rows, pl.DataFrame)
    return rows


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _of_averages(averages: Sequence[SeedAverage], metrics: Sequence[str]) -> Iterator[Chart]:
    labels = {average.name(): average for average in averages}
    paths = {
        label: [
            (iteration, kl.value, rate.value)
            for iteration, (kl, rate) in enumerate(
                zip(
                    average.curves.get("kl_k1", ()),
                    average.curves.get("win_rate", ()),
                    strict=False,
                )
            )
            if kl is not None and rate is not None
        ]
        for label, average in labels.items()
    }
    yield from frontier_of(paths)
    for name in dict.fromkeys(["win_rate", *metrics]):
        series = {
            label: [
                Point(iteration, entry.value, entry.low, entry.high)
                for iteration, entry in enumerate(average.curves.get(name, ()))
                if entry is not None
            ]
            for label, average in labels.items()
        }
        if kept := {label: reached for label, reached in series.items() if reached}:
            metric = METRICS[name]
            title = longer_title(metric)
            yield curves(
                name,
                f"{title[:1].upper()}{title[1:]}",
                "Means over seeds by iteration, with 95% Student t intervals between seeds.",
                metric.axis_label(),
                kept,
                digits=metric.digits,
                is_share=is_share(name),
                even=0.5 if name == "win_rate" else None,
            )
