"""Slopes, factors and floors of trajectories whose rates are known."""

import numpy as np
import polars as pl
import pytest

from wind.rates import contraction, settled, slope


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    x = [8, 16, 32, 64]
    assert slope(x, [3 * n**-0.5 for n in x]) == pytest.approx((-0.5, 0), abs=1e-12)


def test_the_error_of_a_slope_by_hand() -> None:
    # log2: x = 0, 1, 2; y = 0, 1, 0: the slope is 0, the residuals are -1/3, 2/3, -1/3, so s^2 =
    # 2/3 and its error sqrt(1/3).
    assert slope([1, 2, 4], [1, 2, 1]) == pytest.approx((0, (1 / 3) ** 0.5), abs=1e-12)


def test_the_error_of_a_slope_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    x = [2**k for k in range(8)]
    within = 0
    for _ in range(400):
        fit = slope(
            x,
            (np.array(x, dtype=float) ** -1 * np.exp(0.2 * generator.standard_normal(8))).tolist(),
        )
        # 95% of Student's t with 6 degrees of freedom
        within += abs(fit.slope + 1) < 2.447 * fit.error
    assert within / 400 == pytest.approx(0.95, abs=0.03)


def test_the_contraction_is_measured_before_the_floor() -> None:
    halves = np.array([1, 0.5, 0.25, 0.125, 0.0625, 0.03125])
    assert contraction(halves, 0.0) == pytest.approx(0.5)
    # 0.125 is within twice the floor
    assert contraction(np.maximum(halves, 0.1), 0.1) == pytest.approx(0.5)
    assert contraction(np.full(4, 0.1), 0.1) is None  # nothing to contract
    assert contraction(np.array([1.0, 2.0, 4.0]), 0.0) == pytest.approx(2)


def test_the_floor_is_the_mean_of_the_last_third_with_its_error_over_repetitions() -> None:
    rows = [
        (4, "wind", "random", 8, seed, iteration, "kl", value)
        for seed, late in enumerate((1.0, 3.0))
        # the last third of 4 iterations: 3 and 4
        for iteration, value in enumerate((9.0, 9.0, 9.0, late - 0.5, late + 0.5))
    ]
    names = ["samples", "algorithm", "instance", "prompts", "seed", "iteration", "metric", "value"]
    (row,) = settled(pl.DataFrame(rows, schema=names, orient="row")).to_dicts()
    # sd sqrt(2), over sqrt(2)
    assert (row["value"], row["error"], row["n"]) == pytest.approx((2.0, 1.0, 2))
