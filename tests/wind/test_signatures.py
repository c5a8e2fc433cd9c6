"""Signed versions: what a signature covers is believed wherever it goes, and nothing else that lies
beside it.
"""

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.wind.test_ssh_signatures import listed, needs_ssh_keygen, write_key
from tests.wind.versions_case import dataset, model
from wind.audit.allowed_signers import Allowed
from wind.audit.signatures import NAMESPACE, Statement, keep, require, signed, statements
from wind.audit.ssh_signatures import PrivateKey, SignatureError, private_key
from wind.audit.verification import Verification
from wind.errors import ConfigError, DatasetError
from wind.exchange.archives import export_archive, import_archive
from wind.fingerprints import digest
from wind.store import sealed_json
from wind.store.computations import Computation, made_by, record, recorded
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.garbage import collect
from wind.store.handles import Dataset, folder_of
from wind.store.origins import not_computed_here
from wind.store.references import find_version
from wind.store.stamps import is_ours, stamped
from wind.store.versions import Content, Version, Versions, history


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, PrivateKey]:
    """The keys of two people; that of ann alone is allowed, by the file `allowed`."""
    keys = {}
    for name in ("ann", "eve"):
        keys[name] = private_key(write_key(tmp_path, ed25519.Ed25519PrivateKey.generate(), name))
    listed(tmp_path, f"ann@example.com {(tmp_path / 'ann.pub').read_text()}")
    return keys


