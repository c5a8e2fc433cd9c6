"""Seed averages: means, intervals and costs by hand."""

import math

import polars as pl
import pytest

from wind.comparison.seed_averages import (
    Estimate,
    best_setting,
    mean_interval,
    seed_averages,
    spent_at,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # from any printed table, two-sided 95%
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_quantiles_of_student_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_quantiles_where_they_have_a_closed_form() -> None:
    assert t_quantile(1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-9)  # Cauchy
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-9)


def test_interval_between_seeds_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1, 4.303 / sqrt(3) on either side."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert [found.low, found.high] == pytest.approx(
        [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-5
    )
    assert mean_interval([0.7]) == Estimate(value=0.7)


@pytest.mark.parametrize(
    ("target", "spent"),
    [
        (0.5, 0.0),  # as good as that at the start
        (0.55, 50.0),  # half way from .5 to .6
        (0.6, 100.0),
        (0.75, 250.0),  # past the dip: half way from .55 to .95
        (0.95, 300.0),
        (0.96, None),
    ],
)
def test_spent_at_a_win_rate(target: float, spent: float | None) -> None:
    assert spent_at([0.5, 0.6, 0.55, 0.95], [0.0, 100.0, 200.0, 300.0], target) == (
        None if spent is None else pytest.approx(spent)
    )


def test_the_best_setting_is_that_of_the_highest_win_rate() -> None:
    assert best_setting({"lr=1": 0.6, "lr=2": 0.7, "lr=3": 0.7}) == "lr=2"


def test_seeds_are_averaged_within_each_recipe_and_setting() -> None:
    cells = [("wind", "eta=2"), ("wind", "eta=1"), ("dpo", "")]
    win_rates = {
        ("wind", "eta=2"): [0.6, 0.8],
        ("wind", "eta=1"): [0.9, 0.9],
        ("dpo", ""): [0.4, 0.6],
    }
    rows = [
        (*cell, seed, iteration, metric, value)
        for cell in cells
        for seed in (0, 1)
        for iteration, metric, value in [
            (0, "win_rate", 0.5),
            (1, "win_rate", win_rates[cell][seed]),
            (0, "samples", 0.0),
            (1, "samples", 40.0),
            (1, "loss", 1.0 + seed),
        ]
    ]
    numbers = pl.DataFrame(
        rows, schema=["recipe", "setting", "seed", "iteration", "metric", "value"], orient="row"
    )
    made = seed_averages(numbers, target=0.6, costs=("samples", "seconds"))
    assert [(each.recipe, each.setting) for each in made] == cells
    first, second, third = made
    assert first.seeds == (0, 1)
    assert first.curves["win_rate"][0] == Estimate(value=0.5, low=0.5, high=0.5)
    assert first.last("win_rate") == mean_interval([0.6, 0.8])
    # the policy at the start was not trained
    assert first.curves["loss"] == (None, mean_interval([1.0, 2.0]))
    assert first.last("accuracy") is None
    assert first.to_target == {"samples": pytest.approx(20.0)}
    assert second.to_target == {"samples": pytest.approx(10.0)}
    assert third.to_target == {"samples": None}
    assert (first.name(), third.name()) == ("wind eta=2", "dpo")
