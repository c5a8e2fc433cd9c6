"""Each planted fault of the metrics fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

NAN = float("nan")


def test_good_metrics_pass(chain: "Chain") -> None:
    assert chain.check("metrics").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.iteration, metric: no two rows share iteration, metric",
        ),
        (lambda rows: rows[0].update(iteration=1), "rows.iteration: measured in iteration 2"),
        (lambda rows: rows[0].update(value=NAN), "rows.value: value is a finite number"),
        (
            lambda rows: rows[1].update(low=NAN),
            "rows.is_interval: an interval has two finite ends or none",
        ),
        (
            lambda rows: rows[1].update(high=float("inf")),
            "rows.is_interval: an interval has two finite ends or none",
        ),
        (
            lambda rows: rows[1].update(high=None),
            "rows.is_interval: an interval has two finite ends or none",
        ),
        (lambda rows: rows[1].update(low=0.55), "rows.above_low: low <= value"),
        (lambda rows: rows[1].update(high=0.45), "rows.below_high: value <= high"),
        (lambda rows: rows[0].update(n=0), "rows.n: rows stand behind the value"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("metrics", fault) == [fires]


def test_an_interval_may_miss_its_value_by_a_rounding(chain: "Chain") -> None:
    assert chain.check(
        "metrics", lambda rows: rows[1].update(low=0.5 + 1e-15, high=0.5 + 1e-15)
    ).success
