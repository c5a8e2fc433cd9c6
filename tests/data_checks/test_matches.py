"""Each planted fault of the matches fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault, Rows

NAN = float("nan")


def last_of_training(rows: "Rows") -> None:
    """Take away one response of the last pairing, which is the training reward's."""
    assert rows.pop()["judge"] == "training"


def test_good_matches_pass(chain: "Chain") -> None:
    """Under gold answers there are only the prompts that have one."""
    assert chain.check("matches").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[-1].update(prompt_id="f" * 32),
            "rows.is_known: every row belongs to one of the policy's responses",
        ),
        (
            lambda rows: rows[3].update(reward_policy=NAN),
            "rows.reward_policy: reward_policy is a finite number",
        ),
        (
            lambda rows: rows[3].update(reward_opponent=NAN),
            "rows.reward_opponent: reward_opponent is a finite number or null",
        ),
        (lambda rows: rows[3].update(win_rate=NAN), "rows.win_rate: win_rate is a finite number"),
        (lambda rows: rows[3].update(win_rate=1.01), "rows.win_rate: win rates lie in [0, 1]"),
        (lambda rows: rows[3].update(tie_share=-0.01), "rows.tie_share: tie shares lie in [0, 1]"),
        (
            lambda rows: rows[3].update(repeat_difference=1.5),
            "rows.repeat_difference: shares of changed verdicts lie in [0, 1]",
        ),
        (
            lambda rows: rows[3].update(response_tokens_opponent=0),
            "rows.response_tokens_opponent: response_tokens_opponent counts a token or more",
        ),
        (
            last_of_training,
            "pairings.missing: every response of the policy is in every pairing",
        ),
        (
            lambda rows: [rows.remove(row) for row in [*rows] if row["judge"] == "training"],
            "pairings.missing: every response of the policy is in every pairing",
        ),
        (
            lambda rows: [rows.remove(row) for row in [*rows] if row["opponent"] == "gpt"],
            "pairings.missing: every response of the policy is in every pairing",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("matches", fault) == [fires]
