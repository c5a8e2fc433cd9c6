"""Fingerprints: the same for the same rows however they are divided.

Another row, order or schema has another fingerprint.
"""

import hashlib
import itertools
import json
import struct
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wind.fingerprints import TableFingerprint, ahead, digest, file_digest

MESSAGE = pa.struct(
    [pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string())]
)
SCHEMA = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("tokens", pa.list_(pa.field("item", pa.int32()))),
        pa.field("messages", pa.list_(pa.field("item", MESSAGE, nullable=False)), nullable=False),
        pa.field("message", MESSAGE),
        pa.field("value", pa.float64()),
        pa.field("is_tie", pa.bool_()),
        pa.field("step", pa.int64(), nullable=False),
    ]
)

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(max_size=3)
messages = st.fixed_dictionaries({"role": texts, "content": st.none() | texts})
rows = st.fixed_dictionaries(
    {
        "text": st.none() | texts,
        "tokens": st.none() | st.lists(st.none() | st.integers(-3, 3), max_size=3),
        "messages": st.lists(messages, max_size=2),
        "message": st.none() | messages,
        "value": st.none() | st.floats(allow_nan=False).filter(lambda value: value != 0),
        "is_tie": st.none() | st.booleans(),
        "step": st.integers(-3, 3),
    }
)


def fingerprint(batches: list[pa.RecordBatch], schema: pa.Schema = SCHEMA) -> str:
    accumulated = TableFingerprint(schema)
    for batch in batches:
        accumulated.update([batch])
    return accumulated.hexdigest()


def of_rows(content: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> str:
    return fingerprint(pa.Table.from_pylist(content, schema=schema).to_batches(), schema)


def of_column(values: list[Any], kind: pa.DataType, nullable: bool = True, name: str = "x") -> str:
    return of_rows(
        [{name: value} for value in values], pa.schema([pa.field(name, kind, nullable=nullable)])
    )


@many
@given(st.lists(rows, max_size=12), st.lists(st.integers(0, 12), max_size=6))
def test_cuts_do_not_matter(content: list[dict[str, Any]], cuts: list[int]) -> None:
    bounds = sorted([0, *(min(cut, len(content)) for cut in cuts), len(content)])
    pieces = list(itertools.pairwise(bounds))
    table = pa.Table.from_pylist(content, schema=SCHEMA)
    # Slices share the buffers of the whole, at an offset; batches made afresh do not. Some pieces
    # are empty.
    slices = [
        batch
        for start, end in pieces
        for batch in table.slice(start, end - start).combine_chunks().to_batches()
    ]
    views = [
        batch.slice(start, end - start) for batch in table.to_batches() for start, end in pieces
    ]
    fresh = [pa.RecordBatch.from_pylist(content[start:end], schema=SCHEMA) for start, end in pieces]
    assert fingerprint(views) == fingerprint(fresh) == fingerprint(slices) == of_rows(content)


@many
@given(st.lists(rows, max_size=4), st.lists(rows, max_size=4))
def test_fingerprints_are_equal_exactly_where_rows_are(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    assert (of_rows(one) == of_rows(other)) == (one == other)


@many
@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_any_one_changed_cell_counts(content: list[dict[str, Any]], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(content) - 1))
    name = data.draw(st.sampled_from(SCHEMA.names))
    replaced = data.draw(rows)[name]
    changed = [*content[:row], content[row] | {name: replaced}, *content[row + 1 :]]
    assert (of_rows(content) == of_rows(changed)) == (content == changed)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (pa.string(), ["ab", ""], ["a", "b"]),
        (pa.string(), [None], [""]),
        (pa.string(), [None, "a"], ["a", None]),
        (pa.string(), ["a"], ["a", None]),
        (pa.string(), [], [None]),
        (pa.list_(pa.int32()), [[1], [2]], [[1, 2], []]),
        (pa.list_(pa.int32()), [None], [[]]),
        (pa.list_(pa.int32()), [[None]], [[]]),
        (pa.list_(pa.list_(pa.int32())), [[[1], []]], [[[], [1]]]),
        (pa.struct([("a", pa.int32())]), [None], [{"a": None}]),
        (
            pa.struct([("a", pa.int32()), ("b", pa.int32())]),
            [{"a": 1, "b": None}],
            [{"a": None, "b": 1}],
        ),
        (pa.float64(), [0.0], [-0.0]),
        (pa.bool_(), [True, False], [False, True]),
        (pa.int32(), [1, 2], [2, 1]),
    ],
)
def test_what_looks_alike_is_told_apart(
    kind: pa.DataType, one: list[Any], other: list[Any]
) -> None:
    assert of_column(one, kind) != of_column(other, kind)
    assert of_column(one, kind) == of_column(list(one), kind)


