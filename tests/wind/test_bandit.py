"""The bandit study: instances, draws, fits, and rows.

Bandits have the difficulty they are named for, samples are judged and counted right, and fits find
what is known.
"""

from functools import partial
from itertools import pairwise, product

import pytest
import torch

from tests.wind.exact_case import ROCK_PAPER_SCISSORS, assert_close, seeded
from wind.bandit import FLOOR, exact_rows, instance_of, part_rows, parts, sampled_rows
from wind.bandit.algorithms import proven_factor, sampled_algorithms
from wind.bandit.instances import INSTANCES, RARE, Instance, cyclic, joined
from wind.bandit.sampling import Draw, draw, minimized, solved
from wind.config.bandit import BanditSection
from wind.config.objective_facts import Rows
from wind.games import is_constant_sum, wind_update
from wind.objectives import OBJECTIVES, Batch

BETA, ETA = 0.25, 1.0
TINY = BanditSection(
    prompts=2,
    responses=4,
    iterations=4,
    samples=(3,),
    visits=1,
    repeats=2,
    floor_iterations=3,
    floor_repeats=1,
    floor_prompts=(2, 4, 8),
    floor_samples=(2, 3, 4),
    floor_at_prompts=4,
    floor_at_samples=3,
)


def instance(name: str, prompts: int = 6, responses: int = 9) -> Instance:
    return INSTANCES[name](seeded(0), prompts, responses)


# ---------------------------------------------------------------------------------------- instances


@pytest.mark.parametrize("name", INSTANCES)
def test_every_instance_is_constant_sum_with_a_normalized_reference(name: str) -> None:
    game = instance(name)
    assert is_constant_sum(game.matrix).all()
    assert_close(game.ref.logsumexp(-1), torch.zeros(6, dtype=torch.float64))


def test_cycles_of_three_are_rock_paper_scissors() -> None:
    game = cyclic(seeded(0), 1, 3)
    assert_close(game.matrix, ROCK_PAPER_SCISSORS)
    assert game.order is None


@pytest.mark.parametrize("responses", [5, 8])
def test_in_a_cycle_nobody_is_best(responses: int) -> None:
    # Every response wins and loses as often as any other, and beats one that beats one that beats
    # it.
    matrix = instance("cyclic", 1, responses).matrix[0]
    assert_close(matrix.mean(-1), torch.full((responses,), 0.5, dtype=torch.float64))
    beats = (matrix > 0.5).double()
    assert ((beats @ beats @ beats).diagonal() > 0).all()


def test_each_instance_is_hard_in_its_own_way() -> None:
    off = ~torch.eye(9, dtype=torch.bool)
    tied, close, random, rare = (instance(name) for name in ("tied", "close", "random", "rare"))
    assert 0.2 < float((tied.matrix[:, off] == 0.5).double().mean()) < 0.5
    assert 0 < float((close.matrix[:, off] - 0.5).abs().max()) < 0.12
    assert set(random.matrix[:, off].flatten().tolist()) == {0.0, 1.0}
    best_P_1 = rare.scores.argmax(-1, keepdim=True)
    assert_close(rare.ref.gather(-1, best_P_1).exp(), torch.full((6, 1), RARE, dtype=torch.float64))


def test_instances_are_joined_and_repeated_end_to_end() -> None:
    first, second = instance("random"), instance("cyclic")
    both = joined([first, second]).repeated(2)
    assert_close(both.ref, torch.cat([first.ref, second.ref] * 2))
    assert both.is_rewarded.tolist() == ([True] * 6 + [False] * 6) * 2
    assert both.order is None


# ------------------------------------------------------------------------------------------ drawing


