"""SSH keys and signatures: what ssh-keygen makes is read, what it reads is made, and nothing else
counts.
"""

import base64
import hashlib
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from wind.audit.allowed_signers import Allowed
from wind.audit.ssh_signatures import (
    BEGIN,
    END,
    SignatureError,
    _packed,
    _signed,
    fingerprint,
    parsed_signature,
    private_key,
)
from wind.errors import ConfigError

NAMESPACE = "wind-version"
MESSAGE = b"a statement\n"
# `ssh-keygen -Y sign -n wind-version` over MESSAGE, OpenSSH 9.2: the public key, and the armored
# lines as one.
VECTORS = {
    "ed25519": (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOkGeUrR+/WT8+VgPrmnqzmoC5+6Dpu0Ke4pRR/32DaB "
        "ed25519@example.com",
        "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg6QZ5StH79ZPz5WA+uaerOagLn7oOm7Qp7ilFH/fYNoEAAAAMd2luZC12"
        "ZXJzaW9uAAAAAAAAAAZzaGE1MTIAAABTAAAAC3NzaC1lZDI1NTE5AAAAQA/vvuuWFpyeQfjn1xkXZtVBEtSx1E0kA974yfCWn3om"
        "63WVOTbtPPn+nxWjxBF2KICXD/5yFf2sRuHZ8R0XpAA=",
    ),
    "ecdsa": (
        "ecdsa-sha2-nistp521 "
        "AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAGEYwrlflomX5GAh4nfGKd7Zcky"
        "TTrME8J/QU1yaWazQZip6ALYlDnYZQRtmWRTcPLWyysH1yGn+DuCVdQaJNT4bQEYaahTIWUzu/Cqzm5g5VVK/RqvNbsnBGIXosJ3"
        "cWJbctKvhCrQNDwRujAaWRz6DVIh9sIiDqHLK8P4NAbOtVoY9A== ecdsa@example.com",
        "U1NIU0lHAAAAAQAAAKwAAAATZWNkc2Etc2hhMi1uaXN0cDUyMQAAAAhuaXN0cDUyMQAAAIUEAYRjCuV+WiZfkYCHid8Yp3tlyTJN"
        "OswTwn9BTXJpZrNBmKnoAtiUOdhlBG2ZZFNw8tbLKwfXIaf4O4JV1Bok1PhtARhpqFMhZTO78KrObmDlVUr9Gq81uycEYheiwndx"
        "Ylty0q+EKtA0PBG6MBpZHPoNUiH2wiIOocsrw/g0Bs61Whj0AAAADHdpbmQtdmVyc2lvbgAAAAAAAAAGc2hhNTEyAAAApwAAABNl"
        "Y2RzYS1zaGEyLW5pc3RwNTIxAAAAjAAAAEIBK3v43wNTfDv8kPFTzJ8bBpS0qvVAPjupcKsj7hWr3BgfTGs/xuviPYFJ88KvUAsd"
        "aCyvWlKKI1TyvQB/5nEyBJoAAABCAdS25SZziPtm5fZHVe9rSDmy758FHA4GWAUFMdaaYMPakqOfHd4W90A3GsO6cXLy9IzweQTo"
        "jbA/kOTxCRqu+SNH",
    ),
    "rsa": (
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC2KPHXbtll7VqbTltTKUEuGnWwzVbSc13M/O+lZxfcW7mvvMA8aGF3QTqRtmJC"
        "qtQQmpqufc1rk+zSsKpe0ZN+YYSXaOUds2pj/NkD4ZC8ym1A/xxBd3LLcfUNzGwbUS0WaaOdLbVgjxpKm58gQ+rqbG1O55+9C0Bk"
        "q22FjKPYDrFHvZhaLAXzFCurdAPt5k99M7U6y6ogOxXohugo5IAl1PU3MGFmhuC4TTTGE/2xpGTv5NJqvTNVpZLBuoFHf/bh5OFJ"
        "rKJ9XcgDLU/UTRrr1SwG6ko3yWg0Bp0bNasXNh1G9OuISNIUittHndkJsH9IbRUwiWisaw0DK0u2i/q8+8jjKsY+GjU9A6wt6HN6"
        "U9SN8DO1SzDYhzFtuDGPCsegmdBrvhDNTIQDVhd5KdZ1rzDKngeXk/NGAHzmzCXNUe/EdCoooKMwFLlBxNQDYTmfWSi3nSiryya+"
        "0u+i/7ymAP5ChHCipBnzzMrSPZ1bcylv7n28/pGpFndNpTsnLBM= rsa@example.com",
        "U1NIU0lHAAAAAQAAAZcAAAAHc3NoLXJzYQAAAAMBAAEAAAGBALYo8ddu2WXtWptOW1MpQS4adbDNVtJzXcz876VnF9xbua+8wDxo"
        "YXdBOpG2YkKq1BCamq59zWuT7NKwql7Rk35hhJdo5R2zamP82QPhkLzKbUD/HEF3cstx9Q3MbBtRLRZpo50ttWCPGkqbnyBD6ups"
        "bU7nn70LQGSrbYWMo9gOsUe9mFosBfMUK6t0A+3mT30ztTrLqiA7FeiG6CjkgCXU9TcwYWaG4LhNNMYT/bGkZO/k0mq9M1WlksG6"
        "gUd/9uHk4Umson1dyAMtT9RNGuvVLAbqSjfJaDQGnRs1qxc2HUb064hI0hSK20ed2Qmwf0htFTCJaKxrDQMrS7aL+rz7yOMqxj4a"
        "NT0DrC3oc3pT1I3wM7VLMNiHMW24MY8Kx6CZ0Gu+EM1MhANWF3kp1nWvMMqeB5eT80YAfObMJc1R78R0KiigozAUuUHE1ANhOZ9Z"
        "KLedKKvLJr7S76L/vKYA/kKEcKKkGfPMytI9nVtzKW/ufbz+kakWd02lOycsEwAAAAx3aW5kLXZlcnNpb24AAAAAAAAABnNoYTUx"
        "MgAAAZQAAAAMcnNhLXNoYTItNTEyAAABgIpF7wcSoBQ3pIiuzOj4HG5//IPUFWTZhq9r6H5qJYF3xpYW4gw5jigGaL2koDmL3RiT"
        "WouyjnWgnbTaiaKirxRI+DPtvT3AJ7wEaSI6uQ1tbiBqES4XYIB67JUKrb13bWdD3evGYCz3WeERiCu/Hw/NyiNdoKqSayHWBRCY"
        "qy7kA2alX8IkRScbCYV7gDTD4H7XuZGM1zrhwU94s6JYjNNh7L2BGYpMwotq9/4MDxnvXAU2vW3bt8qlAukJLu9Wcg5RkI+ydhnV"
        "cJyPA+yQQtHJplAnBY5UHlJc+PWw6XspozFDFQyP7p9SEpNW9SM+ofgBzjLzX7YiriLFEvozV/1FV0njauH/FdCwfoXXlb+yup4m"
        "BBM/m6asCSGQmwUkA4e0PSOzkb2BtjKI0crqPaki1JGh8yn/xtpLSiU1FAXepXSqnvvZvYd93IaRRDVVWahhY6JcnL9fpRJ8r7tg"
        "/+Z67v1l7GSt4h3k1ngnG8+pyfj216WP+guXhtnyZQ69Xg==",
    ),
}
PRIVATE: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "nistp256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "nistp384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "nistp521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs OpenSSH's ssh-keygen"
)