def test_the_schema_counts() -> None:
    assert of_column([1], pa.int32()) != of_column([1], pa.int64())
    assert of_column([1], pa.int32()) != of_column([1], pa.int32(), nullable=False)
    assert of_column([1], pa.int32()) != of_column([1], pa.int32(), name="y")
    assert of_column([], pa.int32()) != of_column([], pa.string())
    inner = [
        pa.list_(pa.field("item", pa.int32(), nullable=nullable)) for nullable in (True, False)
    ]
    assert of_column([[1]], inner[0]) != of_column([[1]], inner[1])


def test_an_empty_batch_is_no_content() -> None:
    empty = pa.RecordBatch.from_pylist([], schema=SCHEMA)
    assert fingerprint([empty]) == fingerprint([]) == fingerprint([empty, empty])


def test_the_definition_by_hand() -> None:
    """Two rows, a nullable text and a number: every stream is the sha256 of bytes one can write
    down.
    """
    schema = pa.schema([pa.field("t", pa.string()), pa.field("n", pa.int32(), nullable=False)])
    streams = {
        "t?": b"\x01\x00",  # validity, a byte each
        "t#": struct.pack("<i", 2),  # lengths of what is valid
        "t=": b"ab",
        "n=": struct.pack("<2i", 7, -1),
    }
    expected = [
        [["t", "string", True], ["n", "int32", False]],
        2,
        {name: hashlib.sha256(content).hexdigest() for name, content in streams.items()},
    ]
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert (
        of_rows([{"t": "ab", "n": 7}, {"t": None, "n": -1}], schema)
        == hashlib.sha256(text.encode()).hexdigest()
    )


def test_digest_knows_values_not_their_spelling() -> None:
    assert digest({"b": 1, "a": [1.5, "é"]}) == digest({"a": [1.5, "é"], "b": 1})
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert digest([1, 2]) != digest([2, 1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))


def test_file_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "x")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_digests_ahead_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(index) for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 10 ** (index % 6))
    with ahead(file_digest, paths) as digests:
        assert list(digests) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_nobody_waits_for_digests_ahead_that_are_not_wanted() -> None:
    begun: list[int] = []
    goes_on = threading.Event()

    def compute(item: int) -> str:
        begun.append(item)
        if item == 1:
            goes_on.wait()
        return str(item)

    with ahead(compute, range(1000)) as results:
        assert next(results) == "0"
        threading.Timer(0.05, goes_on.set).start()
    assert begun in ([0], [0, 1])


def test_the_thread_ahead_ends_with_its_block() -> None:
    """And not when the collector finds the traceback that is kept here."""

    def divide() -> None:
        with ahead((1).__truediv__, [1, 0, 1]) as results:
            list(results)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError) as kept:
        divide()
    assert threading.active_count() == before, kept


def test_what_fails_ahead_fails_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with ahead(file_digest, [tmp_path / "x", tmp_path / "y"]) as results:
        assert next(results) == file_digest(tmp_path / "x")
        with pytest.raises(FileNotFoundError):
            next(results)
