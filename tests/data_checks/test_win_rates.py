"""Each planted fault of the win rates fires exactly the expectation that names it."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault

# of a prompt: rewards 0, 1, 1, 3; win rates 0, 1/2, 1/2, 1; ranks 4, 2, 3, 1
Rows = list[dict[str, Any]]


def out_of_range(rows: Rows) -> None:
    rows[3].update(win_rate=1.25)
    rows[0].update(win_rate=-0.25)  # the mean stays 1/2, the best stays best


def all_ties(rows: Rows) -> None:
    for row in rows:
        row.update(win_rate=0.5, wins=0, ties=3, losses=0)


def upside_down(rows: Rows) -> None:
    for row in rows:
        row.update(
            win_rate=1 - row["win_rate"],
            wins=row["losses"],
            losses=row["wins"],
            rank=5 - row["rank"],
        )


def swapped_win_rates(rows: Rows) -> None:
    rows[0]["win_rate"], rows[3]["win_rate"] = rows[3]["win_rate"], rows[0]["win_rate"]


def test_good_win_rates_pass(chain: "Chain") -> None:
    assert chain.check("win_rates").success


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
            "rows.is_known: every row belongs to one of the rewards",
        ),
        (
            lambda rows: rows[1].update(win_rate=float("nan")),
            "rows.win_rate: win_rate is a finite number",
        ),
        (out_of_range, "rows.win_rate: win rates lie in [0, 1]"),
        (
            lambda rows: rows[1].update(ties=2),
            "rows.comparisons, siblings: wins + ties + losses = N - 1",
        ),
        (
            lambda rows: rows[3].update(wins=4),
            "rows.comparisons, siblings: wins + ties + losses = N - 1",
        ),
        (all_ties, "rows.tie_share: at most 99.9% of comparisons are ties"),
        (lambda rows: rows.pop(3), "rewards.is_present: no row of the rewards was lost"),
        (
            lambda rows: rows[1].update(win_rate=0.5 + 1e-6),
            "prompts.mean_win_rate: the win rates of a prompt average one half",
        ),
        (
            lambda rows: rows[1].update(rank=3),
            "prompts.is_ranked: the ranks of a prompt are 1 .. N",
        ),
        (
            lambda rows: rows[0].update(rank=5),
            "prompts.is_ranked: the ranks of a prompt are 1 .. N",
        ),
        (upside_down, "prompts.best_reward_gap: rank 1 has the highest reward"),
        (swapped_win_rates, "prompts.best_win_rate_gap: rank 1 has the highest win rate"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("win_rates", fault) == [fires]


def test_good_win_rates_of_preferences_pass(pairwise_chain: "Chain") -> None:
    """Three responses in a circle share the highest win rate, and one of them has the first rank."""
    assert pairwise_chain.check("win_rates").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows[1].update(win_rate=7 / 12 + 1e-6),
            "prompts.mean_win_rate: the win rates of a prompt average one half",
        ),
        (
            lambda rows: [rows[0].update(rank=1), rows[1].update(rank=4)],
            "prompts.best_reward_gap: rank 1 has the highest reward",
        ),
        (
            lambda rows: rows[1].update(ties=1),
            "rows.comparisons, siblings: wins + ties + losses = N - 1",
        ),
    ],
)
def test_a_fault_of_preferences_fires_its_expectation(
    pairwise_chain: "Chain", fault: "Fault", fires: str
) -> None:
    assert pairwise_chain.failures("win_rates", fault)[0] == fires
