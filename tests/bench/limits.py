"""What the machine can do with the same bytes: the yardsticks, taken between the measured runs."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from material import MIB, Payload

THREADS = 2


def in_threads(work: Sequence[Callable[[], object]], threads: int = THREADS) -> float:
    """Seconds that `threads` threads need to do it all, each taking the next piece of work."""
    pending = iter(work)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def loop() -> None:
        try:
            while True:
                with lock:
                    piece = next(pending, None)
                if piece is None:
                    return
                piece()
        except BaseException as error:
            failures.append(error)

    runners = [threading.Thread(target=loop) for _ in range(threads)]
    began = time.perf_counter()
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    taken = time.perf_counter() - began
    if failures:
        raise failures[0]
    return taken


def blobs(payload: Payload) -> list[bytes]:
    """The data of each operation, in memory."""
    from bascule.formats.payload import Metadata, PayloadParser

    data = Path(payload.path).read_bytes()
    parser = PayloadParser()
    found = [
        e for e in parser.feed(data[: payload.metadata_size + 4096]) if isinstance(e, Metadata)
    ]
    manifest = found[0].parse()
    base = manifest.blobs_offset
    return [
        data[base + o.data_offset : base + o.data_offset + o.data_length]
        for o in manifest.operations
        if o.data_offset is not None
    ]


def decode(codec: str, pieces: Sequence[bytes]) -> float:
    """Seconds to decode everything with two threads, at once and into nowhere."""
    if codec == "raw":
        return 0.0
    one: Callable[[bytes], bytes]
    if codec == "bz2":
        one = bz2.decompress
    elif codec == "xz":
        one = lzma.decompress
    else:
        from bascule.engine.decode import ZstdDecompressor

        def one(blob: bytes) -> bytes:
            return ZstdDecompressor().decompress(blob)

    return in_threads([lambda b=blob: one(b) for blob in pieces])  # type: ignore[misc]


def sha256(pieces: Sequence[bytes], passes: int) -> float:
    """Seconds to hash everything `passes` times with two threads."""
    work = [lambda p=piece: hashlib.sha256(p).digest() for piece in pieces]  # type: ignore[misc]
    return in_threads(work * passes)


def write(path: Path, length: int) -> float:
    """Seconds to write the slot from end to end in aligned megabytes, and to flush it."""
    buffer = mmap.mmap(-1, MIB)
    buffer[:] = os.urandom(MIB)
    fd = open_direct(path, os.O_RDWR)
    try:
        began = time.perf_counter()
        for at in range(0, length, MIB):
            os.pwrite(fd, memoryview(buffer)[: min(MIB, length - at)], at)
        os.fdatasync(fd)
        return time.perf_counter() - began
    finally:
        os.close(fd)


def read(path: Path, length: int, *, hashed: bool = False) -> float:
    """Seconds to read from the medium from end to end; with `hashed`, in step with a hash thread."""
    if hashed:
        from bascule.engine.device import open_source
        from bascule.engine.region import Region
        from bascule.engine.verify import sha256_of

        device = open_source(Region(path))
        try:
            began = time.perf_counter()
            sha256_of(device, length)
            return time.perf_counter() - began
        finally:
            device.close()
    buffer = mmap.mmap(-1, 4 * MIB)
    fd = open_direct(path, os.O_RDONLY)
    try:
        began = time.perf_counter()
        for at in range(0, length, len(buffer)):
            os.preadv(fd, [buffer], at)
        return time.perf_counter() - began
    finally:
        os.close(fd)


def open_direct(path: Path, mode: int) -> int:
    """A descriptor past the page cache where the file system has that."""
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError:
        return os.open(path, mode)


def copy(source: Path, target: Path) -> None:
    """Make the slot hold what `source` holds, on the medium and in no cache."""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while piece := old.read(4 * MIB):
            new.write(piece)
        os.fsync(new.fileno())
        os.posix_fadvise(new.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    """Have a payload in the page cache, as bytes from a network are in memory: the medium that is
    measured is the slot's. Some virtual machines give cached pages back within seconds."""
    with path.open("rb", buffering=0) as source:
        while source.read(4 * MIB):
            pass


def file(path: Path) -> float:
    """Seconds to read a file through the page cache and hash it twice, once in each of two threads."""
    pieces = []
    began = time.perf_counter()
    with path.open("rb", buffering=0) as source:
        while piece := source.read(MIB):
            pieces.append(piece)
    read_s = time.perf_counter() - began
    return max(read_s, sha256(pieces, 2))
