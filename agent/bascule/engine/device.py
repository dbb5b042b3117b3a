"""Runs of bytes on block devices, disk images and plain files.

A `Device` writes only what differs, in whole blocks, past the page cache where the kernel lets
it (``O_DIRECT``), through it where not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.engine.aligned import PIECE, address, mine
from bascule.engine.claim import Claim, refuse_booted, refuse_mounted
from bascule.engine.region import Region
from bascule.errors import DeviceOpenError, NotEnoughSpace, Stopped, StorageError

if TYPE_CHECKING:
    import mmap

    Bytes = bytes | bytearray | memoryview | mmap.mmap

ALIGNMENT = 4096
"""Bytes; what ``O_DIRECT`` wants of offset, length and memory on every device in use."""

_ZEROS = bytes(PIECE)
_PROBES = (0, 1000, 2000, 3000)
_DIRECT_RUNS = 4
"""More separate runs than this in one piece go through the page cache, which merges them."""

_HOPELESS = 8 << 20
"""Bytes without one equal block after which what is there is read only now and then: looking for
the same again would cost a read of the whole slot to save no write."""


class Device:
    """An open `Region`. Safe for several threads that touch different blocks.

    Attributes:
        size: bytes.
        flushes: how often it was flushed.
        dirty: there may be bytes that have not reached the medium. True at first: what is found
            there may be another process's, still in a cache.
    """

    def __init__(self, region: Region, *, write: bool, claim: Claim | None = None) -> None:
        self.region = region
        self.flushes = 0
        self.dirty = True
        self._claim = claim
        self._direct: int | None = None
        self._direct_unusable: int | None = None
        self._apart = 0
        mode = os.O_RDWR if write else os.O_RDONLY
        try:
            self._fd = os.open(region.path, mode | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceOpenError(
                f"{region.path}: {error.strerror}", path=str(region.path)
            ) from error
        try:
            whole = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            os.close(self._fd)
            raise _storage_error(error, region.path, "measure") from error
        self.size = region.size if region.size is not None else whole - region.offset
        if region.offset < 0 or self.size < 0 or region.offset + self.size > whole:
            os.close(self._fd)
            raise DeviceOpenError(
                f"{region.path} has {whole} bytes; the region ends at {region.offset + self.size}",
                path=str(region.path),
            )
        if region.offset % ALIGNMENT == 0:
            try:
                self._direct = os.open(region.path, mode | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:
                self._direct = None

    def close(self) -> None:
        """Give the device back. Does not flush. More than once is fine."""
        for fd in (self._fd, self._direct, self._direct_unusable):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._direct, self._direct_unusable = -1, None, None
        if self._claim is not None:
            self._claim.release()

    def read(self, offset: int, length: int, *, pad: bool = False) -> bytes:
        """Exactly `length` bytes through the page cache.

        Args:
            pad: bytes past the end read as zeros (a file whose last block is short).

        Raises:
            StorageError: past the end, or the device fails.
        """
        short = max(0, min(length, offset + length - self.size))
        if short and not pad:
            self._refuse(offset, length)
        wanted = length - short
        pieces: list[bytes] = []
        got = 0
        while got < wanted:
            try:
                piece = os.pread(self._fd, wanted - got, self.region.offset + offset + got)
            except OSError as error:
                raise _storage_error(error, self.region.path, "read") from error
            if not piece:
                raise StorageError(
                    f"{self.region.path} ends at byte {offset + got}", path=str(self.region.path)
                )
            pieces.append(piece)
            got += len(piece)
        if short:
            pieces.append(bytes(short))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from the medium, past the page cache where that is possible.

        Args:
            view: page-aligned memory (of an ``mmap``) for ``O_DIRECT`` to work.

        Raises:
            StorageError: past the end, or the device fails.
        """
        length = len(view)
        if offset + length > self.size:
            self._refuse(offset, length)
        absolute = self.region.offset + offset
        done = 0
        while done < length:
            # Once for each turn: another thread may forget it at any moment.
            direct = self._direct
            fd = direct if direct is not None else self._fd
            if (length - done) % ALIGNMENT or (absolute + done) % ALIGNMENT:
                fd = self._fd
            if fd == self._fd:
                os.posix_fadvise(fd, absolute + done, length - done, os.POSIX_FADV_DONTNEED)
            try:
                got = os.preadv(fd, [view[done:]], absolute + done)
            except OSError as error:
                if error.errno == errno.EINVAL and fd != self._fd:
                    self._forget_direct()
                    continue
                raise _storage_error(error, self.region.path, "read") from error
            if got == 0:
                raise StorageError(
                    f"{self.region.path} ends at byte {offset + done}",
                    path=str(self.region.path),
                )
            done += got

    def sha256(
        self, spans: Iterable[tuple[int, int]], stop: threading.Event | None = None
    ) -> bytes:
        """SHA-256 of several runs of bytes, one behind the other, read as by `read_into`.

        Args:
            spans: offset and length of each, bytes.
            stop: ends it early with `Stopped`.

        Raises:
            StorageError: past the end, or the device fails.
        """
        digest = hashlib.sha256()
        buffer = mine().theirs
        for offset, length in spans:
            for start in range(0, length, PIECE):
                if stop is not None and stop.is_set():
                    raise Stopped
                with buffer[: min(PIECE, length - start)] as view:
                    self.read_into(offset + start, view)
                    digest.update(view)
        return digest.digest()

    def update(self, offset: int, data: Bytes, block: int = ALIGNMENT) -> tuple[int, int]:
        """Make the bytes at `offset` equal `data`, touching only blocks that differ.

        Args:
            block: bytes; what counts as one block.

        Returns:
            (bytes written, bytes found to be there already).

        Raises:
            StorageError: past the end, or the device fails. NotEnoughSpace: ENOSPC.
        """
        view = memoryview(data).cast("B")
        if offset + len(view) > self.size:
            self._refuse(offset, len(view))
        written = 0
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            written += self._update_piece(offset + start, piece, block)
        return written, len(view) - written

    def zero(self, offset: int, length: int, block: int = ALIGNMENT) -> tuple[int, int]:
        """Make `length` bytes zero; as `update`."""
        written = skipped = 0
        for start in range(0, length, PIECE):
            piece = memoryview(_ZEROS)[: min(PIECE, length - start)]
            more = self.update(offset + start, piece, block)
            written += more[0]
            skipped += more[1]
        return written, skipped

    def flush(self) -> None:
        """fdatasync: returns when the medium has it.

        Raises:
            StorageError: a write that the kernel had accepted did not reach the medium.
        """
        self.dirty = False
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.dirty = True
            raise _storage_error(error, self.region.path, "flush") from error
        self.flushes += 1

    def _update_piece(self, offset: int, piece: memoryview, block: int) -> int:
        ours = mine().take(piece)
        at = address(ours)
        runs = list(self._differing(offset, ours, block))
        direct = self._direct is not None and len(runs) <= _DIRECT_RUNS
        for start, end in runs:
            aligned = direct and (at + start) % ALIGNMENT == 0
            self._write(offset + start, ours[start:end], aligned)
        if runs:
            self.dirty = True
        return sum(end - start for start, end in runs)

    def _differing(self, offset: int, ours: memoryview, block: int) -> Iterator[tuple[int, int]]:
        length = len(ours)
        if self._apart >= _HOPELESS and self._apart % _HOPELESS >= length:
            self._apart += length
            yield (0, length)
            return
        memory = mine()
        theirs = memory.theirs[:length]
        try:
            self._peek(offset, theirs)
        except StorageError:
            # An unreadable block may well take a write; the read-back has the last word.
            yield (0, length)
            return
        if memory.equal(ours):
            self._apart = 0
            return
        known = _unequal(ours, theirs, block)
        if 0 not in known:
            self._apart += length
            yield (0, length)
            return
        start: int | None = None
        for number, unequal in enumerate(known):
            at = number * block
            end = min(at + block, length)
            if unequal or bytes(ours[at:end]) != bytes(theirs[at:end]):
                start = at if start is None else start
                continue
            self._apart = 0
            if start is not None:
                yield (start, at)
                start = None
        if start is not None:
            yield (start, length)

    def _peek(self, offset: int, view: memoryview) -> None:
        if self._direct is not None:
            self.read_into(offset, view)
            return
        view[:] = self.read(offset, len(view))

    def _write(self, offset: int, data: memoryview, direct: bool) -> None:
        absolute = self.region.offset + offset
        whole = not (absolute % ALIGNMENT or len(data) % ALIGNMENT)
        if direct and whole and self._write_direct(absolute, data):
            return
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], absolute + done)
            except OSError as error:
                raise _storage_error(error, self.region.path, "write") from error

    def _write_direct(self, absolute: int, data: memoryview) -> bool:
        done = 0
        while done < len(data):
            direct = self._direct
            if direct is None or done % ALIGNMENT:
                return False
            try:
                done += os.pwrite(direct, data[done:], absolute + done)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    self._forget_direct()
                    return False
                raise _storage_error(error, self.region.path, "write") from error
        return True

    def _forget_direct(self) -> None:
        # Left open until close(): another thread may be inside a call on it.
        direct, self._direct = self._direct, None
        if direct is not None:
            self._direct_unusable = direct

    def _refuse(self, offset: int, length: int) -> None:
        raise StorageError(
            f"bytes {offset} to {offset + length} lie outside {self.region.path} "
            f"({self.size} bytes)",
            path=str(self.region.path),
        )