@pytest.fixture
def allowed(keys: dict[str, PrivateKey], tmp_path: Path) -> Allowed:
    return Allowed(tmp_path / "allowed")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of another user: two versions with computations and check results, signed by
    nobody.
    """
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "sender"))
        return checked_run(Store(tmp_path / "theirs"))


def check_result(store: Store, handle: Dataset, **fields: Any) -> str:
    """The key of a stored check result of `handle`, with its page."""
    key, folder = (
        digest(["check", handle.fingerprint]),
        f"checks/{handle.name}/{handle.fingerprint}",
    )
    page = b"<p>passed</p>"
    store.storage.write(f"{folder}/{key}.html", page)
    said = {
        "handle": handle.model_dump(mode="json"),
        "key": key,
        "success": True,
        "page_sha256": hashlib.sha256(page).hexdigest(),
    }
    store.storage.write(f"{folder}/{key}.json", stamped("check", said | fields))
    return key


def checked_run(store: Store, run: str = "demo") -> Store:
    before: Version | None = None
    policy = start = model(store, 0.0)
    for iteration in (1, 2):
        rewards = dataset(store, f"rewards {iteration}", {"policy": policy})
        trained = model(
            store, float(iteration), parents={"policy": policy}, computed_by={"stage": "training"}
        )
        training = dataset(
            store,
            f"training {iteration}",
            {"rewards": rewards, "policy": policy},
            {"model": trained},
        )
        outputs: dict[str, Any] = {"model": trained}
        facts: dict[str, Any] = {
            "stage": "training",
            "code": "c0de",
            "outputs": outputs,
            "provenance": {"host": "theirs"},
        }
        computation = Computation(dataset=training, spec={"iteration": iteration}, **facts)
        record(store, computation)
        content = Content(
            iteration=iteration,
            recipe={},
            datasets={"training": training},
            model_in=policy,
            model_out=trained,
            reference=start,
            previous=before.id if before else None,
        )
        before = Versions(store, run).publish(
            content,
            checks={"training": 1},
            check_results={"training": check_result(store, training)},
            metrics={"win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}},
            seconds={"training": 1.0},
            computations={"training": computation.key()},
        )
        policy = trained
    return store


def sign(store: Store, key: PrivateKey, run: str = "demo") -> list[Statement]:
    """Sign the latest version of a run, and those before it."""
    chain = history(store, find_version(store, run))
    found = statements(store, chain)
    for version, statement in zip(chain, found, strict=True):
        keep(store, version, statement.text(), key.sign(statement.text(), NAMESPACE).encode())
    return found


def problems(store: Store, allowed: Allowed, run: str = "demo") -> list[str]:
    return [
        signed(store, version, allowed).problem
        for version in history(store, find_version(store, run), is_whole=False)
    ]


def record_of(store: Store, tree: str, number: int = 2) -> str:
    """The file of a record that a version names, beside its training."""
    version = find_version(store, f"demo@{number}")
    key = (version.computations if tree == "computations" else version.check_results)["training"]
    return f"{tree}/training/{version.content.datasets['training'].fingerprint}/{key}.json"


def edit(store: Store, name: str, **changes: Any) -> None:
    """Change a record as somebody does who seals it again, and has no key of ours."""
    fields = json.loads(store.storage.read(name))
    assert all(fields.get(field) != value for field, value in changes.items())
    store.storage.write(name, sealed_json.encode({**fields, **changes}))


def files_of(store: Store, number: int) -> tuple[str, str]:
    """The statement and the signature of a version with one signature."""
    version = find_version(store, f"demo@{number}")
    statement, signature = [
        f"{version.signatures()}/{name}" for name in store.storage.names(version.signatures())
    ]
    return statement, signature


# ----------------------------------------------------------------------------------- what is signed


def test_a_statement_binds_all_that_is_believed(theirs: Store) -> None:
    chain = history(theirs, find_version(theirs, "demo"))
    first, second = statements(theirs, chain)
    assert (second.version, second.name) == (chain[1].id, "demo@2")
    training, trained = chain[1].content.datasets["training"], chain[1].content.model_out
    key = chain[1].computations["training"]
    assert set(second.records) == {
        record_of(theirs, "checks"),
        f"computations/training/{training.fingerprint}/{key}.json",
        f"computations/models/{trained.fingerprint}/{key}.json",
    }
    # of each iteration rewards, training and the model that it made; in the first the one that all
    # began with, too
    assert [len(each.manifests) for each in (first, second)] == [4, 3]
    assert not set(first.manifests) & set(second.manifests)
    assert {folder_of(training), folder_of(trained)} < set(second.manifests)


def test_whose_signature_it_is_is_said(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed, tmp_path: Path
) -> None:
    assert problems(theirs, allowed) == [
        f"demo@{number} has no signature: `wind sign` it with a key that {tmp_path / 'allowed'} "
        "lists"
        for number in (1, 2)
    ]
    sign(theirs, keys["ann"])
    before = {entry.name: theirs.storage.read(entry.name) for entry in theirs.storage.files("runs")}
    found = signed(theirs, find_version(theirs, "demo"), allowed)
    assert (found.signer, found.problem, found.notes) == ("ann@example.com", "", ())
    sign(theirs, keys["ann"])
    assert {
        entry.name: theirs.storage.read(entry.name) for entry in theirs.storage.files("runs")
    } == before
    sign(theirs, keys["eve"])  # whom nobody knows, but that does not undo what ann says
    assert problems(theirs, allowed) == ["", ""]


def test_a_copied_store_is_signed_like_the_first(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    sign(theirs, keys["ann"])
    shutil.copytree(theirs.root, theirs.root.with_name("copy"))
    assert problems(Store(theirs.root.with_name("copy")), allowed) == ["", ""]


def metrics(store: Store, number: int = 2) -> None:
    """Other metrics in the record of a version, which its id does not bind."""
    name = find_version(store, f"demo@{number}").file()
    edit(store, name, metrics={"win_rate": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 8}})


FORGERIES: dict[str, tuple[Callable[[Store], Any], str]] = {
    "other metrics": (
        metrics,
        r"is of another record than runs/demo/versions/0002.json, which is not as "
        r"ann@example.com signed it",
    ),
    "another check result": (
        lambda store: edit(store, record_of(store, "checks"), success=False),
        r"is of another checks/training/\w+/\w+.json, which is not as ann@example.com signed it",
    ),
    "another page of a check": (
        lambda store: edit(store, record_of(store, "checks"), page_sha256="0" * 64),
        r"is of another checks/training/",
    ),
    "another computation": (
        lambda store: edit(store, record_of(store, "computations"), numbers={"loss": 0.0}),
        r"is of another computations/training/",
    ),
    "a computation that was made elsewhere": (
        lambda store: edit(store, record_of(store, "computations"), provenance={"host": "ours"}),
        r"is of another computations/training/",
    ),
    "no computation": (
        lambda store: store.storage.delete(record_of(store, "computations")),
        r"is of computations/training/\S+ too, which is missing",
    ),
    "a damaged record": (
        lambda store: store.storage.write(record_of(store, "checks"), b"{"),
        r"is of checks/training/\S+ too, which cannot be read",
    ),
    "another manifest": (
        lambda store: edit(
            store,
            f"{folder_of(find_version(store, 'demo').content.datasets['training'])}/manifest.json",
            outputs={},
        ),
        r"is of another datasets/training/\w+/manifest.json",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_was_changed_since_is_named(
    name: str, theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    sign(theirs, keys["ann"])
    forge, reason = FORGERIES[name]
    forge(theirs)
    first, second = problems(theirs, allowed)
    assert first == ""
    with pytest.raises(DatasetError, match=rf"^demo@2: runs/demo/signatures/\S+ {reason}"):
        require([signed(theirs, find_version(theirs, "demo@2"), allowed)])
    assert "\n" not in second


def resigned(
    change: Callable[[dict[str, Any]], Any], namespace: str = NAMESPACE
) -> Callable[[Store, PrivateKey], None]:
    """Let the signature of demo@2 be one of another statement, signed by whoever may sign."""

    def forge(store: Store, key: PrivateKey) -> None:
        statement, signature = files_of(store, 2)
        fields = json.loads(store.storage.read(statement))
        change(fields)
        text = json.dumps(fields).encode()
        store.storage.write(statement, text)
        store.storage.write(signature, key.sign(text, namespace).encode())

    return forge


def swapped(store: Store, key: PrivateKey) -> None:
    for first, second in zip(files_of(store, 1), files_of(store, 2), strict=True):
        store.storage.write(second, store.storage.read(first))


def only_the_signature_swapped(store: Store, key: PrivateKey) -> None:
    store.storage.write(files_of(store, 2)[1], store.storage.read(files_of(store, 1)[1]))


SIGNATURES: dict[str, tuple[Callable[[Store, PrivateKey], Any], str]] = {
    "of another version": (swapped, r"is of demo@1 with the id \w{12}: it was moved"),
    "of another version's statement": (
        only_the_signature_swapped,
        "does not hold for its statement",
    ),
    "with another id": (
        resigned(lambda fields: fields.update(version="0" * 64)),
        "is of demo@2 with the id 000000000000",
    ),
    "with another run": (
        resigned(lambda fields: fields.update(name="prod@2")),
        "is of prod@2 with the id",
    ),
    "for something else": (
        resigned(lambda fields: None, "git"),
        "was given for 'git', not for 'wind-version'",
    ),
    "of no statement": (
        resigned(lambda fields: fields.pop("record")),
        "is not of a statement about a version",
    ),
    "that leads elsewhere": (
        resigned(
            lambda fields: fields["records"].update(
                {"checks/../../key": {"digest": "", "claims": ""}}
            )
        ),
        "is not of a statement about a version",
    ),
    "damaged": (
        lambda store, key: store.storage.write(files_of(store, 2)[1], b"-----BEGIN"),
        "is damaged: it is not an SSH signature",
    ),
    "without its statement": (
        lambda store, key: store.storage.delete(files_of(store, 2)[0]),
        "cannot be read with its statement",
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_that_does_not_hold_says_why(
    name: str, theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    sign(theirs, keys["ann"])
    forge, reason = SIGNATURES[name]
    forge(theirs, keys["ann"])
    assert problems(theirs, allowed)[0] == ""
    with pytest.raises(DatasetError, match=rf"^demo@2: runs/demo/signatures/\S+\.sig {reason}"):
        require([signed(theirs, find_version(theirs, "demo@2"), allowed)])


def test_a_key_that_is_not_allowed_is_named_as_ssh_keygen_does(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    sign(theirs, keys["eve"])
    told = hashlib.sha256(keys["eve"].blob).digest()
    reason, _ = problems(theirs, allowed)
    assert f"SHA256:{base64.b64encode(told).decode().rstrip('=')} is not in it" in reason


def test_a_signature_under_the_name_of_another_key_was_moved(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    """Else an old one could take the place of a new one when it is taken in."""
    sign(theirs, keys["ann"])
    for name in files_of(theirs, 2):
        theirs.storage.write(
            f"{name.rpartition('/')[0]}/{'0' * 64}.{name[-4:].lstrip('.')}",
            theirs.storage.read(name),
        )
        theirs.storage.delete(name)
    assert "is by another key than its name says: it was moved" in problems(theirs, allowed)[1]


def test_a_signature_moved_to_another_run_is_of_none_of_its_versions(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    """The content is the same, and the version's id; but what demo is may not be said of prod."""
    sign(theirs, keys["ann"])
    shutil.copytree(theirs.root / "runs" / "demo", theirs.root / "runs" / "prod")
    for number in (1, 2):
        edit(theirs, f"runs/prod/versions/000{number}.json", run="prod")
    for version in Versions(theirs, "prod"):
        problem = signed(theirs, version, allowed).problem
        assert f"is of demo@{version.number} with the id {version.id[:12]}: it was moved" in problem


