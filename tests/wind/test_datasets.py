"""The store: datasets appear whole or not at all, any damage is found and named, and everybody can
read the shards.
"""

import errno
import json
import os
import shutil
import struct
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

import wind.store.published
from wind.audit.verification import Verification
from wind.errors import DatasetError, InputError
from wind.fingerprints import file_digest
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model, label
from wind.store.imports import import_model, import_source
from wind.store.schemas import SCHEMAS, conform
from wind.store.shards import shard_name
from wind.store.storage import LocalStorage


def steps(start: int, stop: int) -> pa.Table:
    """Rows of `training`: one loss a step."""
    count = stop - start
    return pa.table(
        {
            "step": range(start, stop),
            "metric": ["loss"] * count,
            "value": [1 / (step + 1) for step in range(start, stop)],
        }
    )


def publish(store: Store, *shards: pa.Table, key: str = "key", **facts: Any) -> Dataset:
    with store.partial("training", key) as partial:
        for index, table in enumerate(shards):
            partial.write(index, table)
        return partial.publish(
            len(shards),
            **({"parents": {}, "computed_by": {}, "numbers": {}, "provenance": {}} | facts),
        )


def shard(store: Store, handle: Dataset, index: int = 0) -> Path:
    return store.path(handle) / shard_name(index)


# --------------------------------------------------------------------------------------- publishing


def test_what_is_published_is_what_was_written(store: Store) -> None:
    other = publish(store, steps(5, 6), key="parent")
    facts: dict[str, Any] = {
        "parents": {"base": other},
        "numbers": {"loss": 0.5},
        "computed_by": {"stage": "training"},
        "provenance": {"host": "x"},
    }
    handle = publish(store, steps(0, 3), steps(3, 5), **facts)
    assert handle.rows == 5
    assert store.read(handle).column("step").to_pylist() == [0, 1, 2, 3, 4]
    assert store.read(handle, ["value"], shard=1).to_pydict() == {"value": [1 / 4, 1 / 5]}
    assert store.frame(handle)["step"].dtype == pl.Int32  # cast to the declared type
    manifest = store.verify(handle)
    assert [(file.name, file.rows) for file in manifest.files] == [
        ("part-00000.arrow", 3),
        ("part-00001.arrow", 2),
    ]
    assert manifest.rows == 5
    assert manifest.parents == {"base": other}
    assert manifest.numbers == {"loss": 0.5}
    assert list(store.handles("training")) == sorted(
        [handle, other], key=lambda each: each.fingerprint
    )
    assert [
        path.name for path in (store.root / "partial" / "training").iterdir() if path.is_dir()
    ] == []


def test_the_cut_into_shards_is_no_content(store: Store) -> None:
    one = publish(store, steps(0, 5), key="one", numbers={"first": 1.0})
    two = publish(store, steps(0, 2), steps(2, 2), steps(2, 5), key="two")
    assert one == two
    assert len(store.verify(one).files) == 1  # the first one stays
    assert store.manifest(one).numbers == {"first": 1.0}


def test_times_and_hosts_are_no_content(store: Store) -> None:
    assert publish(store, steps(0, 2), provenance={"host": "a", "started": 1.0}) == publish(
        store, steps(0, 2), key="other", provenance={"host": "b", "started": 2.0}
    )
    assert publish(store, steps(0, 2)) != publish(store, steps(1, 3))


def test_an_empty_dataset_is_a_dataset(store: Store) -> None:
    handle = publish(store, steps(0, 0))
    assert store.verify(handle).rows == 0
    assert store.read(handle).schema.names == ["step", "metric", "value"]


def test_finished_shards_wait_for_the_rest(store: Store) -> None:
    with store.partial("training", "key") as partial:
        partial.write(1, steps(3, 5))
    assert list(store.handles("training")) == []
    with store.partial("training", "key") as partial:
        assert partial.missing(2) == [0]
        with pytest.raises(DatasetError, match=r"outputs-00000.json .*: rerun$"):
            partial.publish(2, parents={}, computed_by={}, numbers={}, provenance={})
        partial.write(0, steps(0, 3))
        assert partial.table(2).num_rows == 5
    assert publish(store, steps(0, 3)) != publish(store, steps(0, 5), key="whole")


