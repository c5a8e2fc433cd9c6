"""The order in which rows are trained on, their weights, and the schedule, against numbers by hand."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.training_case import GROUPS, Inputs, N, make_inputs, make_spec, publish
from wind.config.training import TrainingConfig
from wind.errors import DatasetError
from wind.store.datasets import Store
from wind.training.batches import Plan, as_rows, load_rows, micro_batch, pieces, rows_of
from wind.training.schedules import learning_rate


@pytest.fixture
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


def plan_of(groups: int = 11, seed: int = 0, iteration: int = 1, **training: Any) -> Plan:
    settings = {"epochs": 2, "batch_prompts": 4, "micro_prompts": 2} | training
    return Plan(training=TrainingConfig(**settings), seed=seed, iteration=iteration, groups=groups)


def test_every_epoch_visits_every_group_once() -> None:
    plan = plan_of()
    assert (plan.steps_per_epoch, plan.steps) == (3, 6)
    sizes = [len(plan.step_groups(step)) for step in range(6)]
    assert sizes == [4, 4, 3, 4, 4, 3]  # the rest is a smaller step, not dropped and not filled up
    for epoch in range(2):
        visited = np.concatenate(
            [plan.step_groups(step) for step in range(3 * epoch, 3 * epoch + 3)]
        )
        assert sorted(visited.tolist()) == list(range(11))


def test_order_depends_on_seed_iteration_and_epoch_alone() -> None:
    def order(plan: Plan, first: int = 0) -> list[int]:
        return [
            int(group)
            for step in range(first, first + plan.steps_per_epoch)
            for group in plan.step_groups(step)
        ]

    assert order(plan_of()) == order(plan_of(micro_prompts=1, batch_prompts=8, ranks=2))
    others = [order(plan_of(seed=1)), order(plan_of(iteration=2)), order(plan_of(), first=3)]
    assert all(order(plan_of()) != other for other in others)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [8, 5, 1])
def test_ranks_and_micro_batches_share_a_step_out(ranks: int, size: int) -> None:
    plan = plan_of(batch_prompts=8, micro_prompts=2, ranks=ranks)
    parts = [plan.micro_groups(np.arange(size), rank) for rank in range(ranks)]
    # every rank makes as many passes, some of them empty
    assert {len(part) for part in parts} == {8 // (2 * ranks)}
    assert sorted(int(group) for part in parts for groups in part for group in groups) == list(
        range(size)
    )
    assert max(len(groups) for part in parts for groups in part) <= 2


def test_learning_rate_by_hand() -> None:
    # 10 steps, 2 of warm-up: 1/2, 1, then 8 steps from 1 towards 0.
    def rates(schedule: str) -> list[float]:
        training = TrainingConfig(lr=1.0, warmup_fraction=0.2, schedule=schedule)
        return [learning_rate(training, step, 10) for step in range(10)]

    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("linear") == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert rates("cosine")[6] == pytest.approx(0.5)
    assert rates("cosine")[9] == pytest.approx((1 - math.cos(math.pi / 8)) / 2)


def test_warmup_may_be_everything_or_nothing() -> None:
    assert [
        learning_rate(TrainingConfig(lr=1.0, warmup_fraction=1), step, 4) for step in range(4)
    ] == [0.25, 0.5, 0.75, 1]
    assert learning_rate(TrainingConfig(lr=1.0, warmup_fraction=0), 0, 1) == 1


def test_rows_are_joined_by_key(store: Store, inputs: Inputs) -> None:
    rows = load_rows(make_spec(inputs), store)
    assert (rows.groups, rows.starts.tolist()) == (GROUPS, list(range(0, GROUPS * N + 1, N)))
    generations = store.frame(inputs["generations"])
    for index in (0, 4, GROUPS * N - 1):
        assert rows.responses[index].tolist() == generations["response_token_ids"][index].to_list()
        assert rows.columns["logp_policy"][index] == generations["logp_sampler"][index]
    assert (
        rows.prompts[2].tolist() == store.frame(inputs["prompts"])["prompt_token_ids"][2].to_list()
    )


def test_pieces_by_hand() -> None:
    frame = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "a", "b"],
            "prompt_token_ids": [[1] * 4] * 3 + [[1] * 2],
            "response_token_ids": [[5] * 1, [5] * 3, [5] * 2, [5] * 9],
        }
    )
    rows = as_rows(frame, "prompt_id", [])

    def cut(most_tokens: int, *, is_shared: bool) -> list[tuple[int, int]]:
        found = pieces(rows, *rows_of(rows, np.arange(2)), most_tokens, is_shared=is_shared)
        return [(piece.start, piece.stop) for piece in found]

    # prompts once: rows of group a have 5, 8 and 10 tokens together, with group b 21
    assert cut(21, is_shared=True) == [(0, 4)]
    assert cut(20, is_shared=True) == [(0, 3), (3, 4)]
    assert cut(9, is_shared=True) == [(0, 2), (2, 3), (3, 4)]  # the prompt again: 6 tokens
    # padded: 5, twice 7, three times 7, four times 11
    assert cut(44, is_shared=False) == [(0, 4)]
    assert cut(43, is_shared=False) == [(0, 3), (3, 4)]
    assert cut(14, is_shared=False) == [(0, 2), (2, 3), (3, 4)]
    # a row that is longer is a piece nevertheless
    for is_shared in (True, False):
        assert cut(1, is_shared=is_shared) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_micro_batch_by_hand(store: Store, inputs: Inputs) -> None:
    rows = load_rows(make_spec(inputs), store)
    batch = micro_batch(rows, np.array([4, 1]), "cpu")
    assert len(batch.inputs) == 3
    input_ids_B_T, attention_mask_B_T, response_mask_B_T = batch.inputs
    assert batch.batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.batch.win_rate.tolist() == rows.columns["win_rate"][[12, 13, 14, 3, 4, 5]].tolist()
    assert input_ids_B_T.shape[1] == max(
        len(rows.prompts[g]) + len(rows.responses[r])
        for g in (4, 1)
        for r in range(3 * g, 3 * g + 3)
    )
    for row, (group, index) in enumerate(
        zip([4] * 3 + [1] * 3, [12, 13, 14, 3, 4, 5], strict=True)
    ):
        prompt, response = rows.prompts[group].tolist(), rows.responses[index].tolist()
        assert input_ids_B_T[row][attention_mask_B_T[row]].tolist() == prompt + response
        assert input_ids_B_T[row][response_mask_B_T[row]].tolist() == response
        # padded on the right
        assert attention_mask_B_T[row].tolist() == sorted(
            attention_mask_B_T[row].tolist(), reverse=True
        )


def test_missing_rows_are_an_error(store: Store, inputs: Inputs) -> None:
    frame = store.frame(inputs["win_rates"]).head(5)
    fewer = publish(store, "win_rates", {name: frame[name].to_arrow() for name in frame.columns})
    with pytest.raises(DatasetError, match=r"win_rates/.* has 5 rows, .* 21, and 5 in common"):
        load_rows(make_spec({**inputs, "win_rates": fewer}), store)


def test_logps_of_other_responses_are_an_error(store: Store, inputs: Inputs) -> None:
    frame = store.frame(inputs["logps"]).with_columns(response_tokens=pl.lit(1, pl.Int32))
    other = publish(store, "logps", {name: frame[name].to_arrow() for name in frame.columns})
    with pytest.raises(DatasetError, match="scored other responses"):
        load_rows(make_spec({**inputs, "logps": other}), store)


def test_the_stage_is_cheap_to_import() -> None:
    code = (
        "import sys, wind.training; sys.exit(bool({'torch', 'transformers', 'deepspeed', "
        "'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
