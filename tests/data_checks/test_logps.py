"""Each planted fault of the log-probabilities fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault


def test_good_logps_pass(chain: "Chain") -> None:
    assert chain.check("logps").success


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
            lambda rows: rows[3].update(logp_policy=1e-3),
            "rows.logp_policy: logp_policy is at most 0",
        ),
        (
            lambda rows: rows[3].update(logp_reference=1e-3),
            "rows.logp_reference: logp_reference is at most 0",
        ),
        (
            lambda rows: rows[3].update(logp_policy=float("nan")),
            "rows.logp_policy: logp_policy is a finite number",
        ),
        (
            lambda rows: rows[3].update(logp_reference=float("-inf")),
            "rows.logp_reference: logp_reference is a finite number",
        ),
        (
            lambda rows: rows[3].update(response_tokens=1),
            "rows.response_tokens, sampled_tokens: every sampled token was scored, and no other",
        ),
        (lambda rows: rows.pop(3), "generations.is_present: no row of the generations was lost"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("logps", fault) == [fires]


def test_one_model_has_one_logp(chain: "Chain") -> None:
    chain.reference = chain.policy
    fires = (
        "rows.logp_policy, logp_reference: the policy is the reference, and so are its "
        "log-probabilities"
    )
    assert chain.failures(
        "logps", lambda rows: [row.update(logp_reference=-1.0) for row in rows[1:]]
    ) == [fires]
    assert chain.check(
        "logps", lambda rows: [row.update(logp_reference=-1.0) for row in rows]
    ).success
