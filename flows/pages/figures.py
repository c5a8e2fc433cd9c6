"""The figures of a run: its numbers over iterations, drawn for pages and for papers alike."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import polars as pl

from flows.pages import charts
from flows.pages.chart import Chart
from flows.pages.charts import Floats, Point
from flows.pages.labels import (
    against,
    compared_with,
    is_share,
    judge_and_opponent,
    known,
    label,
    longer_title,
    names,
)
from wind.best_of_n import best_of_n_figures, known_curves
from wind.metric_table import metric_named
from wind.quantities import RESPONSE_TOKENS
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.versions import Version

# what charts of their own show, or others show as well
DRAWN: Final = frozenset(
    {
        "win_rate",
        "accuracy",
        "accuracy_reference",
        "accuracy_gain",
        "mean_reward",
        "mean_reward_reference",
        "tie_share",
        "train_tie_share",
        "tied_prompts_share",
        "train_tied_prompts_share",
        "response_tokens",
        "train_reward",
        "loss",
        "entropy",
        "eos_share",
        *(f"distinct_{what}" for what in (1, 2, 3, "responses")),
        *(f"kl{of}_{kind}" for of in ("", "_previous", "_reference") for kind in ("k1", "k3")),
        *("truncated_share", "empty_share", "refusal_share"),
        *(f"{of}_p{percent}" for of in ("reward", "response_tokens") for percent in (10, 50, 90)),
    }
)
# of two numbers for one thing, those that overlaid charts leave to tables
BESIDE: Final = frozenset({"accuracy_gain", "kl_k3", "distinct_1", "distinct_3", "entropy"})
PANELS: Final = 6  # histograms above each other: more iterations show the first and the last ones

Sections = dict[str, list[Chart]]


def figures(store: Store, versions: Sequence[Version]) -> Sections:
    """Draw the figures of `versions`, an iteration each, by section.

    What no version has is no figure, and a section without figures is left out.
    """
    sections = {
        "Did it get better?": [*_win_rates(versions), *_accuracy(versions), *_benchmarks(versions)],
        "How did the responses change?": [
            *_distributions(store, by_iteration(versions)),
            *_responses(versions),
        ],
        "Is it healthy?": [*_health(versions)],
        "What did it cost?": [*_costs(store, versions)],
    }
    return {title: drawn for title, drawn in sections.items() if drawn}


def by_iteration(versions: Sequence[Version]) -> dict[str, Version]:
    """Return versions by what panels call them."""
    return {f"iteration {version.content.iteration}": version for version in versions}


def overlaid(runs: Mapping[str, Sequence[Version]]) -> list[Chart]:
    """Draw each metric of several runs over iterations, in one chart.

    `runs` maps a label to the iterations of a run.
    """
    everything = dict.fromkeys(name for versions in runs.values() for name in names(versions))
    drawn = list(_frontier(runs))
    for name in everything:
        series = {
            label: reached
            for label, versions in runs.items()
            if (reached := points(versions, name))
        }
        if len(series) < 2 or name in BESIDE:
            continue
        metric = known(name)
        title = longer_title(metric)
        drawn.append(
            charts.curves(
                name.replace(".", "-"),
                f"{title[:1].upper()}{title[1:]}",
                "By iteration, with 95% intervals over prompts.",
                metric.axis_label(),
                series,
                digits=metric.digits,
                is_share=is_share(name),
                even=0.5 if name.partition(".")[0] in ("win_rate", "lc_win_rate") else None,
            )
        )
    return drawn


def distributions(store: Store, versions: Mapping[str, Version]) -> list[Chart]:
    """Draw how rewards and lengths are distributed, one panel for each of `versions`."""
    return list(_distributions(store, versions))


def frontier_of(paths: Mapping[str, Sequence[tuple[int, float, float]]]) -> Iterator[Chart]:
    """Draw paths of iteration, KL and win rate beside the curves in closed form, if there are any.

    The win rates must be against the initial policy.
    """
    if not any(paths.values()):
        return
    reach = 1.15 * max(0.5, *(kl for path in paths.values() for _, kl, _ in path))
    curves = known_curves(reach)
    shown = ("best of n", "highest for its KL")
    marked = {f"n={n}": best_of_n_figures(n) for n in (2, 4, 8, 16, 32, 64)}
    metric = metric_named("kl_k1")
    yield charts.frontier(
        "frontier",
        "Win rate against KL",
        "Each number is an iteration. Above the curve of best of n, a policy wins more than best "
        "of n would at the same distance from the initial policy.",
        (metric.axis_label(), "win rate against the initial policy"),
        paths,
        {label: [(each.kl, each.win_rate) for each in curves[label][::4]] for label in shown},
        {text: (each.kl, each.win_rate) for text, each in marked.items() if each.kl < reach},
    )


def points(versions: Sequence[Version], metric: str) -> list[Point]:
    """Return a metric of each version that has it."""
    return [
        Point(version.content.iteration, found["value"], found["low"], found["high"])
        for version in versions
        if (found := version.metrics.get(metric)) is not None and found["value"] is not None
    ]


def _win_rates(versions: Sequence[Version]) -> Iterator[Chart]:
    judges = _judges(versions)
    for family, what in (("win_rate", "Win rate"), ("lc_win_rate", "Length-controlled win rate")):
        for opponent, series in _by_opponent(versions, family).items():
            yield charts.curves(
                f"{family}-{opponent}",
                f"{what} against {compared_with(opponent)}",
                "On held-out prompts, ties one half, with 95% intervals. "
                "At the dotted line neither side is better.",
                "win rate",
                series,
                is_share=True,
                even=0.5,
                among=judges,
            )
    yield from _frontier({versions[-1].run: versions})


def _judges(versions: Sequence[Version]) -> list[str]:
    """Return what people call the judges of `versions`, the training reward first."""
    found = dict.fromkeys(
        label(judge_and_opponent(name, versions[-1])[0])
        for name in names(versions)
        if name.partition(".")[0] in ("win_rate", "lc_win_rate", "tie_share")
    )
    return list({label("training"): None, **found})


def _by_opponent(versions: Sequence[Version], family: str) -> dict[str, dict[str, list[Point]]]:
    """Return a family's numbers by opponent and then by judge, in the order of the judges."""
    found: dict[str, dict[str, list[Point]]] = {}
    for name in names(versions):
        if name.partition(".")[0] == family:
            judge, opponent = judge_and_opponent(name, versions[-1])
            found.setdefault(opponent, {})[label(judge)] = points(versions, name)
    order = _judges(versions)
    main = against(versions[-1])
    return {
        opponent: {judge: found[opponent][judge] for judge in order if judge in found[opponent]}
        for opponent in sorted(found, key=lambda each: each != main)
    }