def _unequal(ours: memoryview, there: memoryview, block: int) -> bytes:
    """One byte for each block: not zero if a few probes already tell that it differs.

    Nearly every block that differs does so at one of them, and slices with a stride look at all
    blocks at once, where a comparison of each would cost more than the write.
    """
    found = 0
    for probe in _PROBES:
        if probe < block:
            mine, other = ours[probe::block].tobytes(), there[probe::block].tobytes()
            width = len(mine)
            mask = int.from_bytes(mine, "big") ^ int.from_bytes(other, "big")
            # A last block that ends before the probe counts as equal.
            found |= mask << 8 * (-(-len(ours) // block) - width)
    return found.to_bytes(-(-len(ours) // block), "big")


def open_source(region: Region) -> Device:
    """Open a region for reading only.

    Raises:
        DeviceOpenError: it cannot be opened or is shorter than the region says.
    """
    return Device(region, write=False)


def open_target(region: Region, *, booted: Iterable[Region] = ()) -> Device:
    """Open a region for writing, alone.

    Args:
        booted: parts of the running slot; nothing that touches one of them is opened.

    Raises:
        WouldTouchBootedSlot: it is part of the running slot.
        DeviceInUse: mounted, or another process holds it.
        DeviceOpenError: it cannot be opened.
    """
    refuse_booted(region, booted)
    try:
        refuse_mounted(region.path)
    except OSError as error:
        raise DeviceOpenError(f"{region.path}: {error.strerror}", path=str(region.path)) from error
    claim = Claim(region.path)
    try:
        return Device(region, write=True, claim=claim)
    except BaseException:
        claim.release()
        raise


def flush_folder(path: Path) -> None:
    """fsync a folder, so that names in it survive a power cut.

    Raises:
        StorageError: it cannot be opened or flushed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _storage_error(error, path, "flush") from error


def _storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    kind = NotEnoughSpace if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    return (kind or StorageError)(
        f"cannot {verb} {path}: {error.strerror}", path=str(path), errno=error.errno
    )
