"""Each planted fault of a training's numbers fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault


def test_good_training_passes(chain: "Chain") -> None:
    assert chain.check("training").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.step, metric: no two rows share step, metric",
        ),
        (lambda rows: rows[3].update(value=float("nan")), "rows.value: value is a finite number"),
        (lambda rows: rows[2].update(value=float("inf")), "rows.value: value is a finite number"),
        (lambda rows: rows.pop(3), "steps.has_loss: every step has a loss"),
        (lambda rows: [rows.pop(2) for _ in range(2)], "steps.has_loss: every step has a loss"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("training", fault) == [fires]
