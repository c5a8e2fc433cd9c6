"""Win rates: hand-derived literals, identities, and a brute-force N x N loop as the reference."""

import itertools
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wind.config.rewards import WinRateConfig
from wind.errors import InputError
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import preferences_schema
from wind.win_rates import win_rates, win_rates_against

UNBIASED = WinRateConfig(estimator="unbiased")
SELF_COUNTING = WinRateConfig(estimator="self_counting")

# Rewards from a small set, so that ties are common; groups of 2 to 6.
groups = st.lists(
    st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0, 1e9]), min_size=2, max_size=6),
    min_size=1,
    max_size=4,
)


def frame(rewards_P_N: Sequence[Sequence[float]]) -> pl.DataFrame:
    rows = [
        (f"p{p}", n, reward)
        for p, rewards_N in enumerate(rewards_P_N)
        for n, reward in enumerate(rewards_N)
    ]
    return pl.DataFrame(
        rows,
        schema={"prompt_id": pl.String, "sample_index": pl.Int32, "reward": pl.Float64},
        orient="row",
    )


def brute_force(
    rewards_N: Sequence[float], config: WinRateConfig
) -> list[tuple[float, int, int, int, int]]:
    """(win_rate, wins, ties, losses, rank) by comparing every pair."""
    n = len(rewards_N)
    rows = []
    for i in range(n):
        wins = sum(rewards_N[j] < rewards_N[i] for j in range(n) if j != i)
        ties = sum(rewards_N[j] == rewards_N[i] for j in range(n) if j != i)
        rank = 1 + sum(
            rewards_N[j] > rewards_N[i] or (rewards_N[j] == rewards_N[i] and j < i)
            for j in range(n)
            if j != i
        )
        points = wins + ties / 2
        rate = points / (n - 1) if config.estimator == "unbiased" else (points + 0.5) / n
        rows.append((rate, wins, ties, n - 1 - wins - ties, rank))
    return rows


def counts(rows: pl.DataFrame) -> list[tuple[float, int, int, int, int]]:
    return rows.select("win_rate", "wins", "ties", "losses", "rank").rows()


def test_four_responses_by_hand() -> None:
    # Rewards 2, 5, 2, 1. Sample 0 beats only sample 3 and ties with sample 2: (1 + 1/2) / 3 = 1/2.
    # Sample 1 beats all three.
    assert counts(win_rates(frame([[2, 5, 2, 1]]), UNBIASED)) == [
        (1.5 / 3, 1, 1, 1, 2),  # of the two 2s the first sample ranks first
        (1.0, 3, 0, 0, 1),
        (1.5 / 3, 1, 1, 1, 3),
        (0.0, 0, 0, 3, 4),
    ]


def test_four_responses_by_hand_counting_oneself() -> None:
    # (W + T/2 + 1/2) / 4: 2/4, 3.5/4, 2/4, 0.5/4.
    assert win_rates(frame([[2, 5, 2, 1]]), SELF_COUNTING)["win_rate"].to_list() == [
        0.5,
        0.875,
        0.5,
        0.125,
    ]


def test_all_equal_rewards_tie_at_one_half() -> None:
    rows = win_rates(frame([[7, 7, 7]]), UNBIASED)
    assert counts(rows) == [(0.5, 0, 2, 0, 1), (0.5, 0, 2, 0, 2), (0.5, 0, 2, 0, 3)]


@given(groups)
def test_equals_a_loop_over_all_pairs(rewards_P_N: list[list[float]]) -> None:
    for config in (UNBIASED, SELF_COUNTING):
        expected = [row for rewards_N in rewards_P_N for row in brute_force(rewards_N, config)]
        rows = win_rates(frame(rewards_P_N), config)
        assert counts(rows) == [pytest.approx(row, abs=1e-15) for row in expected]


@given(groups)
def test_mean_of_a_prompt_is_one_half(rewards_P_N: list[list[float]]) -> None:
    for config in (UNBIASED, SELF_COUNTING):
        means = (
            win_rates(frame(rewards_P_N), config)
            .group_by("prompt_id")
            .agg(pl.col("win_rate").mean())["win_rate"]
        )
        assert means.to_list() == pytest.approx([0.5] * len(rewards_P_N), abs=1e-15)


