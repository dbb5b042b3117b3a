"""Read a payload file: header, manifest, blobs, signatures. Refuses by name what it cannot read.

Written from the description of the formats only, and apart from the agent's reader, so that a
mistake in one shows against the other.

Source: CrAU major 1 (Flatcar ``delta_metadata.cc``) and major 2 (AOSP ``payload_metadata.cc``).
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from omaha_mock.errors import PayloadError
from omaha_mock.layout import Extent, Info, Operation
from omaha_mock.schema import message
from omaha_mock.signing import VerifyingKey

__all__ = ["Part", "Payload", "Verdict", "read_payload", "verify"]

_MAGIC = b"CrAU"
_MAX_MANIFEST = 64 << 20
_MAX_SIGNATURES = 1 << 20
_PIECE = 1 << 20
_V1_PROCEDURES = {0: "kernel", 1: "pcr-policy"}


@dataclass(frozen=True, slots=True)
class Part:
    """What the payload makes of one partition or file."""

    name: str
    operations: tuple[Operation, ...]
    old: Info | None
    new: Info | None


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload file as its manifest describes it.

    ``metadata_size`` is header plus manifest, as Omaha's ``MetadataSize`` counts it; blobs start
    at ``blobs``, after the metadata signature if there is one.
    """

    path: Path
    size: int
    major: int
    minor: int
    block_size: int
    metadata_size: int
    metadata_signature: bytes
    blobs: int
    parts: tuple[Part, ...]
    noop_operations: int
    signatures_offset: int | None
    signatures_size: int
    max_timestamp: int
    partial: bool
    signatures: tuple[tuple[int, bytes], ...] = field(default=())
    metadata_signatures: tuple[tuple[int, bytes], ...] = field(default=())

    @property
    def delta(self) -> bool:
        return any(part.old is not None for part in self.parts) or any(
            operation.source for part in self.parts for operation in part.operations
        )

    def counts(self) -> dict[str, int]:
        """How many operations there are of each kind."""
        return dict(
            sorted(Counter(op.name for part in self.parts for op in part.operations).items())
        )

    def metadata_digest(self) -> bytes:
        """SHA-256 of header and manifest: what a metadata signature is over."""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(self.metadata_size)).digest()

    def blob(self, operation: Operation) -> bytes:
        """The operation's bytes, checked against its hash if it has one. Raises PayloadError."""
        if operation.offset is None:
            return b""
        with self.path.open("rb") as file:
            file.seek(self.blobs + operation.offset)
            data = file.read(operation.length)
        if len(data) != operation.length:
            raise PayloadError("The payload ends before its last operation does.")
        if operation.data_sha256 and hashlib.sha256(data).digest() != operation.data_sha256:
            raise PayloadError(f"The bytes of a {operation.name} do not have the hash they should.")
        return data


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``verify`` found. ``good`` only if nothing is in ``faults``."""

    sha256: bytes
    signed_by: tuple[str, ...]
    metadata_signed_by: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.faults


def _extents(entries: Any) -> tuple[Extent, ...]:
    extents = tuple(Extent(entry.start_block, entry.num_blocks) for entry in entries)
    if any(extent.blocks == 0 for extent in extents):
        raise PayloadError("An extent has no blocks.")
    return extents


def _operation(entry: Any, major: int) -> Operation:
    if not entry.HasField("type"):
        raise PayloadError("An operation has no type.")
    has_blob = entry.HasField("data_offset") or entry.HasField("data_length")
    if major == 1 and max(entry.data_offset, entry.data_length) >= 1 << 32:
        raise PayloadError("An offset or length does not fit in 32 bits.")
    return Operation(
        type=entry.type,
        offset=entry.data_offset if has_blob else None,
        length=entry.data_length,
        source=_extents(entry.src_extents),
        target=_extents(entry.dst_extents),
        data_sha256=entry.data_sha256_hash or None,
        source_sha256=(entry.src_sha256_hash or None) if major == 2 else None,
    )


def _info(entry: Any, name: str) -> Info | None:
    if not entry.HasField(name):
        return None
    value = getattr(entry, name)
    return Info(value.size, value.hash)


def _parts(manifest: Any, major: int) -> Iterator[Part]:
    if major == 1:
        yield Part(
            "usr",
            tuple(_operation(entry, 1) for entry in manifest.partition_operations),
            _info(manifest, "old_partition_info"),
            _info(manifest, "new_partition_info"),
        )
        for procedure in manifest.procedures:
            name = _V1_PROCEDURES.get(procedure.type if procedure.HasField("type") else -1)
            yield Part(
                name or f"procedure {procedure.type}",
                tuple(_operation(entry, 1) for entry in procedure.operations),
                _info(procedure, "old_info"),
                _info(procedure, "new_info"),
            )
        return
    for partition in manifest.partitions:
        yield Part(
            partition.partition_name,
            tuple(_operation(entry, 2) for entry in partition.operations),
            _info(partition, "old_partition_info"),
            _info(partition, "new_partition_info"),
        )


def _signatures(major: int, raw: bytes) -> tuple[tuple[int, bytes], ...]:
    signatures: Any = message(major, "Signatures")
    try:
        signatures.ParseFromString(raw)
    except DecodeError as error:
        raise PayloadError("The signatures are not a Signatures message.") from error
    entries = []
    for entry in signatures.signatures:
        data: bytes = entry.data
        if major == 2 and entry.HasField("unpadded_signature_size"):
            if entry.unpadded_signature_size > len(data):
                raise PayloadError("A signature is shorter than it says.")
            data = data[: entry.unpadded_signature_size]
        entries.append((int(entry.version), data))
    return tuple(entries)


def read_payload(path: Path) -> Payload:
    """Read and check the structure of a payload file; blobs are read later, one at a time.

    Raises:
        PayloadError: the file is not a payload, or not a whole or consistent one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(path, size, file)
    except OSError as error:
        raise PayloadError(f"Cannot read {path}: {error.strerror}.") from error