def test_a_group_is_judged_by_hand() -> None:
    # One response 2 of reward 5 among responses 0 of reward 1 and 1 of reward 5: ties count half.
    game = Instance(
        matrix=torch.tensor([[[0.5, 0, 0], [1, 0.5, 0.5], [1, 0.5, 0.5]]], dtype=torch.float64),
        ref=torch.log(torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)),
        scores=torch.tensor([[1.0, 5.0, 5.0]], dtype=torch.float64),
        is_rewarded=torch.tensor([True]),
    )
    drawn = draw(game.ref, game, seeded(3), groups=50, samples=4)
    (cell_B,), (batch,) = drawn.cells, drawn.batches
    assert set(cell_B.tolist()) == {0, 1, 2}
    for rows in cell_B.view(50, 4), batch.win_rate.view(50, 4), batch.rank.view(50, 4):
        assert rows.shape == (50, 4)
    for responses, rates, ranks in zip(
        cell_B.view(50, 4).tolist(),
        batch.win_rate.view(50, 4).tolist(),
        batch.rank.view(50, 4).tolist(),
        strict=True,
    ):
        low = responses.count(0)
        expected = [
            (low - 1) / 2 / 3 if each == 0 else (low + (3 - low) / 2) / 3 for each in responses
        ]
        assert rates == pytest.approx(expected)
        assert sorted(ranks) == [1, 2, 3, 4]
        assert all(rank > 4 - low for each, rank in zip(responses, ranks, strict=True) if each == 0)
    counting = draw(game.ref, game, seeded(3), groups=50, samples=4, self_counting=True).batches[0]
    assert_close(counting.win_rate - 0.5, 3 / 4 * (batch.win_rate - 0.5))  # MATH 0.2


def test_selected_rows_keep_what_all_of_their_group_said() -> None:
    game = instance("random")
    every = draw(game.ref, game, seeded(3), groups=5, samples=4).batches[0]
    selections: dict[Rows, list[int]] = {"best": [1], "best_worst": [1, 4]}
    for rows, ranks in selections.items():
        some = draw(game.ref, game, seeded(3), groups=5, samples=4, rows=rows).batches[0]
        chosen = torch.isin(every.rank, torch.tensor(ranks))
        assert_close(some.win_rate, every.win_rate[chosen])
        assert torch.equal(some.rank, every.rank[chosen])
        assert torch.equal(some.group, every.group[chosen])
        assert set(some.samples.tolist()) == {4}


def test_duels_are_coins_of_the_preference_and_constant_sum() -> None:
    chance = 0.8
    matrix = torch.tensor([[[0.5, chance], [1 - chance, 0.5]]], dtype=torch.float64)
    half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    game = Instance(matrix, half, torch.full((1, 2), torch.nan), torch.tensor([False]))
    drawn = draw(half, game, seeded(0), groups=4000, samples=2)
    wins_G_N, response_G_N = drawn.batches[0].win_rate.view(-1, 2), drawn.cells[0].view(-1, 2)
    assert_close(wins_G_N.sum(-1), torch.ones(4000, dtype=torch.float64))
    same_G = response_G_N[:, 0] == response_G_N[:, 1]
    assert (wins_G_N[same_G] == 0.5).all()
    first_wins = wins_G_N[~same_G][response_G_N[~same_G] == 0]
    assert set(first_wins.tolist()) == {0.0, 1.0}
    assert float(first_wins.mean()) == pytest.approx(chance, abs=0.03)
    # without a reward, the number of wins
    assert_close(drawn.batches[0].reward, drawn.batches[0].win_rate)


def test_blocks_of_groups_have_the_loss_of_the_whole() -> None:
    game = instance("random")
    loss = partial(OBJECTIVES["inpo"], eta=1.0, tau=0.2)
    whole, blocks = (
        draw(game.ref, game, seeded(1), groups=40, samples=4, in_blocks=in_blocks)
        for in_blocks in (False, True)
    )
    assert len(blocks.batches) > 1 == len(whole.batches)
    other = torch.randn(6, 9, dtype=torch.float64, generator=seeded(2)).log_softmax(-1)
    assert_close(blocks.loss(loss, other), whole.loss(loss, other))


# ------------------------------------------------------------------------------------------ fitting


