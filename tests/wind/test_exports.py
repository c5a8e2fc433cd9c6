"""Exports: other tools read what was stored, twice the same bytes, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet
import pytest
import yaml
from safetensors.numpy import load_file

from tests.wind.reading_case import PROMPTS
from wind.errors import ConfigError, DatasetError
from wind.exchange.exports import (
    Exportable,
    appearing,
    export_hf,
    export_model,
    export_parquet,
)
from wind.store.datasets import Store
from wind.store.shards import shard_name
from wind.store.versions import Version


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _fail_halfway(partial: Path) -> None:
    partial.mkdir()
    (partial / "half").write_text("x")
    raise KeyError


def front_matter(card: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(card.read_text().split("---")[1])
    return content


def test_parquet_holds_the_rows_and_names_their_fingerprint(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        export_parquet(store, Exportable.of(store, "demo@2"), tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    generations = demo_versions[1].content.datasets["generations"]
    assert pl.read_parquet(tmp_path / "one" / "generations" / "*.parquet").equals(
        store.frame(generations)
    )
    shards = sorted(path.name for path in (tmp_path / "one" / "generations").iterdir())
    assert shards == ["part-00000.parquet", "part-00001.parquet"]
    schema = pyarrow.parquet.read_schema(tmp_path / "one" / "generations" / shards[0])
    assert schema.metadata[b"wind.fingerprint"] == generations.fingerprint.encode()
    assert schema.metadata[b"wind.dataset"] == b"generations"
    export_parquet(store, Exportable.of(store, "demo@2:rewards"), tmp_path / "alone")
    assert list(files(tmp_path / "alone")) == ["part-00000.parquet"]
    assert pl.read_parquet(tmp_path / "alone" / "*.parquet")["reward"].to_list() == [
        2.0,
        4.0,
        3.0,
        5.0,
    ]


def test_a_dataset_folder_has_a_config_for_each_noun_and_a_card(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    export_hf(store, Exportable.of(store, "demo@2"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    splits = {
        entry["config_name"]: [each["split"] for each in entry["data_files"]]
        for entry in front_matter(tmp_path / "out" / "README.md")["configs"]
    }
    both = ["train", "eval"]
    assert splits == {
        "prompts": both,
        "generations": both,
        "rewards": ["train"],
        "win_rates": ["train"],
        "training": ["train"],
        "metrics": ["eval"],
    }
    train = pl.read_parquet(tmp_path / "out" / "prompts" / "train-*.parquet")
    assert train["prompt_id"].to_list() == PROMPTS[:2]
    assert pl.read_parquet(tmp_path / "out" / "generations" / "eval-*.parquet")[
        "response"
    ].to_list() == ["c20", "c21"]
    for said in (
        demo_versions[1].id,
        demo_versions[0].id,
        "| win_rate | 1 | [0.9, 1.1] | 2 |",
        "org/base",
        "f" * 40,
        "prompts.jsonl",
        "| `logp_sampler` | `double` | nats <= 0, sum over response_token_ids",
        "beta: 0.1",
        "license",
    ):
        assert said in card
    assert str(tmp_path) not in card


def test_a_model_folder_has_its_weights_and_a_card(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    export_model(store, Exportable.of(store, "demo@2"), tmp_path / "version")
    export_model(
        store,
        Exportable.of(store, f"models/{demo_versions[1].content.model_out.fingerprint[:12]}"),
        tmp_path / "digits",
    )
    assert load_file(tmp_path / "version" / "model.safetensors")["weight"].tolist() == [
        [2.5, 2.5],
        [2.5, 2.5],
    ]
    assert sorted(files(tmp_path / "version")) == ["README.md", "config.json", "model.safetensors"]
    for folder in ("version", "digits"):
        card = tmp_path / folder / "README.md"
        assert front_matter(card)["base_model"] == "org/base"
        assert demo_versions[1].id in card.read_text()
        assert "| win_rate | 1 | [0.9, 1.1] | 2 |" in card.read_text()
    export_model(store, Exportable.of(store, "demo:model_in"), tmp_path / "first")
    export_model(store, Exportable.of(store, "demo:reference"), tmp_path / "base")
    # what went in came out of the iteration before
    assert demo_versions[0].id in (tmp_path / "first" / "README.md").read_text()
    assert "Iteration" not in (tmp_path / "base" / "README.md").read_text()


def test_what_cannot_be_exported_says_so(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    source = next(store.handles("sources")).fingerprint
    for call in (
        lambda: export_hf(store, Exportable.of(store, "demo:model_out"), tmp_path / "x"),
        lambda: export_parquet(store, Exportable.of(store, "demo:model_out"), tmp_path / "x"),
        lambda: export_model(store, Exportable.of(store, "demo:rewards"), tmp_path / "x"),
        lambda: Exportable.of(store, f"sources/{source}"),
        lambda: Exportable.of(store, "nobody"),
        lambda: export_hf(store, Exportable.of(store, "demo"), tmp_path),
    ):
        with pytest.raises(ConfigError):
            call()
    assert not (tmp_path / "x").exists()


def test_damaged_content_is_not_exported(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    content = demo_versions[1].content
    for path in (
        store.path(content.datasets["rewards"]) / shard_name(0),
        store.path(content.model_out) / "model.safetensors",
    ):
        damaged = bytearray(path.read_bytes())
        damaged[-20] ^= 1
        path.write_bytes(damaged)
    for export in (export_hf, export_parquet, export_model):
        with pytest.raises(DatasetError, match="does not have the sha256"):
            export(store, Exportable.of(store, "demo"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_no_name_leads_out_of_the_folder(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    manifest = store.path(demo_versions[1].content.model_out) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"config.json"', '"../../config.json"'))
    with pytest.raises(DatasetError):
        export_model(store, Exportable.of(store, "demo"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_destination_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    target.mkdir(parents=True)  # an empty folder is as good as none
    with pytest.raises(KeyError), appearing(target) as partial:
        _fail_halfway(partial)
    assert list(target.parent.rglob("*")) == [target]
    (target.parent / ".out.partial").mkdir()  # what a killed export left
    (target.parent / ".out.partial" / "stale").write_text("x")
    with appearing(target) as partial:
        partial.mkdir()
        (partial / "whole.json").write_text(json.dumps({}))
    assert list(files(target.parent)) == ["out/whole.json"]
    for nothing in (Path("/"), target / ".."):
        with pytest.raises(ConfigError, match="name a new folder"), appearing(nothing):
            pass
    with pytest.raises(ConfigError, match="already exists"), appearing(target) as partial:
        pass
    assert list(files(target.parent)) == ["out/whole.json"]


@pytest.mark.slow
def test_hugging_face_loads_the_folder(
    store: Store, demo_versions: list[Version], tmp_path: Path
) -> None:
    import datasets

    export_hf(store, Exportable.of(store, "demo@2"), tmp_path / "out")
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), "generations", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["train"]["response"][:] == ["a20", "a21", "b20", "b21"]
    assert loaded["eval"]["response_token_ids"][:] == [[5, 2], [6, 7, 2]]
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == [
        "prompts",
        "generations",
        "rewards",
        "win_rates",
        "training",
        "metrics",
    ]
