"""Preferences and the exact updates: numbers by hand and the identities of MATH 2, 5 and 6."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wind.exact_case import (
    ROCK_PAPER_SCISSORS,
    assert_close,
    random_game,
    random_policy,
    random_rewards,
    row,
    seeded,
    uniform,
)
from wind.best_of_n import RewardOrder, best_of_n, best_of_n_figures
from wind.errors import InputError
from wind.games import (
    MatrixPreferences,
    RewardPreferences,
    duality_gap,
    inpo_update,
    is_constant_sum,
    kl,
    log_win_rate_update,
    mixed_best_of_n,
    mixed_exponent,
    mixing_strengths,
    nash_md_update,
    solve,
    sppo_update,
    wind_update,
)

# -------------------------------------------------------------------------------------- preferences


def test_preferences_of_rewards_by_hand() -> None:
    # Rewards 1, 3, 1 with 0.2, 0.3, 0.5: the tied class has 0.7, so wins are .35, .7 + .15, .35;
    # inclusive .7, 1, .7.
    policy, rewards = row(0.2, 0.3, 0.5), row(1, 3, 1)
    assert_close(RewardPreferences.of(rewards).win_rates(policy), row(0.35, 0.85, 0.35))
    assert_close(RewardPreferences.of(rewards, inclusive=True).win_rates(policy), row(0.7, 1, 0.7))
    half = torch.tensor([[[0.5, 0, 0.5], [1, 0.5, 1], [0.5, 0, 0.5]]], dtype=torch.float64)
    assert_close(RewardPreferences.of(rewards).matrix(), half)
    assert_close(RewardPreferences.of(rewards, inclusive=True).matrix(), half.ceil())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12))
def test_sorted_and_dense_win_rates_agree(
    seed: int, prompts: int, responses: int, levels: int
) -> None:
    rewards = random_rewards(seed, prompts, responses, levels=levels)
    policy = random_policy(seed, prompts, responses, spread=3).exp()
    for inclusive in (False, True):
        preferences = RewardPreferences.of(rewards, inclusive=inclusive)
        compared = rewards[:, :, None] - rewards[:, None, :]
        expected = (compared > 0) + (1.0 if inclusive else 0.5) * (compared == 0)
        assert_close(preferences.matrix(), expected.to(torch.float64))
        assert_close(
            preferences.win_rates(policy), MatrixPreferences(preferences.matrix()).win_rates(policy)
        )


def test_sorted_and_dense_win_rates_agree_on_many_responses() -> None:
    rewards = torch.cat(
        [
            random_rewards(0, 3, 500, levels=20),
            torch.randn(3, 500, dtype=torch.float64, generator=seeded(1)),
        ]
    )
    policy = random_policy(2, 6, 500, spread=4).exp()
    for inclusive in (False, True):
        preferences = RewardPreferences.of(rewards, inclusive=inclusive)
        assert_close(
            preferences.win_rates(policy), MatrixPreferences(preferences.matrix()).win_rates(policy)
        )


def test_a_row_of_the_matrix_is_the_one_that_wins() -> None:
    # Paper beats rock: against a policy that always plays rock (0), paper (1) wins for sure,
    # scissors (2) never.
    assert_close(MatrixPreferences(ROCK_PAPER_SCISSORS).win_rates(row(1, 0, 0)), row(0.5, 1, 0))


def test_mean_win_rate_against_oneself_is_one_half() -> None:
    policy = random_policy(0, 5, 7)
    rewards = RewardPreferences.of(random_rewards(1, 5, 7, levels=3))
    for preferences in (random_game(2, 5, 7), rewards):
        assert_close(
            (policy.exp() * preferences.win_rates(policy.exp())).sum(-1),
            torch.full((5,), 0.5, dtype=torch.float64),
        )


def test_constant_sum_is_recognized_prompt_by_prompt() -> None:
    rewards = row(1, 3, 1)
    matrices = [
        ROCK_PAPER_SCISSORS,
        RewardPreferences.of(rewards).matrix(),
        RewardPreferences.of(rewards, inclusive=True).matrix(),
    ]
    tilted = ROCK_PAPER_SCISSORS.clone()
    tilted[0, 0, 1] = 0.01
    assert is_constant_sum(torch.cat([*matrices, tilted])).tolist() == [True, True, False, False]


def test_what_is_no_preference_is_refused() -> None:
    with pytest.raises(InputError, match="square"):
        MatrixPreferences(torch.zeros(2, 3, 4))
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="not a probability"):
            MatrixPreferences(torch.full((1, 2, 2), wrong))


# ------------------------------------------------------------------------------------------ updates


def test_the_wind_update_by_hand() -> None:
    # beta 1/2, eta 2: lam = 1/2, gain 1. From pi = (1/2, 1/2), pi_ref = (1/5, 4/5), rewards 1, 0:
    # win rates 3/4, 1/4.
    pi, ref = row(0.5, 0.5).log(), row(0.2, 0.8).log()
    weights = row(math.sqrt(0.5 * 0.2) * math.exp(0.75), math.sqrt(0.5 * 0.8) * math.exp(0.25))
    updated = wind_update(pi, ref, RewardPreferences.of(row(1, 0)), beta=0.5, eta=2)
    assert_close(updated.exp(), weights / weights.sum())


def test_the_wind_update_is_the_optimum_of_its_step() -> None:
    # MATH 2.4: <pi, P_t> - beta KL(pi || pi_ref) - KL(pi || pi_t) / eta, against many perturbations
    # of the update.
    pi, ref, preferences, beta, eta = (
        random_policy(0, 1, 4),
        random_policy(1, 1, 4),
        random_game(2, 1, 4),
        0.3,
        0.7,
    )

    def objective(logp: torch.Tensor) -> torch.Tensor:
        wins = (logp.exp() * preferences.win_rates(pi.exp())).sum(-1)
        return wins - beta * kl(logp, ref.expand_as(logp)) - kl(logp, pi.expand_as(logp)) / eta

    best = wind_update(pi, ref, preferences, beta=beta, eta=eta)
    others = (
        best + 0.01 * torch.randn(500, 4, dtype=torch.float64, generator=seeded(3))
    ).log_softmax(-1)
    assert (objective(others) < objective(best)).all()


def test_sppo_is_wind_without_regularization() -> None:
    pi, ref, game = random_policy(0, 3, 5), random_policy(1, 3, 5), random_game(2, 3, 5)
    updated = sppo_update(pi, game, eta=1.5)
    assert_close(updated, wind_update(pi, ref, game, beta=0, eta=1.5))
    weights = pi.exp() * (1.5 * (game.values * pi.exp()[:, None, :]).sum(-1)).exp()
    assert_close(updated.exp(), weights / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize(("beta", "eta"), [(0.01, 3.0), (0.5, 2.0), (2.0, 100.0)])
def test_inpo_is_wind_under_other_names(beta: float, eta: float) -> None:
    """MATH 5.2: tau = beta and INPO's eta = beta + 1/eta."""
    pi, ref, game = (
        random_policy(0, 20, 6, spread=2),
        random_policy(1, 20, 6, spread=2),
        random_game(2, 20, 6),
    )
    assert_close(
        inpo_update(pi, ref, game, tau=beta, eta=beta + 1 / eta),
        wind_update(pi, ref, game, beta=beta, eta=eta),
    )


