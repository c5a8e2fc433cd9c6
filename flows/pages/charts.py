"""The kinds of charts. Series differ in dash and marker as well as in color."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import altair as alt
import numpy as np
import numpy.typing as npt

from flows.pages.chart import FIRM, HEIGHT, INK, QUIET, WIDTH, Chart

Floats = npt.NDArray[np.float64]

COLORS: Final = ("#0068b0", "#c24e00", "#007d5a", "#a8447f", "#8f6a00", "#4a525c")
DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [1, 3])
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
MOST_SERIES: Final = len(COLORS)
NARROW_LABEL: Final = 18  # characters of a label that has room beside another
MOST_BINS: Final = 30


class Point(NamedTuple):
    """A number of one iteration, with the ends of its interval where there is one."""

    iteration: int
    value: float
    low: float | None = None
    high: float | None = None


def curves(
    name: str,
    title: str,
    description: str,
    axis: str,
    series: Mapping[str, Sequence[Point]],
    *,
    digits: int = 3,
    is_share: bool = False,
    even: float | None = None,
    among: Sequence[str] = (),
) -> Chart:
    """Chart numbers over iterations, with their intervals.

    Args:
        name: of the chart.
        title: of the chart.
        description: of the chart.
        axis: the title of the vertical axis.
        series: the points of each line, by its label.
        digits: of the numbers in the table.
        is_share: whether the numbers are shares, shown in percent.
        even: a value to mark, at which neither side is better.
        among: the labels of all charts that belong together, so that a label looks the same in
            each; by default those of this chart.
    """
    kept = dict(itertools.islice(series.items(), MOST_SERIES))
    rows: list[dict[str, Any]] = [
        {
            "series": label,
            "iteration": point.iteration,
            # side by side, so that intervals do not hide each other
            "place": point.iteration + 0.05 * (index - (len(kept) - 1) / 2),
            "value": point.value,
            "low": point.low,
            "high": point.high,
        }
        for index, (label, points) in enumerate(kept.items())
        for point in points
    ]
    iterations = sorted({row["iteration"] for row in rows})
    x = alt.X(
        "place:Q",
        title="iteration",
        axis=alt.Axis(values=iterations, format="d"),
        scale=alt.Scale(domain=[iterations[0] - 0.25, iterations[-1] + 0.25], nice=False),
    )
    form = "%" if is_share else "~g"
    reached = [point for points in kept.values() for point in points]
    domain = _domain([*reached, *([Point(0, even)] if even is not None else [])], is_share)
    scale = alt.Scale(domain=domain, nice=False)
    y = alt.Y("value:Q", title=axis, scale=scale).axis(format=form, tickCount=5)
    places = [([*among] or [*kept]).index(label) % MOST_SERIES for label in kept]
    base = alt.Chart(alt.InlineData(values=rows))
    layers: list[alt.Chart] = []
    for label, place in zip(kept, places, strict=True):
        one = base.transform_filter(alt.FieldEqualPredicate(field="series", equal=label))
        layers += [
            one.mark_rule(strokeWidth=1.2, opacity=0.75, color=COLORS[place]).encode(
                x=x, y=alt.Y("low:Q", title=axis, scale=scale), y2="high:Q"
            ),
            one.mark_line(color=COLORS[place], strokeDash=DASHES[place]).encode(x=x, y=y),
        ]
    looks = _looks(
        list(kept),
        {
            "color": [COLORS[place] for place in places],
            "shape": [SHAPES[place] for place in places],
        },
    )
    layers.append(base.mark_point().encode(x=x, y=y, **looks))
    if even is not None:
        mark = alt.Chart(alt.InlineData(values=[{"value": even}]))
        layers.insert(0, mark.mark_rule(color=FIRM, strokeDash=[3, 3]).encode(y=y))
    return Chart(
        name=name,
        title=title,
        description=description,
        specification=_fitted(alt.layer(*layers)),
        titles=("iteration", *series),
        rows=[
            (
                str(iteration),
                *(
                    next(
                        (
                            interval(point, digits)
                            for point in points
                            if point.iteration == iteration
                        ),
                        "–",
                    )
                    for points in series.values()
                ),
            )
            for iteration in sorted({p.iteration for points in series.values() for p in points})
        ],
    )


def frontier(
    name: str,
    title: str,
    description: str,
    axes: tuple[str, str],
    paths: Mapping[str, Sequence[tuple[int, float, float]]],
    known: Mapping[str, Sequence[tuple[float, float]]],
    marked: Mapping[str, tuple[float, float]],
) -> Chart:
    """Chart win rates against KL: a path over iterations beside curves in closed form.

    Args:
        name: of the chart.
        title: of the chart.
        description: of the chart.
        axes: the titles of the horizontal and the vertical axis.
        paths: iteration, KL and win rate of each point of a path, by its label.
        known: KL and win rate along each known curve, by its label.
        marked: places to name on the known curves.
    """
    lines = [
        {"series": label, "kl": kl, "win_rate": win_rate}
        for label, points in known.items()
        for kl, win_rate in points
    ]
    points = [
        {"series": label, "kl": kl, "win_rate": win_rate, "iteration": iteration}
        for label, path in paths.items()
        for iteration, kl, win_rate in path
    ]
    marks = [{"text": text, "kl": kl, "win_rate": y} for text, (kl, y) in marked.items()]
    x = alt.X("kl:Q", title=axes[0]).axis(format="~g", tickCount=5)
    y = alt.Y("win_rate:Q", title=axes[1], scale=alt.Scale(zero=False)).axis(
        format="%", tickCount=5
    )
    labels = [*paths, *known]
    looks = _looks(
        labels,
        {
            "color": [*_repeated(COLORS, len(paths)), *[QUIET] * len(known)],
            "strokeDash": [
                *[DASHES[0]] * len(paths),
                *([5, 3], [2, 3], [8, 3, 2, 3])[: len(known)],
            ],
        },
        symbolType="stroke",
        symbolSize=220,
    )
    of_known = alt.Chart(alt.InlineData(values=lines))
    of_paths = alt.Chart(alt.InlineData(values=points))
    of_marks = alt.Chart(alt.InlineData(values=marks))
    layers = [
        of_known.mark_line(strokeWidth=1.3).encode(
            x=x, y=y, color=looks["color"], strokeDash=looks["strokeDash"], order="kl:Q"
        ),
        of_marks.mark_tick(orient="vertical", size=7, thickness=1.4, color=QUIET).encode(x=x, y=y),
        of_marks.mark_text(dx=4, dy=10, align="left", color=QUIET, fontSize=10).encode(
            x=x, y=y, text="text:N"
        ),
        of_paths.mark_line().encode(
            x=x, y=y, color=looks["color"], strokeDash=looks["strokeDash"], order="iteration:Q"
        ),
        of_paths.mark_point().encode(x=x, y=y, color=looks["color"]),
        of_paths.mark_text(dx=-5, dy=-9, align="right", color=INK, fontSize=11).encode(
            x=x, y=y, text="iteration:N"
        ),
    ]
    return Chart(
        name=name,
        title=title,
        description=description,
        specification=_fitted(alt.layer(*layers)),
        titles=("path", "iteration", *axes),
        rows=[
            (label, str(iteration), f"{kl:.3f}", f"{win_rate:.3f}")
            for label, path in paths.items()
            for iteration, kl, win_rate in path
        ],
    )


def histograms(
    name: str,
    title: str,
    description: str,
    axis: str,
    panels: Mapping[str, Mapping[str, Floats]],
    *,
    digits: int = 2,
) -> Chart:
    """Chart how values are distributed, one panel above the other.

    The first series of a panel is filled, the others are outlines.

    Args:
        name: of the chart.
        title: of the chart.
        description: of the chart.
        axis: the title of the horizontal axis.
        panels: the values of each series, by the panel's label and by its own.
        digits: of the ends of the bins in the table.
    """
    edges = _edges(np.concatenate([each for panel in panels.values() for each in panel.values()]))
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    shares = {
        (panel, label): np.histogram(values, edges)[0] / max(values.size, 1)
        for panel, series in panels.items()
        for label, values in series.items()
    }
    ends = edges.tolist()
    whole = _whole_numbers(ends)
    rows = [
        {"panel": panel, "series": label, "from": low, "share": share}
        for (panel, label), counted in shares.items()
        for low, share in zip(ends, [*counted.tolist(), counted[-1]], strict=True)
    ]
    looks = _looks(
        labels,
        {"color": _repeated(COLORS, len(labels)), "strokeDash": _repeated(DASHES, len(labels))},
        symbolType="stroke",
        symbolSize=220,
    )
    x = alt.X("from:Q", title=axis, scale=alt.Scale(domain=[ends[0], ends[-1]], nice=False)).axis(
        **({"values": whole, "format": "d"} if whole else {"format": "~g", "tickCount": 6})
    )
    y = alt.Y("share:Q", title=None).axis(None)
    base = alt.Chart(alt.InlineData(values=rows), width=WIDTH - 24, height=46)
    filled = base.transform_filter(alt.FieldEqualPredicate(field="series", equal=labels[0]))
    layers = [
        filled.mark_area(interpolate="step-after", opacity=0.28, color=COLORS[0]).encode(x=x, y=y),
        base.mark_line(interpolate="step-after", strokeWidth=1.5).encode(
            x=x, y=y, color=looks["color"], strokeDash=looks["strokeDash"]
        ),
    ]
    stacked = alt.layer(*layers).facet(
        row=alt.Row("panel:N", sort=list(panels)).header(labelOrient="top"), spacing=6
    )
    return Chart(
        name=name,
        title=title,
        description=description,
        specification=stacked.to_dict(validate=False),
        titles=("from", "to", *(f"{panel}, {label}" for panel, label in shares)),
        rows=[
            (
                f"{low:.{digits}f}",
                f"{high:.{digits}f}",
                *(f"{counted[index]:.1%}" for counted in shares.values()),
            )
            for index, (low, high) in enumerate(itertools.pairwise(ends))
        ],
    )


def bars(
    name: str,
    title: str,
    description: str,
    axis: str,
    values: Mapping[str, Mapping[str, float]],
    *,
    digits: int = 1,
) -> Chart:
    """Chart one bar for each name: the last of its numbers.

    Args:
        name: of the chart.
        title: of the chart.
        description: of the chart.
        axis: the title of the horizontal axis.
        values: the numbers of each bar, by its name and by what each is of.
        digits: of the numbers.
    """
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    last = {label: row[columns[-1]] for label, row in values.items() if columns[-1] in row}
    rows = [
        {"bar": label, "value": value, "text": f"{value:,.{digits}f}"}
        for label, value in last.items()
    ]
    base = alt.Chart(alt.InlineData(values=rows), height=alt.Step(19))
    y = alt.Y("bar:N", title=None, sort=None).axis(labelLimit=140, labelColor=INK)
    highest = max(last.values(), default=1.0)
    x = alt.X("value:Q", title=axis, scale=alt.Scale(domain=[0, highest * 1.22 or 1.0])).axis(
        format="~s", tickCount=4
    )
    layers = [
        base.mark_bar(height=11, color=COLORS[0], cornerRadiusEnd=2).encode(x=x, y=y),
        base.mark_text(align="left", dx=4, color=QUIET, fontSize=10.5).encode(
            x=x, y=y, text="text:N"
        ),
    ]
    return Chart(
        name=name,
        title=title,
        description=description,
        specification=alt.layer(*layers)
        .properties(width=WIDTH, autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .to_dict(validate=False),
        titles=("", *columns),
        rows=[
            (label, *(f"{row[each]:,.{digits}f}" if each in row else "–" for each in columns))
            for label, row in values.items()
        ],
    )


def interval(point: Point, digits: int) -> str:
    """Return a number with its interval, as text."""
    if point.low is None or point.high is None:
        return f"{point.value:.{digits}f}"
    return f"{point.value:.{digits}f} [{point.low:.{digits}f}, {point.high:.{digits}f}]"


def _fitted(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """Return the specification of a chart whose whole width is that of a phone."""
    fitted = chart.properties(
        width=WIDTH,
        height=HEIGHT,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    specification: dict[str, Any] = fitted.to_dict(validate=False)
    return specification


def _looks(
    labels: Sequence[str], ranges: Mapping[str, Sequence[Any]], **symbols: Any
) -> dict[str, Any]:
    """Return the encodings by which series differ, with what each series has in each.

    A single series needs no legend; `symbols` are settings of it.
    """
    columns = 1 if max(map(len, labels)) > NARROW_LABEL else 2
    legend = alt.Legend(symbolOpacity=1, columns=columns, **symbols) if len(labels) > 1 else None
    channels: dict[str, Any] = {
        "color": alt.Color,
        "strokeDash": alt.StrokeDash,
        "shape": alt.Shape,
    }
    return {
        channel: channels[channel](
            "series:N",
            sort=None,
            legend=legend,
            scale=alt.Scale(domain=list(labels), range=list(values)),
        )
        for channel, values in ranges.items()
    }


def _repeated(values: Sequence[Any], count: int) -> list[Any]:
    return list(itertools.islice(itertools.cycle(values), count))


def _domain(points: Sequence[Point], is_share: bool) -> list[float]:
    """Return the ends of an axis that shows `points` and their intervals, with room around."""
    ends = [
        end for point in points for end in (point.value, point.low, point.high) if end is not None
    ]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - room, high + room
    return [max(low, 0.0), min(high, 1.0)] if is_share else [low, high]


def _edges(values: Floats) -> Floats:
    """Return the ends of at most `MOST_BINS` bins over all finite `values`.

    Few whole numbers get a bin each.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.array([0.0, 1.0])
    low, high = float(finite.min()), float(finite.max())
    if high - low < MOST_BINS and (finite == np.round(finite)).all():
        return np.asarray(np.arange(low - 0.5, high + 1.5), dtype=np.float64)
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, MOST_BINS + 1)


def _whole_numbers(ends: Sequence[float]) -> list[int]:
    """Return at most a dozen of the whole numbers that have a bin each; none if bins are not so."""
    if any(low % 1 != 0.5 or high - low != 1 for low, high in itertools.pairwise(ends)):
        return []
    numbers = [int(low + 0.5) for low in ends[:-1]]
    return numbers[:: -(-len(numbers) // 12)]