def _read(path: Path, size: int, file: Any) -> Payload:
    header = file.read(20)
    if len(header) < 20 or header[:4] != _MAGIC:
        raise PayloadError(f"{path} is not a payload: it does not begin with CrAU.")
    major, manifest_size = struct.unpack(">QQ", header[4:])
    if major not in (1, 2):
        raise PayloadError(f"Payload major {major} is not known; 1 and 2 are.")
    signature_size = 0
    if major == 2:
        extra = file.read(4)
        if len(extra) < 4:
            raise PayloadError("The payload ends within its header.")
        (signature_size,) = struct.unpack(">I", extra)
    metadata_size = (20 if major == 1 else 24) + manifest_size
    if manifest_size > _MAX_MANIFEST or signature_size > _MAX_SIGNATURES:
        raise PayloadError(f"A manifest of {manifest_size} bytes is more than this reader takes.")
    if metadata_size + signature_size > size:
        raise PayloadError("The payload ends within its manifest.")
    manifest: Any = message(major, "Manifest")
    try:
        manifest.ParseFromString(file.read(manifest_size))
    except DecodeError as error:
        raise PayloadError("The manifest is not a protobuf message of its kind.") from error
    metadata_signature = file.read(signature_size)
    blobs = metadata_size + signature_size

    parts = tuple(_parts(manifest, major))
    if not parts:
        raise PayloadError("The manifest names no partition.")
    if len({part.name for part in parts}) != len(parts):
        raise PayloadError("The manifest names a partition twice.")
    position = 0
    for part in parts:
        if part.new is None:
            raise PayloadError(f"The manifest does not say what {part.name} becomes.")
        for operation in part.operations:
            if operation.offset is None:
                continue
            if operation.offset != position and operation.length:
                raise PayloadError(
                    f"A {operation.name} of {part.name} has its bytes at {operation.offset}; "
                    f"{position} comes next."
                )
            position += operation.length
    block_size = manifest.block_size or 4096
    if block_size != 4096:
        raise PayloadError(f"A block size of {block_size} is not known.")
    offset = manifest.signatures_offset if manifest.HasField("signatures_offset") else None
    if offset is not None and offset != position:
        raise PayloadError("The signatures are not where the last operation's bytes end.")
    end = blobs + position + manifest.signatures_size
    if end != size:
        raise PayloadError(f"The payload has {size} bytes and should have {end}.")
    signatures: tuple[tuple[int, bytes], ...] = ()
    if manifest.signatures_size:
        file.seek(blobs + position)
        signatures = _signatures(major, file.read(manifest.signatures_size))
    return Payload(
        path=path,
        size=size,
        major=major,
        minor=manifest.minor_version if major == 2 else 0,
        block_size=block_size,
        metadata_size=metadata_size,
        metadata_signature=metadata_signature,
        blobs=blobs,
        parts=parts,
        noop_operations=len(manifest.noop_operations) if major == 1 else 0,
        signatures_offset=offset,
        signatures_size=manifest.signatures_size,
        max_timestamp=manifest.max_timestamp if major == 2 else 0,
        partial=bool(major == 2 and manifest.partial_update),
        signatures=signatures,
        metadata_signatures=_signatures(2, metadata_signature) if metadata_signature else (),
    )


