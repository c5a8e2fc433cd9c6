"""How deep a text may be nested is counted: the same whatever recursion limit the process has."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wind.config.loading import load_config
from wind.config.prompts import PromptsConfig
from wind.errors import ConfigError, InputError
from wind.nesting import is_too_deep, json_value
from wind.prompts.rows import read_rows
from wind.prompts.sources import import_prompts
from wind.store.datasets import Store

SETTINGS = (
    "run: demo\npolicy: {path: x}\nprompts: {source: x}\nreward: {kind: rule, function: "
    "x:y}\nobjective: {name: wind}\n"
)


@pytest.fixture(params=["hardly any left", "as it is", "raised"])
def _recursion(request: pytest.FixtureRequest) -> Iterator[None]:
    before = sys.getrecursionlimit()
    limits = {"hardly any left": len(inspect.stack(0)) + 400, "as it is": before, "raised": 50_000}
    sys.setrecursionlimit(limits[request.param])
    yield
    sys.setrecursionlimit(before)


def nested(levels: int, inner: str = "") -> str:
    return "[" * levels + inner + "]" * levels


@pytest.mark.usefixtures("_recursion")
@pytest.mark.parametrize("levels", [63, 64, 900, 5_000])
def test_a_recipe_is_at_most_so_deep(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "recipe.yaml"
    # the mapping of settings is a level of its own
    path.write_text(f"{SETTINGS}seed: {nested(levels)}\n")
    with pytest.raises(ConfigError, match=r"seed is \[\[" if levels == 63 else "nested too deeply"):
        load_config(path)


@pytest.mark.usefixtures("_recursion")
@pytest.mark.parametrize("levels", [64, 65, 900, 5_000])
def test_a_value_of_set_is_at_most_so_deep(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SETTINGS)
    with pytest.raises(ConfigError, match=r"seed is \[\[" if levels == 64 else "nested too deeply"):
        load_config(path, [f"seed={nested(levels, '1')}"])


@pytest.mark.usefixtures("_recursion")
@pytest.mark.parametrize("levels", [63, 64, 900, 5_000])
def test_a_row_is_at_most_so_deep(store: Store, tmp_path: Path, levels: int) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "1+1", "tags": {nested(levels)}}}\n')
    source = import_prompts(store, PromptsConfig(source=str(path)))
    if levels == 63:  # and the object itself
        assert read_rows(store, source, "prompt", None)[0].fields["tags"] is not None
        return
    with pytest.raises(
        InputError, match=r"prompts.jsonl line 1 is not JSON \(nested more than 64 levels deep\)"
    ):
        read_rows(store, source, "prompt", None)


def test_a_column_is_at_most_so_deep(store: Store, tmp_path: Path) -> None:
    kind = pa.int64()
    for _ in range(65):
        kind = pa.list_(kind)
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["1+1"], "tags": pa.array([None], kind)}), path)
    source = import_prompts(store, PromptsConfig(source=str(path)))
    with pytest.raises(
        InputError, match=r"prompts.parquet cannot be read as Parquet: .*deeply nested"
    ):
        read_rows(store, source, "prompt", None)


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (nested(64), False),
        (nested(65), True),
        ("[" * 65, True),  # one that never ends
        (f"[{', '.join(['[]'] * 1000)}]", False),  # beside each other
        (f'["{"[" * 1000}"]', False),  # in a string
        (r'["\\", "\"' + "[" * 1000 + '"]', False),  # in a string that holds a quote
        (r'["\\", ' + "[" * 64, True),  # after one that ends in a backslash
        ('{"a": ' * 65 + "1" + "}" * 65, True),
    ],
)
def test_brackets_are_counted(text: str, deep: bool) -> None:
    assert is_too_deep(text) is deep


def test_json_is_read_as_it_is() -> None:
    assert json_value(b'{"a": [1, "\\u00e9", null]}') == {"a": [1, "é", None]}
    for broken in (b"{", b"\xff", b'\xef\xbb\xbf{"a": 1}'):
        with pytest.raises(ValueError):  # noqa: PT011
            json_value(broken)
