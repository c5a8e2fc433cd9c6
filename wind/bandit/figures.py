"""The figures and tables of the contextual-bandit study, from its two datasets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wind.bandit import FLOOR, FLOOR_ALGORITHMS, exact_iterations
from wind.bandit.algorithms import proven_factor
from wind.bandit.instances import INSTANCES
from wind.config.bandit import BanditConfig, BanditSection
from wind.figures import GRAY, look, save, style
from wind.files import atomic_write

NAMES: Final[Mapping[str, str]] = {
    "wind": "WIND, intercept ½",
    "wind_centred": "WIND, centred",
    "wind_self_counting": "WIND, intercept ½, self-counting",
    "wind_centred_leave_one_out": "WIND, centred, leave-one-out",
    "inpo": "INPO",
    "sppo": "SPPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "raft": "RAFT",
    "rebel": "REBEL",
}
EXACT_NAMES: Final[Mapping[str, str]] = {
    "wind_slow": "WIND, slow",
    "wind": "WIND",
    "wind_fast": "WIND, fast",
    "best_response": "infinite step",
    "inpo": "INPO, its schedule",
    "nash_md": "Nash-MD",
    "sppo": "SPPO",
}
# nats; the range shown
SMALLEST_KL: Final = 1e-8
LARGEST_KL: Final = 10.0


def write(bandit: pl.DataFrame, rates: pl.DataFrame, config: BanditConfig, out: Path) -> None:
    """Write the figures and tables of the study into the folder `out`.

    They are exact, sampled, win_rate and floor, each as .svg and .png, and tables.md. `bandit` and
    `rates` are the rows of the two datasets.
    """
    out.mkdir(parents=True, exist_ok=True)
    means = (
        bandit.filter(pl.col("instance") != FLOOR)
        .group_by("samples", "algorithm", "instance", "metric", "iteration", maintain_order=True)
        .agg(pl.col("value").mean())
        .sort("iteration")
    )
    figures: Mapping[str, Callable[[], Figure]] = {
        "exact": lambda: exact_figure(means, config.bandit),
        "sampled": lambda: sampled_figure(means, config.bandit),
        "win_rate": lambda: win_rate_figure(means, config.bandit),
        "floor": lambda: floor_figure(rates, config.bandit),
    }
    with style():
        for name, draw in figures.items():
            save(draw(), out / name)
    atomic_write(out / "tables.md", tables(rates, config).encode())


def exact_figure(means: pl.DataFrame, section: BanditSection) -> Figure:
    """Draw the KL from the solution by iteration, for exact algorithms.

    The proven rate is a line.
    """
    figure = Figure(figsize=(8.4, 3.1))
    axes: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    for axis, instance in zip(axes, ("random", "cyclic", "rare"), strict=True):
        for index, (algorithm, name) in enumerate(EXACT_NAMES.items()):
            _line(axis, means, index, algorithm, 0, instance, every=12, name=name)
        start = _path(means, "wind", 0, instance)["value"][0]
        for algorithm in ("wind_slow", "wind"):
            factor = proven_factor(algorithm, section.beta, section.eta)
            if factor is not None:
                last = exact_iterations(section)
                axis.plot(
                    [0, last], [start, start * factor**last], color=GRAY, linewidth=0.9, zorder=1
                )
        axis.set(title=instance, xlabel="iteration", yscale="log", ylim=(SMALLEST_KL, LARGEST_KL))
    axes[0].set_ylabel("KL(π* ‖ π), nats")
    axes[0].plot([], [], color=GRAY, linewidth=0.9, label="proven, 1/(1 + βη)")
    _legend_below(figure, axes[0])
    return figure


def sampled_figure(means: pl.DataFrame, section: BanditSection) -> Figure:
    """Draw the KL from the solution by iteration, for sampled algorithms.

    Five panels show the instances with the most samples, the sixth WIND by samples with both
    intercepts.
    """
    figure = Figure(figsize=(8.4, 5.2))
    axes = figure.subplots(2, 3, sharex=True, sharey=True).flatten().tolist()
    samples = max(section.samples)
    shown = ("wind", "wind_centred", "inpo", "ipo", "sppo", "dpo")
    for axis, instance in zip(axes[:5], INSTANCES, strict=True):
        for index, algorithm in enumerate(shown):
            _line(axis, means, index, algorithm, samples, instance, every=6)
        axis.set_title(f"{instance}, N = {samples}")
    last = axes[5]
    for algorithm, dash in (("wind", "-"), ("wind_centred", "--")):
        ends = []
        for index, count in enumerate(section.samples):
            path = _path(means, algorithm, count, "random")
            last.plot(
                path["iteration"],
                path["value"],
                **{**look(index), "linestyle": dash},
                markevery=6,
                label=f"N = {count}",
            )
            ends.append(path["value"][-1])
        text, place = NAMES[algorithm].removeprefix("WIND, "), (path["iteration"][-1], max(ends))
        last.annotate(
            text, place, xytext=(0, 7), textcoords="offset points", fontsize=8, ha="right"
        )
    handles, labels = last.get_legend_handles_labels()
    last.legend(handles[: len(section.samples)], labels[: len(section.samples)], loc="lower left")
    last.set_title("random, by N")
    for axis in axes:
        axis.set(yscale="log", ylim=(1e-3, LARGEST_KL))
    for axis in axes[3:]:
        axis.set_xlabel("iteration")
    for axis in (axes[0], axes[3]):
        axis.set_ylabel("KL(π* ‖ π), nats")
    _legend_below(figure, axes[0])
    return figure


def win_rate_figure(means: pl.DataFrame, section: BanditSection) -> Figure:
    """Draw the win rate against the reference.

    It is drawn by iteration, and against its cost in KL from the reference.
    """
    figure = Figure(figsize=(8.4, 3.1))
    axes: Sequence[Axes] = figure.subplots(1, 3)
    samples = max(section.samples)
    shown = ("wind", "wind_centred", "inpo", "sppo", "dpo", "raft", "rebel")
    for axis, instance in zip(axes[:2], ("random", "close"), strict=True):
        for index, algorithm in enumerate(shown):
            _line(axis, means, index, algorithm, samples, instance, every=6, metric="win_rate")
        axis.set(title=f"{instance}, N = {samples}", xlabel="iteration")
    axes[0].set_ylabel("win rate against the reference")
    for index, algorithm in enumerate(shown):
        rate, divergence = (
            _path(means, algorithm, samples, "random", name)["value"]
            for name in ("win_rate", "kl_reference")
        )
        axes[2].plot(divergence, rate, **look(index), markevery=6)
    axes[2].set(title=f"random, N = {samples}", xlabel="KL(π ‖ reference), nats")
    _legend_below(figure, axes[0])
    return figure


def floor_figure(rates: pl.DataFrame, section: BanditSection) -> Figure:
    """Draw the error floor against prompts and samples, with fitted slopes."""
    figure = Figure(figsize=(8.4, 3.9))
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    ways = (
        (
            "prompts",
            "samples",
            section.floor_at_samples,
            section.floor_prompts,
            "prompts per iteration, M",
            "responses per prompt",
        ),
        (
            "samples",
            "prompts",
            section.floor_at_prompts,
            section.floor_samples,
            "responses per prompt, N",
            "prompts per iteration",
        ),
    )
    for axis, (varied, fixed, at, over, label, of_fixed) in zip(axes, ways, strict=True):
        for index, algorithm in enumerate(FLOOR_ALGORITHMS):
            line = rates.filter(
                (pl.col("instance") == FLOOR)
                & (pl.col("algorithm") == algorithm)
                & (pl.col("quantity") == "floor")
                & (pl.col(fixed) == at)
                & pl.col(varied).is_in(over)
            ).sort(varied)
            fit = _value(rates, algorithm, f"slope_{varied}")
            name = NAMES[algorithm]
            axis.errorbar(
                line[varied],
                line["value"],
                line["error"].fill_null(0.0),
                **look(index),
                capsize=2,
                label=f"{name}: {fit['value']:.2f} ± {fit['error']:.2f}",
            )
        axis.plot(
            [over[0], over[-1]],
            [0.5, 0.5 * over[0] / over[-1]],
            color=GRAY,
            linewidth=0.9,
            zorder=1,
            label="guide: -1",
        )
        axis.set(xscale="log", yscale="log", xlabel=label, title=f"{at} {of_fixed}")
        axis.set_xticks(over, [str(count) for count in over])
        axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            title="fitted slope ± standard error",
            title_fontsize=8,
        )
    axes[0].set_ylabel("error floor of KL(π* ‖ π), nats")
    return figure


def tables(rates: pl.DataFrame, config: BanditConfig) -> str:
    """Return all numbers that the text beside the figures quotes, as Markdown."""
    section = config.bandit
    samples = max(section.samples)
    exact = rates.filter((pl.col("samples") == 0) & (pl.col("instance") != FLOOR))
    sampled = rates.filter((pl.col("samples") == samples) & (pl.col("instance") != FLOOR))
    of_kl, same = "of KL(π* ‖ π)", "same iterations"
    parts = [
        "# Tables of the bandit study",
        f"Written by `wind bandit --seed {config.seed}`; "
        f"[README.md](README.md) says what they show. {section.prompts} prompts of\n"
        f"{section.responses} responses per instance, beta = {section.beta:g}, "
        f"eta = {section.eta:g}; sampled algorithms ask every prompt\n"
        f"{section.visits} times per iteration, {section.iterations} iterations, "
        f"{section.repeats} repetitions. All KL in nats.",
        f"## Exact: measured contraction factor {of_kl} per iteration, and the proven one",
        _pivot(exact.filter(pl.col("quantity") == "contraction"), _proven(exact)),
        "A factor above 1 leads away from the solution. SPPO and best of n have no reference to "
        "hold them; mixed best of n\n"
        "and the log-win-rate game have solutions of their own.",
        f"## Sampled, N = {samples}: error floor {of_kl}, mean of the last third of the iterations",
        _pivot(sampled.filter(pl.col("quantity") == "floor")),
        f"## Sampled, N = {samples}: win rate against the reference, {same}",
        _pivot(sampled.filter(pl.col("quantity") == "win_rate")),
        f"## Sampled, N = {samples}: duality gap, {same}",
        _pivot(sampled.filter(pl.col("quantity") == "gap")),
        "## Responses drawn until KL(π* ‖ π) was a tenth of the reference's, on `random`",
        _cost(rates, section),
        "A dash: never within the iterations of the study. Rewards asked are as many as responses "
        "drawn; a judge that\n"
        "compares pairs is asked (N - 1)/2 times as often.",
        "## Slopes of the error floor on log-log axes, with standard errors",
        _slopes(rates),
    ]
    return "\n\n".join(parts) + "\n"


def _line(
    axis: Axes,
    means: pl.DataFrame,
    index: int,
    algorithm: str,
    samples: int,
    instance: str,
    *,
    every: int,
    metric: str = "kl",
    name: str = "",
) -> None:
    path = _path(means, algorithm, samples, instance, metric)
    axis.plot(
        path["iteration"],
        path["value"],
        **look(index),
        markevery=(index % every, every),
        label=name or NAMES[algorithm],
    )


def _path(
    means: pl.DataFrame, algorithm: str, samples: int, instance: str, metric: str = "kl"
) -> pl.DataFrame:
    return means.filter(
        (pl.col("algorithm") == algorithm)
        & (pl.col("samples") == samples)
        & (pl.col("instance") == instance)
        & (pl.col("metric") == metric)
    )


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _value(rates: pl.DataFrame, algorithm: str, quantity: str) -> dict[str, Any]:
    return rates.filter((pl.col("algorithm") == algorithm) & (pl.col("quantity") == quantity)).row(
        0, named=True
    )


def _proven(exact: pl.DataFrame) -> dict[str, str]:
    proven = exact.filter(pl.col("quantity") == "contraction_proven").unique("algorithm")
    return dict(
        zip(proven["algorithm"], (f"{value:.3f}" for value in proven["value"]), strict=True)
    )


def _pivot(rows: pl.DataFrame, proven: Mapping[str, str] | None = None) -> str:
    """Return a table of algorithms down and instances across.

    Algorithms are in the order of their values on `random`.
    """
    values = {
        (row["algorithm"], row["instance"]): row["value"] for row in rows.iter_rows(named=True)
    }
    algorithms = sorted(
        {name for name, _ in values}, key=lambda name: (values.get((name, "random"), 0.0), name)
    )
    head = ["algorithm", *INSTANCES, *(["proven"] if proven is not None else [])]
    body = [
        [f"`{name}`", *(_number(values.get((name, instance))) for instance in INSTANCES)]
        + ([proven.get(name, "-")] if proven is not None else [])
        for name in algorithms
    ]
    return _markdown(head, body)


def _cost(rates: pl.DataFrame, section: BanditSection) -> str:
    rows = rates.filter(
        (pl.col("instance") == "random") & (pl.col("quantity") == "generations_to_tenth")
    )
    values = {
        (row["algorithm"], row["samples"]): f"{row['value']:.0f}"
        for row in rows.iter_rows(named=True)
    }
    head = ["algorithm", *(f"N = {count}" for count in section.samples)]
    algorithms = sorted({name for name, _ in values})
    return _markdown(
        head,
        [
            [f"`{name}`", *(values.get((name, count), "-") for count in section.samples)]
            for name in algorithms
        ],
    )


def _slopes(rates: pl.DataFrame) -> str:
    body = []
    for algorithm in FLOOR_ALGORITHMS:
        fits = [
            _value(rates, algorithm, f"slope_{varied}{part}")
            for varied in ("prompts", "samples")
            for part in ("", "_upper")
        ]
        body.append(
            [f"`{algorithm}`", *(f"{fit['value']:.2f} ± {fit['error']:.2f}" for fit in fits)]
        )
    head = ["algorithm", "in prompts", "largest three", "in responses per prompt", "largest three"]
    return _markdown(head, body)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
