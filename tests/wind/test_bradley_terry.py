"""Bradley-Terry ratings: by hand, by identities, and by scikit-learn."""

import math
from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wind.statistics.bootstrap import Floats, generator_for
from wind.statistics.bradley_terry import ELO, Estimate, bradley_terry


def rated(
    pairs: list[tuple[int, int]], shares_P_C: Floats, players: int, samples: int = 200
) -> list[Estimate]:
    return bradley_terry(pairs, shares_P_C, players, samples, generator_for(0, 1, "x"))


def values(estimates: list[Estimate]) -> list[float]:
    return [value for value, _, _ in estimates]


def test_two_players_by_hand() -> None:
    """Player 1 wins 150 of 200, two of them as four ties: odds of 3, a logit of log 3."""
    wins_P = np.array([1.0] * 148 + [0.5] * 4 + [0.0] * 48)
    first, second = rated([(1, 0)], wins_P[:, None], 2)
    assert first == (0.0, None, None)
    assert second[0] == pytest.approx(math.log(3), abs=2e-3)
    assert second[1] is not None
    assert second[1] < math.log(3) < (second[2] or 0)
    assert second[0] * ELO == pytest.approx(190.8, abs=0.5)  # 400 log10(3)
    # told the other way around it is the same
    (_, other) = rated([(0, 1)], 1 - wins_P[:, None], 2)
    assert other == pytest.approx(second)


def test_a_chain_adds_up_though_its_ends_never_met() -> None:
    shares_P_C = np.repeat([[0.75, 0.75]], 400, axis=0)
    estimates = rated([(1, 0), (2, 1)], shares_P_C, 3)
    assert values(estimates) == pytest.approx([0, math.log(3), 2 * math.log(3)], abs=5e-3)


def test_planted_strengths_are_recovered() -> None:
    strengths = np.array([0.0, 0.5, 1.2, 0.8])
    pairs = [(b, a) for a, b in combinations(range(4), 2)]
    generator = np.random.default_rng(0)
    logits_C = np.array([strengths[a] - strengths[b] for a, b in pairs])
    shares_P_C = (generator.random((2000, 6)) < 1 / (1 + np.exp(-logits_C))).astype(float)
    for (value, low, high), truth in zip(
        rated(pairs, shares_P_C, 4)[1:], strengths[1:], strict=True
    ):
        assert low is not None
        assert high is not None
        assert low < truth < high
        assert value == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_ratings_equal_those_of_scikit_learn_without_penalty(seed: int) -> None:
    """On 20,000 prompts the weak prior is below the fourth digit."""
    generator = np.random.default_rng(seed)
    pairs = [*combinations(range(5), 2)]
    shares_P_C = generator.choice([0.0, 0.25, 0.5, 1.0], (20_000, len(pairs)))
    design = np.zeros((len(pairs), 5))
    for row, (a, b) in enumerate(pairs):
        design[row, [a, b]] = 1, -1
    reference = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    reference.fit(
        np.concatenate([design[:, 1:]] * 2),
        np.repeat([1, 0], len(pairs)),
        np.concatenate([shares_P_C.sum(axis=0), (1 - shares_P_C).sum(axis=0)]),
    )
    assert values(rated(pairs, shares_P_C, 5, 2))[1:] == pytest.approx(reference.coef_[0], abs=1e-4)


def test_prompts_on_which_two_did_not_meet_do_not_count() -> None:
    met = np.array([[0.75, 0.5]] * 100)
    further = np.array([[np.nan, 0.5]] * 100)
    both = values(rated([(1, 0), (2, 0)], np.concatenate([met, further]), 3))
    assert both == pytest.approx([0, math.log(3), 0], abs=1e-2)


def test_who_never_lost_has_a_finite_rating_and_one_prompt_no_interval() -> None:
    (_, (value, low, high)) = rated([(1, 0)], np.ones((10, 1)), 2)
    assert 2 < value < 20
    assert low is not None
    assert high is not None
    assert low <= value <= high
    assert rated([(1, 0)], np.ones((1, 1)), 2)[1][1:] == (None, None)
