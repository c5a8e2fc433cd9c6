"""One style for all figures, and reproducible files.

Every run writes the same bytes. Colors are those of Okabe and Ito, which color-blind readers can
tell apart; every line also differs in its dash and marker, so that a figure survives a
black-and-white printer. Only this package imports Matplotlib.
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
# colors of a PNG, which is smaller than one with all of them
PALETTE: Final = 200
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (6, 3)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
# for anything but data: proven rates, guides
GRAY: Final = "#777777"
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
    # ships with Matplotlib, so that it is the same everywhere
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    # text stays text: small files that can be searched
    "svg.fonttype": "none",
    # names of elements would be random otherwise
    "svg.hashsalt": "wind",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the style to figures made and saved within the block."""
    with matplotlib.rc_context():
        # ignores a user's matplotlibrc
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def look(index: int) -> dict[str, Any]:
    """Return color, dash and marker of line number `index`.

    All differ for seven lines, and no three are alike for 49.
    """
    turned = (index + index // 7) % 7
    return {"color": COLORS[index % 7], "linestyle": DASHES[turned], "marker": MARKERS[turned]}


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` with the suffixes .svg and .png.

    The same figure gives the same bytes; files are small and have no dates.
    """
    for axis in figure.axes:
        # of a logarithmic axis they would be most of the file
        axis.minorticks_off()
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
    # A tenth of a point is enough for shapes; text between tags keeps its digits.
    drawn = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), svg.getvalue())
    atomic_write(
        path.with_suffix(".svg"),
        "".join(f"{line.strip()}\n" for line in drawn.splitlines()).encode(),
    )
