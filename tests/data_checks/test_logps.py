"""Each planted fault of the log-probabilities fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

from data_checks.validation import validate
from wind.config.checks import Bounds, ChecksConfig
from wind.store.handles import AnyHandle

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
        "logps", lambda rows: [row.update(logp_reference=-0.5) for row in rows[1:]]
    ) == [fires]
    assert chain.check(
        "logps", lambda rows: [row.update(logp_reference=-0.5) for row in rows]
    ).success


def drifted(gap: float) -> "Fault":
    """Every response as if the trainer gave each of its two tokens `gap` nats less."""
    return lambda rows: [row.update(logp_policy=-0.5 - 2 * gap) for row in rows]


@pytest.mark.parametrize(
    ("gap", "warned"),
    [(0.01, 0), (0.05, 1), (-0.05, 1)],
)
def test_a_gap_between_sampler_and_trainer_warns(chain: "Chain", gap: float, warned: int) -> None:
    warnings = chain.check("logps", drifted(gap)).warnings
    assert len(warnings) == warned
    assert all("within 0.02 nats per token of the sampler's" in line for line in warnings)


def test_a_large_gap_between_sampler_and_trainer_fails(chain: "Chain") -> None:
    fires = (
        "rows.logp_gap: the trainer's log-probabilities are within {} nats per token of the "
        "sampler's on average"
    )
    bounds = (fires.format("0.1"), fires.format("0.02"))
    assert chain.failures("logps", drifted(0.2)) == [*bounds]
    looser = ChecksConfig(logp_gap=Bounds(warn=None, fail=0.3))
    assert validate(chain.dataset("logps", drifted(0.2)), chain.store, looser).warnings == ()


def test_the_bound_that_is_not_set_keeps_its_default() -> None:
    checks = ChecksConfig.model_validate({"logp_gap": {"fail": 0.5}})
    assert checks.logp_gap == Bounds(warn=0.02, fail=0.5)


def test_another_policy_is_not_compared_with_the_sampler(chain: "Chain") -> None:
    """Responses of one policy may be scored under another, as health does."""
    generations = chain.dataset("generations")
    chain.policy = chain.reference
    parents: dict[str, AnyHandle] = {
        "generations": generations,
        "policy": chain.policy,
        "reference": chain.reference,
    }
    rows = chain.rows("logps")
    for row in rows:
        row.update(logp_policy=-9.0, logp_reference=-9.0)
    scored = chain._publish("logps", rows, parents, {}, {})
    result = validate(scored, chain.store, ChecksConfig())
    assert (result.success, result.warnings) == (True, ())
