"""`wind sign`, and `--signed-by` of `wind verify` and `wind import`: what they print, and where
they end.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.wind.test_ssh_signatures import needs_ssh_keygen, write_key
from wind.audit.ssh_signatures import fingerprint, private_key
from wind.store.versions import Version

Wind = Callable[..., tuple[int, str, str]]


@pytest.fixture
def key(versions: list[Version]) -> str:
    """The fingerprint of the key in the file `ann`, beside its public half and a file that allows
    it.
    """
    path = write_key(Path(), ed25519.Ed25519PrivateKey.generate(), "ann")
    write_key(Path(), ed25519.Ed25519PrivateKey.generate(), "eve")
    Path("allowed").write_text(f"# team\nann@example.com {Path('ann.pub').read_text()}")
    return fingerprint(private_key(path).blob)


def test_a_version_is_signed_verified_and_taken_in(
    versions: list[Version], key: str, command: Wind
) -> None:
    code, out, _ = command("sign", "demo@2", "--key", "ann")
    assert (code, out.splitlines()) == (
        0,
        [
            f"demo@{number}  {version.id[:12]}  signed with {key}"
            for number, version in enumerate(versions, 1)
        ],
    )
    for allowed in ("ann.pub", "allowed"):
        code, out, _ = command("verify", "demo@2", "--signed-by", allowed)
        assert code == 0
        assert out.splitlines()[-3].startswith("demo@2  whole  ")
        assert out.splitlines()[-2:] == [
            f"demo@{number}  signed by ann@example.com  {key}" for number in (1, 2)
        ]
    command("export", "demo@2", "demo.wind", "--format", "archive")
    code, out, _ = command("import", "demo.wind", "--root", "elsewhere", "--signed-by", "allowed")
    assert code == 0
    code, out, _ = command(
        "verify", "demo@2", "--root", "elsewhere", "--signed-by", "ann.pub", "--json"
    )
    assert code == 0
    assert [each["signer"] for each in json.loads(out)["signatures"]] == ["ann@example.com"] * 2


def test_what_is_not_signed_by_whom_one_believes_is_one_line_and_1(key: str, command: Wind) -> None:
    code, _, err = command("verify", "demo@2", "--signed-by", "allowed")
    assert (code, err) == (
        1,
        "error: demo@1 has no signature: `wind sign` it with a key that allowed lists; and 1 more\n",
    )
    command("sign", "demo@2", "--key", "eve")
    code, _, err = command("verify", "demo@2", "--signed-by", "allowed")
    assert (code, err.count("\n")) == (1, 1)
    assert (
        f"is by a key that allowed does not allow: {fingerprint(private_key(Path('eve')).blob)} "
        "is not in it" in err
    )
    command("export", "demo@2", "demo.wind", "--format", "archive")
    code, _, err = command("import", "demo.wind", "--root", "elsewhere", "--signed-by", "allowed")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: demo.wind: demo@1: runs/demo/signatures/")
    code, out, _ = command("versions", "--root", "elsewhere", "--json")
    assert json.loads(out) == []


def test_a_version_that_is_not_whole_is_not_signed(key: str, command: Wind) -> None:
    path = Path("store/runs/demo/versions/0001.json")
    path.write_text(path.read_text().replace('"win_rate"', '"win rate"', 1))
    code, _, err = command("sign", "demo@2", "--key", "ann")
    assert (code, err.count("\n")) == (1, 1)
    assert "was edited" in err
    assert not Path("store/runs/demo/signatures").exists()


@needs_ssh_keygen
def test_an_agent_signs_statements(versions: list[Version], key: str, command: Wind) -> None:
    """By ssh-keygen, which may ask an agent or a hardware token."""
    code, _, err = command("sign", "demo@2", "--statements", "out", "--only")
    assert (code, err.splitlines()[0]) == (0, f"to be signed: out/{versions[1].id}.json")
    assert not Path("store/runs/demo/signatures").exists()
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-n",
            "wind-version",
            "-f",
            "ann",
            f"out/{versions[1].id}.json",
        ],
        check=True,
        capture_output=True,
    )
    code, out, _ = command("sign", "demo@2", "--statements", "out", "--only", "--json")
    assert (code, json.loads(out)) == (0, [{"version": "demo@2", "id": versions[1].id, "key": key}])
    code, _, err = command("verify", "demo@2", "--signed-by", "allowed")
    assert (code, err.startswith("error: demo@1 has no signature")) == (1, True)
    shutil.copy(f"out/{versions[1].id}.json.sig", f"out/{versions[0].id}.json.sig")
    code, _, err = command("sign", "demo@2", "--statements", "out")
    assert (
        code,
        err.startswith("error: the signature of demo@1 does not hold for its statement"),
    ) == (1, True)


def test_a_passphrase_is_asked_for_on_a_terminal_only(
    key: str, command: Wind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_key(Path(), ed25519.Ed25519PrivateKey.generate(), "hidden", passphrase=b"open sesame")
    code, _, err = command("sign", "demo@2", "--key", "hidden")
    assert (code, err.count("\n")) == (2, 1)
    assert "hidden has a passphrase, and this is no terminal to ask for it" in err
    assert "`ssh-keygen -Y sign`" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    asked: list[dict[str, bool]] = []

    def prompt(text: str, **options: bool) -> str:
        asked.append(options)
        return "open sesame"

    monkeypatch.setattr("typer.prompt", prompt)
    code, out, err = command("sign", "demo@2", "--key", "hidden")
    assert code == 0
    assert asked == [{"hide_input": True, "err": True}]
    kept = b"".join(path.read_bytes() for path in Path("store").rglob("*") if path.is_file())
    assert b"sesame" not in kept
    assert "sesame" not in f"{out}{err}{caplog.text}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("sign", "demo"), "give --key FILE, or --statements FOLDER"),
        (
            ("sign", "demo", "--key", "ann", "--statements", "out"),
            "give --key FILE, or --statements FOLDER",
        ),
        (
            ("sign", "demo", "--key", "nowhere"),
            "nowhere cannot be read (No such file or directory)",
        ),
        (("sign", "demo", "--key", "ann.pub"), "ann.pub is a public key"),
        (("sign", "demo", "--key", "store"), "store is a folder"),
        (("sign", "nobody", "--key", "ann"), "no version is called 'nobody'"),
        (("verify", "--signed-by", "allowed"), "--signed-by needs a version"),
        (("verify", "demo:rewards", "--signed-by", "allowed"), "--signed-by needs a version"),
        (("verify", "demo", "--signed-by", "nowhere"), "nowhere cannot be read"),
        (("verify", "demo", "--signed-by", "ann"), "ann is a private key"),
        (
            ("verify", "demo", "--signed-by", "wrong"),
            "wrong, line 1: the option cert-authority is not supported",
        ),
        (
            ("import", "demo.wind", "--signed-by", "allowed", "--trust", "ann"),
            "give one of the two",
        ),
        (("import", "demo.wind", "--signed-by", "store"), "store is a folder"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(
    key: str, command: Wind, arguments: tuple[str, ...], reason: str
) -> None:
    Path("wrong").write_text(f"ann cert-authority {Path('ann.pub').read_text()}")
    Path("demo.wind").touch()
    if arguments[1:3] == ("demo", "--key"):
        Path("ann.pub").chmod(0o600)
    code, _, err = command(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert reason in err
