"""Reads a major 2 manifest (ChromeOS, Android).

Format: reference payload_v2.md 1.2–1.4, 1.8, 1.13. Ignored, since they never change a byte of the
target: merge operations, copy-on-write estimates, the ``vabc_*`` settings, APEX information,
``new_partition_signature``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from google.protobuf.message import DecodeError

from bascule.errors import (
    ManifestError,
    OperationFailed,
    PartsMissing,
    UnsupportedMinor,
    UnsupportedOperation,
)
from bascule.formats import operations as rules
from bascule.formats.manifest import (
    Limits,
    Manifest,
    Operation,
    OperationType,
    Part,
    PartInfo,
    Postinstall,
)
from bascule.formats.proto import SCHEMAS, message_class
from bascule.formats.proto.wire import count_messages

__all__ = ["DELTA_MINORS", "read"]

DELTA_MINORS = range(2, 11)
"""Minor versions of deltas that are judged by what they contain, one operation at a time."""

_REPLACE = frozenset(
    {
        OperationType.REPLACE,
        OperationType.REPLACE_BZ,
        OperationType.REPLACE_XZ,
        OperationType.REPLACE_ZSTD,
    }
)
_BLANK = frozenset({OperationType.ZERO, OperationType.DISCARD})
_DIFF = frozenset({OperationType.SOURCE_BSDIFF, OperationType.BROTLI_BSDIFF})
_DONE = _REPLACE | _BLANK | _DIFF | {OperationType.SOURCE_COPY}

_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read(
    raw: bytes, *, metadata: bytes, signature_size: int, size: int | None, limits: Limits
) -> Manifest:
    """See `bascule.formats.manifest.parse_manifest`."""
    caps = {
        "InstallOperation": limits.operations,
        "Extent": limits.extents,
        "PartitionUpdate": 256,
        "DynamicPartitionGroup": 256,
    }
    count_messages(raw, SCHEMAS["crau_v2"], "DeltaArchiveManifest", caps)
    message = message_class("crau_v2", "DeltaArchiveManifest")()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise ManifestError(f"not a protobuf: {error}") from None
    if not message.partitions:
        raise ManifestError("the manifest names no partition")
    _check_minor(message)
    blobs_offset = len(metadata) + signature_size
    blobs = rules.Blobs(limits, blobs_offset, size)
    reader = _Reader(rules.block_size(message), blobs, rules.Images(limits))
    parts: dict[str, Part] = {}
    for partition in message.partitions:
        part = reader.part(partition)
        if part.name in parts:
            raise ManifestError(f"two partitions are named {part.name}")
        parts[part.name] = part
    signatures_offset, signatures_size = reader.blobs.signatures(message)
    return Manifest(
        major=2,
        minor=int(message.minor_version),
        block_size=reader.block,
        metadata_size=len(metadata),
        blobs_offset=blobs_offset,
        parts=tuple(parts.values()),
        signatures_offset=signatures_offset,
        signatures_size=signatures_size,
        max_timestamp=int(message.max_timestamp) if message.HasField("max_timestamp") else None,
        sha256=hashlib.sha256(metadata).digest(),
        partial=bool(message.partial_update),
        groups=tuple(
            _text(group.name, "a dynamic partition group")
            for group in message.dynamic_partition_metadata.groups
        ),
    )


def _check_minor(message: Any) -> None:
    """Whether it is a delta is told by what is there, not by the number or the operations."""
    minor = int(message.minor_version)
    delta = bool(message.partial_update) or any(
        partition.HasField("old_partition_info") for partition in message.partitions
    )
    if delta and minor not in DELTA_MINORS:
        raise UnsupportedMinor(f"a delta of minor version {minor}")
    if not delta and minor:
        raise UnsupportedMinor(f"a full payload of minor version {minor}, which must be 0")


def _text(value: bytes, what: str) -> str:
    """A name that is safe in a message, a path and a setting."""
    if not _NAME.fullmatch(value):
        raise ManifestError(f"{what} is named {bytes(value[:80])!r}")
    return value.decode("ascii")


class _Reader:
    def __init__(self, block: int, blobs: rules.Blobs, images: rules.Images) -> None:
        self.block = block
        self.blobs = blobs
        self.images = images

    def part(self, message: Any) -> Part:
        if not message.HasField("partition_name"):
            raise ManifestError("a partition has no name")
        name = _text(message.partition_name, "a partition")
        new = rules.info(message, "new_partition_info", name)
        if new is None:
            raise PartsMissing(f"the manifest has no new_partition_info for {name}")
        old = rules.info(message, "old_partition_info", name)
        blocks = rules.blocks_of(new.size, self.block)
        cover = rules.Cover()
        before = rules.blocks_of(old.size, self.block) if old else 0
        self.images.add(name, blocks, before)
        work = rules.Work(blocks, before)
        found = []
        for each in message.operations:
            operation = self._operation(each, name, blocks, old)
            what = f"operation {operation.index} ({operation.type.name}) of {name}"
            work.add(what, operation.source)
            work.add(what, operation.target)
            cover.add(operation.target)
            found.append(operation)
        self._check_cover(message, name, cover.measure(blocks))
        return Part(
            name=name,
            known=True,
            file=False,
            old=old,
            new=new,
            operations=tuple(found),
            postinstall=_postinstall(message, name),
            version=message.version[:80].decode("ascii", "replace"),
        )

    def _check_cover(
        self, message: Any, name: str, measured: tuple[int, int | None, int | None]
    ) -> None:
        """Generators write every block exactly once, but for a verity tree made on the device."""
        missing, first, twice = measured
        if twice is not None:
            raise ManifestError(f"block {twice} of {name} is written by two operations")
        if not missing:
            return
        if message.hash_tree_extent.num_blocks or message.fec_extent.num_blocks:
            raise UnsupportedOperation(
                f"{name} leaves {missing} blocks (first {first}) to a verity tree "
                "that the device itself should make"
            )
        raise ManifestError(f"{missing} blocks of {name} (first {first}) are written by nothing")

    def _operation(self, message: Any, name: str, blocks: int, old: PartInfo | None) -> Operation:
        index = self.blobs.count
        kind = rules.operation_type(message, f"operation {index} of {name}")
        what = f"operation {index} ({kind.name}) of {name}"
        if kind not in _DONE:
            raise UnsupportedOperation(what)
        offset, length, sha256 = self.blobs.take(message, what, hashed=True)
        target = rules.extents(message.dst_extents, self.block, what, holes=True)
        room = rules.total(target, self.block)
        if not target:
            raise OperationFailed(f"{what} writes nowhere")
        if any(not e.hole and e.start + e.blocks > blocks for e in target):
            raise OperationFailed(f"{what} writes beyond the image of {blocks} blocks")
        self._check_blob(message, kind, length, room, what)
        reads = kind in _DIFF or kind is OperationType.SOURCE_COPY
        source = rules.extents(message.src_extents, self.block, what, holes=False) if reads else ()
        have = rules.total(source, self.block)
        if reads:
            if old is None:
                raise ManifestError(f"{what} reads a source that has no old_partition_info")
            last = rules.blocks_of(old.size, self.block)
            if any(e.start + e.blocks > last for e in source):
                raise OperationFailed(f"{what} reads beyond the source of {last} blocks")
        if kind is OperationType.SOURCE_COPY and have != room:
            raise OperationFailed(f"{what} reads {have} bytes and writes {room}")
        return Operation(
            index=index,
            part=name,
            type=kind,
            data_offset=offset,
            data_length=length,
            source=source,
            target=target,
            data_sha256=sha256,
            source_sha256=_source_hash(message, what) if reads else None,
            source_length=have,
            target_length=room,
        )

    def _check_blob(
        self, message: Any, kind: OperationType, length: int, room: int, what: str
    ) -> None:
        for field in ("src_length", "dst_length"):
            if getattr(message, field) % self.block:
                raise OperationFailed(f"{what} has {field} {getattr(message, field)}")
        if kind in _REPLACE or kind in _DIFF:
            if not length:
                raise OperationFailed(f"{what} has no data")
            if kind is OperationType.REPLACE and length != room:
                raise OperationFailed(f"{what} has {length} bytes for {room}")
        elif length or message.HasField("data_offset") or message.HasField("data_length"):
            raise OperationFailed(f"{what} has data, and must not")


def _source_hash(message: Any, what: str) -> bytes | None:
    sha256 = bytes(message.src_sha256_hash)
    if sha256 and len(sha256) != 32:
        raise ManifestError(f"{what} has a source hash of {len(sha256)} bytes")
    return sha256 or None


def _postinstall(message: Any, name: str) -> Postinstall | None:
    if not message.run_postinstall:
        return None
    path = bytes(message.postinstall_path or b"postinst")
    steps = path.split(b"/")
    if not path.isascii() or not path.decode("ascii").isprintable() or len(path) > 1024:
        raise ManifestError(f"the postinstall path of {name} is {path[:80]!r}")
    if b".." in steps or steps[0] == b"":
        raise ManifestError(f"the postinstall path of {name} leaves the partition: {path[:80]!r}")
    filesystem = bytes(message.filesystem_type)
    return Postinstall(
        path=path.decode("ascii"),
        optional=bool(message.postinstall_optional),
        filesystem=_text(filesystem, f"the file system of {name}") if filesystem else "",
    )
