"""Each planted fault of the bandit study fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

SLOW = "steps.excess: exact WIND contracts by 1 / (1 + beta eta) at least"


def test_a_good_study_passes(chain: "Chain") -> None:
    assert chain.check("bandit").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[5])),
            "rows.samples, algorithm, instance, prompts, seed, iteration, metric: no two rows "
            "share "
            "samples, algorithm, instance, prompts, seed, iteration, metric",
        ),
        (lambda rows: rows[5].update(value=float("inf")), "rows.value: value is a finite number"),
        (
            lambda rows: rows[3].update(value=-0.1),
            "rows.value: no divergence, share or count is negative",
        ),
        (lambda rows: rows[5].update(value=1.1), "rows.share: win rates are at most 1"),
        (
            lambda rows: rows.pop(4),
            "runs.is_whole: iterations go from 0 to the last, none left out",
        ),
        (lambda rows: rows[1].update(value=0.65), SLOW),  # 0.8 / 1.25 = 0.64 is what is proved
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("bandit", fault) == [fires]


def test_what_is_proved_for_wind_is_not_asked_of_others(chain: "Chain") -> None:
    assert chain.check(
        "bandit",
        lambda rows: [row.update(algorithm="sppo", value=row["iteration"]) for row in rows[:3]],
    ).success
