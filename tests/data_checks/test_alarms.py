"""Each planted fault of the alarms fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

NAN = float("nan")


def test_good_alarms_pass(chain: "Chain") -> None:
    assert chain.check("alarms").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (lambda rows: rows.append(dict(rows[0])), "rows.alarm: no two rows share alarm"),
        (
            lambda rows: rows[0].update(statistic=NAN),
            "rows.statistic: statistic is a finite number",
        ),
        (lambda rows: rows[0].update(p_value=1.5), "rows.p_value: p-values lie in [0, 1]"),
        (lambda rows: rows[0].update(threshold=0.2), "rows.threshold: the level is 0.05"),
        (
            lambda rows: rows[0].update(is_raised=True),
            "rows.is_decided: an alarm is raised if its p-value is at most the level",
        ),
        (lambda rows: rows[0].update(message=""), "rows.is_said: every test has a sentence"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("alarms", fault) == [fires]
