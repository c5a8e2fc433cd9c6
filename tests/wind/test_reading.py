"""Reading from Python: a version's datasets as lazy frames, and the plain readers that
docs/python.md shows.
"""

import copy
import doctest
import pickle
import re
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

import wind
from tests.wind.reading_case import PROMPTS
from wind.errors import ConfigError
from wind.exchange import reading
from wind.exchange.reading import DatasetFrame, StoreReader
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reader(store: Store, demo_versions: list[Version]) -> StoreReader:
    return wind.open(store.root)


def test_a_dataset_is_a_lazy_frame(store: Store, reader: StoreReader) -> None:
    rows = reader.version("demo@latest").rewards
    assert isinstance(rows, pl.LazyFrame)
    best = rows.group_by("prompt_id").agg(pl.col("reward").max()).sort("prompt_id").collect()
    assert best.to_dicts() == [
        {"prompt_id": PROMPTS[0], "reward": 4.0},
        {"prompt_id": PROMPTS[1], "reward": 5.0},
    ]
    responses = reader.version("demo@2").generations
    joined = (
        responses.join(rows, on=["prompt_id", "sample_index"])
        .filter(pl.col("reward") == 5)
        .select("response")
        .collect()
    )
    assert joined["response"].to_list() == ["b21"]
    assert rows.arrow().count_rows() == 4
    assert rows.manifest.numbers == {"mean_reward": 3.5}
    assert rows.handle == find_version(store, "demo@2").content.datasets["rewards"]


def test_only_what_is_asked_for_is_read(reader: StoreReader) -> None:
    plan = (
        reader.version("demo")
        .generations.filter(pl.col("sample_index") == 1)
        .select("response")
        .explain()
    )
    assert "SELECTION" in plan
    assert re.search(r"PROJECT 2/8 COLUMNS|PROJECT\(\S*\) 2/8", plan), plan


def test_what_is_joined_by_key_is_merged(store: Store, reader: StoreReader) -> None:
    """And not hashed, which holds all of one side; whatever else is asked for, and where a side
    lacks rows.
    """
    rewards, generations = reader.version("demo").rewards, reader.version("demo").generations
    key = ["prompt_id", "sample_index"]
    some = generations.filter(pl.col("sample_index") > 0)
    cases: list[tuple[pl.LazyFrame, pl.LazyFrame, Literal["inner", "left", "full"]]]
    cases = [(rewards, generations, "inner"), (rewards, some, "left"), (some, rewards, "full")]
    for left, right, how in cases:
        joined = left.join(right, on=key, how=how).select("reward", "response")
        assert "hint.sorted" in joined.explain(engine="streaming")
        plain = left.collect().join(right.collect(), on=key, how=how).select("reward", "response")
        assert (
            joined.sort("reward", "response")
            .collect(engine="streaming")
            .equals(plain.sort("reward", "response"))
        )
    assert rewards.select("reward").filter(pl.col("reward") > 2).collect()["reward"].to_list() == [
        4.0,
        3.0,
        5.0,
    ]


def test_what_is_derived_is_a_plain_frame(reader: StoreReader) -> None:
    rows = reader.version("demo").rewards
    for derived in (rows.filter(pl.col("reward") > 2), rows.clone(), copy.copy(rows)):
        assert type(derived) is pl.LazyFrame
    again = pickle.loads(pickle.dumps(rows))
    assert again.handle == rows.handle
    assert again.collect().equals(rows.collect())


def test_rows_are_found_from_another_folder(
    store: Store, demo_versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.root.parent)
    rows = wind.open(store.root.name).version("demo").rewards
    sent = pickle.dumps(rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).collect()["reward"].to_list() == [2.0, 4.0, 3.0, 5.0]


def test_a_version_knows_its_models_and_the_one_before(store: Store, reader: StoreReader) -> None:
    assert reader.runs == ["demo"]
    first, second = reader.versions("demo")
    assert (first.name, first.iteration, first.previous) == ("demo@1", 1, None)
    assert second.previous is not None
    assert second.previous.id == first.id
    assert second.recipe["objective"] == {"name": "wind", "beta": 0.1}
    assert second.models["model_in"].path == first.models["model_out"].path
    assert (second.models["model_out"].path / "model.safetensors").is_file()
    assert second.metrics.select("value").collect().item() == 1.0
    assert list(second) == [
        "prompts",
        "generations",
        "rewards",
        "win_rates",
        "training",
        "eval_generations",
        "metrics",
    ]
    assert "eval_generations" in dir(second)
    digits = second.rewards.handle.fingerprint[:8]
    assert (
        reader.dataset(f"rewards/{digits}").handle
        == reader.dataset("demo:rewards").handle
        == second.rewards.handle
    )


def test_wrong_names_are_told_the_right_ones(
    store: Store, reader: StoreReader, tmp_path: Path
) -> None:
    version = reader.version("demo@1")
    with pytest.raises(
        AttributeError,
        match=r"demo@1 has no dataset 'reward': it has prompts, generations, rewards",
    ):
        _ = version.reward
    with pytest.raises(KeyError, match="it has prompts"):
        version["reward"]
    for wrong in (
        lambda: reader.version("demo@7"),
        lambda: reader.versions("nobody"),
        lambda: reader.dataset("rewards/00"),
        lambda: reader.dataset("demo:model_out"),
        lambda: wind.open(tmp_path / "nowhere"),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(AttributeError, match="no attribute 'close'"):
        _ = wind.close  # type: ignore[attr-defined]


def test_a_store_that_is_not_local_is_read_through_its_file_system(
    store: Store, reader: StoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reader.version("demo").generations.collect()
    monkeypatch.setattr("wind.exchange.reading.LocalStorage", type("NotThis", (), {}))
    rows = reader.version("demo").generations
    assert rows.collect().equals(expected)
    assert rows.filter(pl.col("sample_index") == 1).select("response").collect()[
        "response"
    ].to_list() == ["a21", "b21"]


def test_the_examples_in_the_docstrings_run(
    store: Store, demo_versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.root.parent)
    assert store.root.name == "store"
    names = {"wind": wind, "pl": pl}
    examples = doctest.DocTestFinder().find(reading, extraglobs=names)
    ran = {each.name.rpartition(".")[2] for each in examples if each.examples}
    assert ran == {"reading", *(name for name in reading.__all__)}
    for each in examples:
        assert doctest.DocTestRunner(verbose=False).run(each).failed == 0, each.name


@pytest.mark.slow
def test_the_readers_of_the_page_on_python_read(
    store: Store, reader: StoreReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(store.root.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows: DatasetFrame = reader.version("demo").generations
    loaded = rows.to_hf()
    assert loaded["response"][:] == ["a20", "a21", "b20", "b21"]
    assert loaded[2]["response_token_ids"] == [5, 2]
    assert loaded._fingerprint == rows.handle.fingerprint
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), flags=re.DOTALL
    )
    readers = [block for block in blocks if "<fingerprint>" in block or "wind.open" in block]
    for shown in ("pl.scan_ipc", "duckdb.sql", "load_dataset", "wind.open", ".to_hf()"):
        assert shown in "".join(readers)
    for block in readers:
        code = block.replace("<fingerprint>", reader.version("demo").rewards.handle.fingerprint)
        exec(compile(code, "docs/python.md", "exec"), {})
