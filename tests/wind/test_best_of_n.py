"""Best of n.

Numbers by hand, every tuple of draws enumerated, BOND's Theorem 1, and the closed forms of
continuous rewards.
"""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wind.exact_case import assert_close, row
from wind.best_of_n import (
    RewardOrder,
    best_of_n,
    best_of_n_figures,
    best_of_n_weights,
    bond_reward,
    jbond_reward,
    quantiles,
    tilt_figures,
    wind_figures,
    worst_of_n,
    worst_of_n_weights,
)
from wind.errors import InputError

# A policy over four responses, from a small set of rewards so that ties are common.
policies = st.lists(
    st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 2.0]), st.floats(0.01, 1)), min_size=4, max_size=4
)


def split(responses: Sequence[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards and the policy of (reward, weight) pairs."""
    weights = row(*(weight for _, weight in responses))
    return row(*(reward for reward, _ in responses)), weights / weights.sum()


def enumerated(
    rewards: torch.Tensor,
    policy: torch.Tensor,
    n: int,
    *,
    worst: bool = False,
    break_ties: bool = False,
) -> torch.Tensor:
    """Return the law of the best of all n-tuples of draws.

    Of tied ones it is the first drawn, or with `break_ties` the first listed.
    """
    law = torch.zeros_like(policy)
    sign = -1 if worst else 1
    for draws in itertools.product(range(policy.shape[1]), repeat=n):
        # max() keeps the first of equal keys. Among ties the first listed is the better: best takes
        # it, worst the last listed.
        key = {y: (sign * float(rewards[0, y]), -sign * y if break_ties else 0) for y in draws}
        law[0, max(draws, key=lambda y: key[y])] += math.prod(float(policy[0, y]) for y in draws)
    return law


def theorem_1(rewards: torch.Tensor, policy: torch.Tensor, n: int) -> torch.Tensor:
    """BOND's Theorem 1, eqs. 2-5, literally."""
    upto = (policy[:, None, :] * (rewards[:, None, :] <= rewards[..., None])).sum(-1)
    below = (policy[:, None, :] * (rewards[:, None, :] < rewards[..., None])).sum(-1)
    return policy * upto ** (n - 1) * sum((below / upto) ** (i - 1) for i in range(1, n + 1))


# ------------------------------------------------------------------------------------------ the law


def test_two_of_three_by_hand() -> None:
    # Rewards 5, 1, 3 with 0.2, 0.3, 0.5. p_<= = 1, .3, .8 and p_< = .8, 0, .3: squares' differences
    # .36, .09, .55.
    logp, order = row(0.2, 0.3, 0.5).log(), RewardOrder.of(row(5, 1, 3))
    assert_close(best_of_n(logp, order, 2).exp(), row(0.36, 0.09, 0.55))
    # p_>= = .2, 1, .7 and p_> = 0, .7, .2: .04, .51, .45.
    assert_close(worst_of_n(logp, order, 2).exp(), row(0.04, 0.51, 0.45))


def test_ties_by_hand_in_both_conventions() -> None:
    # Rewards 1, 1, 0 with 0.2, 0.3, 0.5. The upper class has 1 - .5^2 = .75 of two draws, shared 2
    # : 3.
    logp, rewards = row(0.2, 0.3, 0.5).log(), row(1, 1, 0)
    assert_close(best_of_n(logp, RewardOrder.of(rewards), 2).exp(), row(0.3, 0.45, 0.25))
    # In strict order the first response is above the second: 1 - .8^2, .8^2 - .5^2, .5^2.
    assert_close(
        best_of_n(logp, RewardOrder.of(rewards, break_ties=True), 2).exp(), row(0.36, 0.39, 0.25)
    )
    # The worst: 1 - .5^2 for the third, then .5^2 - .2^2 for the second.
    assert_close(
        worst_of_n(logp, RewardOrder.of(rewards, break_ties=True), 2).exp(), row(0.04, 0.21, 0.75)
    )


@settings(max_examples=30, deadline=None)
@given(policies, st.integers(1, 3))
def test_equals_the_enumeration_of_all_draws(responses: list[tuple[float, float]], n: int) -> None:
    rewards, policy = split(responses)
    for break_ties in (False, True):
        order = RewardOrder.of(rewards, break_ties=break_ties)
        assert_close(
            best_of_n(policy.log(), order, n).exp(),
            enumerated(rewards, policy, n, break_ties=break_ties),
        )
        assert_close(
            worst_of_n(policy.log(), order, n).exp(),
            enumerated(rewards, policy, n, worst=True, break_ties=break_ties),
        )


@settings(max_examples=40, deadline=None)
@given(policies, st.integers(1, 12))
def test_equals_theorem_1_with_and_without_ties(
    responses: list[tuple[float, float]], n: int
) -> None:
    rewards, policy = split(responses)
    assert_close(
        best_of_n(policy.log(), RewardOrder.of(rewards), n).exp(),
        theorem_1(rewards, policy, n),
        atol=1e-14,
    )
    # the same order, ties broken by index
    strict = torch.tensor([[rewards[0, y] * 8 - y for y in range(4)]])
    assert_close(
        best_of_n(policy.log(), RewardOrder.of(rewards, break_ties=True), n).exp(),
        theorem_1(strict, policy, n),
        atol=1e-14,
    )


@settings(max_examples=40, deadline=None)
@given(policies, st.floats(0.1, 50))
def test_any_positive_n_gives_a_law(responses: list[tuple[float, float]], n: float) -> None:
    rewards, policy = split(responses)
    for law in (best_of_n, worst_of_n):
        assert_close(
            law(policy.log(), RewardOrder.of(rewards), n).logsumexp(-1),
            torch.zeros(1, dtype=torch.float64),
        )


def test_best_of_n_twice_is_best_of_n_squared() -> None:
    logp, order = row(0.1, 0.2, 0.4, 0.3).log(), RewardOrder.of(row(2, 1, 2, 5))
    assert_close(best_of_n(best_of_n(logp, order, 2.5), order, 4), best_of_n(logp, order, 10))
    assert_close(best_of_n(logp, order, 1), logp)


def test_prompts_do_not_meet() -> None:
    logp, rewards = row(0.2, 0.3, 0.5).log(), row(1, 1, 0)
    both = best_of_n(torch.cat([logp, logp]), RewardOrder.of(torch.cat([rewards, -rewards])), 3)
    assert_close(
        both,
        torch.cat(
            [
                best_of_n(logp, RewardOrder.of(rewards), 3),
                worst_of_n(logp, RewardOrder.of(rewards), 3),
            ]
        ),
    )


def test_tiny_masses_keep_their_digits() -> None:
    # With mass e^-200 just below the top, p_<=^n - p_<^n is n times it, and the upper end of the
    # scale still sums to one.
    logp = torch.tensor([[math.log(0.5), -200.0, math.log(0.5)]], dtype=torch.float64)
    law = best_of_n(logp, RewardOrder.of(row(2, 1, 0)), 3)
    assert_close(
        law,
        torch.tensor(
            [[math.log(7 / 8), math.log(3 / 4) - 200, math.log(1 / 8)]], dtype=torch.float64
        ),
    )
    # Best of 1000 of a response of mass e^-30 at the bottom: e^-30000, far below the smallest
    # float64.
    low = best_of_n(
        torch.tensor([[-30.0, math.log1p(-math.exp(-30))]], dtype=torch.float64),
        RewardOrder.of(row(0, 1)),
        1000,
    )
    assert_close(low, row(-30_000, 0), atol=1e-9)


def test_an_impossible_response_stays_impossible_and_shifts_nothing() -> None:
    logp, rewards = row(0.2, 0.3, 0.5).log(), row(1, 1, 0)
    for padding in (-9.0, 1.0, 9.0):
        padded = torch.cat([logp, row(-math.inf)], -1)
        for n in (0.5, 1, 4):
            for law in (best_of_n, worst_of_n):
                actual = law(padded, RewardOrder.of(torch.cat([rewards, row(padding)], -1)), n)
                assert actual[0, 3] == -math.inf
                assert_close(actual[:, :3], law(logp, RewardOrder.of(rewards), n))


def test_finite_kl_below_the_closed_form() -> None:
    # MATH 0.4: p = (.1, .2, .4, .3), n = 8 has the KL .966; without ties and masses it would be log
    # 8 - 7/8 = 1.204.
    logp = row(0.1, 0.2, 0.4, 0.3).log()
    best = best_of_n(logp, RewardOrder.of(row(0, 1, 2, 3)), 8)
    assert float((best.exp() * (best - logp)).sum()) == pytest.approx(0.966, abs=5e-4)
    assert best_of_n_figures(8).kl == pytest.approx(1.2044, abs=5e-5)


@pytest.mark.parametrize("n", [0, -1, math.nan])
def test_best_of_nothing_is_refused(n: float) -> None:
    with pytest.raises(InputError, match="n must be positive"):
        best_of_n(row(0.5, 0.5).log(), RewardOrder.of(row(0, 1)), n)


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="prompt 0, response 1 has the reward NaN"):
        RewardOrder.of(row(0, math.nan))
    with pytest.raises(InputError, match="prompt 0, response 0 has the reward NaN"):
        quantiles(row(1), row(math.nan), "smoothed")


# ----------------------------------------------------------------------- rewards of BOND and J-BOND


@settings(max_examples=40, deadline=None)
@given(policies, st.integers(2, 9))
def test_the_bond_reward_tilts_to_best_of_n(responses: list[tuple[float, float]], n: int) -> None:
    # BOND eq. 8: pi exp(r (n - 1)) is best of n, without a normalizer; its second term lies in [0,
    # log(n) / (n - 1)].
    rewards, policy = split(responses)
    order = RewardOrder.of(rewards)
    reward = bond_reward(policy.log(), order, n)
    assert_close(policy.log() + (n - 1) * reward, best_of_n(policy.log(), order, n))
    excess = reward - order.log_cdf(policy.log())
    assert (excess >= -1e-12).all()
    assert (excess <= math.log(n) / (n - 1) + 1e-12).all()


def test_the_bond_reward_by_hand() -> None:
    # Two responses of one half, n = 2. Worst: log(1/2) + log 1. Best: log 1 + log(1 + 1/2).
    assert_close(
        bond_reward(row(0.5, 0.5).log(), RewardOrder.of(row(0, 1)), 2),
        row(math.log(0.5), math.log(1.5)),
    )


def test_the_jbond_reward_is_strict_and_calibrated_at_the_median() -> None:
    # Anchors 2 and 5: only a reward strictly below both is punished.
    assert_close(jbond_reward(row(1, 2, 3, 6), row(5, 2)), row(-math.log(16), 0, 0, 0))
    # A response at the median: each anchor is above it with probability 1/2, so E r_J = -log(16) /
    # 4 = log(1/2).
    anchors = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
    rewards = torch.zeros(4, 1, dtype=torch.float64)
    assert float(jbond_reward(rewards, anchors).mean()) == pytest.approx(math.log(0.5))


# ------------------------------------------------------------------------------------- closed forms


def test_numbers_of_the_table() -> None:
    """MATH 0.4, checked there to these digits."""
    best = [best_of_n_figures(n) for n in (2, 4, 8, 16)]
    assert [figures.win_rate for figures in best] == pytest.approx(
        [0.6667, 0.8, 0.8889, 0.9412], abs=5e-5
    )
    assert [figures.kl for figures in best] == pytest.approx(
        [0.1931, 0.6363, 1.2044, 1.8351], abs=5e-5
    )
    wind = [wind_figures(beta) for beta in (1, 0.5, 0.2, 0.1)]
    assert [figures.win_rate for figures in wind] == pytest.approx(
        [0.5820, 0.6565, 0.8068, 0.9000], abs=5e-5
    )
    assert [figures.kl for figures in wind] == pytest.approx(
        [0.0413, 0.1614, 0.8838, 2.697], abs=5e-4
    )
    assert tilt_figures(10).kl == pytest.approx(1.30, abs=5e-3)
    assert best_of_n_figures(9).kl == pytest.approx(1.31, abs=5e-3)


@pytest.mark.parametrize("beta", [0.15, 0.3, 1.0, 30.0])
def test_closed_forms_are_the_integrals_of_their_densities(beta: float) -> None:
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    c = -math.expm1(-1 / beta)
    densities = {
        best_of_n_figures(1 + 1 / beta): (1 + 1 / beta) * u ** (1 / beta),
        tilt_figures(1 / beta): (u / beta).exp() / (beta * math.expm1(1 / beta)),
        wind_figures(beta): beta * c / (1 - c * u),
    }
    for figures, density in densities.items():
        assert float(density.mean()) == pytest.approx(1, abs=1e-6)
        assert figures.win_rate == pytest.approx(float((density * u).mean()), abs=1e-6)
        assert figures.kl == pytest.approx(
            float((density * density.log()).mean()), rel=1e-4, abs=1e-8
        )


def test_series_meet_the_closed_forms() -> None:
    for figures in (tilt_figures, lambda x: wind_figures(1 / x)):
        below, above = figures(0.01 * (1 - 1e-9)), figures(0.01 * (1 + 1e-9))
        assert below.win_rate == pytest.approx(above.win_rate, abs=1e-11)
        assert below.kl == pytest.approx(above.kl, abs=1e-13)


def test_wind_and_tilt_win_alike_but_wind_pays_more() -> None:
    for beta in (0.05, 0.3, 1.0, 7.0):
        assert wind_figures(beta).win_rate == pytest.approx(tilt_figures(1 / beta).win_rate)
        assert wind_figures(beta).kl > tilt_figures(1 / beta).kl


@pytest.mark.parametrize("n", [2, 3.5, 8])
def test_many_responses_approach_the_closed_form(n: float) -> None:
    responses = 4000
    logp = torch.full((1, responses), -math.log(responses), dtype=torch.float64)
    rewards = torch.randperm(responses, generator=torch.Generator().manual_seed(0)).to(
        torch.float64
    )[None]
    best = best_of_n(logp, RewardOrder.of(rewards), n)
    assert float((best.exp() * (rewards + 0.5)).sum() / responses) == pytest.approx(
        best_of_n_figures(n).win_rate, abs=1e-3
    )
    assert float((best.exp() * (best - logp)).sum()) == pytest.approx(
        best_of_n_figures(n).kl, abs=5e-3
    )


# --------------------------------------------------------------------------------------- estimators


def test_weights_by_hand() -> None:
    # Best of 2 of 4 samples, ranks 1..4: C(k-1, 1) / C(4, 2) = 0, 1/6, 2/6, 3/6; worst is the
    # mirror.
    assert_close(best_of_n_weights(row(7, 5, 9, 6), 2), row(2, 0, 3, 1) / 6)
    assert_close(worst_of_n_weights(row(7, 5, 9, 6), 2), row(1, 3, 0, 2) / 6)
    # The upper two tie: they share 2/6 + 3/6.
    assert_close(best_of_n_weights(row(7, 5, 7, 6), 2), row(2.5, 0, 2.5, 1) / 6)
    # The lower two tie and share 0 + 1/6.
    assert_close(best_of_n_weights(row(5, 5, 9, 6), 2), row(0.5, 0.5, 3, 2) / 6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=6), st.data())