def every_group(
    game: Instance, counts: tuple[int, ...], samples: int, *, self_counting: bool
) -> tuple[torch.Tensor, Draw]:
    """pi_t in proportion to `counts`, and all its draws of groups: sums over rows are expectations
    over groups of N.
    """
    logp = (torch.tensor([counts], dtype=torch.float64) / sum(counts)).log()
    population = [response for response, count in enumerate(counts) for _ in range(count)]
    response_G_N = torch.tensor(list(product(population, repeat=samples)))
    outcome = game.matrix[0][response_G_N[:, :, None], response_G_N[:, None, :]]
    wins_G_N = outcome.sum(-1)
    rate_G_N = wins_G_N / samples if self_counting else (wins_G_N - 0.5) / (samples - 1)
    cell_B = response_G_N.flatten()
    batch = Batch(
        logp_policy=logp[0, cell_B],
        logp_reference=game.ref[0, cell_B],
        win_rate=rate_G_N.flatten(),
        reward=wins_G_N.flatten(),
        rank=(wins_G_N.argsort(descending=True, stable=True).argsort() + 1).flatten(),
        samples=torch.full_like(cell_B, samples),
        group=torch.arange(len(response_G_N)).repeat_interleave(samples),
    )
    return logp, Draw([cell_B], [batch], len(cell_B))


@pytest.mark.parametrize("name", ["random", "cyclic", "close"])
@pytest.mark.parametrize("samples", [2, 3])
def test_a_centred_risk_finds_the_exact_update_with_self_counting_win_rates(
    name: str, samples: int
) -> None:
    # INPO's proposition 6 through MATH 5.2: the centred risk over groups is unbiased with win rates
    # that count the comparison with oneself. Leave-one-out win rates, unbiased by themselves, are N
    # / (N - 1) too wide for it: the gain is too large.
    game = instance(name, 1, 4)
    loss = partial(
        OBJECTIVES["wind"], risk="squared", beta=BETA, eta=ETA, shift="centred", epsilon=0.01
    )
    for self_counting in (True, False):
        logp, groups = every_group(game, (1, 2, 3, 1), samples, self_counting=self_counting)
        found = solved(loss, groups, logp, ridge=1e-9)
        lam, widened = 1 / (1 + BETA * ETA), 1.0 if self_counting else samples / (samples - 1)
        win_rates = game.preferences.win_rates(logp.exp())
        expected = lam * logp + (1 - lam) * game.ref + widened * ETA * lam * win_rates
        assert_close(found, expected.log_softmax(-1), atol=1e-6)
        if self_counting:
            assert_close(
                found, wind_update(logp, game.ref, game.preferences, beta=BETA, eta=ETA), atol=1e-6
            )


def everything(game: Instance, logp: torch.Tensor) -> Draw:
    """Each response once, with its exact win rate: no sampling error is left."""
    cells = torch.arange(logp.numel())
    responses = logp.shape[-1]
    batch = Batch(
        logp_policy=logp.flatten(),
        logp_reference=game.ref.flatten(),
        win_rate=game.preferences.win_rates(logp.exp()).flatten(),
        reward=torch.zeros(logp.numel(), dtype=torch.float64),
        rank=torch.arange(responses).repeat(len(logp)) + 1,
        samples=torch.full_like(cells, responses),
        group=torch.arange(len(logp)).repeat_interleave(responses),
    )
    return Draw([cells], [batch], logp.numel())


@pytest.mark.parametrize("risk", ["squared", "kl", "nce", "nce_noise"])
def test_wind_that_sees_all_responses_makes_the_exact_step(risk: str) -> None:
    game = joined([instance(name, 2, 5) for name in INSTANCES])
    logp = wind_update(game.ref, game.ref, game.preferences, beta=BETA, eta=ETA)
    # epsilon below every win rate: beyond it a risk is no longer the minimum of P = q.
    loss = partial(OBJECTIVES["wind"], risk=risk, beta=BETA, eta=ETA, shift="centred", epsilon=1e-4)
    fit = partial(solved, ridge=1e-9) if risk == "squared" else minimized
    found = fit(loss, everything(game, logp), logp)
    exact = wind_update(logp, game.ref, game.preferences, beta=BETA, eta=ETA)
    # `minimized` holds by RIDGE
    assert_close(found, exact, atol=1e-7 if risk == "squared" else 5e-3)


