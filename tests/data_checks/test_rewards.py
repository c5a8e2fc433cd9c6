"""Each planted fault of the rewards fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault


def test_good_rewards_pass(chain: "Chain") -> None:
    assert chain.check("rewards").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (lambda rows: rows.append(dict(rows[0])), "rows.prompt_id, sample_index: no two rows share prompt_id, sample_index"),
        (lambda rows: rows.append(rows[0] | {"sample_index": 4}), "rows.is_known: every row belongs to one of the generations"),
        (lambda rows: rows[3].update(reward=float("nan")), "rows.reward: reward is a finite number"),
        (lambda rows: rows[3].update(reward=float("-inf")), "rows.reward: reward is a finite number"),
        (lambda rows: rows[3].update(length=float("nan")), "rows.length: length is a finite number"),
        (
            lambda rows: [row.update(reward=1.0) for row in rows],
            "rows.reward: rewards differ: with a single value there is nothing to learn",
        ),
        (lambda rows: rows.pop(3), "generations.is_present: no row of the generations was lost"),
        (lambda rows: [rows.pop() for _ in range(4)], "generations.is_present: no row of the generations was lost"),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("rewards", fault) == [fires]


def test_constant_rewards_block_training_only(chain: "Chain") -> None:
    assert chain.check("rewards", lambda rows: [row.update(reward=1.0) for row in rows], split="eval").success
