"""Solutions of games of every kind.

The closed forms that they approach, and the rates and bounds of MATH 2.5, 2.10 and 2.11.
"""

import itertools
import math

import pytest
import torch

from tests.wind.exact_case import (
    ROCK_PAPER_SCISSORS,
    assert_close,
    constant_sum,
    random_game,
    random_policy,
    random_rewards,
    row,
    seeded,
    uniform,
)
from wind.best_of_n import wind_figures
from wind.errors import InputError
from wind.games import (
    MatrixPreferences,
    Preferences,
    RewardPreferences,
    duality_gap,
    kl,
    residual,
    solve,
    wind_update,
)

# ---------------------------------------------------------------------------------------- solutions


def test_two_responses_by_hand() -> None:
    # Rewards 1, 0, uniform reference: the odds are exp((P*(good) - P*(bad)) / beta) = exp(1 / (2
    # beta)), whatever pi is.
    for beta in (0.05, 0.5, 3.0):
        solution = solve(uniform(1, 2), RewardPreferences.of(row(1, 0)), beta=beta)
        assert_close(
            solution[:, 0] - solution[:, 1],
            torch.tensor([1 / (2 * beta)], dtype=torch.float64),
            atol=1e-10,
        )


def test_rock_paper_scissors_is_solved_by_the_uniform_policy() -> None:
    game = MatrixPreferences(ROCK_PAPER_SCISSORS)
    for beta in (1e-3, 0.1, 10.0):
        assert_close(solve(uniform(1, 3), game, beta=beta), uniform(1, 3))
    # From a reference away from it the solution tends to the von Neumann winner as beta does to
    # zero.
    assert_close(
        solve(row(0.7, 0.2, 0.1).log(), game, beta=1e-3).exp(), uniform(1, 3).exp(), atol=5e-3
    )


def games_of_every_kind() -> dict[str, tuple[torch.Tensor, Preferences]]:
    random = torch.rand(20, 12, 12, dtype=torch.float64, generator=seeded(0))
    ref = random_policy(1, 20, 12, spread=2)
    return {
        "non-transitive": (ref, constant_sum(random)),
        "deterministic": (ref, constant_sum((random < 0.5).to(torch.float64))),
        "nearly indifferent": (ref, constant_sum(0.5 + 1e-9 * (random - 0.5))),
        "ordered": (ref, RewardPreferences.of(torch.randn(20, 12, generator=seeded(2)))),
        "tied": (ref, RewardPreferences.of(random_rewards(3, 20, 12, levels=2))),
        "all tied": (ref, RewardPreferences.of(torch.zeros(20, 12))),
        "best response nearly impossible": (
            ref * 40 - (ref * 40).logsumexp(-1, keepdim=True),
            constant_sum(random),
        ),
        "one response": (uniform(20, 1), RewardPreferences.of(torch.zeros(20, 1))),
    }


@pytest.mark.parametrize("kind", list(games_of_every_kind()))
@pytest.mark.parametrize("beta", [1e-3, 0.01, 0.1, 1.0, 50.0])
def test_every_game_is_solved(kind: str, beta: float) -> None:
    ref, preferences = games_of_every_kind()[kind]
    solution = solve(ref, preferences, beta=beta)
    # (2.3a), literally
    image = (ref + preferences.win_rates(solution.exp()) / beta).log_softmax(-1)
    assert_close(solution, image, atol=1e-10)
    assert (residual(solution, ref, preferences, beta=beta) < 1e-10).all()
    assert (duality_gap(solution, ref, preferences, beta=beta) < 1e-12).all()
    for eta in (beta, 4 * beta, math.inf):  # MATH 8.2: the update keeps the solution
        assert_close(
            wind_update(solution, ref, preferences, beta=beta, eta=eta), solution, atol=1e-10
        )


def test_solutions_do_not_depend_on_how_prompts_are_batched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref, rewards = random_policy(0, 7, 5), random_rewards(1, 7, 5, levels=3)
    whole = solve(ref, RewardPreferences.of(rewards), beta=0.05)
    assert_close(
        whole, solve(ref, MatrixPreferences(RewardPreferences.of(rewards).matrix()), beta=0.05)
    )
    monkeypatch.setattr(
        "wind.games.solutions.BLOCK", 2 * 5 * 5
    )  # two prompts at once, and a last one
    assert_close(solve(ref, RewardPreferences.of(rewards), beta=0.05), whole, atol=1e-11)