def test_weights_equal_a_loop_over_all_subsets(rewards: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    for weights, choose in ((best_of_n_weights, max), (worst_of_n_weights, min)):
        expected = [0.0] * len(rewards)
        subsets = list(itertools.combinations(range(len(rewards)), n))
        for subset in subsets:
            chosen = [i for i in subset if rewards[i] == choose(rewards[j] for j in subset)]
            for i in chosen:
                expected[i] += 1 / len(chosen) / len(subsets)
        assert_close(weights(row(*rewards), n), row(*expected))


def test_weights_are_unbiased() -> None:
    # The mean of the estimate over every 4-tuple of draws is the expectation under best of 2, ties
    # included.
    rewards, policy = row(1, 0, 1), row(0.2, 0.5, 0.3)
    tuples = torch.tensor(list(itertools.product(range(3), repeat=4)))
    f = row(3, -1, 10)
    estimates = (best_of_n_weights(rewards[0, tuples], 2) * f[0, tuples]).sum(-1)
    mean = (policy[0, tuples].prod(-1) * estimates).sum()
    assert_close(mean, (best_of_n(policy.log(), RewardOrder.of(rewards), 2).exp() * f).sum())


def test_weights_of_very_many_samples() -> None:
    samples, n = 200_000, 1000
    weights = best_of_n_weights(torch.arange(samples)[None], n)[0]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-11)
    assert float(weights[-1]) == pytest.approx(n / samples, rel=1e-12)
    assert float(weights[n - 1]) == 0  # 1 / C(N, n), about e^-6300
    assert float(weights[: n - 1].abs().max()) == 0


