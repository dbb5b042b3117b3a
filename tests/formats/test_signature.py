"""Signatures of both majors, keys, and who may make the witness."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from bascule.errors import (
    BasculeError,
    MetadataSignatureMismatch,
    MetadataSignatureMissing,
    NoKeys,
    OpenPgpError,
    SignatureMismatch,
    SignatureMissing,
    TrustError,
)
from bascule.formats.manifest import Manifest
from bascule.formats.signature import (
    OPENPGP,
    RSA,
    SIGNED_METADATA,
    Evidence,
    PublicKey,
    SignedManifest,
    announced_signature,
    check,
    check_metadata,
    load_keys,
    parse_signatures,
)
from payload_builder import Draft, draft_v1, draft_v2, public_pem, sign
from payload_reading import PAYLOADS, V1, V2, Reading, needs_vectors, prove, read

UPDATE = load_keys(public_pem(), "update.pem")
OTHER = load_keys(public_pem("other"), "other.pem")
EC = load_keys(public_pem("ec"), "ec.pem")
BIG = load_keys(public_pem("4096"), "4096.pem")

SIGNER = {
    "delta_minor2.bin": "unittest_key",
    "delta_minor4.bin": "unittest_key",
    "full_signed_unittest_key.bin": "unittest_key",
    "full_signed_unittest_key_EC.bin": "unittest_key_EC",
    "full_unsigned.bin": None,
    "full_v2_unsigned.bin": None,
    "full_v2_wrong_key.bin": "other",
}


def vector_key(name: str) -> tuple[PublicKey, ...]:
    folder = V2 if name.startswith("unittest") else V1
    return load_keys((folder / "keys" / f"{name}.pub.pem").read_bytes(), name)


@needs_vectors
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda p: p.name)
def test_vectors_are_proven_by_their_key_and_no_other(path: Path) -> None:
    data = path.read_bytes()
    signer = SIGNER.get(path.name, "update")
    for name in ("update", "other", "unittest_key", "unittest_key_EC"):
        keys = vector_key(name)
        if name == signer:
            proven = prove(data, keys)
            assert proven.key == keys[0]
            assert proven.proofs == ({RSA} if path.parent.parent == V1 else {RSA, SIGNED_METADATA})
            continue
        wanted = SignatureMissing if signer is None else SignatureMismatch
        if signer is not None and path.parent.parent == V2:
            wanted = MetadataSignatureMismatch
        with pytest.raises(wanted):
            prove(data, keys)
    everyone = [
        k for n in ("other", "unittest_key_EC", "unittest_key", "update") for k in vector_key(n)
    ]
    if signer is not None:
        assert prove(data, everyone).key == vector_key(signer)[0]


@needs_vectors
@pytest.mark.parametrize("path", sorted(V2.glob("payloads/*.bin")), ids=lambda p: p.name)
def test_hashes_are_the_generators(path: Path) -> None:
    facts = dict(line.split("=", 1) for line in Path(f"{path}.properties").read_text().splitlines())
    reading = read([path.read_bytes()])
    assert reading.manifest is not None
    assert base64.b64encode(reading.file_sha256).decode() == facts["FILE_HASH"]
    assert base64.b64encode(reading.manifest.sha256).decode() == facts["METADATA_HASH"]
    assert reading.manifest.metadata_size == int(facts["METADATA_SIZE"])
    assert reading.manifest.size == int(facts["FILE_SIZE"])


def test_major_1_reads_the_first_entry_of_version_2_and_no_other() -> None:
    def draft(*signers: tuple[int | None, str]) -> bytes:
        made = draft_v1()
        made.signers = signers
        return made.build()

    assert prove(draft((1, "other"), (2, "update")), UPDATE).key == UPDATE[0]
    assert prove(draft((2, "update"), (2, "other")), UPDATE).key == UPDATE[0]
    for signers in (((2, "other"), (2, "update")), ((1, "update"),), ((1, "update"), (2, "other"))):
        with pytest.raises(SignatureMismatch):
            prove(draft(*signers), UPDATE)


@pytest.mark.parametrize("signer", ["update", "4096"])
def test_rsa_keys_in_major_1(signer: str) -> None:
    draft = draft_v1()
    draft.signers = ((2, signer),)
    keys = load_keys(public_pem(signer), signer)
    assert prove(draft.build(), [*OTHER, *keys]).key == keys[0]


@pytest.mark.parametrize("signer", ["update", "4096", "ec"])
def test_each_kind_of_key_in_major_2(signer: str) -> None:
    draft = draft_v2()
    draft.signers = ((None, signer),)
    draft.metadata_signers = (signer,)
    keys = load_keys(public_pem(signer), signer)
    assert prove(draft.build(), [*OTHER, *keys]).key == keys[0]


def test_any_signature_and_any_key_in_major_2() -> None:
    draft = draft_v2()
    draft.signers = ((None, "other"), (None, "ec"), (None, "update"))
    draft.metadata_signers = ("ec", "other", "update")
    data = draft.build()
    for keys in (UPDATE, EC, OTHER):
        assert prove(data, keys).key == keys[0]
        assert prove(data, [*BIG, *keys]).key == keys[0]
    with pytest.raises(MetadataSignatureMismatch):
        prove(data, BIG)


def reading_of(draft: Draft) -> tuple[Manifest, Reading]:
    reading = read([draft.build()])
    assert reading.manifest is not None
    return reading.manifest, reading


def test_fail_closed() -> None:
    manifest, reading = reading_of(draft_v1())
    with pytest.raises(NoKeys):
        check(manifest, reading.evidence, keys=())
    with pytest.raises(SignatureMissing):
        check(manifest, Evidence(signed_sha256=reading.signed_sha256), keys=UPDATE)
    with pytest.raises(SignatureMismatch):
        check(manifest, Evidence(payload_signatures=reading.signatures), keys=UPDATE)
    for require in (frozenset[str](), frozenset({"magic"}), frozenset({RSA, "magic"})):
        with pytest.raises(TrustError):
            check(manifest, reading.evidence, keys=UPDATE, require=require)
        with pytest.raises(TrustError):
            check(manifest, reading.evidence, keys=UPDATE, require=require, any_of=True)
    with pytest.raises(MetadataSignatureMissing):
        check(manifest, reading.evidence, keys=UPDATE, require=frozenset({RSA, SIGNED_METADATA}))
    with pytest.raises(OpenPgpError):
        check(manifest, reading.evidence, keys=UPDATE, require=frozenset({RSA, OPENPGP}))


def test_only_check_makes_the_witness() -> None:
    manifest, reading = reading_of(draft_v1())
    with pytest.raises(TypeError):
        SignedManifest(manifest, frozenset({RSA}), UPDATE[0])
    signed = check(manifest, reading.evidence, keys=UPDATE)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(signed, proofs=frozenset({RSA, OPENPGP}))


def test_announced_metadata_signature_proves_major_1_before_the_first_write() -> None:
    manifest, reading = reading_of(draft_v1())
    assert reading.metadata is not None
    raw = reading.metadata.raw
    good, bad = sign("update", manifest.sha256), sign("other", manifest.sha256)
    assert check_metadata(raw, keys=UPDATE) is None
    assert check_metadata(raw, keys=UPDATE, announced=good) == UPDATE[0]
    with pytest.raises(MetadataSignatureMismatch):
        check_metadata(raw, keys=UPDATE, announced=bad)
    with pytest.raises(MetadataSignatureMismatch):
        check_metadata(raw + b"\0", keys=UPDATE, announced=good)
    with pytest.raises(NoKeys):
        check_metadata(raw, keys=(), announced=good)
    early = check(
        manifest,
        Evidence(announced_metadata_signature=good),
        keys=UPDATE,
        require=frozenset({SIGNED_METADATA}),
    )
    assert early.proofs == {SIGNED_METADATA}


def test_announced_metadata_signature_is_base64() -> None:
    assert announced_signature("") == announced_signature(" \n") == b""
    assert announced_signature("c2lnbmF0\n dXJl") == b"signature"
    for text in ("c2lnbmF0dXJ", "c2ln*mF0dXJl", "\u00e9"):
        with pytest.raises(MetadataSignatureMismatch):
            announced_signature(text)


def test_announced_metadata_signature_takes_the_place_of_the_payloads() -> None:
    manifest, reading = reading_of(draft_v2())
    assert reading.metadata is not None
    raw, inside = reading.metadata.raw, reading.metadata.signature
    assert check_metadata(raw, keys=UPDATE, in_payload=inside) == UPDATE[0]
    with pytest.raises(MetadataSignatureMismatch):
        check_metadata(
            raw, keys=UPDATE, in_payload=inside, announced=sign("other", manifest.sha256)
        )


def test_a_lost_running_hash_is_made_up_for_by_signed_metadata_only() -> None:
    manifest, reading = reading_of(draft_v2())
    lost = dataclasses.replace(reading.evidence, signed_sha256=None)
    signed = check(manifest, lost, keys=UPDATE)
    assert signed.proofs >= {SIGNED_METADATA}
    assert signed.key == UPDATE[0]
    with pytest.raises(SignatureMissing):
        check(manifest, dataclasses.replace(lost, payload_signatures=b""), keys=UPDATE)
    with pytest.raises(SignatureMismatch):
        check(manifest, dataclasses.replace(lost, metadata_signatures=b""), keys=UPDATE)


def test_wrongly_signed_metadata_are_not_excused_by_the_payload_signature() -> None:
    draft = draft_v2()
    draft.metadata_signers = ("other",)
    manifest, reading = reading_of(draft)
    with pytest.raises(MetadataSignatureMismatch):
        check(manifest, reading.evidence, keys=UPDATE)


def test_openpgp_list() -> None:
    manifest, reading = reading_of(draft_v1())
    require = frozenset({OPENPGP})
    file = reading.file_sha256
    good = dataclasses.replace(reading.evidence, listed_sha256=frozenset({file}))
    assert check(manifest, good, keys=(), require=require).key is None
    assert check(manifest, good, keys=UPDATE, require=frozenset({RSA, OPENPGP})).proofs == {
        RSA,
        OPENPGP,
    }
    bad = [
        dataclasses.replace(good, listed_sha256=None),
        dataclasses.replace(good, listed_sha256=frozenset()),
        dataclasses.replace(good, listed_sha256=frozenset({bytes(32)})),
        dataclasses.replace(good, file_sha256=None),
        dataclasses.replace(good, listed_sha512=frozenset({bytes(64)}), file_sha512=b"x" * 64),
    ]
    for evidence in bad:
        with pytest.raises(OpenPgpError):
            check(manifest, evidence, keys=UPDATE, require=require)


def test_openpgp_list_of_sha512_as_flatcar_writes_it() -> None:
    manifest, reading = reading_of(draft_v1())
    digest = hashlib.sha512(b"whole file").digest()
    listed = dataclasses.replace(reading.evidence, listed_sha512=frozenset({digest}))
    good = dataclasses.replace(listed, file_sha512=digest)
    assert check(manifest, good, keys=(), require=frozenset({OPENPGP})).proofs == {OPENPGP}
    with pytest.raises(OpenPgpError, match="not computed"):
        check(manifest, listed, keys=(), require=frozenset({OPENPGP}))


def test_any_of_takes_one_good_proof() -> None:
    manifest, reading = reading_of(draft_v1())
    both = frozenset({RSA, OPENPGP})
    listed = dataclasses.replace(reading.evidence, listed_sha256=frozenset({reading.file_sha256}))
    assert check(manifest, reading.evidence, keys=UPDATE, require=both, any_of=True).proofs == {RSA}
    assert check(manifest, listed, keys=OTHER, require=both, any_of=True).proofs == {OPENPGP}
    assert check(manifest, listed, keys=(), require=both, any_of=True).proofs == {OPENPGP}
    with pytest.raises(SignatureMismatch):
        check(manifest, reading.evidence, keys=OTHER, require=both, any_of=True)
    with pytest.raises(NoKeys):
        check(manifest, reading.evidence, keys=(), require=both, any_of=True)


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff" * 30,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x00" * 33,
        b"\x0a\x07\x12\x00\x1d\x01\x00\x00\x00",  # padding longer than the signature
    ],
)
def test_bad_signatures_messages(blob: bytes) -> None:
    with pytest.raises(SignatureMismatch):
        parse_signatures(blob)
    with pytest.raises(MetadataSignatureMismatch):
        check_metadata(b"x", keys=UPDATE, in_payload=blob)


def test_a_signature_of_the_wrong_length_fits_nothing() -> None:
    digest = hashlib.sha256(b"x").digest()
    good = sign("update", digest)
    assert UPDATE[0].fits(good, digest)
    for bad in (b"", good[:-1], good + b"\0", b"\0" + good, good * 2, bytes(256), b"\xff" * 256):
        assert not UPDATE[0].fits(bad, digest)
    der = sign("ec", digest)
    assert EC[0].fits(der, digest)
    for bad in (b"", der[:-1], der + b"\0", bytes(len(der)), b"\x30\x00"):
        assert not EC[0].fits(bad, digest)
    assert not UPDATE[0].fits(good, digest[:-1])


def _pem(key: object) -> bytes:
    return key.public_key().public_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_keys_are_read_from_pem() -> None:
    assert UPDATE[0].kind == "RSA-2048"
    assert BIG[0].kind == "RSA-4096"
    assert EC[0].kind == "EC-256"
    both = load_keys(b"# two keys\n" + public_pem() + b"\r\ntext\n" + public_pem("ec"), "both")
    assert [k.fingerprint for k in both] == [UPDATE[0].fingerprint, EC[0].fingerprint]


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"\xff\xfe garbage",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        public_pem()[:200],
        public_pem().replace(b"PUBLIC", b"PRIVATE"),
        _pem(rsa.generate_private_key(65537, 1024)),
        _pem(ec.generate_private_key(ec.SECP192R1())),
        _pem(ed25519.Ed25519PrivateKey.generate()),
        _pem(dsa.generate_private_key(1024)),
        public_pem() + _pem(rsa.generate_private_key(65537, 1024)),
    ],
)
def test_what_is_no_key_to_trust_is_refused(pem: bytes) -> None:
    with pytest.raises(NoKeys):
        load_keys(pem, "bad.pem")


@needs_vectors
def test_manifest_of_one_payload_with_the_blobs_of_another() -> None:
    one = (V1 / "payloads" / "full_v1.bin").read_bytes()
    two = (V1 / "payloads" / "full_v2.bin").read_bytes()
    for data in (one[:520] + two[520:], two[:520] + one[520:]):
        with pytest.raises(BasculeError):
            prove(data, vector_key("update"))
