"""Each planted fault of a comparison fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault


def test_a_good_comparison_passes(chain: "Chain") -> None:
    assert chain.check("comparison").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.recipe, setting, seed, iteration, metric: no two rows share recipe, setting, "
            "seed, iteration, metric",
        ),
        (lambda rows: rows[0].update(value=float("nan")), "rows.value: value is a finite number"),
        (
            lambda rows: rows[1].update(high=None),
            "rows.is_interval: an interval has two finite ends or none",
        ),
        (lambda rows: rows[1].update(low=0.55), "rows.above_low: low <= value"),
        (lambda rows: rows[1].update(high=0.45), "rows.below_high: value <= high"),
        (lambda rows: rows[0].update(n=-1), "rows.n: no negative number of rows is behind a value"),
        (
            lambda rows: rows.extend([dict(row, seed=1) for row in rows[2:]]),
            "runs.missing: no iteration of a run is missing, from 0 on",
        ),
        (lambda rows: rows.pop(1), "runs.unmeasured: every iteration has its win rate"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("comparison", fault) == [fires]
