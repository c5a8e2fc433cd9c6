"""Each planted fault of rollouts fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault, Rows


def test_good_rollouts_pass(chain: "Chain") -> None:
    assert chain.check("rollouts").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[0].update(response_token_ids=[]),
            "rows.response_tokens: every response has a token",
        ),
        (
            lambda rows: rows[0].update(response_token_ids=[5, 6, 7, 2]),
            "rows.response_tokens: no response is longer than max_new_tokens",
        ),
        (
            lambda rows: rows[0].update(finish_reason="abort"),
            "rows.finish_reason: finish_reason is stop or length",
        ),
        (lambda rows: rows[1].update(seed=rows[0]["seed"]), "rows.seed: no two rows share seed"),
        (
            lambda rows: rows[0].update(reward=float("nan")),
            "rows.reward: reward is a finite number",
        ),
        (
            lambda rows: rows[0].update(logp_policy=0.5),
            "rows.logp_policy: logp_policy is at most 0",
        ),
        (
            lambda rows: rows[5].update(logp_reference=float("-inf")),
            "rows.logp_reference: logp_reference is a finite number",
        ),
        (
            lambda rows: [row.update(response=" ") for row in rows[:9]],
            "rows.is_empty: at most 5.0% of responses are empty",
        ),
        (
            lambda rows: rows[0].update(win_rate=0.25),
            "groups.mean_win_rate: the win rates of a group average one half",
        ),
        (lambda rows: rows[0].update(rank=3), "groups.is_ranked: the ranks of a group are 1 .. N"),
        (lambda rows: rows.pop(0), "groups.samples: every group has 4 samples of the policy"),
        (
            lambda rows: rows.pop(4),
            "groups.anchor_samples: every group has 4 samples of the anchor",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("rollouts", fault) == [fires]


@pytest.mark.slow
def test_the_anchor_may_have_a_number_of_its_own(chain: "Chain") -> None:
    chain.objective |= {"anchor_samples": 3}

    def keep_three(rows: "Rows") -> None:
        rows[:] = [row for row in rows if row["sample_index"] < 7]
        for row in rows:
            if row["drawn_from"] == "anchor":
                row.update(win_rate=0.5, rank=row["sample_index"] - 3)

    assert chain.check("rollouts", keep_three).success
    assert chain.failures("rollouts", lambda rows: None) == [
        "groups.anchor_samples: every group has 3 samples of the anchor"
    ]


@pytest.mark.slow
def test_an_objective_without_an_anchor_has_samples_of_the_policy_alone(chain: "Chain") -> None:
    chain.objective = {"name": "grpo", "refresh_steps": 1}

    def keep_policy(rows: "Rows") -> None:
        rows[:] = [row for row in rows if row["drawn_from"] == "policy"]

    assert chain.check("rollouts", keep_policy).success
    assert chain.failures("rollouts", lambda rows: None) == [
        "groups.anchor_samples: every group has 0 samples of the anchor",
        "prompts.anchor_steps: the anchor answered every prompt 0 times",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "fires"),
    [
        (0, "prompts.steps: the policy answered every prompt 2 times, once an epoch"),
        (4, "prompts.anchor_steps: the anchor answered every prompt 2 times"),
    ],
)
def test_a_lost_prompt_is_missed(chain: "Chain", first: int, fires: str) -> None:
    assert chain.failures("rollouts", lambda rows: [rows.pop(first) for _ in range(4)]) == [fires]


@pytest.mark.slow
def test_a_held_out_prompt_is_none_to_train_on(chain: "Chain") -> None:
    held_out = chain.rows("prompts")[5]["prompt_id"]
    failures = chain.failures(
        "rollouts", lambda rows: [row.update(prompt_id=held_out) for row in rows[:8]]
    )
    assert failures[0] == "rows.is_known: every row belongs to one of the prompts to train on"