def test_the_residual_sees_one_wrong_prompt() -> None:
    ref, game = random_policy(0, 3, 4), random_game(1, 3, 4)
    wrong = solve(ref, game, beta=0.5)
    wrong[1] = ref[1]
    distances = residual(wrong, ref, game, beta=0.5)
    expected = ref[1] - (ref[1] + game.values[1] @ ref[1].exp() / 0.5).log_softmax(-1)
    assert float(distances[1]) == pytest.approx(float(expected.abs().max()))
    assert distances[1] > 1e-2
    assert (distances[[0, 2]] < 1e-10).all()


@pytest.mark.parametrize(
    ("beta", "win_rates"), [(0.2, (0.80719, 0.80682, 0.80678)), (0.1, (0.91758, 0.90357, 0.90015))]
)
def test_many_responses_approach_the_closed_form(beta: float, win_rates: tuple[float, ...]) -> None:
    """MATH 2.10: 50, 200 and 2000 responses, uniform reference, strict order."""
    for responses, expected in zip((50, 200, 2000), win_rates, strict=True):
        ref, preferences = (
            uniform(1, responses),
            RewardPreferences.of(torch.arange(responses)[None]),
        )
        if responses < 1000:
            solution = solve(ref, preferences, beta=beta)
        else:
            # a Newton step on 2000 x 2000 takes seconds: mirror steps, from the density of the
            # limit
            quantile = (torch.arange(responses, dtype=torch.float64) + 0.5)[None] / responses
            solution = (-(1 + math.expm1(-1 / beta) * quantile).log()).log_softmax(-1)
            for _ in range(1000):
                solution = wind_update(solution, ref, preferences, beta=beta, eta=4 * beta)
        win_rate = float((solution.exp() * preferences.win_rates(ref.exp())).sum())
        assert win_rate == pytest.approx(expected, abs=6e-6)
    assert win_rate == pytest.approx(wind_figures(beta).win_rate, abs=1.5e-4)
    assert float(kl(solution, ref)) == pytest.approx(wind_figures(beta).kl, abs=5e-3)


def test_large_beta_reaches_the_closed_form_with_few_responses() -> None:
    for beta in (0.5, 1.0, 4.0):
        ref, preferences = uniform(1, 50), RewardPreferences.of(torch.arange(50)[None])
        solution = solve(ref, preferences, beta=beta)
        win_rate = float((solution.exp() * preferences.win_rates(ref.exp())).sum())
        assert win_rate == pytest.approx(wind_figures(beta).win_rate, abs=1e-4)


def test_unsolvable_games_are_refused() -> None:
    ref = uniform(3, 2)
    with pytest.raises(InputError, match="use beta > 0"):
        solve(ref, RewardPreferences.of(torch.zeros(3, 2)), beta=0)
    with pytest.raises(InputError, match="prompt 0 are not constant-sum"):
        solve(ref, RewardPreferences.of(torch.zeros(3, 2), inclusive=True), beta=1)
    values = torch.full((3, 2, 2), 0.5, dtype=torch.float64)
    values[2, 0, 1] = 0.9
    with pytest.raises(InputError, match="prompt 2 are not constant-sum"):
        solve(ref, MatrixPreferences(values), beta=1)
    with pytest.raises(InputError, match="too small for float64"):
        solve(random_policy(0, 3, 5), random_game(0, 3, 5), beta=1e-13)


# --------------------------------------------------------------------------------- rates and bounds


@pytest.mark.parametrize("multiple", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])
def test_the_update_contracts(beta: float, multiple: float) -> None:
    """MATH 2.5, on 200 random constant-sum games: KL(pi* || pi) shrinks by 1 / (1 + beta eta) or
    more at eta <= 4 beta.
    """
    random = torch.rand(200, 6, 6, dtype=torch.float64, generator=seeded(0))
    random[100:] = random[100:].round()  # deterministic preferences are the hardest
    game, ref, eta = constant_sum(random), random_policy(1, 200, 6, spread=1.5), multiple * beta
    solution, logp = solve(ref, game, beta=beta), ref
    before = kl(solution, logp)
    for _ in range(30):
        logp = wind_update(logp, ref, game, beta=beta, eta=eta)
        after = kl(solution, logp)
        assert (after <= before / (1 + beta * eta) + 1e-13).all()
        before = after