@given(groups)
def test_counting_oneself_shrinks_the_centered_win_rate(rewards_P_N: list[list[float]]) -> None:
    """MATH 0.2: P_V - 1/2 = (N - 1) / N (P_U - 1/2)."""
    rewards = frame(rewards_P_N)
    u, v = (
        win_rates(rewards, config)["win_rate"].to_numpy() for config in (UNBIASED, SELF_COUNTING)
    )
    n = rewards.select(pl.len().over("prompt_id")).to_series().to_numpy()
    assert v - 0.5 == pytest.approx((n - 1) / n * (u - 0.5), abs=1e-15)


@given(groups, st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(rewards_P_N: list[list[float]], random: object) -> None:
    rewards = frame(rewards_P_N)
    shuffled = rewards.sample(fraction=1.0, shuffle=True, seed=random.randrange(2**31))  # type: ignore[attr-defined]
    assert win_rates(shuffled, UNBIASED).equals(win_rates(rewards, UNBIASED))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6), st.permutations(range(6)))
def test_permuting_samples_permutes_their_win_rates(rewards_N: list[int], order: list[int]) -> None:
    order = [index for index in order if index < len(rewards_N)]
    rates = win_rates(frame([rewards_N]), UNBIASED)["win_rate"].to_list()
    permuted = win_rates(frame([[rewards_N[index] for index in order]]), UNBIASED)[
        "win_rate"
    ].to_list()
    assert permuted == [rates[index] for index in order]


@given(groups)
def test_only_the_order_of_rewards_matters(rewards_P_N: list[list[float]]) -> None:
    moved = [[3 * reward + 16 for reward in rewards_N] for rewards_N in rewards_P_N]
    assert win_rates(frame(moved), UNBIASED).equals(win_rates(frame(rewards_P_N), UNBIASED))


def test_negating_rewards_mirrors_win_rates() -> None:
    rates = win_rates(frame([[2, 5, 2, 1]]), UNBIASED)["win_rate"]
    mirrored = win_rates(frame([[-2, -5, -2, -1]]), UNBIASED)["win_rate"]
    assert (rates + mirrored).to_list() == [1.0] * 4


def test_prompts_do_not_meet() -> None:
    apart = [
        win_rates(frame([group]), UNBIASED)["win_rate"].to_list() for group in ([1, 2], [3, 9, 3])
    ]
    together = win_rates(frame([[1, 2], [3, 9, 3]]), UNBIASED)["win_rate"].to_list()
    assert together == apart[0] + apart[1]


def test_a_single_response_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^prompt p1, sample 0 is its prompt's only one, with no sibling .*: sample two",
    ):
        win_rates(frame([[1, 2], [3]]), UNBIASED)


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="prompt p0, sample 1 has the reward NaN"):
        win_rates(frame([[1, float("nan")]]), UNBIASED)


def test_against_a_reference_by_hand() -> None:
    # Policy 2, 0 against the reference's 1, 2, 3: sample 0 beats 1 and ties 2: 1.5 / 3; sample 1
    # loses all. Its own sibling, which ties nothing here and would beat nothing, must not count.
    rows = win_rates_against(frame([[2, 0]]), frame([[1, 2, 3]]))
    assert rows["win_rate"].to_list() == [0.5, 0.0]
    assert rows["tie_share"].to_list() == [1 / 3, 0.0]


@given(groups, groups)
def test_against_a_reference_equals_a_loop(
    policy_P_N: list[list[float]], reference_P_N: list[list[float]]
) -> None:
    prompts = min(len(policy_P_N), len(reference_P_N))
    policy_P_N, reference_P_N = policy_P_N[:prompts], reference_P_N[:prompts]
    expected = [
        sum((own > other) + 0.5 * (own == other) for other in reference_N) / len(reference_N)
        for policy_N, reference_N in zip(policy_P_N, reference_P_N, strict=True)
        for own in policy_N
    ]
    rates = win_rates_against(frame(policy_P_N), frame(reference_P_N))["win_rate"].to_list()
    assert rates == pytest.approx(expected, abs=1e-15)


def test_against_nobody_is_refused() -> None:
    with pytest.raises(InputError, match="prompt p1, sample 0 has no response of the reference"):
        win_rates_against(frame([[1, 2], [3]]), frame([[1, 2]]))