def test_inpo_by_hand() -> None:
    # tau = 1, eta = 4: pi^(3/4) pi_ref^(1/4) exp(P / 4), with win rates 3/4 and 1/4.
    weights = row(
        0.5**0.75 * 0.2**0.25 * math.exp(0.75 / 4), 0.5**0.75 * 0.8**0.25 * math.exp(0.25 / 4)
    )
    updated = inpo_update(
        row(0.5, 0.5).log(), row(0.2, 0.8).log(), RewardPreferences.of(row(1, 0)), tau=1, eta=4
    )
    assert_close(updated.exp(), weights / weights.sum())


def test_nash_md_by_hand() -> None:
    # eta beta = 1/2: the mixture of (1, 1, 1) / 3 and (1, 4, 1) / 6 is (1, 2, 1) / 4; win rates
    # 7/8, 1/2, 1/8 against it.
    weights = row(math.exp(2 * 7 / 8), 2 * math.exp(2 * 1 / 2), math.exp(2 * 1 / 8))
    ref = (row(1, 4, 1) / 6).log()
    updated = nash_md_update(
        uniform(1, 3), ref, RewardPreferences.of(row(2, 1, 0)), beta=0.25, eta=2
    )
    assert_close(updated.exp(), weights / weights.sum())


def test_nash_md_approaches_the_solution_with_small_steps() -> None:
    ref, game, beta = random_policy(0, 4, 5), random_game(1, 4, 5), 0.5
    solution = solve(ref, game, beta=beta)
    distances = []
    for eta in (0.2, 0.02):
        logp = ref
        for _ in range(int(40 / eta)):
            logp = nash_md_update(logp, ref, game, beta=beta, eta=eta)
        distances.append(float((logp - solution).abs().max()))
    assert distances[0] < 0.1
    assert distances[1] < distances[0] / 8  # of first order in eta