def test_weights_times_expected_quantiles_give_the_win_rate() -> None:
    """MATH 8.11: the sample of rank k of N stands at the quantile k / (N + 1) on average; hence n /
    (n + 1) for best of n.
    """
    for samples, n in ((5, 1), (5, 3), (12, 12)):
        ranks = torch.arange(1, samples + 1, dtype=torch.float64)[None]
        assert float((best_of_n_weights(ranks, n) * ranks).sum()) / (samples + 1) == pytest.approx(
            n / (n + 1)
        )
        assert float((worst_of_n_weights(ranks, n) * ranks).sum()) / (samples + 1) == pytest.approx(
            1 / (n + 1)
        )


def test_expected_quantile_of_a_rank() -> None:
    draws = (
        torch.rand(100_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        .sort()
        .values
    )
    # the standard error is 6e-4
    assert_close(draws.mean(0), torch.arange(1, 6, dtype=torch.float64) / 6, atol=3e-3)


@pytest.mark.parametrize("n", [0, 4])
def test_best_of_more_than_all_samples_is_refused(n: int) -> None:
    with pytest.raises(InputError, match="from 3 samples"):
        best_of_n_weights(row(1, 2, 3), n)


def test_quantiles_by_hand() -> None:
    # Against 1, 2, 2, 5: reward 0 has W, T = 0, 0; 2 has 1, 2; 3 has 3, 0; 5 has 3, 1.
    rewards, others = row(0, 2, 3, 5), row(2, 5, 1, 2)
    assert_close(quantiles(rewards, others, "monte_carlo"), row(0, 3, 3, 4) / 4)
    assert_close(quantiles(rewards, others, "smoothed"), row(1, 2, 4, 4) / 5)
    assert_close(quantiles(rewards, others, "half_ties"), row(0.5, 2.5, 3.5, 4) / 5)


def test_quantiles_of_prompts_do_not_meet() -> None:
    rewards, others = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert_close(
        quantiles(rewards, others, "monte_carlo"), torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    )


def test_monte_carlo_quantiles_are_unbiased() -> None:
    # Over all pairs of draws of the policy (.2, .5, .3) with rewards 1, 0, 1: p_<= = 1, .5, 1.
    rewards, policy = row(1, 0, 1), row(0.2, 0.5, 0.3)
    pairs = torch.tensor(list(itertools.product(range(3), repeat=2)))
    estimates = quantiles(rewards.expand(9, 3), rewards[0, pairs], "monte_carlo")
    assert_close((policy[0, pairs].prod(-1)[:, None] * estimates).sum(0), row(1, 0.5, 1)[0])
    assert_close(RewardOrder.of(rewards).log_cdf(policy.log()).exp(), row(1, 0.5, 1))


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(InputError, match="use monte_carlo, smoothed or half_ties"):
        quantiles(row(1), row(1), "exact")