def armored(text: str) -> bytes:
    return f"{BEGIN}\n{text}\n{END}\n".encode()


def write_key(folder: Path, key: Any, name: str = "id", passphrase: bytes | None = None) -> Path:
    """The file of a private key as ssh-keygen writes it; its public half lies beside it."""
    hidden = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    path = folder / name
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, hidden)
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    (folder / f"{name}.pub").write_bytes(public + b" ann@example.com\n")
    return path


def listed(folder: Path, *lines: str) -> Path:
    """A file of allowed signers."""
    path = folder / "allowed"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def public() -> str:
    """The type and the key of a public key."""
    return " ".join(VECTORS["ed25519"][0].split()[:2])


def blob_of(line: str) -> bytes:
    return base64.b64decode(line.split()[1])


# --------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("kind", VECTORS)
def test_what_ssh_keygen_signed_holds(kind: str, tmp_path: Path) -> None:
    line, text = VECTORS[kind]
    signature = parsed_signature(armored(text))
    signature.require(MESSAGE, NAMESPACE)
    (tmp_path / "it.pub").write_text(line)
    assert (
        Allowed(tmp_path / "it.pub").principal(signature.blob, NAMESPACE) == f"{kind}@example.com"
    )
    with pytest.raises(SignatureError, match="does not hold for its statement"):
        signature.require(MESSAGE + b" ", NAMESPACE)
    with pytest.raises(SignatureError, match="was given for 'wind-version', not for 'git'"):
        signature.require(MESSAGE, "git")


