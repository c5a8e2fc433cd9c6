"""Each planted fault of the evaluation fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

TRAIN, STRANGER = f"{0:032x}", "f" * 32
NAN = float("nan")


def test_good_evaluation_passes(chain: "Chain") -> None:
    assert chain.check("evaluation").success


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
            "rows.split: no prompt of the train split is measured",
        ),
        (lambda rows: rows[3].update(sample_index=4), "rows.sample_index: sample_index is 0 .. 3"),
        (lambda rows: rows[3].update(win_rate=NAN), "rows.win_rate: win_rate is a finite number"),
        (lambda rows: rows[3].update(win_rate=1.01), "rows.win_rate: win rates lie in [0, 1]"),
        (
            lambda rows: rows[3].update(tie_share=NAN),
            "rows.tie_share: tie_share is a finite number",
        ),
        (lambda rows: rows[3].update(tie_share=-0.01), "rows.tie_share: tie shares lie in [0, 1]"),
        (
            lambda rows: rows[3].update(reward_policy=NAN),
            "rows.reward_policy: reward_policy is a finite number",
        ),
        (
            lambda rows: rows[3].update(reward_reference=NAN),
            "rows.reward_reference: reward_reference is a finite number",
        ),
        (
            lambda rows: rows[3].update(logp_policy=0.1),
            "rows.logp_policy: logp_policy is at most 0",
        ),
        (
            lambda rows: rows[3].update(logp_reference=-float("inf")),
            "rows.logp_reference: logp_reference is a finite number",
        ),
        (
            lambda rows: rows[3].update(response_tokens_policy=0),
            "rows.response_tokens_policy: every response has a token",
        ),
        (
            lambda rows: rows[3].update(response_tokens_reference=0),
            "rows.response_tokens_reference: every response has a token",
        ),
        (
            lambda rows: rows[3].update(accuracy_policy=0.5),
            "rows.accuracy_policy: an answer is right or wrong",
        ),
        (
            lambda rows: rows[3].update(accuracy_reference=NAN),
            "rows.accuracy_reference: an answer is right or wrong",
        ),
        (lambda rows: rows.pop(3), "prompts.samples: every prompt has 4 samples"),
        (
            lambda rows: [rows.pop() for _ in range(4)],
            "prompts.is_present: no row of the eval prompts was lost",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("evaluation", fault) == [fires]