def test_what_is_computed_again_here_is_told_and_no_forgery(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    """Our own stamp is on it: the same computation, at another time."""
    sign(theirs, keys["ann"])
    name = record_of(theirs, "computations")
    theirs.storage.write(
        name,
        stamped(
            "computation", json.loads(theirs.storage.read(name)) | {"provenance": {"host": "ours"}}
        ),
    )
    found = signed(theirs, find_version(theirs, "demo"), allowed)
    assert (found.problem, found.notes) == (
        "",
        (f"{name} was made here again since ann@example.com signed it",),
    )
    theirs.storage.write(
        name,
        stamped("computation", json.loads(theirs.storage.read(name)) | {"numbers": {"loss": 0.0}}),
    )
    assert (
        "is of another computations/training/"
        in signed(theirs, find_version(theirs, "demo"), allowed).problem
    )


# --------------------------------------------------------------------------------- where it travels


def archive_of(store: Store) -> Path:
    path = store.root.with_name("sent.wind")
    path.unlink(missing_ok=True)
    export_archive(store, find_version(store, "demo"), path)
    return path


def believed(store: Store) -> list[str]:
    """The records beside the content that a run goes by."""
    kinds: list[Any] = ["check", "computation"]
    names = [
        entry.name
        for tree in ("checks", "computations")
        for entry in store.storage.files(tree)
        if ".json" in entry.name
    ]
    return [
        name
        for name in names
        if any(is_ours(kind, json.loads(store.storage.read(name))) for kind in kinds)
    ]


def test_an_import_believes_what_is_signed(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed, tmp_path: Path
) -> None:
    found = sign(theirs, keys["ann"])
    training = find_version(theirs, "demo").content.datasets["training"]
    unsigned = Computation(dataset=training, stage="training", spec={"unsigned": True})
    theirs.storage.write(
        f"computations/training/{training.fingerprint}/{unsigned.key()}.json",
        sealed_json.encode(unsigned),
    )
    ours = Store(tmp_path / "ours")
    version = import_archive(ours, archive_of(theirs), signed_by=tmp_path / "allowed").version
    assert sorted(believed(ours)) == sorted(name for each in found for name in each.records)
    assert len(recorded(ours, training)) == 2
    assert made_by(ours, "training", version.computations["training"]) == [training]
    for each in Versions(ours, "demo"):
        assert (
            not_computed_here(ours, each)
            == "imported from ann@example.com, whom you trusted, not computed here"
        )
        verification = Verification(ours)
        verification.version("demo", each.number)
        verification.require()
    assert problems(ours, allowed) == ["", ""]
    import_archive(ours, archive_of(theirs), signed_by=tmp_path / "allowed")  # again
    third = Store(tmp_path / "third")
    archive = tmp_path / "on.wind"
    export_archive(ours, find_version(ours, "demo"), archive)
    import_archive(third, archive, signed_by=tmp_path / "allowed")
    assert problems(third, allowed) == ["", ""]


@pytest.mark.parametrize("name", [*FORGERIES, *SIGNATURES, "nobody's", "eve's", "the first alone"])
def test_a_forged_archive_brings_nothing(
    name: str, theirs: Store, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    if name != "nobody's":
        sign(theirs, keys["eve" if name == "eve's" else "ann"])
    if name in FORGERIES:
        FORGERIES[name][0](theirs)
    elif name in SIGNATURES:
        SIGNATURES[name][0](theirs, keys["ann"])
    elif name == "the first alone":
        theirs.storage.delete(find_version(theirs, "demo@2").signatures())
    try:
        archive = archive_of(theirs)
    except DatasetError:
        assert name == "a damaged record"
        return
    with pytest.raises(DatasetError) as refused:
        import_archive(Store(tmp_path / "ours"), archive, signed_by=tmp_path / "allowed")
    assert str(refused.value).startswith(f"{archive}")
    assert "\n" not in str(refused.value)
    left = [
        path for path in (tmp_path / "ours").rglob("*") if path.is_file() and path.suffix != ".lock"
    ]
    assert left == []


def test_an_import_that_trusts_nobody_keeps_signatures_that_hold(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed, tmp_path: Path
) -> None:
    sign(theirs, keys["ann"])
    only_the_signature_swapped(theirs, keys["ann"])
    ours = Store(tmp_path / "ours")
    import_archive(ours, archive_of(theirs))
    assert [problem.partition(":")[0] for problem in problems(ours, allowed)] == [
        "",
        "demo@2 has no signature",
    ]
    assert believed(ours) == []
    sign(theirs, keys["ann"])
    with pytest.raises(ConfigError, match="demo@1 was imported without --trust"):
        import_archive(ours, archive_of(theirs), signed_by=tmp_path / "allowed")


def test_another_name_leaves_the_signatures_behind(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed, tmp_path: Path
) -> None:
    sign(theirs, keys["ann"])
    ours = Store(tmp_path / "ours")
    import_archive(ours, archive_of(theirs), "mine", signed_by=tmp_path / "allowed")
    assert len(believed(ours)) == 6
    assert ours.storage.names(find_version(ours, "mine").signatures()) == []
    with pytest.raises(ConfigError, match="give one of the two"):
        import_archive(ours, archive_of(theirs), trust="ann", signed_by=tmp_path / "allowed")


def test_a_signature_is_kept_as_long_as_its_version(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed
) -> None:
    sign(theirs, keys["ann"])
    first, last = Versions(theirs, "demo")
    stray = f"runs/demo/signatures/{'0' * 64}/{'0' * 64}.sig"
    theirs.storage.write(stray, b"")
    assert [item.name for item in collect(theirs).items] == [stray]
    assert problems(theirs, allowed) == ["", ""]
    forget(theirs, "demo", [first], force=True)
    assert {entry.name.split("/")[3] for entry in theirs.storage.files("runs/demo/signatures")} == {
        last.id
    }
    assert problems(theirs, allowed) == [""]
    forget(theirs, "demo", [last])
    assert list(theirs.storage.files("runs/demo/signatures")) == []


def test_a_history_follows_the_records_it_was_published_after(
    theirs: Store, tmp_path: Path
) -> None:
    """Also where another run, here one behind it in the alphabet, has the same versions."""
    import_archive(theirs, archive_of(theirs), "zzz")
    assert [each.run for each in history(theirs, find_version(theirs, "demo"))] == ["demo", "demo"]
    assert [each.run for each in history(theirs, find_version(theirs, "zzz"))] == ["zzz", "zzz"]


@needs_ssh_keygen
def test_ssh_keygen_judges_and_makes_the_same_signatures(
    theirs: Store, keys: dict[str, PrivateKey], allowed: Allowed, tmp_path: Path
) -> None:
    sign(theirs, keys["ann"])
    statement, signature = (theirs.root / name for name in files_of(theirs, 2))
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(allowed.path),
        "-I",
        "ann@example.com",
        "-n",
        NAMESPACE,
        "-s",
        str(signature),
    ]
    assert (
        subprocess.run(
            verify, input=statement.read_bytes(), capture_output=True, check=False
        ).returncode
        == 0
    )
    for version, each in zip(
        Versions(theirs, "demo"), statements(theirs, list(Versions(theirs, "demo"))), strict=True
    ):
        (tmp_path / "it").write_bytes(each.text())
        by = [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-n",
            NAMESPACE,
            "-f",
            str(tmp_path / "ann"),
            str(tmp_path / "it"),
        ]
        subprocess.run(by, check=True, capture_output=True)
        theirs.storage.delete(version.signatures())
        keep(theirs, version, each.text(), (tmp_path / "it.sig").read_bytes())
        (tmp_path / "it.sig").unlink()
    assert problems(theirs, allowed) == ["", ""]
    with pytest.raises(SignatureError, match="does not hold"):
        keep(theirs, find_version(theirs, "demo"), b"another", signature.read_bytes())


def test_no_store_and_no_archive_holds_a_private_key(
    theirs: Store, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    sign(theirs, keys["ann"])
    secret = (tmp_path / "ann").read_bytes().split(b"\n")[3]
    files = [*theirs.root.rglob("*"), archive_of(theirs)]
    assert len(secret) > 40
    assert [
        path
        for path in files
        if path.is_file() and (secret in path.read_bytes() or b"PRIVATE" in path.read_bytes())
    ] == []