@pytest.mark.parametrize("kind", VECTORS)
def test_no_byte_of_a_signature_can_be_changed(kind: str) -> None:
    whole = base64.b64decode(VECTORS[kind][1])
    for at in range(0, len(whole), 1 if kind == "ed25519" else 7):
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(SignatureError):
            parsed_signature(armored(base64.b64encode(changed).decode())).require(
                MESSAGE, NAMESPACE
            )
    for cut in (whole[:-1], whole + b"\0", whole[: len(whole) // 2], b""):
        with pytest.raises(SignatureError):
            parsed_signature(armored(base64.b64encode(cut).decode())).require(MESSAGE, NAMESPACE)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"text", BEGIN.encode(), armored("!!!!"), b"A" * 2**21]
)
def test_what_is_no_signature_is_damaged(content: bytes) -> None:
    with pytest.raises(SignatureError, match="is damaged"):
        parsed_signature(content)


@pytest.mark.parametrize("kind", PRIVATE)
def test_what_is_signed_here_holds(kind: str, tmp_path: Path) -> None:
    key = private_key(write_key(tmp_path, PRIVATE[kind]()))
    signature = parsed_signature(key.sign(MESSAGE, NAMESPACE).encode())
    signature.require(MESSAGE, NAMESPACE)
    assert signature.blob == key.blob
    other = private_key(write_key(tmp_path, PRIVATE[kind](), "other"))
    forged = type(signature)(other.blob, signature.namespace, signature.hash, signature.signature)
    with pytest.raises(SignatureError):
        forged.require(MESSAGE, NAMESPACE)


@needs_ssh_keygen
@pytest.mark.parametrize("kind", PRIVATE)
def test_ssh_keygen_reads_what_is_signed_here_and_the_other_way_round(
    kind: str, tmp_path: Path
) -> None:
    path = write_key(tmp_path, PRIVATE[kind]())
    signature = tmp_path / "it.sig"
    signature.write_text(private_key(path).sign(MESSAGE, NAMESPACE))
    allowed = listed(
        tmp_path, f'ann@example.com namespaces="{NAMESPACE}" {path.with_suffix(".pub").read_text()}'
    )
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(allowed),
        "-I",
        "ann@example.com",
        "-n",
        NAMESPACE,
        "-s",
        str(signature),
    ]
    told = subprocess.run(verify, input=MESSAGE, capture_output=True, check=False)
    assert (told.returncode, fingerprint(private_key(path).blob) in told.stdout.decode()) == (
        0,
        True,
    ), told
    assert (
        subprocess.run(verify, input=MESSAGE + b" ", capture_output=True, check=False).returncode
        != 0
    )
    (tmp_path / "statement").write_bytes(MESSAGE)
    sign = [
        "ssh-keygen",
        "-q",
        "-Y",
        "sign",
        "-n",
        NAMESPACE,
        "-f",
        str(path),
        str(tmp_path / "statement"),
    ]
    subprocess.run(sign, check=True, capture_output=True)
    parsed_signature((tmp_path / "statement.sig").read_bytes()).require(MESSAGE, NAMESPACE)


def by_token(flags: int = 1) -> tuple[str, bytes]:
    """A public key of a hardware token, and its signature of MESSAGE: both made as PROTOCOL.u2f of
    OpenSSH says.
    """
    key, application = ed25519.Ed25519PrivateKey.generate(), b"ssh:"
    kind = b"sk-ssh-ed25519@openssh.com"
    blob = _packed(kind, key.public_key().public_bytes_raw(), application)
    beside = bytes([flags]) + struct.pack(">I", 7)
    content = hashlib.sha256(_signed(MESSAGE, NAMESPACE.encode(), b"sha512")).digest()
    value = key.sign(hashlib.sha256(application).digest() + beside + content)
    whole = (
        b"SSHSIG"
        + struct.pack(">I", 1)
        + _packed(blob, NAMESPACE.encode(), b"", b"sha512", _packed(kind, value) + beside)
    )
    return f"{kind.decode()} {base64.b64encode(blob).decode()}", armored(
        base64.b64encode(whole).decode()
    )


