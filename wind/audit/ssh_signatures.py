"""Signatures by SSH keys, in the format of `ssh-keygen -Y sign`.

A signature is OpenSSH's SSHSIG. It names the key, the hash, and the namespace: the purpose it was
given for, so that a signature made for anything else is worthless here. The keys are Ed25519, ECDSA
over the NIST curves, RSA with SHA-2, and those of hardware tokens, which only OpenSSH can sign
with. Nothing in a signature is trusted: a key counts only if a file of the user lists it (see
`wind.audit.allowed_signers`).
"""

import base64
import hashlib
import os
import struct
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from wind.errors import ConfigError
from wind.files import NotPlainError, open_plain

MAGIC: Final = b"SSHSIG"
BEGIN: Final = "-----BEGIN SSH SIGNATURE-----"
END: Final = "-----END SSH SIGNATURE-----"
HASHES: Final = {b"sha512": hashlib.sha512, b"sha256": hashlib.sha256}
CURVES: Final[dict[bytes, tuple[ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    b"nistp256": (ec.SECP256R1(), hashes.SHA256()),
    b"nistp384": (ec.SECP384R1(), hashes.SHA384()),
    b"nistp521": (ec.SECP521R1(), hashes.SHA512()),
}
RSA_HASHES: Final[dict[bytes, hashes.HashAlgorithm]] = {
    b"rsa-sha2-512": hashes.SHA512(),
    b"rsa-sha2-256": hashes.SHA256(),
}
ED25519, RSA = b"ssh-ed25519", b"ssh-rsa"
TOKENS: Final = {
    b"sk-ssh-ed25519@openssh.com": ED25519,
    b"sk-ecdsa-sha2-nistp256@openssh.com": b"ecdsa-sha2-nistp256",
}
KINDS: Final = frozenset({ED25519, RSA, *TOKENS, *(b"ecdsa-sha2-" + curve for curve in CURVES)})
BY_HAND: Final = "sign with `wind sign --statements` and `ssh-keygen -Y sign`"
LEAST_RSA_BITS: Final = 2048
TOUCHED: Final = 1  # the flag by which a token says that somebody was present
LARGEST: Final = 2**20  # bytes, of a file of keys and of a signature


Signing = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class SignatureError(ValueError):
    """A signature that cannot be read or is not valid.

    The message continues a sentence that begins with the name of the signature's file.
    """


# ---------------------------------------------------------------------------------- the wire format


def _packed(*strings: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(each)) + each for each in strings)


def _mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b""


class Wire:
    """Reads length-prefixed strings, the wire format of SSH.

    Raises ValueError if a string is longer than what is left.
    """

    def __init__(self, content: bytes) -> None:
        self._left = content

    def take(self, size: int) -> bytes:
        """Read the next `size` bytes."""
        if size > len(self._left):
            raise ValueError("it is cut short")
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def string(self) -> bytes:
        """Read the next string."""
        return self.take(int.from_bytes(self.take(4), "big"))

    def number(self) -> int:
        """Read the next integer, which is not negative."""
        return int.from_bytes(self.string(), "big")

    def end(self) -> None:
        """Raise ValueError if anything is left."""
        if self._left:
            raise ValueError("something follows its end")


# --------------------------------------------------------------------------------------------- keys


def fingerprint(blob: bytes) -> str:
    """Return the fingerprint of a public key as ssh-keygen shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def public_key(blob: bytes) -> tuple[bytes, Public, bytes]:
    """Parse a public key into its kind, key, and token application.

    A token signs its application along with each message; it is empty for other keys. Raises
    ValueError for a key that is not supported.
    """
    wire = Wire(blob)
    kind = wire.string()
    if kind not in KINDS:
        raise ValueError(
            f"keys of type {kind[:64].decode(errors='replace')} are not supported: "
            "use Ed25519, ECDSA or RSA"
        )
    plain = TOKENS.get(kind, kind)
    public: Public
    if plain == ED25519:
        public = ed25519.Ed25519PublicKey.from_public_bytes(wire.string())
    elif plain == RSA:
        exponent, modulus = wire.number(), wire.number()
        if not LEAST_RSA_BITS <= modulus.bit_length() <= 16384:
            raise ValueError(
                f"an RSA key of {modulus.bit_length()} bits is refused: "
                f"it needs at least {LEAST_RSA_BITS}"
            )
        public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    else:
        if (curve := wire.string()) != plain.removeprefix(b"ecdsa-sha2-"):
            raise ValueError("it names two curves")
        public = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[curve][0], wire.string())
    application = wire.string() if kind in TOKENS else b""
    wire.end()
    return kind, public, application


@dataclass(frozen=True)
class PrivateKey:
    """A private key to sign with."""

    blob: bytes  # the public half
    _key: Signing

    def sign(self, message: bytes, namespace: str) -> str:
        """Return the armored signature of `message` for `namespace`."""
        content = _signed(message, namespace.encode(), b"sha512")
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            signature = _packed(ED25519, self._key.sign(content))
        elif isinstance(self._key, rsa.RSAPrivateKey):
            signature = _packed(
                b"rsa-sha2-512", self._key.sign(content, padding.PKCS1v15(), hashes.SHA512())
            )
        else:
            kind = Wire(self.blob).string()
            hasher = CURVES[kind.removeprefix(b"ecdsa-sha2-")][1]
            signature = _packed(
                kind,
                _packed(
                    *map(_mpint, decode_dss_signature(self._key.sign(content, ec.ECDSA(hasher))))
                ),
            )
        whole = (
            MAGIC
            + struct.pack(">I", 1)
            + _packed(self.blob, namespace.encode(), b"", b"sha512", signature)
        )
        return "\n".join([BEGIN, *textwrap.wrap(base64.b64encode(whole).decode(), 70), END, ""])


def private_key(path: Path, passphrase: Callable[[], str] | None = None) -> PrivateKey:
    """Read the OpenSSH private key in the file at `path`.

    `passphrase` is called for the passphrase of an encrypted key; it is None if there is nobody to
    ask. Raises ConfigError with one line, which reveals nothing of the key.
    """
    content = read_keys(path, forbidden=0o077, remedy="is open to others: run `chmod 600 {}`")
    if content.split(b" ")[0] in KINDS:
        raise ConfigError(
            f"{path} is a public key: name the private one, which lies beside it without .pub"
        )
    if b"BEGIN OPENSSH PRIVATE KEY" not in content:
        raise ConfigError(
            f"{path} is not a private key of OpenSSH: "
            f"`ssh-keygen -p -f {path}` rewrites one of another format"
        )
    asked: str | None = None
    if _is_encrypted(content):
        if passphrase is None:
            raise ConfigError(
                f"{path} has a passphrase, and this is no terminal to ask for it: {BY_HAND}"
            )
        asked = passphrase()
    try:
        with warnings.catch_warnings(action="ignore"):  # DSA, which is refused below
            key = serialization.load_ssh_private_key(
                content, None if asked is None else asked.encode()
            )
            written = key.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{path} is a key that only OpenSSH can sign with: {BY_HAND}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a private key: it is damaged, or the passphrase is wrong"
        ) from error
    try:
        blob = base64.b64decode(written.split(b" ")[1])
        public_key(blob)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
    assert isinstance(key, Signing), "whose public half is of a supported kind"
    return PrivateKey(blob, key)


def _is_encrypted(content: bytes) -> bool:
    """Tell whether an OpenSSH private key has a passphrase.

    False for a damaged key.
    """
    try:
        text = (
            b"".join(content.split()).partition(b"OPENSSHPRIVATEKEY-----")[2].partition(b"-----")[0]
        )
        wire = Wire(base64.b64decode(text).removeprefix(b"openssh-key-v1\0"))
        return wire.string() != b"none"
    except ValueError:
        return False


def read_keys(path: Path, *, forbidden: int, remedy: str) -> bytes:
    """Read a small file of keys.

    Raises ConfigError if it cannot be read, is too large, or has any of the `forbidden` mode bits.
    """
    try:
        with open_plain(path) as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(LARGEST + 1)
    except NotPlainError as error:
        raise ConfigError(f"{error}: name a file of keys") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read ({reason}): name a file of keys") from error
    if mode & forbidden:
        raise ConfigError(f"{path} {remedy.format(path)}")
    if len(content) > LARGEST:
        raise ConfigError(f"{path} has more than {LARGEST} bytes, which no file of keys has")
    return content


# --------------------------------------------------------------------------------------- signatures


@dataclass(frozen=True)
class Signature:
    """A signature as read; nothing in it is verified before `require`."""

    blob: bytes  # the public key
    namespace: bytes
    hash: bytes
    signature: bytes

    def require(self, message: bytes, namespace: str) -> None:
        """Raise SignatureError unless this is the signature of `message` for `namespace`."""
        if self.namespace != namespace.encode():
            raise SignatureError(
                f"was given for {self.namespace[:64].decode(errors='replace')!r}, "
                f"not for {namespace!r}"
            )
        try:
            _verify(self.blob, self.signature, _signed(message, self.namespace, self.hash))
        except InvalidSignature as error:
            raise SignatureError(
                "does not hold for its statement: one of the two was changed, or is another's"
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"is damaged: {error}") from error


def parsed_signature(content: bytes) -> Signature:
    """Parse the armored signature `content`; raise SignatureError for anything else."""
    try:
        lines = content.decode("ascii").split() if len(content) <= LARGEST else []
        begin, end = BEGIN.split(), END.split()
        if lines[: len(begin)] != begin or lines[-len(end) :] != end:
            raise ValueError("it is not an SSH signature")
        wire = Wire(base64.b64decode("".join(lines[len(begin) : -len(end)]), validate=True))
        if wire.take(len(MAGIC)) != MAGIC or int.from_bytes(wire.take(4), "big") != 1:
            raise ValueError("its version is not known")
        blob, namespace, _, named_hash, signature = (wire.string() for _ in range(5))
        wire.end()
        if named_hash not in HASHES:
            raise ValueError("its hash is not known")
    except ValueError as error:  # binascii and Unicode errors are ValueErrors too
        raise SignatureError(f"is damaged: {error}") from error
    return Signature(blob, namespace, named_hash, signature)


def _signed(message: bytes, namespace: bytes, named_hash: bytes) -> bytes:
    """Return the bytes that a key signs for a message."""
    return MAGIC + _packed(namespace, b"", named_hash, HASHES[named_hash](message).digest())


def _verify(blob: bytes, signature: bytes, content: bytes) -> None:
    """Verify that `signature` is one of `content` by the key `blob`.

    Raises InvalidSignature, or ValueError with the reason, if it is not.
    """
    kind, public, application = public_key(blob)
    wire = Wire(signature)
    by, value = wire.string(), wire.string()
    if by not in (RSA_HASHES if kind == RSA else (kind,)):
        raise ValueError(
            f"a key of type {kind.decode()} does not sign by {by[:64].decode(errors='replace')}"
        )
    if kind in TOKENS:
        flags, counter = wire.take(1), wire.take(4)
        if not flags[0] & TOUCHED:
            raise ValueError("the token did not ask whether somebody was present")
        content = (
            hashlib.sha256(application).digest()
            + flags
            + counter
            + hashlib.sha256(content).digest()
        )
    wire.end()
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(value, content)
    elif isinstance(public, rsa.RSAPublicKey):
        public.verify(value, content, padding.PKCS1v15(), RSA_HASHES[by])
    else:
        parts = Wire(value)
        encoded = encode_dss_signature(parts.number(), parts.number())
        parts.end()
        public.verify(
            encoded,
            content,
            ec.ECDSA(CURVES[TOKENS.get(kind, kind).removeprefix(b"ecdsa-sha2-")][1]),
        )
