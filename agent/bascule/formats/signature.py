"""Proof of a payload: RSA and EC signatures, and the witness that they were checked.

Formats: the ``Signatures`` message of both majors (reference flatcar.md 1.7, payload_v2.md 1.5);
RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 §8.2), ECDSA with SHA-256 in DER (RFC 3279 §2.2.3).

Three hashes must not be confused. The *metadata* signature covers header and manifest. The
*payload* signature covers header, manifest and blobs up to ``signatures_offset``, and skips the v2
metadata signature. The *file's* digest covers every byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from google.protobuf.message import DecodeError

from bascule.errors import (
    BasculeError,
    ManifestError,
    MetadataSignatureMismatch,
    MetadataSignatureMissing,
    NoKeys,
    OpenPgpError,
    SignatureMismatch,
    SignatureMissing,
    TrustError,
)
from bascule.formats.manifest import Manifest
from bascule.formats.proto import SCHEMAS, message_class
from bascule.formats.proto.wire import count_messages

__all__ = [
    "OPENPGP",
    "PROOFS",
    "RSA",
    "SIGNED_METADATA",
    "Evidence",
    "PublicKey",
    "Signature",
    "SignedManifest",
    "announced_signature",
    "check",
    "check_metadata",
    "load_keys",
    "parse_signatures",
]

RSA = "rsa"
"""The payload signature fits a trusted key. The word is the setting's; EC keys count too."""
SIGNED_METADATA = "signed-metadata"
"""The metadata signature fits a trusted key."""
OPENPGP = "openpgp"
"""The file's digest stands in a digest list that a pinned OpenPGP key signed."""
PROOFS = frozenset({RSA, SIGNED_METADATA, OPENPGP})

_FLATCAR_VERSION = 2
_MOST = 32
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that payloads may be signed with.

    Attributes:
        name: where it came from, for messages.
        fingerprint: SHA-256 of its SubjectPublicKeyInfo in DER, in hexadecimal.
        key: what does the checking.
    """

    name: str
    fingerprint: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @property
    def kind(self) -> str:
        """As in "RSA-2048" or "EC-256"."""
        return f"{'RSA' if isinstance(self.key, rsa.RSAPublicKey) else 'EC'}-{self.key.key_size}"

    def fits(self, signature: bytes, sha256: bytes) -> bool:
        """Whether `signature` over a SHA-256 digest of 32 bytes was made with this key."""
        prehashed = utils.Prehashed(hashes.SHA256())
        try:
            if isinstance(self.key, rsa.RSAPublicKey):
                if len(signature) != (self.key.key_size + 7) // 8:
                    return False
                self.key.verify(signature, sha256, padding.PKCS1v15(), prehashed)
            else:
                self.key.verify(signature, sha256, ec.ECDSA(prehashed))
        except (InvalidSignature, ValueError):
            return False
        return True


def load_keys(pem: bytes, name: str) -> tuple[PublicKey, ...]:
    """Every public key of a PEM file (RFC 7468 ``PUBLIC KEY`` blocks; other text is skipped).

    Args:
        pem: the file's content.
        name: the file's name, for messages.

    Raises:
        NoKeys: there is none, one cannot be read, or one is of a kind or size that is not trusted
            (RSA under 2048 bits or over 8192; EC other than P-256, P-384 and P-521).
    """
    keys = []
    for block in _PEM.findall(pem):
        try:
            key = serialization.load_pem_public_key(block + b"\n")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise NoKeys(f"{name}: not a public key: {error}") from None
        if isinstance(key, rsa.RSAPublicKey):
            if not 2048 <= key.key_size <= 8192:
                raise NoKeys(f"{name}: an RSA key of {key.key_size} bits")
        elif not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
        ):
            raise NoKeys(f"{name}: neither an RSA key nor one on a NIST curve")
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        keys.append(PublicKey(name, hashlib.sha256(der).hexdigest(), key))
    if not keys:
        raise NoKeys(f"{name}: no PEM public key in it")
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry of a ``Signatures`` message.

    Attributes:
        version: major 1 numbers its entries and reads the first that says 2; None if unset.
        data: with the padding that major 2 allows already taken off.
    """

    version: int | None
    data: bytes