def test_a_token_signs_only_while_it_is_touched() -> None:
    parsed_signature(by_token()[1]).require(MESSAGE, NAMESPACE)
    with pytest.raises(SignatureError, match="whether somebody was present"):
        parsed_signature(by_token(flags=0)[1]).require(MESSAGE, NAMESPACE)
    with pytest.raises(SignatureError, match="does not hold"):
        parsed_signature(by_token()[1]).require(b"another", NAMESPACE)


@needs_ssh_keygen
def test_ssh_keygen_agrees_about_tokens(tmp_path: Path) -> None:
    line, signature = by_token()
    (tmp_path / "it.sig").write_bytes(signature)
    allowed = listed(tmp_path, f"ann {line}")
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(allowed),
        "-I",
        "ann",
        "-n",
        NAMESPACE,
        "-s",
        str(tmp_path / "it.sig"),
    ]
    assert subprocess.run(verify, input=MESSAGE, capture_output=True, check=False).returncode == 0


def test_rsa_with_sha1_is_refused() -> None:
    """By the name of the hash: `ssh-rsa` is SHA-1."""
    signature = parsed_signature(armored(VECTORS["rsa"][1]))
    old = signature.signature.replace(_packed(b"rsa-sha2-512"), _packed(b"ssh-rsa"))
    with pytest.raises(SignatureError, match="a key of type ssh-rsa does not sign by ssh-rsa"):
        type(signature)(signature.blob, signature.namespace, signature.hash, old).require(
            MESSAGE, NAMESPACE
        )


# ------------------------------------------------------------------------------------- private keys


