"""Keys: make them, load them, sign digests with them, check signatures against them.

RSA is PKCS#1 v1.5 over the SHA-256 DigestInfo, EC is ECDSA over the digest in DER form, made
deterministic (RFC 6979) so that the same input gives the same payload. Signature messages follow
the payload's major: v1 numbers n signatures ``3-n .. 2`` and pads nothing, v2 pads each to the
key's maximum and carries ``unpadded_signature_size``.

Source: Flatcar ``payload_signer.cc``, AOSP ``payload_generator/payload_signer.cc``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from omaha_mock.errors import UsageError
from omaha_mock.schema import message

__all__ = [
    "SigningKey",
    "VerifyingKey",
    "keygen",
    "load_signing_key",
    "load_verifying_keys",
    "signatures_message",
]

_DIGEST = utils.Prehashed(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key: RSA of 2048 or 4096 bits, or EC."""

    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

    @property
    def rsa(self) -> bool:
        return isinstance(self.private, rsa.RSAPrivateKey)

    @property
    def maximum(self) -> int:
        """The longest signature in bytes that this key makes."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.key_size // 8
        width = (self.private.curve.key_size + 7) // 8
        # A DER sequence of two integers, each with a possible leading zero byte.
        return 2 + 2 * (2 + width + 1) if 2 * (width + 3) < 128 else 3 + 2 * (2 + width + 1)

    def sign(self, digest: bytes) -> bytes:
        """The signature of a 32-byte SHA-256 digest."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(digest, padding.PKCS1v15(), _DIGEST)
        return self.private.sign(digest, ec.ECDSA(_DIGEST, deterministic_signing=True))


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the name it is reported under."""

    name: str
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    def signed(self, signature: bytes, digest: bytes) -> bool:
        """Whether ``signature`` is this key's over the 32-byte SHA-256 ``digest``."""
        try:
            if isinstance(self.public, rsa.RSAPublicKey):
                if len(signature) != self.public.key_size // 8:
                    return False
                self.public.verify(signature, digest, padding.PKCS1v15(), _DIGEST)
            else:
                self.public.verify(signature, digest, ec.ECDSA(_DIGEST))
        except InvalidSignature:
            return False
        return True


def keygen(directory: Path, *, name: str = "update", kind: str = "rsa2048") -> tuple[Path, Path]:
    """Make ``NAME.key.pem`` (mode 0600) and ``NAME.pub.pem`` in ``directory``; never overwrites.

    Args:
        kind: ``rsa2048``, ``rsa4096`` or ``ec`` (P-256).
    """
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if kind == "ec":
        private = ec.generate_private_key(ec.SECP256R1())
    elif kind in ("rsa2048", "rsa4096"):
        private = rsa.generate_private_key(public_exponent=65537, key_size=int(kind[3:]))
    else:
        raise UsageError(f"Key kind {kind!r} is not known: rsa2048, rsa4096 or ec.")
    directory.mkdir(parents=True, exist_ok=True)
    key, public = directory / f"{name}.key.pem", directory / f"{name}.pub.pem"
    for path in (key, public):
        if path.exists():
            raise UsageError(f"{path} exists; take another --name or remove it.")
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return key, public


def load_signing_key(path: Path) -> SigningKey:
    """Read a private key in PEM form, without a password. Raises UsageError."""
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"Cannot read the key {path}: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a private key in PEM form without a password.") from error
    if isinstance(loaded, rsa.RSAPrivateKey) and loaded.key_size in (2048, 4096):
        return SigningKey(loaded)
    if isinstance(loaded, ec.EllipticCurvePrivateKey):
        return SigningKey(loaded)
    raise UsageError(f"{path} is neither RSA of 2048 or 4096 bits nor EC.")


def load_verifying_keys(paths: Iterable[Path]) -> list[VerifyingKey]:
    """Read public keys: each path is a PEM file, or a directory whose ``*.pem`` are all taken.

    Private keys in a directory are passed over. Raises UsageError.
    """
    keys = []
    for path in paths:
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        for file in files:
            try:
                raw = file.read_bytes()
            except OSError as error:
                raise UsageError(f"Cannot read the key {file}: {error.strerror}.") from error
            if path.is_dir() and b"PRIVATE KEY" in raw:
                continue
            try:
                loaded = serialization.load_pem_public_key(raw)
            except (ValueError, UnsupportedAlgorithm) as error:
                raise UsageError(f"{file} is not a public key in PEM form.") from error
            if not isinstance(loaded, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
                raise UsageError(f"{file} is neither an RSA nor an EC key.")
            keys.append(VerifyingKey(file.name, loaded))
    return keys


def signatures_message(major: int, keys: Sequence[SigningKey], digest: bytes) -> bytes:
    """The serialized ``Signatures`` of ``digest`` by all ``keys``; its size is always the same."""
    signatures: Any = message(major, "Signatures")
    for index, key in enumerate(keys):
        signature = key.sign(digest)
        entry = signatures.signatures.add()
        if major == 1:
            entry.version = 3 - len(keys) + index
            entry.data = signature
        else:
            entry.data = signature.ljust(key.maximum, b"\0")
            entry.unpadded_signature_size = len(signature)
    serialized: bytes = signatures.SerializeToString(deterministic=True)
    return serialized
