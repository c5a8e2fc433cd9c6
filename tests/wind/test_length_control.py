"""Length-controlled win rates: planted effects, the reference fit of scikit-learn, and extremes."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from wind.statistics.bootstrap import Floats, Integers, generator_for
from wind.statistics.length_control import length_controlled_win_rate, scaled
from wind.statistics.logistic import VARIANCE, chance, fit

PROMPTS, SAMPLES = 1500, 4


def judged(
    theta: float,
    phi: float,
    longer: float,
    seed: int = 0,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
) -> tuple[Floats, Floats, Integers]:
    """Win rates, length differences and prompts: the policy is `longer` on average, of a spread 40.

    A judge prefers it with the logit theta + phi tanh(difference / deviation).
    """
    generator = np.random.default_rng(seed)
    differences_R = longer + 40 * generator.standard_normal(prompts * samples)
    chances_R = 1 / (1 + np.exp(-theta - phi * scaled(differences_R)))
    wins_R = (generator.random(prompts * samples) < chances_R).astype(np.float64)
    return wins_R, differences_R, np.repeat(np.arange(prompts), samples)


def controlled(rows: tuple[Floats, Floats, Integers], samples: int = 100) -> tuple[float, ...]:
    value, low, high = length_controlled_win_rate(*rows, samples, generator_for(0, 1, "x"))
    assert low is not None
    assert high is not None
    return value, low, high


def test_where_length_explains_everything_one_half_remains() -> None:
    rows = judged(theta=0.0, phi=2.0, longer=60.0)
    value, low, high = controlled(rows)
    assert rows[0].mean() > 0.75
    assert low < 0.5 < high
    assert value == pytest.approx(0.5, abs=0.04)


def test_a_real_effect_remains() -> None:
    """At logit 1 the policy wins 73%, by length or not."""
    truth = 1 / (1 + math.exp(-1))
    for phi, longer in ((0.0, 60.0), (2.0, 60.0), (2.0, -60.0)):
        value, low, high = controlled(judged(theta=1.0, phi=phi, longer=longer))
        assert low < truth < high, (phi, longer)
        assert value == pytest.approx(truth, abs=0.05)
    # the shorter policy was preferred less often than it deserved
    assert judged(theta=1.0, phi=2.0, longer=-60.0)[0].mean() < 0.5


def test_swapping_the_sides_gives_the_complement() -> None:
    wins_R, differences_R, prompts_R = judged(0.5, 1.0, 20.0, prompts=50)
    value, low, high = controlled((wins_R, differences_R, prompts_R))
    swapped = controlled((1 - wins_R, -differences_R, prompts_R))
    assert swapped == pytest.approx((1 - value, 1 - high, 1 - low), abs=1e-9)


def test_the_unit_of_length_does_not_matter() -> None:
    wins_R, differences_R, prompts_R = judged(0.5, 1.0, 20.0, prompts=50)
    assert controlled((wins_R, 4 * differences_R, prompts_R)) == pytest.approx(
        controlled((wins_R, differences_R, prompts_R))
    )


def test_equal_lengths_leave_the_win_rate() -> None:
    """Of 30 wins in 40 the logit is log 3, but for the prior: its pull is log(3) / 100."""
    wins_R = np.array([1.0] * 30 + [0.0] * 10)
    value, low, high = controlled((wins_R, np.zeros(40), np.arange(40)))
    assert value == pytest.approx(0.75, abs=1e-3)
    assert 0.5 < low < 0.75 < high < 1


def test_a_policy_that_always_wins_has_a_finite_logit() -> None:
    rows = np.ones(20), np.linspace(-5, 5, 20), np.arange(20)
    value, low, high = controlled(rows)
    assert 0.95 < low <= value <= high < 1


def test_one_prompt_has_no_interval() -> None:
    rows = np.array([1.0, 0.0, 0.5]), np.array([3.0, -1.0, 0.0]), np.zeros(3, np.int64)
    value, low, high = length_controlled_win_rate(*rows, 100, generator_for(0, 1, "x"))
    assert (0 < value < 1, low, high) == (True, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_fits_equal_those_of_scikit_learn(seed: int) -> None:
    """Scikit-learn minimizes |w|^2 / 2 + C loss; shares of wins are weights of two rows there."""
    generator = np.random.default_rng(seed)
    rows, features = 60, 1 + seed
    design_R_D = generator.standard_normal((rows, features))
    wins_B_R, losses_B_R = generator.random((2, 3, rows)) * generator.integers(0, 5, rows)
    ours_B_D = fit(design_R_D, wins_B_R, losses_B_R)
    for wins_R, losses_R, ours_D in zip(wins_B_R, losses_B_R, ours_B_D, strict=True):
        reference = LogisticRegression(C=VARIANCE, fit_intercept=False, tol=1e-12, max_iter=10_000)
        reference.fit(
            np.concatenate([design_R_D, design_R_D]),
            np.repeat([1, 0], rows),
            np.concatenate([wins_R, losses_R]),
        )
        assert ours_D == pytest.approx(reference.coef_[0], abs=1e-5)


def test_a_fit_does_not_depend_on_where_it_starts() -> None:
    wins_R, differences_R, _ = judged(3.0, 2.0, 60.0, prompts=20)
    design_R_2 = np.column_stack([np.ones(len(wins_R)), scaled(differences_R)])
    fitted = [
        fit(design_R_2, wins_R[None], 1 - wins_R[None], np.array(start))
        for start in ([0.0, 0.0], [-30.0, 50.0], [9.0, -9.0])
    ]
    assert fitted[1] == pytest.approx(fitted[0], abs=1e-6)
    assert fitted[2] == pytest.approx(fitted[0], abs=1e-6)
    assert chance(0.0) == 0.5


@pytest.mark.slow
def test_its_intervals_cover_the_truth_95_times_in_100() -> None:
    truth, data_sets, covered = chance(0.5), 500, 0
    for seed in range(data_sets):
        rows = judged(theta=0.5, phi=1.0, longer=20.0, seed=seed, prompts=60, samples=1)
        _, low, high = length_controlled_win_rate(*rows, 300, generator_for(seed, 1, "x"))
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    # 0.95 within three standard errors of a share of 500
    assert stats.binom.ppf(0.0013, data_sets, 0.95) <= covered <= data_sets * 0.98
