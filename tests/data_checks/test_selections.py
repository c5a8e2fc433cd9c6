"""Each planted fault of the selections fires exactly the expectation that names it."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

Rows = list[dict[str, Any]]  # of a prompt: worst, unused, unused, best; ranks 4, 2, 3, 1


def swapped_roles(rows: Rows) -> None:
    rows[1]["role"], rows[3]["role"] = rows[3]["role"], rows[1]["role"]


def a_close_prompt(rows: Rows) -> None:
    for row in rows[:4]:
        row["role"] = "below_margin"


def test_good_selections_pass(chain: "Chain") -> None:
    assert chain.check("selections").success
    assert chain.check("selections", a_close_prompt).success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.prompt_id, sample_index: no two rows share prompt_id, sample_index",
        ),
        (
            lambda rows: rows.append(rows[1] | {"sample_index": 4}),
            "rows.is_known: every row belongs to one of the win rates",
        ),
        (lambda rows: rows[1].update(label=float("nan")), "rows.label: label is a finite number"),
        (lambda rows: rows[1].update(label=1.5), "rows.label: labels lie in [0, 1]"),
        (
            lambda rows: rows[1].update(role="middle"),
            "rows.role: a role is one of all, best, worst, random, unused, below_margin",
        ),
        (swapped_roles, "rows.best_rank: the best row has rank 1"),
        (lambda rows: rows.pop(1), "win_rates.is_present: no row of the win rates was lost"),
        (
            lambda rows: rows[1].update(role="worst"),
            "prompts.roles: a prompt trains on its best worst",
        ),
        (
            lambda rows: rows[0].update(role="unused"),
            "prompts.roles: a prompt trains on its best worst",
        ),
        (
            lambda rows: rows[0].update(role="random"),
            "prompts.roles: a prompt trains on its best worst",
        ),
        (
            lambda rows: rows[1].update(role="below_margin"),
            "prompts.is_partly_close: a prompt is below the margin as a whole",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("selections", fault) == [fires]
