"""Drift since the iteration before: how far each quantity moved, and the verdict on it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from data_checks.base import Subject
from data_checks.drift import QUANTITIES, shifts
from data_checks.results import contents, passed
from data_checks.validation import validate
from wind.config.checks import ChecksConfig, DriftConfig
from wind.errors import DataCheckError
from wind.stages import roles
from wind.store.handles import Dataset

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain

Rows = list[dict[str, Any]]


def drift(**bounds: Any) -> ChecksConfig:
    return ChecksConfig.model_validate({"drift": bounds})


def moved(chain: "Chain", previous: Dataset, current: Dataset) -> dict[str, tuple[Any, ...]]:
    frame = shifts(Subject.of(current, chain.store), Subject.of(previous, chain.store))
    return {row[0]: row[1:] for row in frame.rows()}


def two_more(rows: Rows) -> None:
    for row in rows:
        row["reward"] += 2.0


def test_rewards_that_rise_by_two(chain: "Chain") -> None:
    """0 1 1 3 of each of four prompts: 19 squares of deviation in each of the two, 30 degrees of
    freedom.
    """
    found = moved(chain, chain.dataset("rewards"), chain.dataset("rewards", two_more))
    assert found["mean_reward"] == (1.25, 3.25, pytest.approx(2 / np.sqrt(2 * 19 / 30)))
    # below 2 lie three of four rewards before and none now
    assert found["reward_distribution"][2] == 0.75


def test_shares_move_by_their_difference(chain: "Chain") -> None:
    def cut(rows: Rows) -> None:
        for row in rows[:4]:
            row.update(
                finish_reason="length",
                response=f"other {row['sample_index']}",
                response_token_ids=[1, 2, 3],
            )

    found = moved(chain, chain.dataset("generations"), chain.dataset("generations", cut))
    assert found["truncated_share"] == (0, 0.25, 0.25)
    # of all sixteen, and of three prompts' twelve
    assert found["duplicate_share"] == (0.75, 9 / 16, -3 / 16)
    assert found["mean_response_tokens"][:2] == (2, 2.25)
    assert found["response_tokens_distribution"][2] == 0.25


def test_ties_and_kl(chain: "Chain") -> None:
    def no_ties(rows: Rows) -> None:
        for row in rows:
            row.update(wins=row["wins"] + row["ties"], ties=0)

    found = moved(chain, chain.dataset("win_rates"), chain.dataset("win_rates", no_ties))
    assert found["tie_share"] == (pytest.approx(1 / 6), 0, pytest.approx(-1 / 6))

    def with_kl(value: float) -> Dataset:
        return chain.dataset("metrics", lambda rows: rows[0].update(metric="kl_k1", value=value))

    assert moved(chain, with_kl(0.25), with_kl(12.0))["kl"] == (0.25, 12.0, 11.75)


def test_responses_of_an_anchor_do_not_count(chain: "Chain") -> None:
    def cut_the_anchor(rows: Rows) -> None:
        for row in rows:
            if row["drawn_from"] == "anchor":
                row.update(finish_reason="length", reward=9.0)

    found = moved(chain, chain.dataset("rollouts"), chain.dataset("rollouts", cut_the_anchor))
    assert {name: row[2] for name, row in found.items()} == dict.fromkeys(QUANTITIES["rollouts"], 0)


def test_a_large_move_warns_and_fails_nothing_by_default(chain: "Chain") -> None:
    previous, current = chain.dataset("rewards"), chain.dataset("rewards", two_more)
    result = validate(current, chain.store, ChecksConfig(), previous)
    assert result.success
    mean, distribution = result.warnings
    assert mean == (
        "mean_reward moved by 1.777 standard deviations, more than 1, since the iteration "
        "before: from 1.25 to 3.25"
    )
    assert distribution.startswith(
        "reward_distribution moved by 0.75 in Kolmogorov-Smirnov distance, more than 0.5, "
    )
    content = contents(chain.store, current)
    assert content is not None
    assert [row["quantity"] for row in content["shifts"]] == ["mean_reward", "reward_distribution"]
    page = chain.store.storage.read(result.path).decode()
    assert "passed with warnings" in page
    assert "<td>mean_reward</td>" in page


def test_a_gate_ends_the_run(chain: "Chain") -> None:
    previous, current = chain.dataset("rewards"), chain.dataset("rewards", two_more)
    with pytest.raises(
        DataCheckError,
        match=r"failed mean_reward moved by 1\.777 .*, more than 1\.5, .* to 3\.25; see",
    ):
        validate(current, chain.store, drift(mean_reward={"fail": 1.5}), previous)
    quiet = {"warn": None}
    assert (
        validate(
            current, chain.store, drift(mean_reward=quiet, reward_distribution=quiet), previous
        ).warnings
        == ()
    )


def test_the_first_iteration_drifts_from_nothing(chain: "Chain") -> None:
    handle = chain.dataset("rewards", two_more)
    result = validate(handle, chain.store, drift(mean_reward={"fail": 0.0}))
    assert (result.previous, result.warnings) == (None, ())


def test_a_pass_counts_for_the_same_pair_and_thresholds_only(chain: "Chain") -> None:
    previous, current = chain.dataset("rewards"), chain.dataset("rewards", two_more)
    result = validate(current, chain.store, ChecksConfig(), previous)
    assert passed(chain.store, current, ChecksConfig(), previous) == result
    assert passed(chain.store, current, ChecksConfig()) is None
    assert passed(chain.store, current, ChecksConfig(), current) is None
    assert passed(chain.store, current, drift(mean_reward={"fail": 3.0}), previous) is None


def test_setting_one_bound_leaves_the_other(chain: "Chain") -> None:
    bounds = DriftConfig.model_validate({"kl": {"fail": 20}}).kl
    assert (bounds.warn, bounds.fail) == (10, 20)
    assert DriftConfig.model_validate({"kl": {"warn": None}}).kl.warn is None


def test_a_run_looks_for_the_predecessors_of_all_that_drifts() -> None:
    drifting = {noun for noun, role in roles().items() if role.has_drift}
    assert QUANTITIES.keys() == drifting, "a stage's role says whether its drift is judged"


def quantities() -> Iterator[str]:
    for named in QUANTITIES.values():
        yield from named


def test_every_quantity_of_the_config_is_measured() -> None:
    assert set(quantities()) == set(DriftConfig.model_fields)


def test_nothing_is_judged_where_there_is_nothing_to_compare(chain: "Chain") -> None:
    assert moved(chain, chain.dataset("training"), chain.dataset("training")) == {}
    assert isinstance(
        shifts(*[Subject.of(chain.dataset("metrics"), chain.store)] * 2), pl.DataFrame
    )
    assert moved(chain, chain.dataset("metrics"), chain.dataset("metrics")) == {}