def test_the_stage_keeps_shards_and_reports_ties(store: Store) -> None:
    rewards = frame([[1, 1], [1, 2], [2, 2], [5, 4]])
    with store.partial("rewards", "made") as partial:
        for index, prompt_ids in enumerate((["p0"], ["p1", "p2", "p3"])):
            partial.write(index, rewards.filter(pl.col("prompt_id").is_in(prompt_ids)).to_arrow())
        handle = partial.publish(2, parents={}, computed_by={}, numbers={}, provenance={})
    made = run(job(store, handle), lambda done, total: None)
    manifest = store.manifest(made)
    assert [file.rows for file in manifest.files] == [2, 6]
    assert manifest.numbers == {"tie_share": 0.5, "mean_win_rate": 0.5}  # two of four pairs tie
    assert manifest.parents == {"rewards": handle}
    declared: Any = dict(store.frame(made).schema)
    assert store.frame(made).equals(win_rates(rewards, UNBIASED).cast(declared))


def test_the_stage_names_the_dataset_of_a_bad_reward(store: Store) -> None:
    with store.partial("rewards", "made") as partial:
        partial.write(0, frame([[1.0, float("nan")]]).to_arrow())
        handle = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    with pytest.raises(
        InputError,
        match=f"rewards/{handle.fingerprint[:12]}: prompt p0, sample 1 has the reward NaN",
    ):
        run(job(store, handle), lambda done, total: None)


def job(store: Store, rewards: Dataset) -> Job:
    spec = {"rewards": rewards.model_dump(), "win_rate": UNBIASED.model_dump()}
    return Job(stage="win_rates", spec=spec, place=Place(root=str(store.root)))


def preferences_frame(matrices_P_N_N: Sequence[Sequence[Sequence[float]]]) -> pl.DataFrame:
    rows = [
        (f"p{p}", n, (sum(row_N) - 0.5) / (len(row_N) - 1), list(row_N))
        for p, matrix_N_N in enumerate(matrices_P_N_N)
        for n, row_N in enumerate(matrix_N_N)
    ]
    names = ["prompt_id", "sample_index", "reward", "preferences"]
    return pl.DataFrame(rows, schema=names, orient="row").cast({"sample_index": pl.Int32})


# Rock, paper, scissors, and a stone that ties with rock and loses to the other two.
CIRCLE = ((0.5, 0.1, 0.9, 0.5), (0.9, 0.5, 0.1, 0.7), (0.1, 0.9, 0.5, 0.8), (0.5, 0.3, 0.2, 0.5))


def test_a_circle_by_hand() -> None:
    rows = counts(win_rates(preferences_frame([CIRCLE]), UNBIASED))
    assert [row[1:] for row in rows] == [(1, 1, 1, 3), (2, 0, 1, 2), (2, 0, 1, 1), (0, 1, 2, 4)]
    assert [row[0] for row in rows] == pytest.approx(
        [1.5 / 3, 1.7 / 3, 1.8 / 3, 1.0 / 3], abs=1e-15
    )
    self_counting = win_rates(preferences_frame([CIRCLE]), SELF_COUNTING)["win_rate"].to_list()
    assert self_counting == pytest.approx([2.0 / 4, 2.2 / 4, 2.3 / 4, 1.5 / 4], abs=1e-15)


def test_rock_paper_scissors_all_win_half_and_rank_by_sample() -> None:
    """No scalar reward can say this: each beats another for certain, and none is better."""
    for strength in (1.0, 0.9, 2 / 3):
        lose = 1 - strength
        circle = ((0.5, lose, strength), (strength, 0.5, lose), (lose, strength, 0.5))
        for config in (UNBIASED, SELF_COUNTING):
            rows = counts(win_rates(preferences_frame([circle]), config))
            assert [row[0] for row in rows] == pytest.approx([0.5] * 3, abs=1e-15)
            assert [row[1:] for row in rows] == [(1, 0, 1, 1), (1, 0, 1, 2), (1, 0, 1, 3)]


def test_win_rates_that_differ_by_a_rounding_rank_by_sample() -> None:
    """0.5 + 0.7 = 0.3 + 0.9 on paper; in floats the second, of the later sample, is larger."""
    rows = win_rates(preferences_frame([square(3, [0.5, 0.7, 0.1])]), UNBIASED)
    assert 0 < rows["win_rate"][2] - rows["win_rate"][0] < 1e-15
    assert rows["rank"].to_list() == [1, 3, 2]