def _frontier(runs: Mapping[str, Sequence[Version]]) -> Iterator[Chart]:
    """Draw the path of each run, if its win rates are against the initial policy."""
    paths = {
        run: [
            (rate.iteration, kl.value, rate.value)
            for rate in points(versions, "win_rate")
            for kl in points(versions, "kl_k1")
            if kl.iteration == rate.iteration
        ]
        for run, versions in runs.items()
        if against(versions[-1]) == "initial"
    }
    return frontier_of(paths)


def _accuracy(versions: Sequence[Version]) -> Iterator[Chart]:
    if reached := points(versions, "accuracy"):
        series = {"policy": reached}
        if before := points(versions, "accuracy_reference"):
            series[compared_with(against(versions[-1])).removeprefix("the ")] = before
        yield charts.curves(
            "accuracy",
            "Gold accuracy",
            "The share of responses to held-out prompts that match the gold answer, "
            "with 95% intervals.",
            "gold accuracy",
            series,
            is_share=True,
        )


def _benchmarks(versions: Sequence[Version]) -> Iterator[Chart]:
    by_benchmark: dict[str, dict[str, list[Point]]] = {}
    for name in names(versions):
        family, _, about = name.partition(".")
        if family == "benchmark":
            benchmark, _, metric = about.partition(".")
            by_benchmark.setdefault(benchmark, {})[metric] = points(versions, name)
    for benchmark, series in by_benchmark.items():
        yield charts.curves(
            f"benchmark-{benchmark}",
            f"Benchmark {benchmark}",
            "Its metrics by iteration, with 95% intervals.",
            benchmark,
            series,
        )


