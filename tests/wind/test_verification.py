"""Verification: every corruption of every published file is found with file and reason, and so is
what only an editor can do.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wind.verification_case import TRAIN, finished, key, publish
from tests.wind.versions_case import dataset, three_iterations, verify, version
from wind.audit.verification import Verification
from wind.config.recipe import DistillConfig
from wind.exchange.archives import export_archive, import_archive
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.garbage import collect
from wind.store.handles import AnyHandle, Dataset, folder_of
from wind.store.references import find_version
from wind.store.tags import tag_text
from wind.store.versions import Version, Versions


def findings(store: Store) -> list[str]:
    verification = Verification(store)
    verification.everything()
    return [str(finding) for finding in verification.findings]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished store of few files."""
    folder = tmp_path_factory.mktemp("few")
    finished(Store(folder / "store"), folder, few=True)
    return folder / "store"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished store with every dataset of a run."""
    folder = tmp_path_factory.mktemp("whole")
    finished(Store(folder / "store"), folder)
    return folder / "store"


def linked(root: Path, folder: Path) -> Store:
    """A copy of a store at no cost: who changes a file there has to put a new one in its place."""
    shutil.copytree(root, folder / "store", copy_function=os.link)
    return Store(folder / "store")


def test_a_finished_store_is_whole(whole: Path, few: Path) -> None:
    for root in (whole, few):
        verification = Verification(Store(root))
        verification.everything()
        assert (verification.findings, verification.notes) == ([], [])
        files = [
            path
            for folder in ("datasets", "models", "sources")
            for path in (root / folder).rglob("*")
            if path.is_file()
        ]
        content = [
            path.stat().st_size
            for path in files
            if path.name != "manifest.json" and path.suffix != ".lock"
        ]
        assert verification.bytes_checked == sum(content)


# -------------------------------------------------------------------------------- files, one by one

KINDS = {  # kind of file: two of them, by pattern, in order of their names
    "shard": "datasets/generations/*/part-*.arrow",
    "manifest": "datasets/rewards/*/manifest.json",
    "model manifest": "models/*/manifest.json",
    "model config": "models/*/config.json",
    "weights": "models/*/model.safetensors",
    "tokenizer": "models/*/tokenizer.json",
    "source": "sources/*/*.jsonl",
    "version": "runs/tiny/versions/*.json",
    "tag": "runs/tiny/tags/*",
    "check result": "checks/rewards/*/*.json",
    "check page": "checks/rewards/*/*.html",
    "last check": "checks/rewards/*/latest",
    "computation": "computations/rewards/*/*.json",
}


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip(path: Path, other: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    replace(path, bytes(content))


def truncate(path: Path, other: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    replace(path, content[: chance.randrange(1, len(content))])


def invalid_utf_8(path: Path, other: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    middle = chance.randrange(len(content))
    replace(path, content[:middle] + b"\xff\xc0" + content[middle:])


def swap(path: Path, other: Path, chance: random.Random) -> None:
    content, others = path.read_bytes(), other.read_bytes()
    replace(path, others)
    replace(other, content)


def folder(path: Path, other: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(b"inside")


def link_to_outside(path: Path, other: Path, chance: random.Random) -> None:
    """The content is right, and yet it is not the store's."""
    outside = next(parent for parent in path.parents if parent.name == "store").with_name("outside")
    shutil.move(path, outside)
    path.symlink_to(outside)


CORRUPTIONS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "flipped bit": flip,
    "shortened": truncate,
    "emptied": lambda path, other, chance: replace(path, b""),
    "lengthened": lambda path, other, chance: replace(path, path.read_bytes() + b"\n"),
    "deleted": lambda path, other, chance: path.unlink(),
    "swapped": swap,
    "a folder": folder,
    "a link": link_to_outside,
    "invalid UTF-8": invalid_utf_8,
    "unreadable": lambda path, other, chance: path.chmod(0),
}


