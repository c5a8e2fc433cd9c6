"""What may enter the store: plain files alone, by links that stay where they were found, and only
where there is room.
"""

import json
import os
import shutil
import socket
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from wind.config.models import PolicyConfig
from wind.config.prompts import PromptsConfig
from wind.config.rewards import ClassifierRewardConfig
from wind.errors import ConfigError, InputError, StageError, WindError
from wind.files import NotPlainError, open_plain, read_plain
from wind.models import import_policy
from wind.prompts.rows import read_rows
from wind.prompts.sources import import_prompts
from wind.rewards import resolve_reward
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Source
from wind.store.incoming import copied, stored_file

SECRET = "the secret of another folder"
Import = Callable[[Store, Path], AnyHandle]


def as_policy(store: Store, folder: Path) -> AnyHandle:
    return import_policy(store, PolicyConfig(path=str(folder)))


def as_reward(store: Store, folder: Path) -> AnyHandle:
    reward = resolve_reward(store, ClassifierRewardConfig(kind="classifier", path=str(folder)))
    assert reward.kind == "classifier"
    return reward.model


def as_prompts(store: Store, folder: Path) -> Source:
    return import_prompts(store, PromptsConfig(source=str(folder)))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that no folder handed to a run may bring into the store."""
    path = tmp_path / "secrets" / "passwd"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that is both a model and prompts."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "given" / "folder"))
    (folder / "train.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+2="}\n')
    return folder


def assert_refused(store: Store, import_: Import, folder: Path, *said: str) -> None:
    """It is, in one line that says all of `said`, and nothing is left in the store."""
    with pytest.raises(WindError) as raised:
        import_(store, folder)
    message = str(raised.value)
    assert "\n" not in message
    assert [part for part in said if part not in message] == []
    assert [
        path
        for part in ("models", "sources", "partial")
        for path in (store.root / part).rglob("*")
        if path.is_file()
    ] == []


@pytest.mark.parametrize(
    ("import_", "name"),
    [
        *(
            (import_, name)
            for import_ in (as_policy, as_reward)
            for name in ("vocab.txt", "chat_template.jinja", "config.json")
        ),
        *(
            (as_policy, name)
            for name in (
                "model.safetensors",
                "model.safetensors.index.json",
                "generation_config.json",
                "a.model",
            )
        ),
        (as_prompts, "train.jsonl"),
        (as_prompts, "more/train_2.jsonl"),
        (as_prompts, "state.json"),
        (as_prompts, "dataset_dict.json"),
    ],
)
def test_a_link_that_leads_out_of_a_folder_is_not_followed(
    store: Store, folder: Path, outside: Path, import_: Import, name: str
) -> None:
    """Straight, relative, and by way of a folder that is a link itself."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    for target in (outside, Path(os.path.relpath(outside, path.parent)), Path("by") / outside.name):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        if target.parts[0] == "by":
            (path.parent / "by").symlink_to(outside.parent)
        assert_refused(store, import_, folder, str(path), str(outside.resolve()))


def test_a_dataset_that_was_saved_names_files_of_its_own(store: Store, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "1="}, {"prompt": "2="}])
    rows.save_to_disk(tmp_path / "other")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    stolen = tmp_path / "other" / "data-00000-of-00001.arrow"
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": f"../other/{stolen.name}"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    assert_refused(store, as_prompts, tmp_path / "saved", str(stolen.resolve()))
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    assert_refused(store, as_prompts, tmp_path / "splits", "leads to")
    for wrong in ('{"splits": [7]}', '{"splits": [["x"]]}', "[]"):
        (tmp_path / "splits" / "dataset_dict.json").write_text(wrong)
        assert_refused(store, as_prompts, tmp_path / "splits")
    for wrong in ('{"_data_files": ["x"]}', '{"_data_files": [{}]}', '{"_data_files": [7]}'):
        (tmp_path / "saved" / "state.json").write_text(wrong)
        assert_refused(store, as_prompts, tmp_path / "saved", "holds no")


def test_links_within_a_folder_and_of_the_hub_cache_are_followed(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "real")
    (folder / "model.safetensors").symlink_to("weights/real")
    linked = import_policy(store, PolicyConfig(path=str(folder)))
    (tmp_path / "by-name").symlink_to(folder)  # the user's own word
    assert import_policy(store, PolicyConfig(path=str(tmp_path / "by-name"))) == linked
    cache = tmp_path / "hub" / "models--some--thing"
    snapshot = cache / "snapshots" / ("c0ffee" * 7)[:40]
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in (path for path in folder.iterdir() if path.is_file()):
        shutil.copyfile(path, cache / "blobs" / f"digest-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/digest-{path.name}")
    assert import_policy(store, PolicyConfig(path=str(snapshot))) == linked
    assert (
        len(
            read_rows(
                store, import_prompts(store, PromptsConfig(source=str(snapshot))), "prompt", None
            )
        )
        == 2
    )
    (snapshot / "vocab.txt").symlink_to("../../../models--another--thing/blobs/x")
    (tmp_path / "hub" / "models--another--thing" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "models--another--thing" / "blobs" / "x").write_text(SECRET)
    with pytest.raises(ConfigError, match=r"vocab.txt leads to .*models--another--thing"):
        import_policy(store, PolicyConfig(path=str(snapshot)))
    (snapshot / "vocab.txt").unlink()
    (cache / "blobs").rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")  # nor is what takes the place of the cache
    with pytest.raises(ConfigError, match="leads to"):
        import_policy(store, PolicyConfig(path=str(snapshot)))


