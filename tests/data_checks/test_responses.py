"""Each planted fault of stored responses fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

TRAIN, STRANGER = f"{0:012x}" + "0" * 20, "f" * 32


def test_good_responses_pass(chain: "Chain") -> None:
    assert chain.check("responses").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.prompt_id, sample_index: no two rows share prompt_id, sample_index",
        ),
        (
            lambda rows: rows.append(rows[0] | {"prompt_id": STRANGER}),
            "rows.is_known: every row belongs to one of the prompts",
        ),
        (
            lambda rows: rows.append(rows[0] | {"prompt_id": TRAIN}),
            "rows.split: only held-out prompts are answered",
        ),
        (
            lambda rows: [row.update(response=" ") for row in rows],
            "rows.is_empty: at most 5.0% of responses are empty",
        ),
        (
            lambda rows: [rows.pop() for _ in range(4)],
            "prompts.is_present: no row of the eval prompts was lost",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("responses", fault) == [fires]
