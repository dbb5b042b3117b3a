"""Apply a payload to files: a plain, slow, second reading of what operations mean.

Major 1 works in place (the target begins as a copy of the old image), major 2 reads the old image
and writes the new one. Every hash in the manifest is checked, old and new.
"""

from __future__ import annotations

import bz2
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import brotli

from omaha_mock.codecs import decode
from omaha_mock.errors import PayloadError, UsageError
from omaha_mock.layout import Extent, Info, Operation
from omaha_mock.reading import Part, Payload

__all__ = ["apply", "bspatch"]

_PIECE = 1 << 20
_MAX_OPERATION = 256 << 20


def _read(file: BinaryIO, extents: tuple[Extent, ...], block_size: int, size: int) -> bytes:
    pieces = []
    for extent in extents:
        length = extent.blocks * block_size
        if extent.hole:
            pieces.append(bytes(length))
            continue
        if extent.start * block_size + length > -(-size // block_size) * block_size:
            raise PayloadError("An operation reads past the end of the old image.")
        file.seek(extent.start * block_size)
        pieces.append(file.read(length).ljust(length, b"\0"))
    return b"".join(pieces)


def _write(file: BinaryIO, extents: tuple[Extent, ...], block_size: int, data: bytes) -> None:
    position = 0
    for extent in extents:
        piece = data[position : position + extent.blocks * block_size]
        if not piece:
            break
        if not extent.hole:
            file.seek(extent.start * block_size)
            file.write(piece + bytes(-len(piece) % block_size))
        position += len(piece)
    if position < len(data):
        raise PayloadError("An operation has more bytes than its extents hold.")


def _number(raw: bytes) -> int:
    value = int.from_bytes(raw, "little")
    return -(value & ~(1 << 63)) if value >> 63 else value


def _unpack(kind: int, data: bytes, limit: int) -> bytes:
    if kind == 1:
        out = bz2.BZ2Decompressor().decompress(data, limit + 1)
    elif kind == 2:
        decoder = brotli.Decompressor()
        out = decoder.process(data, output_buffer_limit=limit + 1)
        while len(out) <= limit and not decoder.can_accept_more_data():
            out += decoder.process(b"", output_buffer_limit=limit + 1)
    else:
        raise PayloadError(f"Compressor {kind} of a patch is not known.")
    if len(out) > limit:
        raise PayloadError("A patch unpacks to more than it should.")
    return out


def bspatch(old: bytes, patch: bytes, limit: int) -> bytes:
    """Apply a BSDIFF40 or BSDF2 patch; the result has at most ``limit`` bytes.

    Source: Percival's bsdiff 4 and AOSP's ``external/bsdiff`` (numbers are sign-magnitude).
    """
    if len(patch) < 32:
        raise PayloadError("A patch ends within its header.")
    if patch[:8] == b"BSDIFF40":
        kinds = (1, 1, 1)
    elif patch[:5] == b"BSDF2":
        kinds = (patch[5], patch[6], patch[7])
    else:
        raise PayloadError("A patch is neither BSDIFF40 nor BSDF2.")
    control_size, diff_size, size = (_number(patch[at : at + 8]) for at in (8, 16, 24))
    if min(control_size, diff_size, size) < 0 or 32 + control_size + diff_size > len(patch):
        raise PayloadError("A patch's lengths do not fit.")
    if size > limit:
        raise PayloadError("A patch makes more than its extents hold.")
    middle, last = 32 + control_size, 32 + control_size + diff_size
    try:
        control = _unpack(kinds[0], patch[32:middle], 24 * (size + 2))
        diff = _unpack(kinds[1], patch[middle:last], size)
        extra = _unpack(kinds[2], patch[last:], size)
    except (OSError, brotli.error) as error:
        raise PayloadError(f"A patch does not unpack: {error}.") from error
    new = bytearray()
    old_at = diff_at = extra_at = 0
    for at in range(0, len(control) - 23, 24):
        add, copy, seek = (_number(control[at + i : at + i + 8]) for i in (0, 8, 16))
        if add < 0 or copy < 0 or len(new) + add + copy > size:
            raise PayloadError("A patch's control data does not fit.")
        base = bytes(max(0, min(-old_at, add))) + old[max(0, old_at) : max(0, old_at + add)]
        base = base.ljust(add, b"\0")
        piece = diff[diff_at : diff_at + add]
        if len(piece) != add or len(extra) < extra_at + copy:
            raise PayloadError("A patch's streams are too short.")
        new += bytes((x + y) & 255 for x, y in zip(piece, base, strict=True))
        new += extra[extra_at : extra_at + copy]
        old_at, diff_at, extra_at = old_at + add + seek, diff_at + add, extra_at + copy
    if len(new) != size:
        raise PayloadError("A patch makes less than it says.")
    return bytes(new)


def _check(path: Path, info: Info, what: str) -> None:
    digest = hashlib.sha256()
    left = info.size
    with path.open("rb") as file:
        while left and (data := file.read(min(_PIECE, left))):
            digest.update(data)
            left -= len(data)
    if left:
        raise PayloadError(f"{what} is shorter than the {info.size} bytes it should have.")
    if info.sha256 and digest.digest() != info.sha256:
        raise PayloadError(f"{what} does not have the hash that the payload names.")


def _make(operation: Operation, payload: Payload, read: BinaryIO | None, size: int) -> bytes:
    limit = sum(extent.blocks for extent in operation.target) * payload.block_size
    if limit > _MAX_OPERATION:
        raise PayloadError(f"A {operation.name} makes {limit} bytes: more than this reader takes.")
    if operation.name.startswith("REPLACE"):
        return decode(operation.name, payload.blob(operation), limit)
    if operation.name in ("ZERO", "DISCARD"):
        return bytes(limit)
    source_kinds = (
        ("MOVE", "BSDIFF")
        if payload.major == 1
        else ("SOURCE_COPY", "SOURCE_BSDIFF", "BROTLI_BSDIFF")
    )
    if operation.name not in source_kinds:
        raise PayloadError(f"{operation.name} is not an operation of a major {payload.major}.")
    if read is None:
        raise UsageError("This is a delta: say with --old which image it starts from.")
    source = _read(read, operation.source, payload.block_size, size)
    if operation.source_sha256 and hashlib.sha256(source).digest() != operation.source_sha256:
        raise PayloadError(f"The blocks that a {operation.name} reads are not the right ones.")
    if operation.name in ("MOVE", "SOURCE_COPY"):
        return source
    return bspatch(source, payload.blob(operation), limit)


def _apply_part(payload: Payload, part: Part, out: Path, old: Path | None) -> None:
    if part.new is None:
        raise PayloadError(f"The manifest does not say what {part.name} becomes.")
    size = old.stat().st_size if old else 0
    if part.old is not None and old is not None:
        _check(old, part.old, f"The old {part.name}")
    in_place = payload.major == 1
    if in_place and old is not None:
        shutil.copyfile(old, out)
        out.chmod(0o644)
    else:
        out.write_bytes(b"")
    with out.open("r+b") as target:
        source = target if in_place and old else old.open("rb") if old else None
        try:
            for operation in part.operations:
                data = _make(operation, payload, source, size)
                _write(target, operation.target, payload.block_size, data)
        finally:
            if source is not None and source is not target:
                source.close()
        target.truncate(part.new.size)
    _check(out, part.new, f"The new {part.name}")


def apply(payload: Payload, out: Mapping[str, Path], old: Mapping[str, Path]) -> list[str]:
    """Make the parts named in ``out`` from the payload and, for a delta, the images in ``old``.

    Returns the names of the parts made. Signatures are not looked at: ``verify`` does that.

    Raises:
        PayloadError: something in the payload or the old image is not as the manifest says.
        UsageError: a part is not in the payload, or an old image is needed and not given.
    """
    parts = {part.name: part for part in payload.parts}
    unknown = sorted((set(out) | set(old)) - set(parts))
    if unknown:
        raise UsageError(f"The payload has {', '.join(parts)}; not {', '.join(unknown)}.")
    for name, path in out.items():
        try:
            _apply_part(payload, parts[name], path, old.get(name))
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}.") from error
    return list(out)