PROMPT: dict[str, Any] = {
    "prompt_id": "a",
    "prompt": "1=",
    "messages": [{"role": "user", "content": "1="}],
    "prompt_token_ids": [1, 2],
    "split": "train",
    "answer": None,
    "meta": "{}",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "Casting field 'split' with null values to non-nullable"),
        ({"prompt_token_ids": [1, None]}, r"column prompt_token_ids\[\] has 1 nulls"),
        ({"messages": [None]}, r"column messages\[\] has 1 nulls"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"prompt_token_ids": [2**31]}, "does not fit its declared type"),
        ({"prompt_token_ids": [0.5]}, "does not fit its declared type"),
        ({"prompt_token_ids": "1 2"}, "does not fit its declared type"),
        ({"more": 1}, r"missing \[\], undeclared \['more'\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        conform(pa.Table.from_pylist([PROMPT | change]), SCHEMAS["prompts"])


def test_columns_are_ordered_and_counted() -> None:
    turned = pa.Table.from_pylist([dict(reversed(PROMPT.items()))])
    assert conform(turned, SCHEMAS["prompts"]).schema == SCHEMAS["prompts"]
    with pytest.raises(DatasetError, match=r"missing \['meta'\]"):
        conform(turned.drop_columns("meta"), SCHEMAS["prompts"])
    with pytest.raises(DatasetError, match="columns do not fit"):
        conform(turned.append_column("meta", pa.array(["{}"])), SCHEMAS["prompts"])


# ------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """Change one bit of the first value of the column `value`, 1.0, where only a checksum can tell."""
    content = path.read_bytes()
    position = content.index(bytes.fromhex("000000000000f03f"))
    path.write_bytes(content[:position] + b"\x01" + content[position + 1 :])


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def reseal(manifest: Path, old: str, new: str) -> None:
    """Edit a manifest as somebody would who knows of its seal."""
    edit(manifest, old, new)
    manifest.write_bytes(sealed_json.encode(json.loads(manifest.read_bytes())))


def age(path: Path, seconds: float) -> None:
    """Let `path` have been changed so long ago."""
    changed = time.time() - seconds
    os.utime(path, (changed, changed))


def damage(kind: str, store: Store, handle: Dataset) -> None:
    manifest = store.path(handle) / "manifest.json"
    first, second = shard(store, handle, 0), shard(store, handle, 1)
    if kind == "flipped bit":
        flip(first)
        age(first, -1)  # however fast this machine is
    elif kind == "flipped bit, its time set back":
        flip(first)
        age(first, 60)
    elif kind == "shortened":
        os.truncate(second, second.stat().st_size - 1)
    elif kind == "missing shard":
        second.unlink()
    elif kind == "swapped shards":
        swap(first, second)
        age(first, -1)
    elif kind == "shards swapped in the manifest":
        content = json.loads(manifest.read_bytes())
        content["files"].reverse()
        manifest.write_bytes(sealed_json.encode(content))
    elif kind == "shard forgotten by the manifest":
        content = json.loads(manifest.read_bytes())
        del content["files"][1]
        manifest.write_bytes(sealed_json.encode(content))
    elif kind == "edited checksum":
        reseal(manifest, store.manifest(handle).files[0].sha256, "0" * 64)
    elif kind == "edited fingerprint":
        reseal(manifest, handle.fingerprint, "0" * 64)
    elif kind == "edited rows":
        reseal(manifest, '"rows": 6', '"rows": 7')
    elif kind == "edited rows of a shard":
        reseal(manifest, '"rows": 3', '"rows": 2')
    elif kind == "edited without its seal":
        edit(manifest, '"schema_version": 1', '"schema_version": 0')
    elif kind == "named for another noun":
        reseal(manifest, '"kind": "training"', '"kind": "rewards"')
    elif kind == "half a manifest":
        os.truncate(manifest, 100)
    elif kind == "missing manifest":
        manifest.unlink()


DAMAGES = {  # kind: (what verify says, whether the cheap check before a cache hit sees it)
    "flipped bit": ("part-00000.arrow does not have the sha256 of its manifest", True),
    "flipped bit, its time set back": (
        "part-00000.arrow does not have the sha256 of its manifest",
        False,
    ),
    "shortened": ("part-00001.arrow has .* bytes, its manifest says", True),
    "missing shard": ("part-00001.arrow is missing", True),
    "swapped shards": ("part-00000.arrow (does not have the sha256|has .* bytes)", True),
    "shards swapped in the manifest": (
        "part-00000.arrow is out of order: 0/loss stands below 5/loss: rows are sorted by",
        False,
    ),
    "shard forgotten by the manifest": ("has content .*, not the .* it is named for", False),
    "edited checksum": ("part-00000.arrow does not have the sha256 of its manifest", False),
    "edited fingerprint": ("manifest.json names another fingerprint, 000000000000", True),
    "edited rows": ("manifest.json is of 7 in training, not of 6 in training", True),
    "edited rows of a shard": ("manifest.json counts other rows than its shards hold", False),
    "edited without its seal": ("manifest.json does not have the digest that it carries", True),
    "named for another noun": ("manifest.json is of 6 in rewards, not of 6 in training", True),
    "half a manifest": ("manifest.json cannot be read", True),
    "missing manifest": ("is not in the store .*: rerun the stage that makes it", True),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_named_and_repaired(store: Store, kind: str) -> None:
    message, is_seen = DAMAGES[kind]
    handle = publish(store, steps(0, 3), steps(3, 6))
    assert store.is_whole(handle)
    damage(kind, store, handle)
    assert store.is_whole(handle) is not is_seen
    threads = threading.active_count()
    with pytest.raises(DatasetError, match=message) as error:
        store.verify(handle)
    assert threading.active_count() == threads  # although the error is kept, with all that it met
    assert "\n" not in str(error.value)
    if is_seen:  # the next computation of the same content takes its place
        assert publish(store, steps(0, 6), key="again") == handle
        assert store.verify(handle).rows == 6


def test_what_is_younger_than_its_manifest_is_hashed_until_it_was_claimed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the files of a copied store are; not so a shard of an unfinished dataset, which is
    computed again.
    """
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(wind.store.published, "file_digest", counted)
    handle = publish(store, steps(0, 3), steps(3, 6))
    hashed.clear()
    manifest = store.path(handle) / "manifest.json"
    content = manifest.read_bytes()
    age(manifest, 60)
    age(shard(store, handle, 1), 30)
    age(shard(store, handle, 0), 90)
    assert store.is_whole(handle)

    def full(self: LocalStorage, name: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(LocalStorage, "write", full)
        assert store.pin_if_whole(handle)
    hashed.clear()
    assert store.is_whole(handle)
    assert store.pin_if_whole(handle)
    assert hashed == ["part-00001.arrow"] * 2
    assert store.pin_if_whole(handle)
    assert (len(hashed), manifest.read_bytes()) == (2, content)

    with store.partial("training", "unfinished") as partial:
        for index in range(4):
            partial.write(index, steps(0, 3), beside={"shard": index})
        folder = store.root / partial.folder
        age(folder / "outputs-00000.json", 60)
        edit(folder / "outputs-00001.json", '"shard": 1', '"shard": 3')
        (folder / "outputs-00002.json").unlink()
        assert partial.missing(5) == [0, 1, 2, 4]
        assert partial.beside(3)["shard"] == 3
        with pytest.raises(DatasetError, match=r"outputs-00001.json .*: rerun$"):
            partial.beside(1)


def forge(store: Store, table: pa.Table) -> Dataset:
    """A dataset whose manifest agrees with a shard that no writer of ours made: `table`, as it is."""
    handle = publish(store, steps(0, 3))
    path = shard(store, handle)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    manifest = store.manifest(handle)
    file = manifest.files[0].model_copy(
        update={"bytes": path.stat().st_size, "sha256": file_digest(path)}
    )
    (store.path(handle) / "manifest.json").write_bytes(
        sealed_json.encode(manifest.model_copy(update={"files": [file]}))
    )
    return handle


def test_offsets_that_point_outside_are_found_and_not_followed(store: Store) -> None:
    offsets, values = pa.py_buffer(struct.pack("<4i", 0, 2**30, 1, 2)), pa.array([1, 2], pa.int32())
    column = pa.Array.from_buffers(pa.list_(pa.int32()), 3, [None, offsets], children=[values])
    handle = forge(store, pa.table({"tokens": column}))
    with pytest.raises(DatasetError, match=r"part-00000.arrow cannot be read: .*[Oo]ffset"):
        store.verify(handle)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            {"steps": [1]},
            "part-00000.arrow is out of order: there are rows without step, which is of their key",
        ),
        (
            {"step": pa.array([None], pa.int32())},
            "part-00000.arrow is out of order: there are rows without step, which",
        ),
        (
            {"step": [[1], [2]], "metric": ["loss"] * 2},
            "part-00000.arrow is out of order: step, which is of their key, has no order",
        ),
    ],
)
def test_a_key_that_no_writer_of_ours_left_is_one_line(
    store: Store, column: dict[str, Any], told: str
) -> None:
    handle = forge(store, pa.table(column))
    verification = Verification(store)
    verification.dataset(handle)
    with pytest.raises(DatasetError) as error:
        store.verify(handle)
    assert "\n" not in str(error.value)
    assert told in str(error.value)
    assert len(verification.findings) == 1


def test_every_shard_has_the_same_columns(store: Store) -> None:
    with store.partial("training", "key") as partial:
        partial.write(0, steps(0, 3))
        partial.write(
            1,
            pa.table({"step": [3], "metric": ["loss"]}),
            pa.schema({"step": pa.int32(), "metric": pa.string()}),
        )
        with pytest.raises(
            DatasetError, match=r"part-00001.arrow has other columns than the shards before it"
        ):
            partial.publish(2, parents={}, computed_by={}, numbers={}, provenance={})


def test_rows_are_in_order_of_their_key(store: Store) -> None:
    """Within a shard and over shards: readers merge by it. Two rows of one key are for the data
    checks to judge.
    """
    with store.partial("training", "key") as partial:
        with pytest.raises(
            DatasetError, match=r"^1/loss stands below 2/loss: rows are sorted by step, metric$"
        ):
            partial.write(0, steps(0, 3).take([0, 2, 1]))
        assert partial.missing(1) == [0]
        partial.write(0, steps(0, 3))
        with pytest.raises(DatasetError, match=r"^2/kl stands below 2/loss: "):
            partial.write(
                1,
                pa.table({"step": [1, 2, 2], "metric": ["loss", "loss", "kl"], "value": [1.0] * 3}),
            )
        partial.write(1, steps(2, 2))
        partial.write(2, steps(2, 4))
        partial.write(3, steps(1, 2))
        with pytest.raises(
            DatasetError,
            match=r"part-00003.arrow is out of order: 1/loss stands below 3/loss: rows are sorted",
        ):
            partial.publish(4, parents={}, computed_by={}, numbers={}, provenance={})
        twice = partial.publish(3, parents={}, computed_by={}, numbers={}, provenance={})
    assert store.read(twice, ["step"])["step"].to_pylist() == [0, 1, 2, 2, 3]
    assert publish(store, steps(0, 1).take([0, 0]), key="the same").rows == 2


def test_reading_what_is_gone_is_one_line(store: Store) -> None:
    handle = publish(store, steps(0, 3))
    shard(store, handle).write_bytes(b"nothing")
    with pytest.raises(
        DatasetError, match=rf"{label(handle)} cannot be read: .*; run `wind verify`"
    ):
        store.read(handle)
    missing = Dataset(name="rewards", fingerprint="0" * 64, rows=1)
    with pytest.raises(DatasetError, match="rewards/000000000000 is not in the store"):
        store.read(missing)
    assert not store.is_whole(missing)


@pytest.mark.parametrize("name", ["../prompts", "Prompts", "a.b.c", ""])
def test_a_handle_names_a_noun(name: str) -> None:
    with pytest.raises(ValidationError):
        Dataset(name=name, fingerprint="0" * 64, rows=1)


# ------------------------------------------------------------------------------- models and readers


def test_a_model_is_its_config_tokenizer_and_safetensors(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    plain = import_model(store, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "README.md").write_text("a card")
    assert import_model(store, folder) == plain
    assert not {"pytorch_model.bin", "optimizer.pt", "README.md"} & {
        path.name for path in store.path(plain).iterdir()
    }
    assert plain.parameters == sum(
        tensor.size for tensor in load_file(folder / "model.safetensors").values()
    )
    assert store.verify(plain).kind == "models"
    assert list(store.handles("models")) == [plain]
    edit(folder / "generation_config.json", "2", "3")
    assert import_model(store, folder) != plain


def test_a_source_is_not_called_as_the_store_s_own_record(store: Store, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"a source cannot be called manifest\.json"):
        import_source(store, [tmp_path / "manifest.json"])


def test_a_published_model_is_moved_and_verified(store: Store, tiny_model: Path) -> None:
    scratch = store.scratch("training") / "export"
    shutil.copytree(tiny_model, scratch)
    model = store.publish_model(scratch, numbers={"loss": 0.5})
    assert not scratch.exists()
    assert model == import_model(store, tiny_model)
    assert store.verify(model).numbers == {"loss": 0.5}
    weights = store.path(model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DatasetError, match=r"model.safetensors does not have the sha256"):
        store.verify(model)
    assert isinstance(model, Model)


def test_everybody_reads_the_shards_as_they_are(store: Store, tmp_path: Path) -> None:
    import datasets

    handle = publish(store, steps(0, 3), steps(3, 6))
    files = [str(shard(store, handle, index)) for index in range(2)]
    expected = [1 / (step + 1) for step in range(6)]
    assert pyarrow.dataset.dataset(files, format="ipc").to_table()["value"].to_pylist() == expected
    assert pl.scan_ipc(files).select("value").collect()["value"].to_list() == expected
    rows = store.open(handle)
    assert rows.count_rows() == 6
    assert duckdb.connect().execute("select sum(step), count(*) from rows").fetchall() == [(15, 6)]
    loaded = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["value"][:] == expected
