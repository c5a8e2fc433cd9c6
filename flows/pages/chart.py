"""A chart: drawn without a browser, as SVG that a page puts into itself, and as files for papers.

It is a Vega-Lite specification with the numbers that it shows. Its colors are those of the light
theme in `style.css`, which replaces each by the color of the theme that is on: the same file stands
by itself, too. The same numbers give the same bytes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import vl_convert
from markupsafe import Markup, escape

from flows.pages import visible

WIDTH: Final = 352  # pixels of a whole chart: a phone shows it unscaled
HEIGHT: Final = 190  # of its plotting area
INK, QUIET, LINE, FIRM = "#1b1f24", "#59626d", "#dfe1e4", "#878f99"
CLIP: Final = re.compile(r'(?:id="|url\(#)(clip\d+|gradient_\d+)')
UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]+")
LONGEST_NAME: Final = 80
SCALE: Final = 2.0  # pixels of a PNG for one of the SVG

CONFIG: Final[dict[str, Any]] = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET,
        "labelFontSize": 11,
        "titleColor": QUIET,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "gridColor": LINE,
        "domainColor": FIRM,
        "tickColor": FIRM,
        "tickSize": 4,
        "titlePadding": 6,
        "titleLimit": HEIGHT,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
    "axisX": {"grid": False},
    "legend": {
        "labelColor": INK,
        "labelFontSize": 11,
        "labelLimit": 230,
        "title": None,
        "orient": "bottom",
        "direction": "vertical",
        "columns": 2,
        "symbolSize": 60,
        "symbolStrokeWidth": 1.8,
        "rowPadding": 4,
        "columnPadding": 14,
        "offset": 6,
    },
    "header": {
        "labelColor": QUIET,
        "labelFontSize": 11,
        "labelAnchor": "start",
        "labelPadding": 2,
        "title": None,
    },
    "point": {"size": 42, "filled": True, "opacity": 1},
    "line": {"strokeWidth": 1.8},
}


@dataclass(frozen=True)
class Chart:
    """A drawing, and the numbers that it shows."""

    name: str  # of its files, and in ids; what does not fit there is replaced
    title: str
    description: str  # what is shown, in a sentence
    specification: Mapping[str, Any]
    titles: Sequence[str]  # of the columns of its numbers
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", UNFIT.sub("_", self.name)[:LONGEST_NAME])

    def svg(self) -> str:
        """Return the chart as a file of its own, on white."""
        return self._drawn("#ffffff")

    def png(self) -> bytes:
        """Return the chart as a PNG, on white."""
        return vl_convert.vegalite_to_png(self._whole("#ffffff"), scale=SCALE)

    def inline(self) -> Markup:
        """Return the chart as an element of a page, named for screen readers."""
        drawn = self._drawn(None)
        start, end = drawn.index("<svg"), drawn.index(">")
        size = " ".join(re.findall(r' (?:width|height|viewBox)="[^"]*"', drawn[start:end]))
        named = f"chart-{self.name}"
        return Markup(
            f'<svg class="chart" role="img" aria-labelledby="{named}-title {named}-desc"{size}>'
            f'<title id="{named}-title">{escape(visible(self.title))}</title>'
            f'<desc id="{named}-desc">{escape(visible(self.description))}</desc>'
            f"{drawn[end + 1 :]}"
        )

    def _drawn(self, background: str | None) -> str:
        drawn = vl_convert.vegalite_to_svg(self._whole(background))
        # the engine numbers its clips on from chart to chart, and a page has many charts
        clips = {clip: f"{self.name}-{place}" for place, clip in enumerate(_clips(drawn))}
        drawn = CLIP.sub(lambda match: match[0].replace(match[1], clips[match[1]]), drawn)
        # a picture has one name, not one for each of its parts
        drawn = re.sub(r' (?:aria-[a-z]+|role|class|pointer-events)="[^"]*"', "", drawn)
        # a hundredth of a pixel is enough for shapes; text between tags keeps its digits
        return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), drawn)

    def _whole(self, background: str | None) -> dict[str, Any]:
        return {**self.specification, "config": CONFIG, "background": background}


def _clips(drawn: str) -> list[str]:
    return list(dict.fromkeys(match[1] for match in CLIP.finditer(drawn)))