def parse_signatures(blob: bytes) -> tuple[Signature, ...]:
    """Entries of a serialized ``Signatures`` message, of either major.

    Raises:
        SignatureMismatch: it is not one, or holds more than 32 entries.
    """
    message = message_class("crau_v2", "Signatures")()
    try:
        count_messages(blob, SCHEMAS["crau_v2"], "Signatures", {"Signature": _MOST})
        message.ParseFromString(blob)
    except (ManifestError, DecodeError) as error:
        raise SignatureMismatch(f"not a Signatures message: {error}") from None
    found = []
    for each in message.signatures:
        data = bytes(each.data)
        if each.HasField("unpadded_signature_size"):
            if each.unpadded_signature_size > len(data):
                raise SignatureMismatch(
                    f"a signature of {len(data)} bytes says it has {each.unpadded_signature_size}"
                )
            data = data[: each.unpadded_signature_size]
        found.append(Signature(int(each.version) if each.HasField("version") else None, data))
    return tuple(found)


def _fitting(
    signatures: Sequence[bytes], sha256: bytes, keys: Sequence[PublicKey]
) -> PublicKey | None:
    return next((k for s in signatures for k in keys if k.fits(s, sha256)), None)


def announced_signature(text: str) -> bytes:
    """Omaha's ``MetadataSignatureRsa`` as bytes: base64 of one raw signature; b"" if it is empty.

    Raises:
        MetadataSignatureMismatch: it is not base64. Taking it for absent would be to fail open.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise MetadataSignatureMismatch("the announced signature is not base64") from None


def check_metadata(
    metadata: bytes,
    *,
    keys: Sequence[PublicKey],
    in_payload: bytes = b"",
    announced: bytes = b"",
) -> PublicKey | None:
    """Check the metadata signature, before the manifest is even parsed.

    Args:
        metadata: header and manifest, as they lie at the file's start (`Metadata.raw`).
        in_payload: the v2 metadata signature, a ``Signatures`` message.
        announced: one raw signature, from Omaha's ``MetadataSignatureRsa`` after base64. It takes
            the place of the one in the payload.

    Returns:
        The key that fits; None if there is no metadata signature at all.

    Raises:
        NoKeys: there is a signature and no key.
        MetadataSignatureMismatch: there is one, and no key fits.
    """
    return _check_metadata(hashlib.sha256(metadata).digest(), keys, in_payload, announced)


def _check_metadata(
    sha256: bytes, keys: Sequence[PublicKey], in_payload: bytes, announced: bytes
) -> PublicKey | None:
    if not announced and not in_payload:
        return None
    if not keys:
        raise NoKeys("the payload has a metadata signature to check")
    try:
        signatures = [announced] if announced else [s.data for s in parse_signatures(in_payload)]
    except SignatureMismatch as error:
        raise MetadataSignatureMismatch(error.detail) from None
    key = _fitting(signatures, sha256, keys)
    if key is None:
        raise MetadataSignatureMismatch(f"{len(signatures)} signatures, {len(keys)} keys, none fit")
    return key


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered about one payload. Nothing in it is believed until `check`.

    Attributes:
        metadata_signatures: the v2 metadata signature, a ``Signatures`` message.
        announced_metadata_signature: Omaha's, raw.
        payload_signatures: the payload signature, a ``Signatures`` message; b"" if there is none.
        signed_sha256: of what the payload signature covers. None where the transfer was resumed and
            the running hash was not carried over: then only signed metadata can prove the payload,
            through the hash of each operation.
        file_sha256: of the whole file; None likewise.
        file_sha512: likewise; wanted where the signed list has no SHA-256, as Flatcar's have not.
        listed_sha256: digests that an OpenPGP-signed list gives for this payload, the list's own
            signature having been checked; None if there is no such list.
        listed_sha512: likewise.
    """

    metadata_signatures: bytes = b""
    announced_metadata_signature: bytes = b""
    payload_signatures: bytes = b""
    signed_sha256: bytes | None = None
    file_sha256: bytes | None = None
    listed_sha256: frozenset[bytes] | None = None
    file_sha512: bytes | None = None
    listed_sha512: frozenset[bytes] | None = None