EVERY = ("shard", "manifest", "version", "tag")  # one kind for each way in which a file is read
SOME = [
    (kind, each)
    for kind in KINDS
    for each in CORRUPTIONS
    if kind in EVERY or each in ("flipped bit", "deleted", "swapped")
]


@pytest.mark.parametrize(("kind", "corruption"), SOME)
def test_every_corruption_is_found_with_file_and_reason(
    few: Path, tmp_path: Path, kind: str, corruption: str
) -> None:
    if corruption == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    if (kind, corruption) == ("last check", "deleted"):
        pytest.skip("an import brings check results without it")
    store = linked(few, tmp_path)
    paths = sorted(store.root.glob(KINDS[kind]))
    path, other = paths[-1], paths[0]
    if corruption == "unreadable":
        replace(path, path.read_bytes())
    CORRUPTIONS[corruption](path, other, random.Random(f"{kind} {corruption}"))
    found = findings(store)
    # Of a version that is gone only those that name it can tell, and of a tag, only the one that
    # has to be there.
    named = path.with_name("latest") if (kind, corruption) == ("tag", "deleted") else path
    named = (
        store.root / "runs/tiny/tags/latest"
        if (kind, corruption) == ("version", "deleted")
        else named
    )
    assert any(str(named.relative_to(store.root)) in line for line in found), found
    assert all("\n" not in line and len(line) < 400 for line in found)


def test_every_bit_of_a_sealed_record_counts(few: Path) -> None:
    path = next(few.glob("datasets/rewards/*/manifest.json"))
    content = path.read_bytes()
    assert sealed_json.read(content)["kind"] == "rewards"
    for position in range(len(content)):
        for bit in range(8):
            flipped = (
                content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
            )
            with pytest.raises(ValueError, match=r"cannot be read|edited"):
                sealed_json.read(flipped)


def test_every_bit_of_a_tag_counts(few: Path) -> None:
    (version, _) = Versions(Store(few), "tiny")
    content = (few / "runs/tiny/tags/good").read_bytes()
    assert content == tag_text("tiny", "good", version.id)
    for position in range(len(content)):
        for bit in range(8):
            flipped = (
                content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
            )
            words = flipped.decode(errors="replace").split()
            assert flipped != tag_text("tiny", "good", words[0])
            assert flipped != f"{version.id}\n".encode()


