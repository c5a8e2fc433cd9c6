"""Each planted fault of the benchmarks fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault, Rows

KEY = "benchmark, item, metric"


def unjudged(rows: "Rows") -> None:
    """Nobody judges the last benchmark."""
    for row in rows:
        if row["benchmark"] == "mmlu":
            row["value"] = None


def test_good_benchmarks_pass(chain: "Chain") -> None:
    assert chain.check("benchmarks").success
    assert chain.check("benchmarks", unjudged).success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            f"rows.{KEY}: no two rows share {KEY}",
        ),
        (
            lambda rows: rows[0].update(value=float("nan")),
            "rows.value: value is a finite number",
        ),
        (
            lambda rows: rows[0].update(question=" "),
            "rows.is_asked: every question has a text",
        ),
        (
            lambda rows: rows.pop(0),
            "metrics.is_whole: every question is measured under every metric",
        ),
        (
            lambda rows: rows[0].update(value=None),
            "metrics.is_judged: all answers of a benchmark are judged, or none",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("benchmarks", fault) == [fires]