_MAKER = object()


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """Witness: this manifest is proven. Only `check` makes one.

    Attributes:
        manifest: what is proven.
        proofs: which of `PROOFS` hold.
        key: the key that fits, or None if OpenPGP alone is the proof.
    """

    manifest: Manifest
    proofs: frozenset[str]
    key: PublicKey | None
    maker: InitVar[object] = None

    def __post_init__(self, maker: object) -> None:
        if maker is not _MAKER:
            raise TypeError("only signature.check() makes a SignedManifest")


def check(
    manifest: Manifest,
    evidence: Evidence,
    *,
    keys: Sequence[PublicKey],
    require: frozenset[str] = frozenset({RSA}),
    any_of: bool = False,
) -> SignedManifest:
    """Prove a manifest, or refuse it.

    Call it with the metadata's evidence alone and ``require={SIGNED_METADATA}`` to know before the
    first write, and with everything at the end.

    Args:
        require: a non-empty set out of `PROOFS`.
        any_of: one of them is enough, whatever is wrong with the others.

    Raises:
        NoKeys: a signature must be checked and there is no key.
        SignatureMissing, SignatureMismatch: of the payload.
        MetadataSignatureMissing, MetadataSignatureMismatch: of the metadata.
        OpenPgpError: no list, or another digest.
        TrustError: `require` is empty or has an unknown word.
    """
    if not require or not require <= PROOFS:
        raise TrustError(f"required proofs: {', '.join(sorted(require)) or 'none'}")
    proofs: set[str] = set()
    faults: dict[str, BasculeError] = {}
    fitting: PublicKey | None = None
    if require & {RSA, SIGNED_METADATA}:
        try:
            fitting = _check_metadata(
                manifest.sha256,
                _some(keys),
                evidence.metadata_signatures,
                evidence.announced_metadata_signature,
            )
            proofs |= {SIGNED_METADATA} if fitting else set()
        except TrustError as error:
            # Metadata that somebody signed wrongly are not excused by a good payload signature.
            faults[SIGNED_METADATA] = faults[RSA] = error
    if RSA in require and RSA not in faults:
        try:
            fitting = _check_payload(manifest, evidence, keys, proofs) or fitting
            proofs.add(RSA)
        except TrustError as error:
            faults[RSA] = error
    if OPENPGP in require:
        try:
            _check_listed(evidence)
            proofs.add(OPENPGP)
        except TrustError as error:
            faults[OPENPGP] = error
    faults.setdefault(SIGNED_METADATA, MetadataSignatureMissing())
    failed = [proof for proof in (SIGNED_METADATA, RSA, OPENPGP) if proof in require - proofs]
    if failed and (not any_of or not require & proofs):
        raise faults[failed[0]]
    return SignedManifest(manifest, frozenset(proofs), fitting, maker=_MAKER)


def _some(keys: Sequence[PublicKey]) -> Sequence[PublicKey]:
    if not keys:
        raise NoKeys
    return keys


def _check_listed(evidence: Evidence) -> None:
    listed = (
        (evidence.file_sha256, evidence.listed_sha256),
        (evidence.file_sha512, evidence.listed_sha512),
    )
    if all(digests is None for _, digests in listed):
        raise OpenPgpError("no signed digest list names this payload")
    compared = [found in digests for found, digests in listed if found and digests is not None]
    if not compared:
        raise OpenPgpError("the digest that the signed list gives was not computed")
    if not all(compared):
        raise OpenPgpError("the signed list has another digest for this payload")


def _check_payload(
    manifest: Manifest, evidence: Evidence, keys: Sequence[PublicKey], proofs: set[str]
) -> PublicKey | None:
    """The key that fits the payload signature; None where signed metadata stand in for it."""
    if not evidence.payload_signatures:
        raise SignatureMissing
    signatures = parse_signatures(evidence.payload_signatures)
    if manifest.major == 1:
        # The original looks at the first entry that says 2 and at no other.
        signatures = tuple(s for s in signatures if s.version == _FLATCAR_VERSION)[:1]
        if not signatures:
            raise SignatureMismatch(f"no signature of version {_FLATCAR_VERSION}")
    if evidence.signed_sha256 is None:
        if SIGNED_METADATA not in proofs:
            raise SignatureMismatch("the hash of what is signed was lost in an interruption")
        return None
    key = _fitting([s.data for s in signatures], evidence.signed_sha256, keys)
    if key is None:
        raise SignatureMismatch(f"{len(signatures)} signatures, {len(keys)} keys, none fit")
    return key
