"""Reads a major 1 manifest (Flatcar, CoreOS).

Format: reference flatcar.md 1.2–1.6 and flatcar_observed.md §4. Field 2, ``noop_operations``, repeats
the procedures' data and the signature for clients of before 2014; it is not in the schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from bascule.errors import (
    ManifestError,
    OperationFailed,
    PayloadError,
    PayloadSizeMismatch,
    UnsupportedOperation,
)
from bascule.formats import operations as rules
from bascule.formats.manifest import (
    KERNEL,
    PCR_POLICY,
    USR,
    Extent,
    Limits,
    Manifest,
    Operation,
    OperationType,
    Part,
    PartInfo,
)
from bascule.formats.proto import SCHEMAS, message_class
from bascule.formats.proto.wire import count_messages

__all__ = ["read"]

_PROCEDURES = {0: KERNEL, 1: PCR_POLICY}
_REPLACE = frozenset({OperationType.REPLACE, OperationType.REPLACE_BZ})
_IN_PLACE = frozenset({OperationType.MOVE, OperationType.BSDIFF})


def read(raw: bytes, *, metadata: bytes, size: int | None, limits: Limits) -> Manifest:
    """See `bascule.formats.manifest.parse_manifest`."""
    if not raw:
        raise PayloadSizeMismatch("the manifest is empty, so what follows it belongs to nothing")
    caps = {"InstallOperation": limits.operations, "Extent": limits.extents}
    count_messages(raw, SCHEMAS["crau_v1"], "DeltaArchiveManifest", caps)
    message = message_class("crau_v1", "DeltaArchiveManifest")()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise ManifestError(f"not a protobuf: {error}") from None
    blobs = rules.Blobs(limits, len(metadata), size)
    reader = _Reader(rules.block_size(message), blobs, rules.Images(limits))
    new = rules.info(message, "new_partition_info", USR)
    if new is None:
        raise PayloadError("the manifest has no new_partition_info")
    old = rules.info(message, "old_partition_info", USR)
    parts = [reader.part(USR, message.partition_operations, old, new, file=False)]
    for number, procedure in enumerate(message.procedures):
        parts.append(reader.procedure(number, procedure))
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"two procedures fill {name}")
    signatures_offset, signatures_size = reader.blobs.signatures(message)
    return Manifest(
        major=1,
        minor=0,
        block_size=reader.block,
        metadata_size=len(metadata),
        blobs_offset=len(metadata),
        parts=tuple(parts),
        signatures_offset=signatures_offset,
        signatures_size=signatures_size,
        max_timestamp=None,
        sha256=hashlib.sha256(metadata).digest(),
    )


class _Reader:
    def __init__(self, block: int, blobs: rules.Blobs, images: rules.Images) -> None:
        self.block = block
        self.blobs = blobs
        self.images = images

    def procedure(self, number: int, message: Any) -> Part:
        kind = int(message.type) if message.HasField("type") else None
        name = _PROCEDURES.get(kind) if kind is not None else None
        if name is None:
            return self._unknown(f"procedure-{number}", message.operations)
        new = rules.info(message, "new_info", name)
        if new is None:
            raise ManifestError(f"the procedure for {name} has no new_info")
        old = rules.info(message, "old_info", name)
        return self.part(name, message.operations, old, new, file=True)

    def part(
        self, name: str, messages: Iterable[Any], old: PartInfo | None, new: PartInfo, *, file: bool
    ) -> Part:
        blocks = rules.blocks_of(new.size, self.block)
        readable = None if file and old is None else max(new.size, old.size if old else 0)
        cover = rules.Cover()
        before = rules.blocks_of(old.size, self.block) if old else 0
        self.images.add(name, blocks, before)
        work = rules.Work(blocks, before)
        found = []
        for message in messages:
            operation = self._operation(message, name, blocks, readable)
            what = f"operation {operation.index} ({operation.type.name}) of {name}"
            work.add(what, operation.source)
            work.add(what, operation.target)
            cover.add(operation.target)
            found.append(operation)
        uncovered, _, _ = cover.measure(blocks)
        return Part(
            name=name,
            known=True,
            file=file,
            old=old,
            new=new,
            operations=tuple(found),
            in_place=old is not None or any(op.type in _IN_PLACE for op in found),
            uncovered=uncovered,
        )

    def _unknown(self, name: str, messages: Iterable[Any]) -> Part:
        """A procedure of another day: its bytes are stepped over, so only their places matter.

        The original does not compare their hash either (reference 1.5 d).
        """
        found = []
        for message in messages:
            index = self.blobs.count
            what = f"operation {index} of {name}"
            kind = rules.operation_type(message, what)
            offset, length, _ = self.blobs.take(message, what, hashed=False)
            found.append(Operation(index, name, kind, offset, length, (), (), None))
        return Part(name=name, known=False, file=True, old=None, new=None, operations=tuple(found))

    def _operation(self, message: Any, name: str, blocks: int, readable: int | None) -> Operation:
        index = self.blobs.count
        kind = rules.operation_type(message, f"operation {index} of {name}")
        what = f"operation {index} ({kind.name}) of {name}"
        if kind not in _REPLACE | _IN_PLACE:
            raise UnsupportedOperation(f"{what} is not of major version 1")
        offset, length, sha256 = self.blobs.take(message, what, hashed=True)
        target = rules.extents(message.dst_extents, self.block, what, holes=True)
        room = rules.total(target, self.block)
        source: tuple[Extent, ...] = ()
        source_length = 0
        target_length: int | None = None
        if not target:
            raise OperationFailed(f"{what} writes nowhere")
        if kind in _REPLACE:
            # No comparison with the image's size: full payloads declare 256 blocks for every chunk,
            # the short last one too. What is really written must fit the device.
            if not length:
                raise OperationFailed(f"{what} has no data")
            if kind is OperationType.REPLACE and length > room:
                raise OperationFailed(f"{what} has {length} bytes for {room}")
        else:
            source = rules.extents(message.src_extents, self.block, what, holes=True)
            have = rules.total(source, self.block)
            source_length = have
            if any(not e.hole and e.start + e.blocks > blocks for e in target):
                raise OperationFailed(f"{what} writes beyond the image of {blocks} blocks")
            if readable is not None:
                last = rules.blocks_of(readable, self.block)
                if any(not e.hole and e.start + e.blocks > last for e in source):
                    raise OperationFailed(f"{what} reads beyond the image of {last} blocks")
            if kind is OperationType.MOVE:
                target_length = room
                if length:
                    raise OperationFailed(f"{what} has data, and must not")
                if have != room:
                    raise OperationFailed(f"{what} reads {have} bytes and writes {room}")
            else:
                if not length:
                    raise OperationFailed(f"{what} has no patch")
                source_length = self._declared(message, "src_length", have, what)
                target_length = self._declared(message, "dst_length", room, what)
        return Operation(
            index=index,
            part=name,
            type=kind,
            data_offset=offset,
            data_length=length,
            source=source,
            target=target,
            data_sha256=sha256,
            source_length=source_length,
            target_length=target_length,
        )

    def _declared(self, message: Any, field: str, room: int, what: str) -> int:
        """A BSDIFF's own length of one side, which ends inside the last block of the extents."""
        if not message.HasField(field):
            return room
        length = int(getattr(message, field))
        if not room - self.block < length <= room:
            raise OperationFailed(f"{what} has {field} {length} for extents of {room} bytes")
        return length