def test_a_passphrase_is_asked_for_and_never_told(tmp_path: Path) -> None:
    path = write_key(tmp_path, PRIVATE["ed25519"](), passphrase=b"open sesame")
    key = private_key(path, lambda: "open sesame")
    parsed_signature(key.sign(MESSAGE, NAMESPACE).encode()).require(MESSAGE, NAMESPACE)
    with pytest.raises(ConfigError, match="damaged, or the passphrase is wrong") as refused:
        private_key(path, lambda: "open barley")
    assert "barley" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"has a passphrase.*`ssh-keygen -Y sign`"):
        private_key(path)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, not a plain file"),
        (lambda path: path.chmod(0o644), "is open to others: run `chmod 600 "),
        (lambda path: path.write_text(VECTORS["rsa"][0]), "is a public key: name the private one"),
        (
            lambda path: path.write_text("no key"),
            "is not a private key of OpenSSH: `ssh-keygen -p -f ",
        ),
        (lambda path: path.write_bytes(b""), "is not a private key of OpenSSH"),
        (lambda path: path.write_bytes(path.read_bytes()[:150]), "cannot be read as a private key"),
        (lambda path: path.write_bytes(bytes(2**20 + 1)), "has more than 1048576 bytes"),
        (
            lambda path: write_key(path.parent, rsa.generate_private_key(65537, 1024), path.name),
            "an RSA key of 1024 bits",
        ),
        (
            lambda path: write_key(path.parent, dsa.generate_private_key(1024), path.name),
            "cannot be used: keys of type ssh-dss",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:SSH DSA key")
def test_what_is_no_key_to_sign_with_is_one_line(
    arrange: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    path = write_key(tmp_path, PRIVATE["ed25519"]())
    arrange(path)
    with pytest.raises(ConfigError) as refused:
        private_key(path)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


# -------------------------------------------------------------------------- whose keys are believed


def test_the_principal_is_the_first_that_a_line_names(public: str, tmp_path: Path) -> None:
    other = " ".join(VECTORS["ecdsa"][0].split()[:2])
    allowed = Allowed(
        listed(
            tmp_path,
            "# team",
            "",
            f'"!eve,ann@example.com",bob {public} her laptop',
            f"carl {other}",
        )
    )
    assert allowed.principal(blob_of(public), NAMESPACE) == "ann@example.com"
    assert allowed.principal(blob_of(other), NAMESPACE) == "carl"
    with pytest.raises(
        SignatureError, match=r"that \S+ does not allow: SHA256:\S{43} is not in it"
    ):
        allowed.principal(blob_of(VECTORS["rsa"][0]), NAMESPACE)


def test_a_public_key_without_a_name_is_called_by_its_fingerprint(
    public: str, tmp_path: Path
) -> None:
    allowed = Allowed(listed(tmp_path, public))
    assert allowed.principal(blob_of(public), NAMESPACE) == fingerprint(blob_of(public))
    assert fingerprint(blob_of(public)) == "SHA256:Ys9mie76WV+eTuQXcF6tAEIBRaaLR8vZPEisNUz6KLc"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ('namespaces="git,wind-*"', None),
        ('namespaces="wind-versio?"', None),
        ('namespaces="git"', "is for the namespaces git"),
        ('namespaces="wind-*,!wind-version"', "is for the namespaces"),
        ('namespaces="WIND-VERSION"', "is for the namespaces"),
        ('valid-after="20200101"', None),
        ('valid-after="20200101Z",valid-before="29990101123059Z"', None),
        ('valid-after="299901011230"', "is valid only after 2999-01-01 12:30:00"),
        ('valid-before="20200101Z"', "was valid before 2020-01-01 00:00:00 UTC"),
    ],
)
def test_options_are_honored(options: str, reason: str | None, public: str, tmp_path: Path) -> None:
    allowed = Allowed(listed(tmp_path, f"ann {options} {public}"))
    if reason is None:
        assert allowed.principal(blob_of(public), NAMESPACE) == "ann"
    else:
        with pytest.raises(SignatureError, match=reason):
            allowed.principal(blob_of(public), NAMESPACE)
    twice = Allowed(listed(tmp_path, f"ann {options} {public}", f"bob {public}"))
    assert twice.principal(blob_of(public), NAMESPACE) == ("bob" if reason else "ann")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ann cert-authority {}", "the option cert-authority is not supported"),
        ('ann restrict,namespaces="x" {}', "the option restrict is not supported"),
        ("ann namespaces=x {}", "is not supported"),
        ("ann valid-after {}", "the option valid-after is not supported"),
        ('ann valid-after="yesterday" {}', "'yesterday' is not a time"),
        ('ann valid-after="20201301" {}', "'20201301' is not a time"),
        ('ann namespaces="x",namespaces="y" {}', "is there twice"),
        ('ann namespaces="x {}', "quotation mark"),
        ("!eve {}", "names no principal"),
        ("ann", "is not `PRINCIPALS [OPTIONS] TYPE KEY`"),
        ("{}", "is not `PRINCIPALS [OPTIONS] TYPE KEY`"),
        ("ann ssh-ed25519", "cut short or damaged"),
        ("ann ssh-ed25519 AAAA", "cut short"),
        ("ann ssh-rsa {key}", "its type is not that of its key"),
        ("ann ssh-dss AAAAB3NzaC1kc3M=", "keys of type ssh-dss are not supported"),
        ("ann ssh-ed25519 {key}AAAA", "something follows its end"),
        (f"{'a' * 256} {{}}", "longer than 255 characters"),
        ("a\x1bb {}", "cannot be printed"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, reason: str, public: str, tmp_path: Path) -> None:
    path = listed(tmp_path, f"bob {public}", line.format(public, key=public.split()[1]))
    with pytest.raises(ConfigError) as refused:
        Allowed(path)
    assert str(refused.value).startswith(f"{path}, line 2: ")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, not a plain file"),
        (lambda path: path.write_text("# nobody\n"), "has no key in it"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not text"),
        (lambda path: path.chmod(0o666), "can be written by everybody"),
        (
            lambda path: write_key(path.parent, PRIVATE["ed25519"](), path.name),
            "is a private key: name the public one",
        ),
        (
            lambda path: path.write_text("ssh-dss AAAAB3NzaC1kc3M= ann"),
            "line 1: keys of type ssh-dss are not supported",
        ),
    ],
)
def test_a_file_of_no_keys_is_one_line(
    arrange: Callable[[Path], Any], reason: str, public: str, tmp_path: Path
) -> None:
    path = listed(tmp_path, f"ann {public}")
    arrange(path)
    with pytest.raises(ConfigError) as refused:
        Allowed(path)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