def test_a_response_that_is_never_given_changes_nothing() -> None:
    pi, ref, rewards = row(0.3, 0.2, 0.5).log(), row(0.2, 0.5, 0.3).log(), row(1, 0, 1)
    never = row(-math.inf)
    wide_pi, wide_ref, wide_rewards = (
        torch.cat(pair, -1) for pair in ((pi, never), (ref, never), (rewards, row(0.5)))
    )
    narrow, wide = RewardPreferences.of(rewards), RewardPreferences.of(wide_rewards)
    updates: list[Callable[[torch.Tensor, torch.Tensor, RewardPreferences], torch.Tensor]] = [
        lambda pi, ref, game: wind_update(pi, ref, game, beta=0.5, eta=1),
        lambda pi, ref, game: wind_update(pi, ref, game, beta=0.5, eta=math.inf),
        lambda pi, ref, game: wind_update(pi, ref, game, beta=0, eta=1),
        lambda pi, ref, game: sppo_update(pi, game, eta=1),
        lambda pi, ref, game: nash_md_update(pi, ref, game, beta=0.5, eta=1),
        lambda pi, ref, game: mixed_best_of_n(pi, ref, game.order, n=2, a1=1, a2=0),
        lambda pi, ref, game: log_win_rate_update(pi, ref, game.order, beta=2, eta=1),
        lambda pi, ref, game: solve(ref, game, beta=0.1),
    ]
    for update in updates:
        actual = update(wide_pi, wide_ref, wide)
        assert actual[0, 3] == -math.inf
        assert_close(actual[:, :3], update(pi, ref, narrow))
    assert_close(
        duality_gap(wide_pi, wide_ref, wide, beta=0.5), duality_gap(pi, ref, narrow, beta=0.5)
    )


# ------------------------------------------------------------------------------ iterative best of n


def test_mixed_best_of_n_by_hand() -> None:
    # Best of 2 of (1/2, 1/2) with rewards 1, 0 is (3/4, 1/4). a1 = 1/2, a2 = 1/4 leaves 1/4 for pi.
    weights = row(0.75**0.5 * 0.5**0.25 * 0.2**0.25, 0.25**0.5 * 0.5**0.25 * 0.8**0.25)
    updated = mixed_best_of_n(
        row(0.5, 0.5).log(), row(0.2, 0.8).log(), RewardOrder.of(row(1, 0)), n=2, a1=0.5, a2=0.25
    )
    assert_close(updated.exp(), weights / weights.sum())


def test_without_mixing_exponents_multiply() -> None:
    """MATH 1.5: n^t, exactly, also on a finite set with ties."""
    ref, order = random_policy(0, 3, 6), RewardOrder.of(random_rewards(1, 3, 6, levels=4))
    logp = ref
    for _ in range(3):
        logp = mixed_best_of_n(logp, ref, order, n=2, a1=1, a2=0)
    assert_close(logp, best_of_n(ref, order, 8), atol=1e-11)


@pytest.mark.parametrize(
    ("n", "a1", "a2"), [(2, 1.0, 0.0), (4, 0.1, 0.5), (2, 0.3, 0.4), (3, 0.2, 0.2)]
)
def test_iterates_are_best_of_k_when_rewards_are_nearly_continuous(
    n: float, a1: float, a2: float
) -> None:
    """MATH 2.2: k <- k (a1 n + 1 - a1 - a2) + a2."""
    responses = 20_000
    ref = uniform(1, responses)
    order = RewardOrder.of(torch.arange(responses)[None])
    logp, k = ref, 1.0
    for _ in range(4):
        logp = mixed_best_of_n(logp, ref, order, n=n, a1=a1, a2=a2)
        k = mixed_exponent(k, n=n, a1=a1, a2=a2)
        assert float(kl(logp, best_of_n(ref, order, k))) < 1e-6
        # the test can tell exponents apart
        assert float(kl(logp, best_of_n(ref, order, 1.05 * k))) > 1e-4