def test_all_findings_are_reported(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    shards = sorted(store.root.glob("datasets/*/*/part-00000.arrow"))
    for path in shards:
        flip(path, path, random.Random(1))
    (store.root / "runs/tiny/tags/good").unlink()
    (store.root / "runs/tiny/tags/good").write_text("nothing\n")
    found = findings(store)
    assert sorted(line.split()[0] for line in found if "sha256" in line) == list(map(str, shards))
    assert [line for line in found if "sha256" not in line] == [
        f"{store.root}/runs/tiny/tags/good is not as it was written: it was edited, or is "
        "another tag's file"
    ]


def test_a_file_that_was_added_is_found(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    for folder in ("datasets/rewards", "models", "sources"):
        (
            next(path for path in (store.root / folder).iterdir() if path.is_dir()) / "extra.bin"
        ).write_bytes(b"x")
    (store.root / "datasets/rewards/notes.txt").write_text("x")
    found = findings(store)
    assert sum("extra.bin is not in its manifest: it was added" in line for line in found) == 3
    assert any("notes.txt is not named for any content" in line for line in found)
    assert len(found) == 4


# --------------------------------------------------------------------------------- deliberate edits


def edit(store: Store, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a sealed record as somebody would who knows of its seal."""
    fields = json.loads(store.storage.read(name))
    change(fields)
    store.storage.write(name, sealed_json.encode(fields))


MANIFEST_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "kind": lambda fields: fields.update(kind="win_rates"),
    "fingerprint": lambda fields: fields.update(fingerprint="0" * 64),
    "schema_version": lambda fields: fields.update(schema_version=0),
    "rows": lambda fields: fields.update(rows=9),
    "files": lambda fields: fields["files"].reverse(),
    "parents": lambda fields: fields["parents"].pop("prompts"),
    "outputs": lambda fields: fields["outputs"].update(more=fields["parents"]["prompts"]),
    "computed_by": lambda fields: fields["computed_by"].update(code="1" * 64),
    "numbers": lambda fields: fields["numbers"].update(rows=9.0),
    "a field more": lambda fields: fields.update(more=1),
}


@pytest.mark.parametrize("field", MANIFEST_EDITS)
def test_a_deliberate_edit_of_a_manifest_is_found_by_the_version(
    few: Path, tmp_path: Path, field: str
) -> None:
    store = linked(few, tmp_path)
    rewards = find_version(store, "tiny@1").content.datasets["rewards"]
    edit(store, f"{folder_of(rewards)}/manifest.json", MANIFEST_EDITS[field])
    assert any(f"{folder_of(rewards)}/manifest.json" in line for line in findings(store))


def test_another_provenance_is_noted(few: Path, tmp_path: Path) -> None:
    """A repair by the same computation has it; so has an edit, which is why it is said."""
    store = linked(few, tmp_path)
    rewards = find_version(store, "tiny@1").content.datasets["rewards"]
    edit(
        store,
        f"{folder_of(rewards)}/manifest.json",
        lambda fields: fields["provenance"].update(host="elsewhere"),
    )
    verification = Verification(store)
    verification.everything()
    assert verification.findings == []
    (note,) = verification.notes
    assert "has another provenance than when runs/tiny/versions/0001.json was published" in str(
        note
    )


def forged(store: Store, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a version, and let its id and its seal follow."""

    def follow(fields: dict[str, Any]) -> None:
        change(fields)
        fields["id"] = Version.model_validate(fields).content.id()

    edit(store, f"runs/tiny/versions/{number:04d}.json", follow)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda fields: fields["content"]["recipe"]["training"].update(lr=1.0), "no version"),
        (lambda fields: fields["content"].update(iteration=9), "no version"),
        (lambda fields: fields["content"].update(previous="0" * 64), "has no version 000000000000"),
    ],
)
def test_a_forged_version_does_not_fit_its_tag_and_its_chain(
    few: Path, tmp_path: Path, number: int, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    store = linked(few, tmp_path)
    forged(store, number, change)
    found = findings(store)
    assert any(says in line for line in found)
    tag = {1: "good", 2: "latest"}[number]
    assert any(f"tags/{tag} points to" in line for line in found)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        (("training", "epochs"), 7, "its training.epochs is 7 and at its default, which is 1"),
        (
            ("evaluation", "match"),
            "a:b",
            "its evaluation.match is 'a:b' and at its default, which is empty",
        ),
        (("seed",), 1, "its seed is 1 and at its default, which is 0"),
    ],
)
def test_what_an_id_leaves_out_is_what_the_default_is(
    store: Store, setting: tuple[str, ...], value: Any, says: str
) -> None:
    chosen = {"policy": {}, "prompts": {}, "reward": {"kind": "rule", "function": "a:b"}}
    config = DistillConfig.of_recipe(chosen)
    content = three_iterations(store)[-1].content
    content = content.model_copy(update={"recipe": config.recipe(), "defaults": config.defaults()})
    published = Versions(store, "real").publish(content, checks={}, metrics={}, seconds={})
    before = findings(store)
    assert not any("default" in line for line in before)

    def change(fields: dict[str, Any]) -> None:
        section = fields["content"]["recipe"]
        for name in setting[:-1]:
            section = section[name]
        section[setting[-1]] = value

    edit(store, published.file(), change)
    assert find_version(store, "real@1").content.id() == published.id
    assert [line for line in findings(store) if line not in before] == [
        f"{store.root}/{published.file()} was edited: {says}"
    ]


