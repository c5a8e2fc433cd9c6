"""Each planted fault of the rewards fires exactly the expectation that names it."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

Rows = list[dict[str, Any]]


def preferred(row: dict[str, Any], preferences: list[float]) -> None:
    """Set the preferences of a first sample, and its reward to their mean over the others."""
    row.update(preferences=preferences, reward=sum(preferences[1:]) / 3)


def test_good_rewards_pass(chain: "Chain") -> None:
    assert chain.check("rewards").success


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
            lambda rows: rows[3].update(reward=float("nan")),
            "rows.reward: reward is a finite number",
        ),
        (
            lambda rows: rows[3].update(reward=float("-inf")),
            "rows.reward: reward is a finite number",
        ),
        (
            lambda rows: rows[3].update(length=float("nan")),
            "rows.length: length is a finite number",
        ),
        (
            lambda rows: [row.update(reward=1.0) for row in rows],
            "rows.reward: rewards differ: with a single value there is nothing to learn",
        ),
        (lambda rows: rows.pop(3), "generations.is_present: no row of the generations was lost"),
        (
            lambda rows: [rows.pop() for _ in range(4)],
            "generations.is_present: no row of the generations was lost",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("rewards", fault) == [fires]


def test_constant_rewards_block_training_only(chain: "Chain") -> None:
    assert chain.check(
        "rewards", lambda rows: [row.update(reward=1.0) for row in rows], split="eval"
    ).success


def test_good_preferences_pass(pairwise_chain: "Chain") -> None:
    assert pairwise_chain.check("rewards").success


def test_good_preferences_over_opponents_pass(opponents_chain: "Chain") -> None:
    assert opponents_chain.check("rewards").success


def test_good_verdicts_pass(judge_chain: "Chain") -> None:
    assert judge_chain.check("rewards").success


def test_verdicts_that_could_not_be_parsed(judge_chain: "Chain") -> None:
    """All of a row's are beyond the threshold, and the row is named; a tenth of one's are not."""
    failures = judge_chain.failures("rewards", lambda rows: rows[2].update(unparsed_share=1.0))
    assert sorted(failures) == [
        "rows.unparsed_share: at most 0.05 of the comparisons have no verdict to be parsed",
        "rows.unparsed_share: every comparison has a verdict that could be parsed",
    ]
    assert judge_chain.check("rewards", lambda rows: rows[2].update(unparsed_share=0.1)).success


def out_of_range(rows: Rows) -> None:
    preferred(rows[0], [0.5, -0.25, 0.25, 0.25])
    rows[1]["preferences"][0] = 1.25
    rows[1]["reward"] = (1.25 + 1.0 + 0.0) / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[0]["preferences"].append(0.5),
            ["surplus: a row has one preference for each of its prompt's generations"],
        ),
        (
            lambda rows: rows[0]["preferences"].pop(),
            ["surplus: a row has one preference for each of its prompt's generations"],
        ),
        (
            lambda rows: rows[0]["preferences"].__setitem__(0, float("nan")),
            ["unknown: preferences are finite numbers"],
        ),
        (
            out_of_range,
            ["lowest: preferences are at least 0", "highest: preferences are at most 1"],
        ),
        (
            lambda rows: preferred(rows[0], [0.25, 0.25, 0.25, 0.25]),
            ["itself: a response beats itself half the time", "asymmetry: P_ij + P_ji = 1"],
        ),
        (lambda rows: preferred(rows[0], [0.5, 0.3, 0.25, 0.25]), ["asymmetry: P_ij + P_ji = 1"]),
        (
            lambda rows: rows[0].update(reward=0.3),
            ["reward_gap: the reward is the mean preference over the others"],
        ),
        (
            lambda rows: rows[0].update(cut_share=float("nan")),
            ["cut_share: cut_share is a finite number"],
        ),
        (
            lambda rows: rows[0].update(sample_index=9),
            ["is_known: every row belongs to one of the generations"],
        ),
    ],
)
def test_a_fault_of_preferences_fires_its_expectation_alone(
    pairwise_chain: "Chain", fault: "Fault", fires: list[str]
) -> None:
    found = pairwise_chain.failures("rewards", fault)
    assert [failure for failure in found if failure.startswith("rows.")] == [
        f"rows.{failure}" for failure in fires
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[0]["preferences"].pop(),
            "rows.surplus: a row has one preference for each of its prompt's opponents",
        ),
        (
            lambda rows: rows[0].update(reward=0.25 + 1e-6),
            "rows.reward_gap: the reward is the mean preference over the others",
        ),
    ],
)
def test_a_fault_of_preferences_over_opponents_fires_its_expectation_alone(
    opponents_chain: "Chain", fault: "Fault", fires: str
) -> None:
    assert opponents_chain.failures("rewards", fault) == [fires]
