"""Which rows train, and the label of a row that was chosen for its rank."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.training_case import publish
from wind.config.objectives import SelectionConfig
from wind.config.rewards import WinRateConfig
from wind.errors import InputError
from wind.selections import SelectionsSpec, selections
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.win_rates import win_rates

ANYTHING = Dataset(name="rewards", fingerprint="0" * 64, rows=0)


def spec_of(
    estimator: str = "unbiased", seed: int = 0, iteration: int = 1, **selection: Any
) -> SelectionsSpec:
    return SelectionsSpec(
        rewards=ANYTHING,
        win_rates=ANYTHING,
        win_rate=WinRateConfig(estimator=estimator),
        selection=SelectionConfig(**selection),
        seed=seed,
        iteration=iteration,
    )


def rows_of(rewards_P_N: Sequence[Sequence[float]], spec: SelectionsSpec) -> pl.DataFrame:
    rows = pl.DataFrame(
        [
            {"prompt_id": f"p{prompt:04d}", "sample_index": sample, "reward": float(reward)}
            for prompt, rewards in enumerate(rewards_P_N)
            for sample, reward in enumerate(rewards)
        ]
    )
    return rows.join(win_rates(rows, spec.win_rate), on=["prompt_id", "sample_index"])


def selected(rewards_P_N: Sequence[Sequence[float]], spec: SelectionsSpec) -> pl.DataFrame:
    return selections(rows_of(rewards_P_N, spec), spec)


def roles(rewards_P_N: Sequence[Sequence[float]], **settings: Any) -> list[str]:
    return selected(rewards_P_N, spec_of(**settings))["role"].to_list()


def test_roles_by_hand() -> None:
    group = [[1, 3, 1, 2]]
    assert roles(group, rows="all") == ["all"] * 4
    assert roles(group, rows="best") == ["unused", "best", "unused", "unused"]
    # of equal worst, the later sample
    assert roles(group, rows="best_worst") == ["unused", "best", "worst", "unused"]
    assert roles([[5, 5]], rows="best_worst") == ["best", "worst"]


def test_a_prompt_below_the_margin_does_not_train() -> None:
    groups = [[0, 2, 1], [0, 3, 1], [4, 4, 4]]
    close, far = ["below_margin"] * 3, ["worst", "best", "unused"]
    # a difference of exactly the margin is not more
    assert roles(groups, rows="best_worst", margin=2) == [*close, *far, *close]
    assert roles(groups, rows="best_worst", margin=0) == ["worst", "best", "unused", *far, *close]
    assert roles(groups, rows="all", margin=1) == ["all"] * 6 + close
    assert "below_margin" not in roles(groups, rows="best_worst")


def test_the_margin_looks_at_the_chosen_two() -> None:
    # Two samples: the random one is the other. Its difference counts, whichever rows a larger group
    # would leave out.
    assert roles([[0, 1]], rows="best_random", margin=0.5) == ["random", "best"]
    drawn = selected([[3, 0, 2]] * 200, spec_of(rows="best_random", margin=1.5))
    kinds = Counter(tuple(group) for group in drawn["role"].to_numpy().reshape(-1, 3).tolist())
    assert set(kinds) == {("best", "random", "unused"), ("below_margin",) * 3}


def test_the_random_row_is_any_but_the_best_with_equal_chances() -> None:
    groups = np.random.default_rng(0).normal(size=(2000, 5)).tolist()
    frame = selected(groups, spec_of(rows="best_random")).join(
        rows_of(groups, spec_of()).select("prompt_id", "sample_index", "rank"),
        on=["prompt_id", "sample_index"],
    )
    assert (frame.filter(pl.col("role") == "best")["rank"] == 1).all()
    counts = Counter(frame.filter(pl.col("role") == "random")["rank"].to_list())
    assert set(counts) == {2, 3, 4, 5}
    assert all(abs(count - 500) < 4 * np.sqrt(2000 * 3 / 16) for count in counts.values())


def test_the_random_row_is_fixed_by_seed_iteration_and_prompt() -> None:
    groups = np.random.default_rng(0).normal(size=(50, 5)).tolist()
    same, other_seed, other_iteration = (
        roles(groups, rows="best_random", **settings)
        for settings in ({}, {"seed": 1}, {"iteration": 2})
    )
    assert roles(groups, rows="best_random") == same
    assert roles(groups[:10], rows="best_random") == same[:50]
    assert same not in (other_seed, other_iteration)


@pytest.mark.parametrize("estimator", ["unbiased", "self_counting"])
def test_labels_of_ranks_by_hand(estimator: str) -> None:
    # N = 4: k/(N + 1) at ascending rank k; the two 1s share the ranks 1 and 2.
    frame = selected([[1, 3, 1, 2]], spec_of(estimator, rows="best_worst", label="rank"))
    assert frame["label"].to_list() == pytest.approx([1.5 / 5, 4 / 5, 1.5 / 5, 3 / 5])
    plain = selected([[1, 3, 1, 2]], spec_of("unbiased", rows="best_worst"))
    assert plain["label"].to_list() == pytest.approx([0.5 / 3, 1, 0.5 / 3, 2 / 3])


def test_the_label_of_a_rank_is_unbiased_where_the_win_rate_is_not() -> None:
    # MATH 2.8: of 5 uniform draws the best truly beats a sixth 5/6 of the time; its unbiased win
    # rate always says 1.
    u_P_N = np.random.default_rng(0).uniform(size=(20_000, 5))
    truth = u_P_N.max(1).mean()
    assert truth == pytest.approx(5 / 6, abs=0.004)
    for label, expected in (("rank", 5 / 6), ("win_rate", 1.0)):
        frame = selected(u_P_N[:100].tolist(), spec_of(rows="best_worst", label=label))
        best = frame.filter(pl.col("role") == "best")["label"]
        assert best.to_list() == pytest.approx([expected] * 100)


def test_a_margin_that_nothing_exceeds_is_refused(store: Store) -> None:
    spec = spec_of(rows="best_worst", margin=9)
    rows = rows_of([[0, 1], [2, 2]], spec)
    rewards = publish(
        store,
        "rewards",
        rows.select("prompt_id", "sample_index", "reward").to_dict(as_series=False),
    )
    wins = publish(store, "win_rates", win_rates(rows, spec.win_rate).to_dict(as_series=False))
    full = spec.model_copy(update={"rewards": rewards, "win_rates": wins})
    job = Job(
        stage="selections", spec=full.model_dump(mode="json"), place=Place(root=str(store.root))
    )
    with pytest.raises(InputError, match=r"differ by more than 9\.0: lower selection\.margin"):
        run(job, lambda done, total: None)
    assert not list(store.handles("selections"))