def _distributions(store: Store, panels: Mapping[str, Version]) -> Iterator[Chart]:
    evaluated = {
        label: version
        for label, version in panels.items()
        if "evaluation" in version.content.datasets
    }
    if len(evaluated) > PANELS:
        kept = [*evaluated.items()]
        evaluated = dict([kept[0], *kept[1 - PANELS :]])
    if not evaluated:
        return
    whom = compared_with(against([*evaluated.values()][-1])).removeprefix("the ")
    sides = {"policy": "policy", whom: "reference"}
    for name, title, column, axis, digits in (
        ("rewards", "Rewards", "reward", "reward of a held-out response", 2),
        ("lengths", "Lengths", "response_tokens", "tokens of a held-out response", 1),
    ):
        columns = [f"{column}_{side}" for side in sides.values()]
        found: dict[str, dict[str, Floats]] = {}
        for panel, version in evaluated.items():
            rows = store.frame(version.content.datasets["evaluation"], columns)
            found[panel] = {
                side: rows[each].cast(pl.Float64).drop_nulls().to_numpy()
                for side, each in zip(sides, columns, strict=True)
            }
        if all(values.size for panel in found.values() for values in panel.values()):
            yield charts.histograms(
                name,
                f"{title} of the responses",
                "The share of held-out responses in each interval, in panels of one scale.",
                axis,
                found,
                digits=digits,
            )


def _responses(versions: Sequence[Version]) -> Iterator[Chart]:
    shared = "of the responses to held-out prompts, by iteration, with 95% intervals."
    yield from _together(
        versions,
        "reward-quantiles",
        "Reward",
        f"The 10th, 50th and 90th percentile {shared}",
        "reward",
        {f"reward_p{each}": f"{each}th percentile" for each in (90, 50, 10)},
    )
    yield from _together(
        versions,
        "length",
        "Length",
        f"Tokens {shared}",
        "tokens per response",
        {
            "response_tokens": "mean",
            **{f"response_tokens_p{each}": f"{each}th percentile" for each in (90, 50, 10)},
        },
    )
    yield from _together(
        versions,
        "diversity",
        "Diversity",
        "Distinct n-grams among all n-grams of a prompt's responses, with 95% intervals.",
        "share of distinct n-grams",
        {f"distinct_{n}": f"distinct-{n}" for n in (1, 2, 3)},
        is_share=True,
    )
    yield from _together(
        versions,
        "ties",
        "Ties",
        "The share of comparisons that end in a tie. Many ties leave little to learn from.",
        "share of ties",
        {
            "tie_share": f"held out, against {compared_with(against(versions[-1]))}",
            "train_tie_share": "training, among samples",
        },
        is_share=True,
    )
    for opponent, series in _by_opponent(versions, "tie_share").items():
        if len(series) > 1:
            yield charts.curves(
                f"ties-{opponent}",
                f"Ties with {compared_with(opponent)}",
                "The share of comparisons that a judge calls a tie, with 95% intervals.",
                "share of ties",
                series,
                is_share=True,
                among=_judges(versions),
            )
    whose = {"kl_k1": "to the initial policy", "kl_previous_k1": "to the policy before"}
    moved = [
        [point.value for point in points(versions, name)] for name in ("kl_k1", "kl_reference_k1")
    ]
    if moved[0] != moved[1]:
        whose["kl_reference_k1"] = "to the reference of the update"
    yield from _together(
        versions,
        "kl",
        "KL",
        "How far the policy moved, estimated by k1 on its own samples, with 95% intervals.",
        "KL, nats",
        whose,
    )


