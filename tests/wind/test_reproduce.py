"""What differs between a dataset and the same computed again, by hand."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.wind.training_case import publish
from wind.audit.reproduce import differences
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import declared


def rewards(store: Store, values: list[float]) -> Dataset:
    rows = len(values)
    columns = {
        "prompt_id": ["a"] * rows,
        "sample_index": pa.array(range(rows), pa.int32()),
        "reward": pa.array(values, pa.float64()),
    }
    return publish(store, "rewards", columns)


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], []),
        (
            [1.0, 2.0, 3.0],
            [1.0, 2.5, 4.0],
            ["reward differs in 2 of 3 rows, first in row 1 (a/1): 2.5, was 2.0"],
        ),
        (
            [1.0, 2.0, 3.0],
            [5.0, 2.0],
            [
                "it has 2 rows, had 3",
                "reward differs in 1 of 2 rows, first in row 0 (a/0): 5.0, was 1.0",
            ],
        ),
        ([0.0], [-0.0], ["equal numbers have other bits, such as the sign of a zero"]),
    ],
)
def test_rows_that_differ_are_counted_and_the_first_is_shown(
    tmp_path: Path, then: list[float], now: list[float], says: list[str]
) -> None:
    store, again = Store(tmp_path / "store"), Store(tmp_path / "again")
    assert differences(store, rewards(store, then), again, rewards(again, now)) == says


def test_other_columns_are_told_without_a_comparison_of_rows(tmp_path: Path) -> None:
    store, again = Store(tmp_path / "store"), Store(tmp_path / "again")
    columns = {
        "prompt_id": ["a"],
        "sample_index": pa.array([0], pa.int32()),
        "reward": [1.0],
        "length": [2.0],
    }
    with again.partial("rewards", "0" * 64) as partial:
        partial.write(0, pa.table(columns), declared("rewards").with_components(("length",)))
        made = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    (line,) = differences(store, rewards(store, [3.0]), again, made)
    assert line.startswith(
        "it has the columns prompt_id, sample_index, reward, length, had prompt_id, "
        "sample_index, reward,"
    )
