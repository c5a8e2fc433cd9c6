"""Figures of a comparison: win rate against KL, learning curves, sweeps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wind.best_of_n import best_of_n_figures, known_curves
from wind.comparison.seed_averages import Estimate, SeedAverage
from wind.figures import COLORS, GRAY, look, save, style
from wind.metric_table import METRICS


def draw_frontier(averages: Sequence[SeedAverage], folder: Path) -> None:
    """Draw the win rate against the KL to the initial policy.

    Each average is a path over iterations, beside the curves that are known in closed form.
    """
    with _figure(folder, "frontier", (6.6, 4.2)) as figure:
        axes = figure.subplots()
        paths = [_path(average, "kl_k1", "win_rate") for average in averages]
        reach = max([0.5, *(kl for xs, _ in paths for kl in xs)]) * 1.06
        _draw_known(axes, reach)
        for (kls, win_rates), (name, average, line) in zip(paths, _styled(averages), strict=True):
            axes.plot(kls, win_rates, label=name, **line)
            _cross(axes, average.last("kl_k1"), average.last("win_rate"), line["color"])
        highest = max(win_rate for _, ys in paths for win_rate in ys)
        axes.set(
            xlim=(min(0.0, *(x for xs, _ in paths for x in xs)) - 0.01 * reach, reach),
            ylim=(0.48, min(1.0, highest + 0.08)),
        )
        axes.set(xlabel=METRICS["kl_k1"].axis_label(), ylabel="win rate against the initial policy")
        _legend_beside(figure, axes)


def draw_curves(
    averages: Sequence[SeedAverage], metrics: Sequence[str], folder: Path, name: str
) -> None:
    """Draw each of `metrics` over iterations.

    There is a panel per metric, and a line per average. Bars are the intervals after the last
    iteration.
    """
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    with _figure(folder, name, (3.1 * columns + 1.5, 2.7 * rows + 0.2)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for metric, axes in zip(metrics, panels, strict=False):
            last = max(len(average.curves["win_rate"]) for average in averages) - 1
            for index, (name, average, line) in enumerate(_styled(averages)):
                curve = [
                    (t, entry.value)
                    for t, entry in enumerate(average.curves.get(metric, ()))
                    if entry is not None
                ]
                if curve:
                    axes.plot(*zip(*curve, strict=True), label=name, **line)
                    # side by side, so that bars do not hide each other
                    aside = last + 0.12 + 0.3 * index / max(len(averages) - 1, 1)
                    _bar(axes, aside, average.last(metric), line["color"])
            axes.set(
                xlabel="iteration",
                ylabel=METRICS[metric].axis_label(),
                xticks=range(last + 1),
                xlim=(-0.1, last + 0.5),
            )
        for axes in panels[len(metrics) :]:
            axes.remove()
        _legend_beside(figure, panels[0])


def draw_gold(averages: Sequence[SeedAverage], folder: Path) -> None:
    """Draw gold accuracy against the win rate by the reward.

    The win rate is by the reward that was trained on. Each average is a path over iterations.
    """
    with _figure(folder, "gold", (5.6, 3.6)) as figure:
        axes = figure.subplots()
        for name, average, line in _styled(averages):
            axes.plot(*_path(average, "win_rate", "accuracy"), label=name, **line)
            _cross(axes, average.last("win_rate"), average.last("accuracy"), line["color"])
        axes.set(
            xlabel="win rate by the reward learned from", ylabel=METRICS["accuracy"].axis_label()
        )
        _legend_beside(figure, axes)


def draw_line(
    values: Sequence[Any],
    averages: Sequence[SeedAverage],
    axis: str,
    metrics: Sequence[str],
    folder: Path,
) -> None:
    """Draw `metrics` after the last iteration over one setting.

    `values` are those of the setting `axis`, one per average; each metric has a panel.
    """
    is_number = all(isinstance(value, int | float) for value in values)
    places = [float(value) for value in values] if is_number else list(range(len(values)))
    with _figure(folder, "sweep", (3.0 * len(metrics), 2.7)) as figure:
        for axes, metric, color in zip(
            figure.subplots(1, len(metrics), squeeze=False)[0], metrics, COLORS, strict=False
        ):
            known = [
                (x, entry)
                for x, each in zip(places, averages, strict=True)
                if (entry := each.last(metric)) is not None
            ]
            axes.plot(
                [x for x, _ in known], [entry.value for _, entry in known], color=color, marker="o"
            )
            for x, entry in known:
                _bar(axes, x, entry, color)
            axes.set(xlabel=axis, ylabel=METRICS[metric].axis_label())
            if not is_number:
                axes.set_xticks(places, [str(value) for value in values])
            elif min(places) > 0 and max(places) / min(places) > 20:
                axes.set_xscale("log")


def draw_heat(
    cells: Mapping[tuple[Any, Any], SeedAverage],
    axes_names: tuple[str, str],
    metrics: Sequence[str],
    target: float,
    folder: Path,
) -> None:
    """Draw heat maps over two settings.

    The first is the number of responses that reaching the win rate `target` took, where it was
    reached; the others are `metrics` after the last iteration. The brighter, the better, where a
    direction is better.
    """
    downs, rights = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    panels: list[tuple[str, bool, Any]] = [
        (f"responses to win rate {target:g}", True, lambda cell: cell.to_target.get("samples"))
    ]
    panels += [
        (
            METRICS[metric].axis_label(),
            METRICS[metric].better == "lower",
            lambda cell, metric=metric: _value(cell.last(metric)),
        )
        for metric in metrics
    ]
    size = (0.75 + (0.62 * len(rights) + 0.8) * len(panels), 1.25 + 0.42 * len(downs))
    with _figure(folder, "sweep", size) as figure:
        for index, (axes, (title, is_cost, read)) in enumerate(
            zip(figure.subplots(1, len(panels)), panels, strict=True)
        ):
            values = np.array(
                [[_or_nan(read(cells[down, right])) for right in rights] for down in downs]
            )
            image = axes.imshow(values, cmap="viridis_r" if is_cost else "viridis", aspect="auto")
            axes.set_title(title, fontsize=9)
            axes.set_xticks(range(len(rights)), [str(value) for value in rights])
            axes.set_yticks(
                range(len(downs)), [str(value) for value in downs] if index == 0 else []
            )
            axes.set(xlabel=axes_names[1], ylabel=axes_names[0] if index == 0 else "")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            for row, column in np.ndindex(values.shape):
                value = values[row, column]
                text = (
                    "–"
                    if np.isnan(value)
                    else f"{value:.0f}"
                    if abs(value) >= 100
                    else f"{value:.2f}"
                )
                shade = (
                    0.0
                    if np.isnan(value)
                    else float(np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.59, 0.11)))
                )
                color = "#444444" if np.isnan(value) else "white" if shade < 0.55 else "black"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def _draw_known(axes: Axes, reach: float) -> None:
    for (label, points), dashes in zip(known_curves(reach).items(), ("-", ":", "--"), strict=True):
        kls, win_rates = [point.kl for point in points], [point.win_rate for point in points]
        axes.plot(kls, win_rates, dashes, color=GRAY, linewidth=1.1, label=label, zorder=1)
    for n in (2, 4, 8, 16, 32):
        point = best_of_n_figures(n)
        if point.kl < reach:
            axes.plot(point.kl, point.win_rate, "|", color=GRAY, markersize=6, zorder=1)
            axes.annotate(
                f"n={n}",
                (point.kl, point.win_rate),
                (3, -11),
                textcoords="offset points",
                color=GRAY,
                fontsize=7,
            )


def _path(average: SeedAverage, x: str, y: str) -> tuple[list[float], list[float]]:
    """Return the coordinates of the iterations at which both metrics were measured."""
    both = zip(average.curves.get(x, ()), average.curves.get(y, ()), strict=False)
    points = [
        (at.value, height.value) for at, height in both if at is not None and height is not None
    ]
    return [point[0] for point in points], [point[1] for point in points]


def _styled(averages: Sequence[SeedAverage]) -> list[tuple[str, SeedAverage, dict[str, Any]]]:
    """Return each average with its name and line style.

    Recipes differ in hue and marker; the settings of a single recipe lie along one color scale.
    """
    if len({average.recipe for average in averages}) == 1 and len(averages) > 1:
        shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(averages)))
        return [
            (each.setting, each, {"color": tuple(shade), "marker": "o"})
            for each, shade in zip(averages, shades, strict=True)
        ]
    return [(each.name(), each, look(index)) for index, each in enumerate(averages)]


def _cross(axes: Axes, x: Estimate | None, y: Estimate | None, color: Any) -> None:
    """Draw the intervals of a point in both directions."""
    if x is not None and y is not None:
        _bar(axes, x.value, y, color)
        if x.low is not None and x.high is not None:
            axes.plot(
                [x.low, x.high],
                [y.value, y.value],
                color=color,
                linewidth=0.8,
                alpha=0.6,
                zorder=1.5,
            )


def _bar(axes: Axes, x: float, entry: Estimate | None, color: Any) -> None:
    if entry is not None and entry.low is not None and entry.high is not None:
        axes.plot(
            [x, x], [entry.low, entry.high], color=color, linewidth=0.8, alpha=0.6, zorder=1.5
        )


def _value(entry: Estimate | None) -> float | None:
    return None if entry is None else entry.value


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _legend_beside(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=2.4
    )


@contextmanager
def _figure(folder: Path, name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Open a figure of `size` inches, and save it at the end.

    Its file is `folder`/`name`.
    """
    with style():
        figure = Figure(size)
        yield figure
        folder.mkdir(parents=True, exist_ok=True)
        save(figure, folder / name)