def _health(versions: Sequence[Version]) -> Iterator[Chart]:
    """Chart how responses end, and every metric that no other chart shows.

    What is the same number in all iterations is left to the table.
    """
    yield from _together(
        versions,
        "endings",
        "Truncated, empty, refused",
        "Shares of the responses to held-out prompts, with 95% intervals.",
        "share of responses",
        {
            "truncated_share": "truncated",
            "empty_share": "empty",
            "refusal_share": "refused",
        },
        is_share=True,
    )
    yield from _together(
        versions,
        "tied-prompts",
        "Prompts whose responses all tie",
        "They teach nothing. Shares of prompts, with 95% intervals.",
        "share of prompts",
        {"tied_prompts_share": "held out", "train_tied_prompts_share": "training"},
        is_share=True,
    )
    families = ("win_rate", "lc_win_rate", "benchmark", "tie_share")
    for name in names(versions):
        if name in DRAWN or name.partition(".")[0] in families:
            continue
        metric = known(name)
        better = f" {metric.better.capitalize()} is better." if metric.better else ""
        title = longer_title(metric)
        yield from _together(
            versions,
            name.replace(".", "-"),
            f"{title[:1].upper()}{title[1:]}",
            f"By iteration, with 95% intervals.{better}",
            metric.axis_label(),
            {name: metric.title},
            digits=metric.digits,
            is_share=is_share(name),
        )


def _together(
    versions: Sequence[Version],
    name: str,
    title: str,
    description: str,
    axis: str,
    labels: Mapping[str, str],
    *,
    digits: int = 3,
    is_share: bool = False,
) -> Iterator[Chart]:
    """Chart metrics by their labels, unless none of them ever moved."""
    series = {
        label: reached for metric, label in labels.items() if (reached := points(versions, metric))
    }
    is_still = all(len({point.value for point in reached}) == 1 for reached in series.values())
    if series and not (is_still and len(versions) > 1):
        yield charts.curves(
            name, title, description, axis, series, digits=digits, is_share=is_share
        )


def _costs(store: Store, versions: Sequence[Version]) -> Iterator[Chart]:
    seconds: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float]] = {}
    tokens: dict[str, dict[str, float]] = {}
    for version in versions:
        column = f"iteration {version.content.iteration}"
        for name, handle in version.content.datasets.items():
            seconds.setdefault(name, {})[column] = version.seconds.get(name, 0.0)
            peak = store.manifest(handle).provenance.get("peak_memory_bytes")
            if isinstance(peak, int) and peak:
                memory.setdefault(name, {})[column] = peak / 2**20
            if handle.name in ("generations", "rollouts"):
                tokens.setdefault(name, {})[column] = _tokens(store, handle)
    last = f"iteration {versions[-1].content.iteration}"
    for name, title, description, axis, values, digits in (
        (
            "seconds",
            f"Time, {last}",
            "Seconds that each dataset took when it was computed, be it by an earlier run.",
            "seconds",
            seconds,
            1,
        ),
        (
            "memory",
            f"Peak memory, {last}",
            "Of the process that computed each dataset.",
            "MiB",
            memory,
            0,
        ),
        ("tokens", f"Tokens sampled, {last}", "Of all responses.", "tokens", tokens, 0),
    ):
        if any(last in row for row in values.values()):
            yield charts.bars(name, title, description, axis, values, digits=digits)


def _tokens(store: Store, handle: Dataset) -> float:
    rows = pl.scan_pyarrow_dataset(store.open(handle)).select(RESPONSE_TOKENS.cast(pl.Int64).sum())
    return float(rows.collect(engine="streaming").item() or 0)
