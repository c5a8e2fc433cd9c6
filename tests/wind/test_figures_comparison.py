"""Figures: the curves in closed form, and the texts and colors of a drawing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from wind.best_of_n import known_curves
from wind.comparison.figures import draw_frontier, draw_heat
from wind.comparison.seed_averages import Estimate, SeedAverage


def average(setting: str, win_rate: float, kl: float, samples: float | None = None) -> SeedAverage:
    curves = {
        "win_rate": (
            Estimate(value=0.5),
            Estimate(value=win_rate, low=win_rate - 0.1, high=win_rate + 0.1),
        ),
        "kl_k1": (Estimate(value=0.0), Estimate(value=kl)),
        "truncated_share": (Estimate(value=0.0), Estimate(value=kl / 10)),
    }
    return SeedAverage(
        recipe="wind", setting=setting, seeds=(0,), curves=curves, to_target={"samples": samples}
    )


def test_curves_follow_their_formulas_up_to_the_reach() -> None:
    curves = known_curves(2.0)
    assert all(0 <= point.kl <= 2.0 for points in curves.values() for point in points)
    assert all(max(point.kl for point in points) > 1.9 for points in curves.values())
    for win_rate, kl in curves["best of n"]:
        n = win_rate / (1 - win_rate)  # win rate n / (n + 1)
        assert kl == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-9)


def test_the_tilt_has_the_highest_win_rate_and_wind_crosses_best_of_n() -> None:
    curves = {label: np.array(points).T for label, points in known_curves(2.0).items()}
    at = np.linspace(0.02, 1.8, 50)
    best, highest, wind = (
        np.interp(at, curves[label][1], curves[label][0])
        for label in ("best of n", "highest for its KL", "solutions of WIND")
    )
    assert (highest >= best - 1e-4).all()
    assert (highest >= wind - 1e-4).all()
    assert wind[0] > best[0]
    assert wind[-1] < best[-1]


@pytest.mark.slow
def test_a_heat_map_says_its_numbers_and_what_was_not_reached(tmp_path: Path) -> None:
    cells = {
        ("0.1", "1"): average("a", 0.61, 0.25),
        ("0.1", "9"): average("b", 0.87, 1.5, 1234.4),
        ("1", "1"): average("c", 0.72, 0.125, 2000.0),
        ("1", "9"): average("d", 0.73, 0.5, 512.0),
    }
    draw_heat(cells, ("objective.beta", "objective.eta"), ["win_rate", "kl_k1"], 0.7, tmp_path)
    drawn = (tmp_path / "sweep.svg").read_text()
    for text in (
        "responses to win rate 0.7",
        "objective.beta",
        "–",
        "1234",
        "2000",
        "512",
        "0.61",
        "0.87",
        "1.50",
        "0.12",
    ):
        assert f">{text}</text>" in drawn


@pytest.mark.slow
def test_a_heat_map_is_brighter_where_a_metric_is_better(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used: list[str] = []
    imshow = Axes.imshow

    def recorded(axes: Axes, values: Any, **options: Any) -> Any:
        used.append(options["cmap"])
        return imshow(axes, values, **options)

    monkeypatch.setattr(Axes, "imshow", recorded)
    cells = {("1", "1"): average("a", 0.6, 0.2, 9.0), ("1", "2"): average("b", 0.7, 0.3, 8.0)}
    draw_heat(cells, ("beta", "eta"), ["win_rate", "truncated_share"], 0.5, tmp_path)
    assert used == ["viridis_r", "viridis", "viridis_r"]  # costs and truncation: less is better


@pytest.mark.slow
def test_a_drawing_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_frontier([average("a", 0.7, 0.4), average("b", 0.8, 0.9)], tmp_path / name)
    for suffix in ("svg", "png"):
        first, second = (
            (tmp_path / name / f"frontier.{suffix}").read_bytes() for name in ("first", "second")
        )
        assert first == second
