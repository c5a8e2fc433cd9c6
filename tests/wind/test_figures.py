"""Saved figures are the same bytes on every run and look like none of the user's settings."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from wind.figures import COLORS, DASHES, MARKERS, look, save, style


def drawn(path: Path) -> tuple[bytes, bytes]:
    with style():
        figure = Figure(figsize=(2, 1.5))
        axis = figure.subplots()
        axis.plot([1, 2, 3], [0.1, 0.01, 0.001], **look(0), label="π*")
        axis.set(yscale="log", xlabel="iteration")
        axis.legend()
        save(figure, path)
    return path.with_suffix(".svg").read_bytes(), path.with_suffix(".png").read_bytes()


def test_a_figure_is_the_same_bytes_on_every_run(tmp_path: Path) -> None:
    svg, png = drawn(tmp_path / "first")
    before = dict(matplotlib.rcParams)
    matplotlib.rcParams["lines.linewidth"] = 9.0  # somebody's matplotlibrc
    try:
        assert drawn(tmp_path / "second") == (svg, png)
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    finally:
        matplotlib.rcParams.update(before)
    assert svg.startswith(b"<?xml")
    assert png.startswith(b"\x89PNG")
    assert b"dc:date" not in svg


def test_lines_differ_in_color_dash_and_marker() -> None:
    assert len(set(COLORS)) == len(set(DASHES)) == len(set(MARKERS)) == 7
    looks = [look(index) for index in range(49)]
    assert len({str(each) for each in looks}) == 49
    assert all(len({each[what] for each in looks[:7]}) == 7 for what in looks[0])