def test_steps_beyond_the_proven_ones_may_fail() -> None:
    """MATH 8.2. Around the mixed solution of rock-paper-scissors large steps spiral outward."""
    ref, game = row(0.5, 0.3, 0.2).log(), MatrixPreferences(ROCK_PAPER_SCISSORS)
    solution, logp = solve(ref, game, beta=0.05), ref
    for _ in range(50):
        logp = wind_update(logp, ref, game, beta=0.05, eta=50)
    assert float(kl(solution, logp)) > float(kl(solution, ref))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_duality_gap(beta: float) -> None:
    """MATH 2.10: its formula; >= 0; half of max_p J(p, pi) - min_q J(pi, q) for J = <p, P q> - beta
    KL(p) + beta KL(q).
    """
    ref, game = random_policy(0, 50, 5), random_game(1, 50, 5)
    for pi in (ref, random_policy(2, 50, 5, spread=3), solve(ref, game, beta=beta)):
        policy = pi.exp()
        wins, loses = game.values @ policy[..., None], game.values.mT @ policy[..., None]
        own = (policy * wins[..., 0]).sum(-1) - beta * kl(pi, ref)
        gap = duality_gap(pi, ref, game, beta=beta)
        assert_close(gap, beta * (ref + wins[..., 0] / beta).logsumexp(-1) - own)
        assert (gap >= 0).all()
        best = beta * (ref + wins[..., 0] / beta).logsumexp(-1) + beta * kl(pi, ref)
        worst = -beta * (ref - loses[..., 0] / beta).logsumexp(-1) - beta * kl(pi, ref)
        assert_close(gap, (best - worst) / 2)
    assert (gap < 1e-12).all()  # of the solution, the last


def test_the_duality_gap_by_hand() -> None:
    # Uniform pi = pi_ref, rewards 1, 0, beta 1: log((e^(3/4) + e^(1/4)) / 2) - 1/2.
    gap = duality_gap(uniform(1, 2), uniform(1, 2), RewardPreferences.of(row(1, 0)), beta=1)
    assert float(gap) == pytest.approx(math.log((math.exp(0.75) + math.exp(0.25)) / 2) - 0.5)


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2, 0), q = (1/4, 1/2, 1/4): log(2) / 2. The other way a response that p does not
    # give costs inf.
    p, q = row(0.5, 0.5, 0).log(), row(0.25, 0.5, 0.25).log()
    assert float(kl(p, q)) == pytest.approx(math.log(2) / 2)
    assert float(kl(q, p)) == math.inf
    assert float(kl(p, p)) == 0


@pytest.mark.parametrize(
    ("beta", "multiple", "delta"), list(itertools.product([0.1, 0.5], [1.0, 4.0], [0.01, 0.2]))
)
def test_errors_of_the_fit_propagate_no_further_than_the_bound(
    beta: float, multiple: float, delta: float
) -> None:
    """MATH 2.11: a log-probability error eps = eta delta / (1 + beta eta) adds at most 2 eps; in
    the end 2 delta / beta.
    """
    eta = multiple * beta
    eps = eta * delta / (1 + beta * eta)
    ref, game, generator = random_policy(0, 40, 5), random_game(1, 40, 5), seeded(2)
    solution, logp = solve(ref, game, beta=beta), ref
    for _ in range(60):
        before = kl(solution, logp)
        error = eps * torch.randint(0, 2, logp.shape, generator=generator).mul(2).sub(1)
        logp = (wind_update(logp, ref, game, beta=beta, eta=eta) + error).log_softmax(-1)
        assert (kl(solution, logp) <= before / (1 + beta * eta) + 2 * eps).all()
    assert (
        kl(solution, logp) <= kl(solution, ref) / (1 + beta * eta) ** 60 + 2 * delta / beta
    ).all()


def test_a_reference_too_coarse_to_solve_for_is_refused_by_its_dtype() -> None:
    with pytest.raises(
        InputError,
        match=r"ref_P_Y is torch\.float32, too coarse for a solution to 1e-11 nats: pass ref",
    ):
        solve(uniform(1, 2).float(), RewardPreferences.of(row(1, 0)), beta=0.5)


@pytest.mark.parametrize(
    ("beta", "eta"),
    [(0.0, math.inf), (-1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (math.inf, 1.0)],
)
def test_an_update_that_does_not_exist_is_refused(beta: float, eta: float) -> None:
    with pytest.raises(InputError, match="beta"):
        wind_update(
            uniform(1, 2), uniform(1, 2), RewardPreferences.of(row(1, 0)), beta=beta, eta=eta
        )