@pytest.mark.parametrize(
    "recipe",
    [{"reward": "x"}, {"policy": 5, "prompts": None}, {"reward": {"kind": []}, "seed": {}}],
)
def test_a_recipe_of_no_known_form_is_no_traceback(store: Store, recipe: dict[str, Any]) -> None:
    content = three_iterations(store)[-1].content.model_copy(
        update={"recipe": recipe, "defaults": ("seed", "reward.kind.x")}
    )
    Versions(store, "strange").publish(content, checks={}, metrics={}, seconds={})
    assert not any("default" in line for line in findings(store))


def test_what_stands_beside_the_content_is_in_the_chain(whole: Path, tmp_path: Path) -> None:
    store = linked(whole, tmp_path)
    edit(
        store, "runs/tiny/versions/0001.json", lambda fields: fields["seconds"].update(rewards=0.1)
    )
    assert findings(store) == [
        f"{store.root}/runs/tiny/versions/0001.json is not the record that "
        "runs/tiny/versions/0002.json was published after: "
        "it was edited"
    ]
    edit(
        store,
        "runs/tiny/versions/0002.json",
        lambda fields: fields["metrics"]["win_rate"].update(value=0.9),
    )
    assert any(
        "0002.json has other metrics than its dataset of metrics" in line
        for line in findings(store)
    )


def test_a_version_whose_tag_was_forged_too_names_what_it_was_not_published_with(
    few: Path, tmp_path: Path
) -> None:
    store = linked(few, tmp_path)
    first = find_version(store, "tiny@1").content.datasets["rewards"]
    other = publish(
        store,
        "rewards",
        {**key(TRAIN), "reward": [0.5] * 8},
        {"generations": find_version(store, "tiny@1").content.datasets["generations"]},
    )
    assert other != first
    forged(
        store,
        2,
        lambda fields: fields["content"]["datasets"].update(rewards=other.model_dump(mode="json")),
    )
    version = Version.model_validate_json(store.storage.read("runs/tiny/versions/0002.json"))
    store.storage.write("runs/tiny/tags/latest", tag_text("tiny", "latest", version.id))
    assert any(
        f"0002.json names {folder_of(other)}, whose manifest it was not published with" in line
        for line in findings(store)
    )


# ------------------------------------------------------------------------------------- foreign keys


def broken(store: Store, name: str, columns: dict[str, Any], **parents: Dataset) -> list[str]:
    made = publish(store, name, columns, dict(parents))
    verification = Verification(store)
    verification.dataset(made)
    return [str(finding).partition("manifest.json ")[2] for finding in verification.findings]


