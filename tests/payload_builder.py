"""Builds small payloads of both majors, right or wrong in one chosen place, and signs them.

The last operation of the v1 image declares 256 blocks although the image ends after two, as
Flatcar's generator does. Everything is deterministic but the keys.
"""

from __future__ import annotations

import bz2
import functools
import hashlib
import lzma
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import bsdiff4
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from bascule.formats.manifest import OperationType
from bascule.formats.proto import message_class

BLOCK = 4096

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@functools.cache
def private_key(name: str = "update") -> PrivateKey:
    """A key of this test run; names with ``ec`` and ``4096`` in them are of that kind."""
    if "ec" in name:
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 4096 if "4096" in name else 2048)


def public_pem(name: str = "update") -> bytes:
    """The public half, as it lies in a keys directory."""
    return (
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def sign(name: str, sha256: bytes) -> bytes:
    """One raw signature over a digest."""
    key = private_key(name)
    prehashed = utils.Prehashed(hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(sha256, padding.PKCS1v15(), prehashed)
    return key.sign(sha256, ec.ECDSA(prehashed))


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int) -> bytes:
    """Bytes that do."""
    line = b"%08d the quick brown fox jumps over the lazy dog\n" % seed
    return (line * (size // len(line) + 1))[:size]


IMAGE = noise(4 * BLOCK, 1) + text(4 * BLOCK, 2) + text(2 * BLOCK, 3)
KERNEL_IMAGE = text(6000, 4)
OLD_IMAGE = noise(4 * BLOCK, 1) + text(4 * BLOCK, 5) + noise(2 * BLOCK, 6)
"""What the v2 delta starts from: the first four blocks are the new image's."""


@dataclass
class Draft:
    """A payload before it is bytes. Mutations change it; `build` makes the bytes.

    Attributes:
        manifest: the protobuf message; `build` fills the signature's place in, unless told not to.
        operations: the messages of all operations, in payload order.
        blobs: the data of each of them, b"" for none.
        signers: (version, key) of each payload signature; (None, key) leaves the version out.
        metadata_signers: keys of the metadata signature (major 2).
        signatures: the ``Signatures`` message itself, in place of one made by `signers`.
        place: sets ``signatures_offset`` and ``signatures_size``; a value of None clears the field.
        manifest_size: what the header says, if not the truth.
        trailer: bytes behind the end.
        cut: bytes to keep of the whole.
        flips: file offsets at which one bit is turned.
    """

    major: int
    manifest: Any
    operations: list[Any]
    blobs: list[bytes]
    signers: Sequence[tuple[int | None, str]] = ((2, "update"),)
    metadata_signers: Sequence[str] = ()
    signatures: bytes | None = None
    place: dict[str, int | None] = field(default_factory=dict)
    magic: bytes = b"CrAU"
    version: int | None = None
    manifest_size: int | None = None
    metadata_signature_size: int | None = None
    trailer: bytes = b""
    cut: int | None = None
    flips: list[int] = field(default_factory=list)

    def settle(self) -> None:
        """Set length, offset and hash of every operation from its blob."""
        offset = 0
        for operation, blob in zip(self.operations, self.blobs, strict=True):
            for name in ("data_offset", "data_length", "data_sha256_hash"):
                operation.ClearField(name)
            if blob:
                operation.data_offset = offset
                operation.data_length = len(blob)
                operation.data_sha256_hash = hashlib.sha256(blob).digest()
            offset += len(blob)

    def message(self, name: str) -> Any:
        """An empty message of this major."""
        return message_class(f"crau_v{self.major}", name)()

    def signed(self, sha256: bytes) -> bytes:
        """The payload's ``Signatures`` message."""
        if self.signatures is not None:
            return self.signatures
        found = self.message("Signatures")
        for version, key in self.signers:
            self._add_signature(found, version, sign(key, sha256))
        return bytes(found.SerializeToString())

    def _add_signature(self, found: Any, version: int | None, data: bytes) -> None:
        entry = found.signatures.add()
        if version is not None:
            entry.version = version
        entry.data = data
        if self.major == 2:
            # A DER signature has no fixed length, so its place is padded to the greatest.
            entry.unpadded_signature_size = len(data)
            if len(data) < 100:
                entry.data = data.ljust(80, b"\0")

    def _signed_metadata(self, sha256: bytes) -> bytes:
        found = self.message("Signatures")
        for key in self.metadata_signers:
            self._add_signature(found, None, sign(key, sha256))
        return bytes(found.SerializeToString())

    def header(self, manifest_size: int, signature_size: int) -> bytes:
        """The first 20 or 24 bytes."""
        version = self.major if self.version is None else self.version
        manifest_size = manifest_size if self.manifest_size is None else self.manifest_size
        head = self.magic + version.to_bytes(8, "big") + manifest_size.to_bytes(8, "big")
        if self.major == 1:
            return head
        if self.metadata_signature_size is not None:
            signature_size = self.metadata_signature_size
        return head + signature_size.to_bytes(4, "big")

    def build(self) -> bytes:
        """The whole payload."""
        area = b"".join(self.blobs)
        size = len(self.signed(bytes(32)))
        if size:
            self.manifest.signatures_offset = len(area)
            self.manifest.signatures_size = size
        for name, value in self.place.items():
            if value is None:
                self.manifest.ClearField(name)
            else:
                setattr(self.manifest, name, value)
        raw = bytes(self.manifest.SerializeToString())
        metadata = self.header(len(raw), len(self._signed_metadata(bytes(32)))) + raw
        signature = self._signed_metadata(hashlib.sha256(metadata).digest())
        covered = hashlib.sha256(metadata + area).digest()
        whole = bytearray(metadata + signature + area + self.signed(covered) + self.trailer)
        for at in self.flips:
            whole[at] ^= 0x10
        return bytes(whole if self.cut is None else whole[: self.cut])


def _extent(run: Any, start: int, blocks: int) -> None:
    run.add(start_block=start, num_blocks=blocks)


def _info(target: Any, data: bytes) -> None:
    target.size = len(data)
    target.hash = hashlib.sha256(data).digest()


def draft_v1(*, kernel: bool = True) -> Draft:
    """A full payload of major 1: REPLACE, two REPLACE_BZ, and a KERNEL procedure."""
    draft = Draft(1, message_class("crau_v1", "DeltaArchiveManifest")(), [], [])
    _info(draft.manifest.new_partition_info, IMAGE)
    for kind, start, blocks, blob in (
        (OperationType.REPLACE, 0, 4, IMAGE[: 4 * BLOCK]),
        (OperationType.REPLACE_BZ, 4, 4, bz2.compress(IMAGE[4 * BLOCK : 8 * BLOCK])),
        (OperationType.REPLACE_BZ, 8, 256, bz2.compress(IMAGE[8 * BLOCK :])),
    ):
        operation = draft.manifest.partition_operations.add(type=kind)
        _extent(operation.dst_extents, start, blocks)
        draft.operations.append(operation)
        draft.blobs.append(blob)
    if kernel:
        procedure = draft.manifest.procedures.add(type=0)
        _info(procedure.new_info, KERNEL_IMAGE)
        operation = procedure.operations.add(type=OperationType.REPLACE_BZ)
        _extent(operation.dst_extents, 0, 2)
        draft.operations.append(operation)
        draft.blobs.append(bz2.compress(KERNEL_IMAGE))
    draft.settle()
    return draft


def draft_v2(*, delta: bool = False) -> Draft:
    """A payload of major 2 for one partition ``system``, with signed metadata."""
    draft = Draft(2, message_class("crau_v2", "DeltaArchiveManifest")(), [], [])
    draft.signers = ((None, "update"),)
    draft.metadata_signers = ("update",)
    draft.manifest.minor_version = 4 if delta else 0
    part = draft.manifest.partitions.add(partition_name=b"system")
    _info(part.new_partition_info, IMAGE)
    steps: list[tuple[OperationType, int, int, bytes]]
    if delta:
        _info(part.old_partition_info, OLD_IMAGE)
        patch = bsdiff4.diff(OLD_IMAGE[4 * BLOCK : 8 * BLOCK], IMAGE[4 * BLOCK : 8 * BLOCK])
        steps = [
            (OperationType.SOURCE_COPY, 0, 4, b""),
            (OperationType.SOURCE_BSDIFF, 4, 4, patch),
        ]
    else:
        steps = [
            (OperationType.REPLACE, 0, 4, IMAGE[: 4 * BLOCK]),
            (OperationType.REPLACE_BZ, 4, 4, bz2.compress(IMAGE[4 * BLOCK : 8 * BLOCK])),
        ]
    steps.append((OperationType.REPLACE_XZ, 8, 2, lzma.compress(IMAGE[8 * BLOCK :])))
    for kind, start, blocks, blob in steps:
        operation = part.operations.add(type=kind)
        _extent(operation.dst_extents, start, blocks)
        if kind in (OperationType.SOURCE_COPY, OperationType.SOURCE_BSDIFF):
            _extent(operation.src_extents, start, blocks)
            source = OLD_IMAGE[start * BLOCK : (start + blocks) * BLOCK]
            operation.src_sha256_hash = hashlib.sha256(source).digest()
        draft.operations.append(operation)
        draft.blobs.append(blob)
    draft.settle()
    return draft