def _digests(payload: Payload) -> tuple[bytes, bytes, bytes]:
    """SHA-256 of the metadata, of what the payload signature covers, and of the whole file."""
    metadata = hashlib.sha256()
    signed = hashlib.sha256()
    whole = hashlib.sha256()
    marks = {
        payload.metadata_size: "metadata ends",
        payload.blobs: "blobs begin",
        payload.size - payload.signatures_size: "blobs end",
    }
    position = 0
    with payload.path.open("rb") as file:
        while position < payload.size:
            following = min([mark for mark in marks if mark > position], default=payload.size)
            data = file.read(min(_PIECE, following - position))
            if not data:
                raise PayloadError("The payload became shorter while it was read.")
            if position < payload.metadata_size:
                metadata.update(data)
            covered = position < payload.metadata_size or payload.blobs <= position
            if covered and position < payload.size - payload.signatures_size:
                signed.update(data)
            whole.update(data)
            position += len(data)
    return metadata.digest(), signed.digest(), whole.digest()


def _who(
    entries: Sequence[tuple[int, bytes]], digest: bytes, keys: Sequence[VerifyingKey]
) -> tuple[str, ...]:
    return tuple(key.name for _, data in entries for key in keys if key.signed(data, digest))


def verify(payload: Payload, keys: Sequence[VerifyingKey]) -> Verdict:
    """Check every blob's hash and the signatures against ``keys``.

    For major 1 only the first signature with version 2 counts, as Flatcar's client has it; for
    major 2 any signature by any key does, and the metadata must be signed as well. At least one
    key is needed: a payload that nobody vouches for is never good.
    """
    faults = []
    metadata_digest, signed_digest, sha256 = _digests(payload)
    for part in payload.parts:
        for operation in part.operations:
            if operation.length and operation.data_sha256 is None:
                faults.append(f"A {operation.name} of {part.name} has no hash.")
                continue
            try:
                payload.blob(operation)
            except PayloadError as error:
                faults.append(str(error))
    entries = payload.signatures
    if payload.major == 1:
        entries = tuple(entry for entry in entries if entry[0] == 2)[:1]
    signed_by = _who(entries, signed_digest, keys)
    metadata_signed_by = _who(payload.metadata_signatures, metadata_digest, keys)
    if not keys:
        faults.append("No key was given to check the signature with.")
    elif not payload.signatures:
        faults.append("The payload is not signed.")
    elif not signed_by:
        faults.append("None of the keys signed the payload.")
    if payload.major == 2 and keys and not metadata_signed_by:
        faults.append(
            "None of the keys signed the metadata."
            if payload.metadata_signatures
            else "The metadata is not signed."
        )
    return Verdict(sha256, signed_by, metadata_signed_by, tuple(faults))