def test_exponents_by_hand() -> None:
    # n = 2, a1 = 0.3, a2 = 0.4: k <- 0.9 k + 0.4 = 1.3, 1.57, ... -> 4 = beta / (beta - 1) with
    # beta = 4/3.
    assert mixed_exponent(1, n=2, a1=0.3, a2=0.4) == pytest.approx(1.3)
    assert mixed_exponent(1.3, n=2, a1=0.3, a2=0.4) == pytest.approx(1.57)
    assert mixed_exponent(4, n=2, a1=0.3, a2=0.4) == pytest.approx(4)
    beta = mixing_strengths(n=2, a1=0.3, a2=0.4).beta
    assert beta / (beta - 1) == pytest.approx(4)
    assert mixed_exponent(1, n=5, a1=1, a2=0) == 5


@pytest.mark.parametrize(("n", "a1", "a2"), [(2, 1.0, 0.0), (4, 0.1, 0.5), (3, 0.2, 0.2)])
def test_mixing_is_a_mirror_step_on_the_log_win_rate(n: float, a1: float, a2: float) -> None:
    """MATH 2.1: pi^(1-a2) pi_ref^a2 p_<=^((n-1) a1), and best of n up to its collision factor S^a1,
    at most n^a1.
    """
    pi, ref, order = (
        random_policy(0, 3, 6),
        random_policy(1, 3, 6),
        RewardOrder.of(random_rewards(2, 3, 6, levels=4)),
    )
    strengths = mixing_strengths(n=n, a1=a1, a2=a2)
    lam = 1 / (1 + strengths.beta * strengths.eta)
    assert (1 - lam, lam * strengths.eta) == pytest.approx((a2, (n - 1) * a1))
    updated = log_win_rate_update(pi, ref, order, beta=strengths.beta, eta=strengths.eta)
    log_upto = RewardPreferences(order, inclusive=True).win_rates(pi.exp()).log()
    assert_close(updated, ((1 - a2) * pi + a2 * ref + (n - 1) * a1 * log_upto).log_softmax(-1))
    collisions = mixed_best_of_n(pi, ref, order, n=n, a1=a1, a2=a2) - updated
    assert (collisions.amax(-1) - collisions.amin(-1) <= a1 * math.log(n) + 1e-12).all()


def test_three_fixed_points_of_the_log_win_rate_game() -> None:
    """MATH 2.2: pi_ref(bad) = 0.99, beta = 1/2. x / (1 - x) = 99 x^2 has x = 0 and x = (1 +- sqrt(1
    - 4/99)) / 2.
    """
    ref, order = row(0.99, 0.01).log(), RewardOrder.of(row(0, 1))
    root = math.sqrt(1 - 4 / 99)
    assert ((1 + root) / 2, (1 - root) / 2) == pytest.approx((0.9898, 0.0102), abs=5e-5)
    for bad in (0.0, (1 - root) / 2, (1 + root) / 2):
        fixed = row(bad, 1 - bad).log()
        assert_close(
            log_win_rate_update(fixed, ref, order, beta=0.5, eta=math.inf).exp(), fixed.exp()
        )
        assert_close(log_win_rate_update(fixed, ref, order, beta=0.5, eta=1).exp(), fixed.exp())
    elsewhere = row(0.5, 0.5).log()
    assert float(
        log_win_rate_update(elsewhere, ref, order, beta=0.5, eta=math.inf).exp()[0, 0]
    ) == pytest.approx(99 / 103)


def test_the_log_win_rate_game_ends_in_best_of_k() -> None:
    """MATH 0.4: best of beta / (beta - 1) for beta > 1; 3 for beta = 3/2. The map contracts the
    exponent by 1 / beta.
    """
    responses = 20_000
    ref, order = uniform(1, responses), RewardOrder.of(torch.arange(responses)[None])
    logp = ref
    for _ in range(40):
        logp = log_win_rate_update(logp, ref, order, beta=1.5, eta=math.inf)
    quantile = (torch.arange(responses, dtype=torch.float64) + 0.5) / responses
    assert float((logp.exp() * quantile).sum()) == pytest.approx(
        best_of_n_figures(3).win_rate, abs=1e-3
    )
    assert float(kl(logp, ref)) == pytest.approx(best_of_n_figures(3).kl, abs=5e-3)
