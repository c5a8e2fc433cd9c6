"""Figures of a comparison: what a win rate costs in KL, how fast it is learnt, what a setting does
to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wind.best_of_n import AgainstReference, best_of_n_figures, tilt_figures, wind_figures
from wind.comparison.seed_averages import Estimate, Standing
from wind.figures import COLORS, GRAY, look, save, style

TITLES = {
    "win_rate": "win rate",
    "accuracy": "gold accuracy",
    "kl_k1": "KL to the initial policy, nats",
    "mean_reward": "mean reward",
    "tie_share": "share of ties",
    "entropy": "entropy, nats per response",
    "entropy_per_token": "entropy, nats per token",
    "distinct_1": "distinct unigrams, share",
    "distinct_2": "distinct bigrams, share",
    "distinct_3": "distinct trigrams, share",
    "distinct_responses": "distinct responses per prompt",
    "response_tokens": "tokens per response",
    "truncated_share": "share of truncated responses",
    "samples": "responses sampled",
    "reward_calls": "reward calls",
    "seconds": "seconds",
}


def draw_frontier(standings: Sequence[Standing], folder: Path) -> None:
    """Win rate against KL to the initial policy, one path over iterations per standing, beside what
    is known in closed form.
    """
    with _figure(folder, "frontier", (6.6, 4.2)) as figure:
        axes = figure.subplots()
        paths = [_path(standing, "kl_k1", "win_rate") for standing in standings]
        reach = max([0.5, *(kl for xs, _ in paths for kl in xs)]) * 1.06
        _draw_known(axes, reach)
        for (kls, win_rates), (name, standing, line) in zip(paths, _styled(standings), strict=True):
            axes.plot(kls, win_rates, label=name, **line)
            _cross(axes, standing.last("kl_k1"), standing.last("win_rate"), line["color"])
        highest = max(1.0 * win_rate for _, ys in paths for win_rate in ys)
        axes.set(
            xlim=(min(0.0, *(x for xs, _ in paths for x in xs)) - 0.01 * reach, reach),
            ylim=(0.48, min(1.0, highest + 0.08)),
        )
        axes.set(xlabel=TITLES["kl_k1"], ylabel="win rate against the initial policy")
        _legend_beside(figure, axes)


def draw_curves(
    standings: Sequence[Standing], metrics: Sequence[str], folder: Path, name: str
) -> None:
    """Each of `metrics` over iterations, one line per standing; bars are the intervals after the
    last iteration.
    """
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    with _figure(folder, name, (3.1 * columns + 1.5, 2.7 * rows + 0.2)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for metric, axes in zip(metrics, panels, strict=False):
            last = max(len(standing.curves["win_rate"]) for standing in standings) - 1
            for index, (name, standing, line) in enumerate(_styled(standings)):
                curve = [
                    (t, entry.value)
                    for t, entry in enumerate(standing.curves.get(metric, ()))
                    if entry is not None
                ]
                if curve:
                    axes.plot(*zip(*curve, strict=True), label=name, **line)
                    # bars at one place would hide each other
                    aside = last + 0.12 + 0.3 * index / max(len(standings) - 1, 1)
                    _bar(axes, aside, standing.last(metric), line["color"])
            axes.set(
                xlabel="iteration",
                ylabel=TITLES[metric],
                xticks=range(last + 1),
                xlim=(-0.1, last + 0.5),
            )
        for axes in panels[len(metrics) :]:
            axes.remove()
        _legend_beside(figure, panels[0])


def draw_gold(standings: Sequence[Standing], folder: Path) -> None:
    """Gold accuracy against win rate by the reward learnt from, one path over iterations per
    standing.
    """
    with _figure(folder, "gold", (5.6, 3.6)) as figure:
        axes = figure.subplots()
        for name, standing, line in _styled(standings):
            axes.plot(*_path(standing, "win_rate", "accuracy"), label=name, **line)
            _cross(axes, standing.last("win_rate"), standing.last("accuracy"), line["color"])
        axes.set(xlabel="win rate by the reward learnt from", ylabel=TITLES["accuracy"])
        _legend_beside(figure, axes)


def draw_line(
    values: Sequence[Any],
    standings: Sequence[Standing],
    axis: str,
    metrics: Sequence[str],
    folder: Path,
) -> None:
    """Each of `metrics` after the last iteration, over the `values` of one setting, in one panel
    per metric.
    """
    is_number = all(isinstance(value, int | float) for value in values)
    places = [float(value) for value in values] if is_number else list(range(len(values)))
    with _figure(folder, "sweep", (3.0 * len(metrics), 2.7)) as figure:
        for axes, metric, colour in zip(
            figure.subplots(1, len(metrics), squeeze=False)[0], metrics, COLORS, strict=False
        ):
            known = [
                (x, entry)
                for x, each in zip(places, standings, strict=True)
                if (entry := each.last(metric)) is not None
            ]
            axes.plot(
                [x for x, _ in known], [entry.value for _, entry in known], color=colour, marker="o"
            )
            for x, entry in known:
                _bar(axes, x, entry, colour)
            axes.set(xlabel=axis, ylabel=TITLES[metric])
            if not is_number:
                axes.set_xticks(places, [str(value) for value in values])
            elif min(places) > 0 and max(places) / min(places) > 20:
                axes.set_xscale("log")


def draw_heat(
    cells: Mapping[tuple[Any, Any], Standing],
    axes_names: tuple[str, str],
    metrics: Sequence[str],
    target: float,
    folder: Path,
) -> None:
    """Over two settings: what reaching `target` cost, where it was reached, and each of `metrics`
    after the last iteration.
    """
    downs, rights = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    panels: list[tuple[str, Any]] = [
        (f"responses to win rate {target:g}", lambda cell: cell.to_target.get("samples"))
    ]
    panels += [
        (TITLES[metric], lambda cell, metric=metric: _value(cell.last(metric)))
        for metric in metrics
    ]
    size = (0.75 + (0.62 * len(rights) + 0.8) * len(panels), 1.25 + 0.42 * len(downs))
    with _figure(folder, "sweep", size) as figure:
        for index, (axes, (title, read)) in enumerate(
            zip(figure.subplots(1, len(panels)), panels, strict=True)
        ):
            values = np.array(
                [[_or_nan(read(cells[down, right])) for right in rights] for down in downs]
            )
            image = axes.imshow(
                values, cmap="viridis_r" if index == 0 else "viridis", aspect="auto"
            )
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
                colour = "#444444" if np.isnan(value) else "white" if shade < 0.55 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def known_curves(reach: float) -> dict[str, list[AgainstReference]]:
    """Win rate and KL, up to a KL of `reach`, of what has a closed form: best of n, the tilt and
    WIND's solutions (MATH 0.4).

    No policy has a higher win rate for its KL than the tilt, by rewards without ties.
    """
    curves = {
        "best of n": [best_of_n_figures(float(n)) for n in np.geomspace(1, 1000, 500)],
        "highest for its KL": [tilt_figures(float(c)) for c in np.geomspace(1e-3, 1000, 500)],
        "solutions of WIND": [wind_figures(1 / float(x)) for x in np.geomspace(1e-3, 100, 500)],
    }
    return {
        label: [point for point in points if point.kl <= reach] for label, points in curves.items()
    }


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


def _path(standing: Standing, x: str, y: str) -> tuple[list[float], list[float]]:
    """The iterations at which both metrics are measured, as coordinates."""
    both = zip(standing.curves.get(x, ()), standing.curves.get(y, ()), strict=False)
    points = [
        (at.value, height.value) for at, height in both if at is not None and height is not None
    ]
    return [point[0] for point in points], [point[1] for point in points]


def _styled(standings: Sequence[Standing]) -> list[tuple[str, Standing, dict[str, Any]]]:
    """Each standing with its name and style: by hue and marker for recipes, along one scale for the
    settings of one recipe.
    """
    if len({standing.recipe for standing in standings}) == 1 and len(standings) > 1:
        shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(standings)))
        return [
            (each.setting, each, {"color": tuple(shade), "marker": "o"})
            for each, shade in zip(standings, shades, strict=True)
        ]
    return [(each.name(), each, look(index)) for index, each in enumerate(standings)]


def _cross(axes: Axes, x: Estimate | None, y: Estimate | None, colour: Any) -> None:
    """The intervals of a point in both directions."""
    if x is not None and y is not None:
        _bar(axes, x.value, y, colour)
        if x.low is not None and x.high is not None:
            axes.plot(
                [x.low, x.high],
                [y.value, y.value],
                color=colour,
                linewidth=0.8,
                alpha=0.6,
                zorder=1.5,
            )


def _bar(axes: Axes, x: float, entry: Estimate | None, colour: Any) -> None:
    if entry is not None and entry.low is not None and entry.high is not None:
        axes.plot(
            [x, x], [entry.low, entry.high], color=colour, linewidth=0.8, alpha=0.6, zorder=1.5
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
    """A figure of `size` inches, saved in `folder` under `name` at the end."""
    with style():
        figure = Figure(size)
        yield figure
        folder.mkdir(parents=True, exist_ok=True)
        save(figure, folder / name)