def test_the_hold_moves_no_fixed_point() -> None:
    game = instance("random", 2, 5)
    logp = torch.randn(2, 5, dtype=torch.float64, generator=seeded(1)).log_softmax(-1)
    loss = partial(
        OBJECTIVES["wind"], risk="squared", beta=0.0, eta=ETA, shift="half", epsilon=0.01
    )
    draws = everything(game, logp)
    still = Draw(
        draws.cells,
        [
            Batch(
                **{
                    **vars(draws.batches[0]),
                    "win_rate": torch.full((10,), 0.5, dtype=torch.float64),
                }
            )
        ],
        10,
    )
    assert_close(solved(loss, still, logp, ridge=10.0), logp, atol=1e-9)


# ----------------------------------------------------------------------------------------- the rows


def test_exact_wind_is_as_fast_as_is_proved_on_every_instance() -> None:
    section = BanditSection(iterations=6)
    instances = {name: instance_of(name, section, 0) for name in INSTANCES}
    for algorithm in ("wind", "wind_slow"):
        factor = proven_factor(algorithm, section.beta, section.eta)
        assert factor is not None
        for name in INSTANCES:
            path = [
                row[-1]
                for row in exact_rows(algorithm, {name: instances[name]}, section)
                if row[4] == "kl"
            ]
            assert len(path) == 19
            assert all(after <= factor * before + 1e-13 for before, after in pairwise(path))
    assert proven_factor("wind_fast", 0.25, 1.0) is None
    assert proven_factor("wind", 0.25, 1.01) is None


def test_samples_and_calls_are_counted_by_hand() -> None:
    # 2 prompts asked 3 times an iteration for 4 responses: 24 responses; 24 rewards, or 6 x 4 * 3 /
    # 2 = 36 duels.
    section = TINY
    instances = {name: instance_of(name, section, 0) for name in ("random", "cyclic")}
    algorithm = sampled_algorithms(BETA, ETA)["wind"]
    rows = list(
        sampled_rows(
            algorithm,
            instances,
            section,
            seeded(0),
            iterations=2,
            visits=3,
            samples=4,
            repeats=2,
            at_solution=False,
        )
    )
    counts = {row[:5]: row[5] for row in rows if row[4] in ("generations", "calls")}
    assert (
        counts["random", 6, 1, 2, "generations"] == counts["cyclic", 6, 0, 2, "generations"] == 48
    )
    assert (counts["random", 6, 0, 1, "calls"], counts["cyclic", 6, 0, 1, "calls"]) == (24, 36)
    assert counts["random", 6, 0, 0, "generations"] == 0


def test_the_shards_hold_every_algorithm_where_it_can_run() -> None:
    made = parts(TINY)
    assert made == sorted(set(made))
    assert {name for samples, name in made if samples == 3} == set(sampled_algorithms(BETA, ETA))
    assert (2, "jbond") not in parts(TINY.model_copy(update={"samples": (2,)}))  # needs three
    floor = [
        row for row in part_rows(3, "wind", TINY, 0, lambda done, total: None) if row[0] == FLOOR
    ]
    assert {row[1] for row in floor} == {2, 4, 8}
    # it starts at the solution
    assert all(row[-1] < 1e-9 for row in floor if row[3] == 0 and row[4] == "kl")


def test_rows_are_the_same_on_every_call_and_others_for_another_seed() -> None:
    def rows(seed: int) -> list[object]:
        return list(part_rows(3, "wind_centred", TINY, seed, lambda done, total: None))

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
