"""What a payload says of itself, as far as it can be read.

The manifest is read twice: once as it stands, so that a publisher sees what is in a payload that
Bascule refuses, and once by the rules, so that the refusal is told with it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from bascule.errors import BasculeError, OperationHashMismatch, StorageError
from bascule.formats.manifest import HOLE, KERNEL, PCR_POLICY, USR, Limits, OperationType
from bascule.formats.payload import Blob, End, Metadata, PayloadEvent, PayloadParser, SignatureBlob
from bascule.formats.proto import SCHEMAS, message_class
from bascule.formats.proto.wire import count_messages
from bascule.formats.signature import parse_signatures

__all__ = ["report"]

_CHUNK = 1 << 20
_MANIFEST = "DeltaArchiveManifest"


def report(path: Path, *, operations: bool = False) -> dict[str, Any]:
    """Read a payload from end to end.

    Args:
        operations: list every operation.

    Returns:
        A document for ``--json`` (schema 1). Where ``ok`` is false, ``error`` is the first fault
        and ``stopped_at`` the file offset up to which everything was read.

    Raises:
        StorageError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            return _Report(file, operations).read(str(path))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None


class _Report:
    def __init__(self, file: BinaryIO, operations: bool) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._operations = operations
        self._facts: dict[str, Any] = {}

    def read(self, name: str) -> dict[str, Any]:
        whole = hashlib.sha256()
        parser: PayloadParser | None = PayloadParser()
        problem: dict[str, Any] | None = None
        size = 0
        while chunk := self._file.read(_CHUNK):
            size += len(chunk)
            whole.update(chunk)
            if parser is not None:
                problem = self._try(parser, chunk)
                parser = parser if problem is None else None
        if parser is not None:
            problem = self._try(parser, None)
        return {
            "schema": 1,
            "ok": problem is None,
            "file": name,
            "size": size,
            "sha256": whole.hexdigest(),
            "sha256_base64": base64.b64encode(whole.digest()).decode(),
            **self._facts,
            **(problem or {}),
        }

    def _try(self, parser: PayloadParser, chunk: bytes | None) -> dict[str, Any] | None:
        """One step of reading; what stopped it, if it stopped."""
        try:
            if chunk is None:
                parser.finish()
            else:
                self._take(parser, parser.feed(chunk))
        except BasculeError as error:
            header = parser.header
            if header is not None:
                self._facts.setdefault("header", _header(header.major, header))
            return {"error": error.as_dict(), "stopped_at": parser.consumed}
        return None

    def _take(self, parser: PayloadParser, events: list[PayloadEvent]) -> None:
        for event in events:
            if isinstance(event, Metadata):
                self._facts |= _metadata(event, self._operations)
                manifest = event.parse()
                self._facts["payload_size"] = manifest.size
                self._facts["kind"] = "delta" if manifest.delta else "full"
                self._take(parser, parser.begin(manifest))
            elif isinstance(event, Blob):
                _check(event)
            elif isinstance(event, SignatureBlob):
                self._facts["payload_signatures"] = _signatures(event.data)
            elif isinstance(event, End):
                pass


def _check(event: Blob) -> None:
    operation = event.operation
    wanted = operation.data_sha256
    if wanted is not None and event.data and hashlib.sha256(event.data).digest() != wanted:
        raise OperationHashMismatch(
            f"operation {operation.index} ({operation.type.name}) of {operation.part}, "
            f"{operation.data_length} bytes at {operation.data_offset} of the data"
        )


def _header(major: int, header: Any) -> dict[str, Any]:
    return {
        "major": major,
        "size": header.size,
        "manifest_size": header.manifest_size,
        "metadata_size": header.metadata_size,
        "metadata_signature_size": header.signature_size,
    }


def _signatures(blob: bytes) -> list[dict[str, Any]]:
    return [{"version": s.version, "size": len(s.data)} for s in parse_signatures(blob)]