@settings(deadline=None)  # the first lists of a process take a while
@given(groups)
def test_preferences_of_rewards_have_the_win_rates_of_the_rewards(
    rewards_P_N: list[list[float]],
) -> None:
    """P_ij = 1, 1/2 or 0 by a reward: counts, win rates and ranks are those of the reward."""
    matrices = [
        [[(x > y) + (x == y) / 2 for y in rewards_N] for x in rewards_N]
        for rewards_N in rewards_P_N
    ]
    for config in (UNBIASED, SELF_COUNTING):
        assert win_rates(preferences_frame(matrices), config).equals(
            win_rates(frame(rewards_P_N), config)
        )


def square(n: int, entries: list[float]) -> list[list[float]]:
    """The constant-sum matrix with `entries` above its diagonal, row by row."""
    matrix = [[0.5] * n for _ in range(n)]
    for (i, j), entry in zip(itertools.combinations(range(n), 2), entries, strict=True):
        matrix[i][j], matrix[j][i] = entry, 1 - entry
    return matrix


def squares(n: int) -> st.SearchStrategy[list[list[float]]]:
    pairs = n * (n - 1) // 2
    return st.lists(st.floats(0, 1), min_size=pairs, max_size=pairs).map(
        lambda entries: square(n, entries)
    )


@settings(deadline=None)  # the first lists of a process take a while
@given(st.integers(2, 6).flatmap(squares))
def test_win_rates_of_any_preferences_average_one_half(matrix_N_N: list[list[float]]) -> None:
    n = len(matrix_N_N)
    for config in (UNBIASED, SELF_COUNTING):
        rows = win_rates(preferences_frame([matrix_N_N]), config)
        assert sum(rows["win_rate"].to_list()) / n == pytest.approx(0.5, abs=1e-12)
        assert sorted(rows["rank"].to_list()) == list(range(1, n + 1))
        assert (rows["wins"] + rows["ties"] + rows["losses"] == n - 1).all()
        by_rank = rows.sort("rank")["win_rate"].to_list()
        assert all(better >= worse - 1e-12 for better, worse in itertools.pairwise(by_rank))


def test_the_order_of_siblings_does_not_matter_to_the_last_bit() -> None:
    straight = win_rates(preferences_frame([CIRCLE]), UNBIASED)["win_rate"].to_list()
    for order in itertools.permutations(range(4)):
        permuted = [[CIRCLE[i][j] for j in order] for i in order]
        assert win_rates(preferences_frame([permuted]), UNBIASED)["win_rate"].to_list() == [
            straight[i] for i in order
        ]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            ((0.5, 0.2), (0.8,)),
            r"^prompt p0, sample 1 has not one preference for each response to its prompt",
        ),
        (
            ((0.5, 0.2, 0.1), (0.8, 0.5, 0.1)),
            r"sample 0 has not one preference .* \(1 more rows like this\)$",
        ),
        (((0.5, float("nan")), (0.8, 0.5)), r"^prompt p0, sample 0 has the preference NaN"),
    ],
)
def test_a_matrix_that_is_none_is_refused(matrix: Sequence[Sequence[float]], message: str) -> None:
    rows = preferences_frame([[(0.5, 0.5), (0.5, 0.5)]]).with_columns(preferences=pl.Series(matrix))
    with pytest.raises(InputError, match=message):
        win_rates(rows, UNBIASED)


def test_the_stage_reads_preferences(store: Store) -> None:
    with store.partial("rewards", "made") as partial:
        rows = preferences_frame([CIRCLE]).with_columns(cut_share=pl.lit(0.0))
        partial.write(0, rows.to_arrow(), preferences_schema())
        rewards = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    spec = {"rewards": rewards.model_dump(), "win_rate": UNBIASED.model_dump()}
    made = run(
        Job(stage="win_rates", spec=spec, place=Place(root=str(store.root))),
        lambda done, total: None,
    )
    assert store.frame(made)["wins"].to_list() == [1, 2, 2, 0]
    assert store.manifest(made).numbers == pytest.approx(
        {"tie_share": 2 / 12, "mean_win_rate": 0.5}
    )
