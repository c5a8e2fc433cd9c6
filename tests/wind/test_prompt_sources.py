"""Sources of prompts: every layout they come in, and what is said of those that cannot be read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from wind.config.prompts import PromptsConfig
from wind.errors import ConfigError, InputError
from wind.prompts.rows import Row, read_rows
from wind.prompts.sources import import_prompts
from wind.prompts.splits import split_of_file
from wind.store.datasets import Store

SUMS: list[dict[str, Any]] = [
    {"prompt": f"{number}+{number}=", "answer": 2 * number} for number in range(40)
]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(store: Store, source: Path | str, **fields: Any) -> list[dict[str, Any]]:
    return [
        row.fields
        for row in read_rows(
            store,
            import_prompts(store, PromptsConfig(source=str(source), **fields)),
            "prompt",
            None,
        )
    ]


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def write_sources(folder: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """The sums in every layout: path and fields by name."""
    table = pa.Table.from_pylist(SUMS)
    write_jsonl(folder / "p.jsonl", SUMS)
    pq.write_table(table, folder / "p.parquet", row_group_size=7)
    with (
        pa.OSFile(str(folder / "p.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=9)
    rows = datasets.Dataset.from_list(SUMS)
    rows.save_to_disk(folder / "saved", num_shards=3)
    (folder / "saved" / "cache-0123.arrow").write_bytes(b"left by map()")
    both = datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])})
    both.save_to_disk(folder / "splits")
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "one_split")
    (folder / "files").mkdir()
    write_jsonl(folder / "files" / "train-0.jsonl", SUMS[:30])
    pq.write_table(table.slice(30), folder / "files" / "train-1.parquet")
    write_jsonl(folder / "files" / "test.jsonl", SUMS[:1])
    (folder / "files" / "README.md").write_text("what this is")
    return {
        "jsonl": (folder / "p.jsonl", {}),
        "parquet": (folder / "p.parquet", {}),
        "arrow": (folder / "p.arrow", {}),
        "saved": (folder / "saved", {}),
        "splits": (folder / "splits", {"source_split": "train"}),
        "one split": (folder / "one_split", {}),
        "files": (folder / "files", {"source_split": "train"}),
    }


def test_the_same_rows_come_from_every_layout(store: Store, tmp_path: Path) -> None:
    for name, (path, fields) in write_sources(tmp_path).items():
        assert rows_of(store, path, **fields) == SUMS, name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00003.parquet", "train"),
        ("train_sft-00000-of-00001.parquet", "train_sft"),
        ("train_prefs-00000-of-00001.parquet", "train_prefs"),
        ("data/random-00002-of-00003.parquet", "random"),
        ("training.jsonl", "train"),
        ("train_2.jsonl", "train"),
        ("train-0.jsonl", "train"),
        ("train_sft.jsonl", "train_sft"),
        ("val.jsonl", "validation"),
        ("eval/part-1.jsonl", "test"),
        ("train/a/b.arrow", "train"),
        ("trainer.jsonl", None),
        ("latest.jsonl", None),
        ("train-00001-of-00002-a09b74b3ef9c3b56.parquet", "train"),
        ("train-1-of-3.parquet", "train"),
        ("train-sft-00001-of-00002.parquet", "train-sft"),
        ("gsm8k_train.jsonl", "gsm8k_train"),
        ("gsm8k_test_1.jsonl", "gsm8k_test"),
        ("my-train/a.parquet", "my-train"),
        ("default/test_sft/0000.parquet", "test_sft"),
        ("shard_0.jsonl", None),
    ],
)
def test_names_tell_the_split(name: str, split: str | None) -> None:
    assert split_of_file(Path(name)) == split


def test_a_split_is_no_other_whose_name_it_begins(store: Store, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, split in enumerate(("train_sft", "train_prefs", "train", "test_sft")):
        write_jsonl(tmp_path / "data" / f"{split}-00000-of-00001.jsonl", SUMS[number : number + 1])
    assert rows_of(store, tmp_path, source_split="train") == SUMS[2:3]
    assert rows_of(store, tmp_path / "data", source_split="train_sft") == SUMS[:1]
    with pytest.raises(
        ConfigError, match=r"has the splits test_sft, train, train_prefs, train_sft$"
    ):
        rows_of(store, tmp_path)


@pytest.mark.parametrize("name", ["gsm8k_{}.jsonl", "my-{}/a.jsonl", "{}_sft/0000.jsonl"])
def test_files_of_a_test_split_are_not_read_unasked(
    store: Store, tmp_path: Path, name: str
) -> None:
    train, test = (name.format(split) for split in ("train", "test"))
    for path, rows in ((tmp_path / train, SUMS[:3]), (tmp_path / test, SUMS[3:])):
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, rows)
    named = [Path(file).parts[0].removesuffix(".jsonl") for file in (test, train)]
    with pytest.raises(
        ConfigError, match=f"prompts.source_split is not set: .* has the splits {', '.join(named)}$"
    ):
        rows_of(store, tmp_path)
    assert rows_of(store, tmp_path, source_split=named[1]) == SUMS[:3]


def test_the_stored_source_outlives_its_original(store: Store, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", SUMS)
    config = PromptsConfig(source=str(source))
    handle = import_prompts(store, config)
    assert import_prompts(store, config) == handle
    source.write_text('{"prompt": "1="}\n')
    assert import_prompts(store, config) != handle
    assert (store.path(handle) / "p.jsonl").read_text().count("\n") == 40
    assert store.verify(handle).provenance["origin"] == {"path": str(source)}


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        (
            "no.jsonl",
            {},
            "no.jsonl does not exist: give a .jsonl, .parquet or .arrow file, a `datasets` "
            "folder, or a Hub",
        ),
        ("data/no.parquet", {}, "data/no.parquet does not exist"),
        ("/no/such/folder", {}, "/no/such/folder does not exist"),
        ("{}/p.txt", {}, "p.txt is none of .jsonl, .parquet, .arrow"),
        (
            "{}/p.jsonl",
            {"source_split": "train"},
            "prompts.source_split is for a folder or a Hub dataset",
        ),
        ("{}/p.jsonl", {"revision": "main"}, "prompts.revision is for a Hub dataset"),
        ("{}/p.jsonl", {"subset": "main"}, "prompts.subset is for a Hub dataset"),
        ("{}/splits", {}, "prompts.source_split is not set"),
        ("{}/splits", {"source_split": "dev"}, "prompts.source_split is 'dev'"),
        (
            "{}/saved",
            {"source_split": "train"},
            "prompts.source_split is for a folder or a Hub dataset",
        ),
        (
            "{}/files",
            {"source_split": "dev"},
            "prompts.source_split is 'dev': {}/files has the splits test, train",
        ),
        ("{}/files", {}, "prompts.source_split is not set: {}/files has the splits test, train"),
        ("{}/mixed", {}, "mixed has the split train and files of none, such as more.jsonl"),
        ("{}/plain", {"source_split": "train"}, "plain has files that name no split"),
        ("{}/twice", {}, "twice holds 2 files called p.jsonl"),
        ("{}/empty", {}, "empty holds no .jsonl, .parquet, .arrow file"),
        ("{}/broken", {}, "state.json was not written by save_to_disk of `datasets`"),
    ],
)
def test_a_source_that_cannot_be_imported(
    store: Store, tmp_path: Path, source: str, fields: dict[str, str], message: str
) -> None:
    write_sources(tmp_path)
    (tmp_path / "p.txt").write_text("1=")
    (tmp_path / "empty").mkdir()
    for name in (
        "mixed/train.jsonl",
        "mixed/more.jsonl",
        "plain/p.jsonl",
        "twice/a/p.jsonl",
        "twice/b/p.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, SUMS[:1])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        import_prompts(store, PromptsConfig(source=source.format(tmp_path), **fields))
    assert message.format(tmp_path) in message_of(error)
    assert list(store.handles("sources")) == []


def test_a_missing_shard_of_a_saved_dataset_is_named(store: Store, tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(ConfigError, match=r"saved lacks data-00001-of-00003.arrow"):
        import_prompts(store, PromptsConfig(source=str(tmp_path / "saved")))


@pytest.mark.parametrize(
    "content",
    [b"", b"1=", b"PAR1 and then nothing of the kind", b"ARROW1 and then nothing of the kind"],
)
@pytest.mark.parametrize(("suffix", "name"), [(".parquet", "Parquet"), (".arrow", "Arrow")])
def test_unreadable_files_are_named(
    store: Store, tmp_path: Path, suffix: str, name: str, content: bytes
) -> None:
    (tmp_path / f"p{suffix}").write_bytes(content)
    with pytest.raises(InputError) as error:
        rows_of(store, tmp_path / f"p{suffix}")
    assert f"p{suffix} cannot be read as {name}" in message_of(error)


def test_a_parquet_row_is_named(store: Store, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": ["1="] * 1500 + [" "]}), tmp_path / "p.parquet", row_group_size=400
    )
    rows = read_rows(
        store,
        import_prompts(store, PromptsConfig(source=str(tmp_path / "p.parquet"))),
        "prompt",
        None,
    )
    assert rows[1500] == Row("p.parquet row 1501", {"prompt": " "}, is_columnar=True)


def test_a_hub_dataset_is_stored_at_its_commit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Info:
        sha = "c" * 40

    def load_dataset(
        name: str, subset: str | None, *, split: str, revision: str
    ) -> datasets.Dataset:
        calls.append((name, subset, split, revision))
        return datasets.Dataset.from_list(SUMS)

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, revision: Info)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda name, subset, revision: ["train", "test"]
    )
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = PromptsConfig(source="some/sums", subset="easy", source_split="test", revision="v2")
    source = import_prompts(store, config)
    assert calls == [("some/sums", "easy", "test", "c" * 40)]  # the commit, never the moving name
    manifest = store.verify(source)
    assert [file.name for file in manifest.files] == ["some-sums-easy-test.parquet"]
    asked = {"hub": "some/sums", "revision": "v2", "subset": "easy", "split": "test"}
    assert manifest.provenance["origin"] == asked | {"commit": "c" * 40}
    assert list((store.root / "partial" / "sources").iterdir()) == []
    assert [row.fields for row in read_rows(store, source, "prompt", None)] == SUMS
    with pytest.raises(
        ConfigError, match=r"prompts.source_split is not set: some/sums has the splits train, test"
    ):
        import_prompts(store, PromptsConfig(source="some/sums"))


def test_what_is_neither_a_file_nor_on_the_hub_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: HfApi, name: str, revision: str | None) -> None:
        raise ConnectionError("offline mode\nis enabled")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    with pytest.raises(ConfigError) as error:
        import_prompts(store, PromptsConfig(source="some/sums"))
    expected = (
        "prompts.source some/sums is not a local file and cannot be loaded from the Hub "
        "(offline mode is enabled)"
    )
    assert message_of(error) == expected