def test_a_file_that_the_user_names_may_be_a_link(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.jsonl").symlink_to(folder / "train.jsonl")
    assert len(read_rows(store, as_prompts(store, tmp_path / "mine.jsonl"), "prompt", None)) == 2


def special(path: Path, kind: str) -> None:
    """Put in place of `path` what is not a plain file."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # its address may have no more than 108 bytes
            made.bind(path.name)
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
@pytest.mark.parametrize(
    ("import_", "name"),
    [
        *(
            (as_policy, name)
            for name in (
                "vocab.txt",
                "config.json",
                "model.safetensors",
                "model.safetensors.index.json",
            )
        ),
        (as_reward, "tokenizer.json"),
        (as_prompts, "train.jsonl"),
        (as_prompts, "state.json"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting_for_it(
    store: Store, folder: Path, import_: Import, name: str, kind: str
) -> None:
    special(folder / name, kind)
    assert_refused(
        store,
        import_,
        folder,
        str(folder / name),
        "leads to /dev/zero" if kind == "device" else f"is a {kind}",
    )


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_a_special_file_that_is_named_itself(store: Store, tmp_path: Path, kind: str) -> None:
    special(tmp_path / "p.jsonl", kind)
    assert_refused(store, as_prompts, tmp_path / "p.jsonl", f"is a {kind}, not a plain file")


def test_a_name_with_control_characters_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "p\n.jsonl").write_text('{"prompt": "1="}\n')
    assert_refused(store, as_prompts, tmp_path / "p\n.jsonl", r"'p\n.jsonl'")


def test_what_changes_while_it_is_copied_is_no_copy(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("before")
    stored = stored_file(path, None)
    path.write_text("after!")
    scratch = store.scratch("sources")
    with pytest.raises(InputError, match=r"p\.jsonl changed while it was copied"):
        copied(scratch, [path], [stored], None)
    assert not scratch.exists()


def test_a_sparse_file_is_refused_before_it_is_read(store: Store, folder: Path) -> None:
    """It takes no room where it is, tebibytes as a copy, and hours to hash."""
    size = 2**40 + shutil.disk_usage(folder).free
    os.truncate(folder / "train.jsonl", size)
    with pytest.raises(
        StageError, match=rf"a copy of {folder} takes {size} bytes, and .* has \d+ free"
    ):
        as_prompts(store, folder)
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(
        StageError, match=rf"a copy of {folder} takes \d+ bytes, and .* has \d+ free"
    ):
        as_policy(store, folder)


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_said_with_both_sizes(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what is stored already needs none."""
    stored = as_policy(store, folder)
    needed = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".jsonl")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 5, 5))
    assert as_policy(store, folder) == stored
    (folder / "vocab.txt").write_text("one")
    with pytest.raises(StageError, match=rf"takes {needed + 3} bytes, and {store.root} has 5 free"):
        as_policy(store, folder)
    with pytest.raises(StageError, match=r"takes 38 bytes, and .* has 5 free"):
        as_prompts(store, folder)


def test_a_line_without_end_is_not_read_at_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wind.prompts.rows.LONGEST_LINE", 1000)
    (tmp_path / "p.jsonl").write_text('{"prompt": "1="}\n' + "x" * 1001)
    with pytest.raises(InputError, match=r"p\.jsonl line 2 has more than"):
        read_rows(store, as_prompts(store, tmp_path / "p.jsonl"), "prompt", None)


def test_a_text_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 2**40)
    with pytest.raises(NotPlainError, match=r"config\.json has more than 64 MiB"):
        read_plain(tmp_path / "config.json")


def test_a_link_in_circles_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="a"):
        open_plain(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_what_is_stored_can_be_read_by_whom_the_umask_lets(
    store: Store, folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        handles: list[Any] = [as_policy(store, folder), as_prompts(store, folder)]
        made = store.scratch("made")
        for path in (path for path in folder.iterdir() if path.suffix != ".jsonl"):
            shutil.copyfile(path, made / path.name)
        (made / "vocab.txt").write_text("another")
        (made / "model.safetensors").chmod(0o600)
        handles.append(store.publish_model(made))
    finally:
        os.umask(before)
    for handle in handles:
        stored = store.path(handle)
        assert stat.S_IMODE(stored.stat().st_mode) == 0o777 & ~umask
        assert {stat.S_IMODE(path.stat().st_mode) for path in stored.iterdir()} == {0o666 & ~umask}