def _metadata(event: Metadata, operations: bool) -> dict[str, Any]:
    """Header and manifest as they stand; empty of parts where not even that can be read."""
    major = event.header.major
    facts: dict[str, Any] = {
        "header": _header(major, event.header),
        "metadata_sha256": hashlib.sha256(event.raw).hexdigest(),
        "metadata_signatures": [],
        "payload_signatures": [],
    }
    with contextlib.suppress(BasculeError):
        facts["metadata_signatures"] = _signatures(event.signature)
    raw = event.raw[event.header.size :]
    package = f"crau_v{major}"
    limits = Limits()
    caps = {"InstallOperation": limits.operations, "Extent": limits.extents}
    message = message_class(package, _MANIFEST)()
    try:
        count_messages(raw, SCHEMAS[package], _MANIFEST, caps)
        message.ParseFromString(raw)
    except (BasculeError, DecodeError):
        return facts
    index = 0
    parts = []
    for name, new, old, steps in _parts(major, message):
        parts.append(_part(name, new, old, steps))
        if operations:
            parts[-1]["list"] = [_operation(index + i, step) for i, step in enumerate(steps)]
        index += len(steps)
    return facts | {
        "minor": int(message.minor_version) if major == 2 else 0,
        "block_size": int(message.block_size) if message.HasField("block_size") else 4096,
        "kind": "delta" if any(part["old"] for part in parts) else "full",
        "max_timestamp": (
            int(message.max_timestamp) if major == 2 and message.HasField("max_timestamp") else None
        ),
        "partial": bool(message.partial_update) if major == 2 else False,
        "signatures_offset": _optional(message, "signatures_offset"),
        "signatures_size": _optional(message, "signatures_size"),
        "operations": index,
        "parts": parts,
    }


def _optional(message: Any, field: str) -> int | None:
    return int(getattr(message, field)) if message.HasField(field) else None


def _parts(
    major: int, message: Any
) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None, Any]]:
    if major == 2:
        for each in message.partitions:
            name = repr(bytes(each.partition_name[:80]))[2:-1]
            new, old = _info(each, "new_partition_info"), _info(each, "old_partition_info")
            yield name, new, old, each.operations
        return
    new, old = _info(message, "new_partition_info"), _info(message, "old_partition_info")
    yield USR, new, old, message.partition_operations
    for number, each in enumerate(message.procedures):
        kind = {0: KERNEL, 1: PCR_POLICY}.get(each.type) if each.HasField("type") else None
        name = kind or f"procedure-{number}"
        yield name, _info(each, "new_info"), _info(each, "old_info"), each.operations


def _info(message: Any, field: str) -> dict[str, Any] | None:
    if not message.HasField(field):
        return None
    found = getattr(message, field)
    return {"size": int(found.size), "sha256": bytes(found.hash[:64]).hex()}


def _type(step: Any) -> str:
    if not step.HasField("type"):
        return "none"
    try:
        return OperationType(step.type).name
    except ValueError:
        return f"unknown {step.type}"


def _part(
    name: str, new: dict[str, Any] | None, old: dict[str, Any] | None, steps: Any
) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for step in steps:
        kind = _type(step)
        counts[kind] = counts.get(kind, 0) + 1
    return {
        "name": name,
        "new": new,
        "old": old,
        "data_size": sum(int(step.data_length) for step in steps),
        "operations": counts,
    }


def _operation(index: int, step: Any) -> dict[str, Any]:
    return {
        "index": index,
        "type": _type(step),
        "data_offset": int(step.data_offset),
        "data_length": int(step.data_length),
        "data_sha256": bytes(step.data_sha256_hash[:64]).hex() or None,
        "source": _extents(step.src_extents),
        "target": _extents(step.dst_extents),
    }


def _extents(messages: Any) -> list[dict[str, int | None]]:
    """Block runs; ``start`` is null for a hole."""
    return [
        {
            "start": None if e.start_block == HOLE else int(e.start_block),
            "blocks": int(e.num_blocks),
        }
        for e in messages
    ]
