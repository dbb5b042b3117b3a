"""Build payloads: full and delta, Flatcar's major 1 and AOSP's major 2, signed, reproducible.

Each operation is planned and packed on a thread of its own; the results are written in the order
of the plan, so the payload does not depend on the number of cores. Memory is bounded by a few
operations per core, whatever the image's size.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from omaha_mock.codecs import CODECS, in_order, smallest
from omaha_mock.delta import plan_in_place, plan_source
from omaha_mock.errors import UsageError
from omaha_mock.layout import BLOCK, Extent, Info, Planned
from omaha_mock.schema import HOLE, OPERATION_NUMBERS, message
from omaha_mock.signing import SigningKey, signatures_message

__all__ = ["CHUNK", "Image", "Packed", "pack"]

CHUNK = {1: 1 << 20, 2: 2 << 20}
"""Bytes of image in one operation of a full payload, by major. Flatcar's own client may silently
cut what unpacks to more than 1 MiB (reference 1.3)."""

_PIECE = 1 << 20
_V1_CODECS = ("raw", "bz2")
_MINOR_FULL, _MINOR_SOURCE, _MINOR_BROTLI, _MINOR_ZSTD = 0, 3, 4, 10


@dataclass(frozen=True, slots=True)
class Image:
    """One part of a release: its name, its file, and the file of the release it starts from."""

    name: str
    new: Path
    old: Path | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """What was built, and what an Omaha response has to say about it."""

    path: Path
    size: int
    sha256: bytes
    metadata_size: int
    metadata_signature: bytes | None
    major: int
    minor: int
    delta: bool
    operations: dict[str, int] = field(default_factory=dict)


def _info(path: Path) -> Info:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            digest.update(data)
            size += len(data)
    return Info(size, digest.digest())


def _full(
    path: Path, size: int, major: int, codecs: Sequence[str]
) -> Iterator[Callable[[], Planned]]:
    chunk = CHUNK[major]

    def one(offset: int) -> Planned:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(min(chunk, size - offset))
        blocks = -(-len(data) // BLOCK)
        if major == 2:
            # Operations of major 2 make whole blocks; the size says where the image ends.
            data = data.ljust(blocks * BLOCK, b"\0")
        kind, blob = smallest(data, codecs)
        return Planned(kind, blob, (), (Extent(offset // BLOCK, blocks),), None)

    return (partial(one, offset) for offset in range(0, size, chunk))


class _Blobs:
    """The blob area while it grows: a temporary file and the offsets of what was put there."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0

    def put(self, blob: bytes) -> int:
        offset = self.size
        self.file.write(blob)
        self.size += len(blob)
        return offset


def _put_extents(entries: Any, extents: Iterable[Extent]) -> None:
    for extent in extents:
        entries.add(start_block=extent.start, num_blocks=extent.blocks)


def _put_operations(
    entries: Any, jobs: Iterable[Callable[[], Planned]], blobs: _Blobs, workers: int, major: int
) -> None:
    for planned in in_order(jobs, workers=workers):
        entry = entries.add()
        entry.type = OPERATION_NUMBERS[planned.kind]
        if planned.blob:
            entry.data_offset = blobs.put(planned.blob)
            entry.data_length = len(planned.blob)
            entry.data_sha256_hash = hashlib.sha256(planned.blob).digest()
            if major == 1 and blobs.size >= 1 << 32:
                raise UsageError("A payload of major 1 ends at 4 GiB; take --major 2.")
        _put_extents(entry.src_extents, planned.source)
        _put_extents(entry.dst_extents, planned.target)
        if planned.source_sha256 is not None and major == 2:
            entry.src_sha256_hash = planned.source_sha256
        if planned.kind == "BSDIFF":
            entry.src_length = sum(extent.blocks for extent in planned.source) * BLOCK
            entry.dst_length = planned.made


def _put_info(entry: Any, info: Info) -> None:
    entry.size = info.size
    entry.hash = info.sha256


