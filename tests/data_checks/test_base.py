"""Joins of frames: the same for keys that lie side by side as for keys that are looked up."""

import polars as pl
import pytest

from data_checks.base import keys_present, with_parent

KEY = ["prompt_id", "sample_index"]


def rows(*keys: str, **columns: list[float]) -> pl.DataFrame:
    """One row for each of `keys`, such as a0."""
    return pl.DataFrame(
        {
            "prompt_id": [key[0] for key in keys],
            "sample_index": [int(key[1]) for key in keys],
            **columns,
        }
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["a0", "a1", "b0"], ["a0", "a1", "b0"], [(1.0, True), (2.0, True), (3.0, True)]),
        (["a0", "b0"], ["a0", "a1", "b0"], [(1.0, True), (3.0, True)]),
        (["a0", "a1", "c0"], ["a0", "a1", "b0"], [(1.0, True), (2.0, True), (None, False)]),
        (["a0", "a0", "b0"], ["a0", "a1", "b0"], [(1.0, True), (1.0, True), (3.0, True)]),
        # the first of the parent's two
        (["a0", "a0", "b0"], ["a0", "a0", "b0"], [(1.0, True), (1.0, True), (3.0, True)]),
        ([], [], []),
    ],
)
def test_rows_get_the_columns_of_their_parent(
    ours: list[str], theirs: list[str], expected: list[tuple[float | None, bool]]
) -> None:
    frame = rows(*ours, reward=[0.5] * len(ours))
    parent = rows(*theirs, reward=[1.0, 2.0, 3.0][: len(theirs)])
    found = with_parent(frame, parent, KEY)
    assert found.columns == [*KEY, "reward", "reward_right", "is_known"]
    assert found.select(*KEY, "reward").equals(frame)
    assert found.select("reward_right", "is_known").rows() == expected


@pytest.mark.parametrize(
    ("parents", "there", "expected"),
    [
        (["a0", "a1", "b0"], ["a0", "a1", "b0"], [True, True, True]),
        (["a0", "a1", "b0"], ["a0", "b0"], [True, False, True]),
        (["a0", "a1", "b0"], ["a0", "a0", "c0"], [True, False, False]),
        (["a0", "a0"], ["a0", "a0"], [True, True]),
        ([], [], []),
    ],
)
def test_what_a_parent_lost_is_marked(
    parents: list[str], there: list[str], expected: list[bool]
) -> None:
    found = keys_present(rows(*parents, reward=[1.0] * len(parents)), rows(*there), KEY)
    assert found.columns == [*KEY, "is_present"]
    assert found["is_present"].to_list() == expected
    assert found.select(KEY).equals(rows(*parents))
