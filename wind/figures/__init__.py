"""Figures: one style for all of them, and files that are the same bytes on every run.

Colours are Okabe and Ito's, which the colour-blind can tell apart; every line also differs in its
dash and marker, so that a figure survives a black-and-white printer. Matplotlib stays in this
package.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from wind.files import atomic, atomic_write

DPI: Final = 100
PALETTE: Final = 200  # colours of a PNG, smaller than one that has them all
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (6, 3)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
GREY: Final = "#777777"  # of what is not data: proven rates, guides
STYLE: Final[dict[Any, Any]] = {
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # Matplotlib's own, so that it is everywhere the same
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "wind",  # names of elements would be random
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style, for figures made and saved within the block."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        yield


def look(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the line number `index`: all different for seven lines, no three
    alike for 49.
    """
    turned = (index + index // 7) % 7
    return {"color": COLOURS[index % 7], "linestyle": DASHES[turned], "marker": MARKERS[turned]}


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` with the suffixes .svg and .png: the same bytes for the same figure,
    small, and without dates.
    """
    for axis in figure.axes:
        axis.minorticks_off()  # of a logarithmic axis they would be most of the file
    canvas = FigureCanvasAgg(figure)
    figure.dpi = DPI
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    image = Image.fromarray(pixels).convert("RGB").quantize(PALETTE)
    with atomic(path.with_suffix(".png")) as partial:
        image.save(partial, format="png", optimize=True)
    FigureCanvasSVG(figure)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    # A tenth of a point will do for what is drawn; what is written between tags keeps its digits.
    drawn = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), svg.getvalue())
    atomic_write(
        path.with_suffix(".svg"),
        "".join(f"{line.strip()}\n" for line in drawn.splitlines()).encode(),
    )
