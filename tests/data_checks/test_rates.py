"""Each planted fault of the rates fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault


def test_good_rates_pass(chain: "Chain") -> None:
    assert chain.check("rates").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[0].update(quantity="floor"),
            "rows.samples, algorithm, instance, prompts, quantity: no two rows share "
            "samples, algorithm, instance, prompts, quantity",
        ),
        (
            lambda rows: rows[0].update(algorithm="unheard"),
            "rows.is_known: every row belongs to one of the runs of the study",
        ),
        (lambda rows: rows[0].update(value=float("nan")), "rows.value: value is a finite number"),
        (lambda rows: rows[1].update(value=-0.1), "rows.size: floors and factors are not negative"),
        (
            lambda rows: rows[1].update(error=float("nan")),
            "rows.error: a standard error is not negative",
        ),
        (lambda rows: rows[0].update(n=0), "rows.n: numbers stand behind the value"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("rates", fault) == [fires]