def _add_noop(manifest: Any, offset: int, length: int, sha256: bytes | None) -> None:
    """One operation that makes old clients swallow bytes which are not theirs (reference 1.3)."""
    noop = manifest.noop_operations.add()
    noop.type = OPERATION_NUMBERS["REPLACE"]
    noop.data_offset = offset
    noop.data_length = length
    noop.dst_extents.add(start_block=HOLE, num_blocks=-(-length // BLOCK))
    if sha256 is not None:
        noop.data_sha256_hash = sha256


def _jobs(
    image: Image, infos: tuple[Info | None, Info], major: int, codecs: Sequence[str], bsdf2: bool
) -> Iterable[Callable[[], Planned]]:
    size = infos[1].size
    if image.old is None:
        return _full(image.new, size, major, codecs)
    if major == 1:
        return plan_in_place(image.old, image.new, codecs)
    return plan_source(image.old, image.new, codecs, bsdf2=bsdf2)


def _build_v1(
    images: Sequence[Image],
    infos: Sequence[tuple[Info | None, Info]],
    blobs: _Blobs,
    codecs: Sequence[str],
    workers: int,
) -> Any:
    manifest: Any = message(1, "Manifest")
    manifest.block_size = BLOCK
    for image, (old, new) in zip(images, infos, strict=True):
        if image.name == "usr":
            if new.size % BLOCK:
                raise UsageError(f"{image.new} has {new.size} bytes: not a multiple of {BLOCK}.")
            if old is not None and old.size != new.size:
                raise UsageError("A delta of major 1 needs images of the same size.")
            entry, operations = manifest, manifest.partition_operations
            old_entry, new_entry = entry.old_partition_info, entry.new_partition_info
        else:
            entry = manifest.procedures.add()
            entry.type = 0
            operations, old_entry, new_entry = entry.operations, entry.old_info, entry.new_info
        _put_operations(operations, _jobs(image, (old, new), 1, codecs, False), blobs, workers, 1)
        if old is not None:
            _put_info(old_entry, old)
        _put_info(new_entry, new)
    for procedure in manifest.procedures:
        for operation in procedure.operations:
            if operation.HasField("data_offset"):
                _add_noop(
                    manifest,
                    operation.data_offset,
                    operation.data_length,
                    operation.data_sha256_hash,
                )
    return manifest


def _build_v2(
    images: Sequence[Image],
    infos: Sequence[tuple[Info | None, Info]],
    blobs: _Blobs,
    codecs: Sequence[str],
    workers: int,
    max_timestamp: int,
    bsdf2: bool,
) -> Any:
    manifest: Any = message(2, "Manifest")
    manifest.block_size = BLOCK
    for image, (old, new) in zip(images, infos, strict=True):
        entry = manifest.partitions.add()
        entry.partition_name = image.name
        if old is not None:
            _put_info(entry.old_partition_info, old)
        _put_info(entry.new_partition_info, new)
        jobs = _jobs(image, (old, new), 2, codecs, bsdf2)
        _put_operations(entry.operations, jobs, blobs, workers, 2)
    kinds = {op.type for entry in manifest.partitions for op in entry.operations}
    manifest.minor_version = _minor(kinds, any(old is not None for old, _ in infos))
    manifest.max_timestamp = max_timestamp
    return manifest


def _minor(kinds: set[int], delta: bool) -> int:
    """The lowest minor version that knows these operations (payload_v2.md 1.3)."""
    if not delta:
        return _MINOR_FULL
    if OPERATION_NUMBERS["REPLACE_ZSTD"] in kinds:
        return _MINOR_ZSTD
    if kinds & {OPERATION_NUMBERS["ZERO"], OPERATION_NUMBERS["BROTLI_BSDIFF"]}:
        return _MINOR_BROTLI
    return _MINOR_SOURCE


def _checked(
    images: Sequence[Image], major: int, codecs: Sequence[str] | None, keys: Sequence[SigningKey]
) -> tuple[str, ...]:
    if major not in CHUNK:
        raise UsageError(f"Payload major {major} is not known; 1 and 2 are.")
    if not images or len({image.name for image in images}) != len(images):
        raise UsageError("Name at least one image, and none twice.")
    names = [image.name for image in images]
    if major == 1 and (names[0] != "usr" or names[1:] not in ([], ["kernel"])):
        raise UsageError("A payload of major 1 holds usr and, after it, possibly kernel.")
    if major == 1 and not all(key.rsa for key in keys):
        raise UsageError("A payload of major 1 is signed with RSA keys only.")
    wanted = tuple(codecs) if codecs is not None else tuple(CODECS)
    if codecs is None and any(image.old for image in images):
        # zstd in a delta needs minor version 10, which few clients know.
        wanted = tuple(name for name in wanted if name != "zstd")
    if major == 1:
        wanted = tuple(name for name in wanted if name in _V1_CODECS)
    if not wanted:
        raise UsageError(f"Major {major} cannot carry any of the codecs chosen.")
    return wanted


def pack(
    images: Sequence[Image],
    out: Path,
    *,
    major: int = 1,
    keys: Sequence[SigningKey] = (),
    codecs: Sequence[str] | None = None,
    workers: int | None = None,
    max_timestamp: int = 0,
    bsdf2: bool = True,
) -> Packed:
    """Build the payload file ``out`` (written whole or not at all).

    Args:
        images: the parts in order; a part with ``old`` is a delta against it.
        major: 1 for Flatcar's clients (parts ``usr`` and ``kernel``), 2 for everything newer.
        keys: sign with all of these; none leaves the payload unsigned.
        codecs: names out of CODECS to choose from for each operation; None means all that suit.
        workers: threads; None means one per core.
        max_timestamp: seconds since 1970, major 2 only.
        bsdf2: whether patches may be BSDF2 (brotli or bzip2 streams) where that is smaller.

    Raises:
        UsageError: an image cannot be read or does not suit the major.
    """
    wanted = _checked(images, major, codecs, keys)
    workers = workers or os.cpu_count() or 1
    try:
        infos = [(_info(i.old) if i.old else None, _info(i.new)) for i in images]
        with tempfile.TemporaryFile(dir=out.parent) as spool:
            blobs = _Blobs(spool)
            if major == 1:
                manifest = _build_v1(images, infos, blobs, wanted, workers)
            else:
                manifest = _build_v2(images, infos, blobs, wanted, workers, max_timestamp, bsdf2)
            packed = _write(out, manifest, blobs, major, keys)
    except OSError as error:
        raise UsageError(f"{error.filename or out}: {error.strerror}.") from error
    delta = any(old is not None for old, _ in infos)
    counts: Counter[str] = Counter()
    names = {number: name for name, number in OPERATION_NUMBERS.items()}
    entries = list(manifest.partition_operations) if major == 1 else []
    for group in manifest.procedures if major == 1 else manifest.partitions:
        entries.extend(group.operations)
    counts.update(names[entry.type] for entry in entries)
    return Packed(
        path=out,
        size=packed[0],
        sha256=packed[1],
        metadata_size=packed[2],
        metadata_signature=packed[3],
        major=major,
        minor=manifest.minor_version if major == 2 else 0,
        delta=delta,
        operations=dict(sorted(counts.items())),
    )


def _write(
    out: Path, manifest: Any, blobs: _Blobs, major: int, keys: Sequence[SigningKey]
) -> tuple[int, bytes, int, bytes | None]:
    signatures_size = len(signatures_message(major, keys, bytes(32))) if keys else 0
    if keys:
        # Final before anything is hashed: the signature covers these two fields as well.
        manifest.signatures_offset = blobs.size
        manifest.signatures_size = signatures_size
        if major == 1:
            _add_noop(manifest, blobs.size, signatures_size, None)
    raw: bytes = manifest.SerializeToString(deterministic=True)
    header = b"CrAU" + struct.pack(">QQ", major, len(raw))
    if major == 2:
        header += struct.pack(">I", signatures_size)
    metadata = header + raw
    metadata_digest = hashlib.sha256(metadata).digest()
    metadata_signature = keys[-1].sign(metadata_digest) if keys else None

    whole, signed = hashlib.sha256(), hashlib.sha256()
    temporary = out.with_name(out.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(metadata)
            whole.update(metadata)
            signed.update(metadata)
            if major == 2 and keys:
                blob = signatures_message(2, keys, metadata_digest)
                file.write(blob)
                whole.update(blob)
            blobs.file.seek(0)
            while data := blobs.file.read(_PIECE):
                file.write(data)
                whole.update(data)
                signed.update(data)
            if keys:
                blob = signatures_message(major, keys, signed.digest())
                file.write(blob)
                whole.update(blob)
            size = file.tell()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return size, whole.digest(), len(metadata), metadata_signature
