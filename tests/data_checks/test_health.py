"""Each planted fault of the health fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

NAN = float("nan")


def test_good_health_passes(chain: "Chain") -> None:
    assert chain.check("health").success
    alone: Fault = lambda rows: [row.update(self_bleu=None) for row in rows]  # noqa: E731
    assert chain.check("health", alone).success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(dict(rows[0])),
            "rows.prompt_id, sample_index: no two rows share prompt_id, sample_index",
        ),
        (
            lambda rows: rows.append(rows[0] | {"sample_index": 4}),
            "rows.is_known: every row belongs to one of the generations",
        ),
        (
            lambda rows: rows[3].update(logp_previous=NAN),
            "rows.logp_previous: logp_previous is a finite number",
        ),
        (
            lambda rows: rows[3].update(logp_previous=1e-3),
            "rows.logp_previous: logp_previous is at most 0",
        ),
        (
            lambda rows: rows[3].update(logp_reference=-float("inf")),
            "rows.logp_reference: logp_reference is a finite number",
        ),
        (
            lambda rows: rows[3].update(logp_reference=1e-3),
            "rows.logp_reference: logp_reference is at most 0",
        ),
        (lambda rows: rows[3].update(logp_gap=NAN), "rows.logp_gap: logp_gap is a finite number"),
        (
            lambda rows: rows[3].update(repetition=NAN),
            "rows.repetition: repetition is a finite number",
        ),
        (
            lambda rows: rows[3].update(repetition=1.01),
            "rows.repetition: shares of repeated 4-grams lie in [0, 1]",
        ),
        (lambda rows: rows[3].update(self_bleu=1.01), "rows.self_bleu: BLEU scores lie in [0, 1]"),
        (lambda rows: rows[3].update(self_bleu=NAN), "rows.self_bleu: BLEU scores lie in [0, 1]"),
        (
            lambda rows: rows[3].update(is_eos=False),
            "rows.is_eos, is_stopped: is_eos says how the response ended",
        ),
        (lambda rows: rows.pop(3), "generations.is_present: no row of the generations was lost"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("health", fault) == [fires]