def test_foreign_keys_hold_in_both_directions(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    generations = find_version(store, "tiny@1").content.datasets["generations"]
    parent = folder_of(generations)

    def rewards(ids: list[str], more: int = 0) -> list[str]:
        columns = {
            name: list(column)[:1] * more + list(column) for name, column in key(ids).items()
        }
        columns["sample_index"] = [
            int(value) if isinstance(value, int) else value.as_py()
            for value in columns["sample_index"]
        ]
        rows = {**columns, "reward": [0.25] * (2 * len(ids) + more)}
        return broken(store, "rewards", rows, generations=generations)

    assert rewards(TRAIN) == []
    (foreign,) = rewards([*TRAIN, "z"])
    assert foreign == f"has 2 rows whose prompt_id and sample_index is not in {parent}: z/0, z/1"
    (missing,) = rewards(TRAIN[:-1])
    assert missing.startswith(
        "has 2 rows whose prompt_id and sample_index is not in datasets/rewards/"
    )
    assert missing.endswith(": d/0, d/1")
    (twice,) = rewards(TRAIN, more=1)
    assert twice == f"has 9 rows for the 8 of {parent}"


def test_rows_that_another_writer_left_out_of_order_are_found(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = linked(few, tmp_path)
    generations = find_version(store, "tiny@1").content.datasets["generations"]
    rows = {**key([*TRAIN[1:], TRAIN[0]]), "reward": [0.25] * 8}
    with monkeypatch.context() as careless:
        careless.setattr("wind.store.partial.check_order", lambda table, key: None)
        made = publish(store, "rewards", rows, {"generations": generations})
    verification = Verification(store)
    verification.dataset(made)
    (finding,) = verification.findings
    reason = "is out of order: a/0 stands below d/1: rows are sorted by prompt_id, sample_index"
    assert (finding.file, finding.reason) == (f"{store.where(made)}/part-00000.arrow", reason)


def test_a_generation_names_the_policy_that_sampled_it(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    version = find_version(store, "tiny@1")
    columns = store.frame(version.content.datasets["generations"]).to_dict(as_series=False)
    columns["policy"][3] = "f" * 64
    made = publish(
        store,
        "generations",
        columns,
        {"policy": version.content.model_in, "prompts": version.content.datasets["prompts"]},
    )
    verification = Verification(store)
    verification.dataset(made)
    (finding,) = verification.findings
    assert (
        f"has 1 rows whose policy is not {folder_of(version.content.model_in)}: ffffffffffff"
        in str(finding)
    )


def test_prompts_that_were_due_are_answered(whole: Path, tmp_path: Path) -> None:
    store = linked(whole, tmp_path)
    version = find_version(store, "tiny@1")
    sampled = version.content.datasets["generations"]
    spec = store.manifest(sampled).computed_by["spec"]
    columns = {
        name: values[2:] for name, values in store.frame(sampled).to_dict(as_series=False).items()
    }
    parents: dict[str, AnyHandle] = {
        "policy": version.content.model_in,
        "prompts": version.content.datasets["prompts"],
    }
    made = publish(store, "generations", columns, parents, spec=spec)
    verification = Verification(store)
    verification.dataset(made)
    (finding,) = verification.findings
    assert f"has 1 rows whose prompt_id was due, and is not in {folder_of(made)}: a" in str(finding)


# -------------------------------------------------------------------- what was taken away, or moved


def notes(store: Store) -> list[str]:
    """What is noted of a store in which nothing is found."""
    verification = Verification(store)
    verification.everything()
    assert verification.findings == []
    return [str(note) for note in verification.notes]


def test_weights_that_a_policy_dropped_are_noted(store: Store) -> None:
    first, second, _ = three_iterations(store)
    assert notes(store) == []
    before = verify(store, first)
    collect(store, weights=1)
    dropped = [folder_of(each.content.model_out) for each in (first, second)]
    assert sorted(notes(store)) == sorted(
        f"{store.url}/{folder}/model.safetensors was removed, as a retention policy says"
        for folder in dropped
    )
    assert store.is_whole(first.content.datasets["training"])
    weights = {file.name: file.bytes for file in store.manifest(first.content.model_out).files}[
        "model.safetensors"
    ]
    assert verify(store, first) == before - weights
    store.storage.write(f"{dropped[0]}/config.json", b"[0]")
    (finding,) = findings(store)
    assert f"{dropped[0]}/config.json has 3 bytes, its manifest says 2" in finding
    assert not store.is_whole(first.content.datasets["training"])


def test_what_was_forgotten_is_noted_where_another_continues_it(store: Store) -> None:
    _, second, third = three_iterations(store)
    forget(store, "demo", [third])
    assert notes(store) == []
    assert version(store, 4, second, second.content.model_out).number == 4
    forget(store, "demo", [second], force=True)
    collect(store)
    assert (
        f"{store.url}/runs/demo/versions has no version {second.id[:12]} any longer, "
        "although another continues it: it was forgotten"
    ) in notes(store)
    store.storage.delete("runs/demo/versions/0002.forgotten")
    assert any(
        f"has no version {second.id[:12]}, which another names" in line for line in findings(store)
    )


def test_a_version_that_is_gone_is_missed_by_the_next(store: Store) -> None:
    """Nobody continues it, and no tag is its."""
    first, *_ = three_iterations(store)
    version(store, 9, first, first.content.model_out)
    store.storage.delete("runs/demo/versions/0003.json")
    assert findings(store) == [
        f"{store.url}/runs/demo/versions/0003.json is missing: version 4 was published after it"
    ]


def test_a_branch_is_bound_to_the_record_that_it_was_begun_from(store: Store) -> None:
    first, *_ = three_iterations(store)
    branched = version(store, 2, first, first.content.model_out, run="branch")
    assert branched.digest_before == first.digest != ""
    assert notes(store) == []
    edit(store, "runs/demo/versions/0001.json", lambda fields: fields.update(published=0.0))
    assert any(
        "is not the record that runs/branch/versions/0001.json was published after" in line
        for line in findings(store)
    )


def test_an_import_is_whole_whatever_was_there_and_is_missing(store: Store, tmp_path: Path) -> None:
    """The archive has the versions 1 and 3; of one dataset the other machine has the content by
    another computation.
    """
    first = three_iterations(store)[0]
    fourth = version(store, 9, first, first.content.model_out)
    export_archive(store, fourth, tmp_path / "fourth.wind")
    export_archive(store, find_version(store, "demo@2"), tmp_path / "second.wind")
    other = Store(tmp_path / "elsewhere")
    same = dataset(other, "demo rewards 1")
    assert import_archive(other, tmp_path / "fourth.wind").version.id == fourth.id
    assert other.manifest(same) != store.manifest(same)
    assert [each.number for each in Versions(other, "demo")] == [1, 4]
    assert notes(other) == []
    import_archive(other, tmp_path / "second.wind")
    assert [each.number for each in Versions(other, "demo")] == [1, 2, 4]
    import_archive(other, tmp_path / "second.wind", "again")
    assert notes(other) == []
    assert version(other, 5, fourth, fourth.content.model_out).number == 5
    assert notes(other) == []


# ----------------------------------------------------------------------------------- older releases


def test_records_without_digests_are_verified_and_it_is_said(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    for path in [
        *store.root.glob("datasets/*/*/manifest.json"),
        *store.root.glob("runs/tiny/versions/*.json"),
    ]:
        fields = json.loads(path.read_bytes())
        for name in ("digest", "digest_before", "manifests", "stamp", "origins"):
            fields.pop(name, None)
        replace(path, json.dumps(fields).encode())
    for name in ("latest", "good"):
        replace(
            store.root / f"runs/tiny/tags/{name}",
            f"{find_version(store, f'tiny@{name}').id}\n".encode(),
        )
    verification = Verification(store)
    verification.everything()
    assert verification.findings == []
    notes = [str(note) for note in verification.notes]
    assert sum("without the digest of its content" in note for note in notes) == 5
    assert sum("without the digest of its record" in note for note in notes) == 2
    assert sum("without the digest that ties it to its name" in note for note in notes) == 2
    assert sum("without a stamp of ours" in note for note in notes) == 2
    assert len(notes) == 11
    rewards = find_version(store, "tiny@1").content.datasets["rewards"]
    flip(store.root / folder_of(rewards) / "part-00000.arrow", few, random.Random(0))
    assert len(findings(store)) == 1


def test_the_first_finding_is_raised(few: Path, tmp_path: Path) -> None:
    store = linked(few, tmp_path)
    version = find_version(store, "tiny@2")
    assert verify(store, version) > 0
    for path in store.root.glob("models/*/config.json"):
        replace(path, b"{}")
    with pytest.raises(
        ValueError, match=r"config.json has 2 bytes, its manifest says \d+; and 2 more$"
    ):
        verify(store, version)
