"""The partition table of a disk or image: read it, repair it, change its boot flags.

A change is locked, repaired first if need be, written in the order of
`bascule.formats.gpt_writes`, and read back from the medium.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bascule.errors import DeviceInUse, DeviceOpenError, NotPermitted, StorageError
from bascule.formats import gpt, gpt_writes

__all__ = ["DiskTable"]

_BLKSSZGET = 0x1268
_LOCK_STEP = 0.05
_REPAIR_ROUNDS = 3


class DiskTable:
    """The GUID partition table on `path`, a whole disk or an image file.

    Args:
        path: block device of a whole disk, or a regular file.
        sector_size: logical sector in bytes; None asks the device, or the file's own contents.
        lock_timeout: seconds to wait for another writer.
    """

    def __init__(
        self, path: Path, sector_size: int | None = None, *, lock_timeout: float = 10.0
    ) -> None:
        self.path = path
        self.sector_size = sector_size
        self.lock_timeout = lock_timeout

    def examine(self) -> gpt.Copies:
        """Both copies as they are on the medium.

        Raises:
            DeviceOpenError, StorageError: it cannot be opened or read.
            TableError: no table fits there at all.
        """
        with self._opened(write=False) as medium:
            return medium.examine()

    def repair(self) -> str | None:
        """Make both copies whole and equal; says what was wrong, or None.

        Raises:
            TableBroken, TableUnsound: there is nothing good to repair from.
            DeviceInUse: another process is writing it.
        """
        with self._opened(write=True) as medium:
            return medium.repair()[1]

    def change(
        self, edit: Callable[[gpt.PartitionTable], gpt.PartitionTable]
    ) -> tuple[gpt.PartitionTable, str | None]:
        """Put `edit(table)` on the disk; boot flags are all that it may change.

        `edit` sees the table under the lock, so a decision made in it is made on what is there.

        Returns:
            The new table, and what had to be repaired before, or None.

        Raises:
            Whatever `edit` raises, with the disk as it was (repaired at most); as `repair`.
        """
        with self._opened(write=True) as medium:
            edit(medium.examine().sound)
            copies, repaired = medium.repair()
            table = edit(copies.sound)
            medium.carry_out(gpt_writes.update(copies, table))
            return table, repaired

    @contextlib.contextmanager
    def _opened(self, *, write: bool) -> Iterator[_Medium]:
        medium = _Medium(self.path, self.sector_size, write=write)
        try:
            if write:
                medium.lock(self.lock_timeout)
            yield medium
        finally:
            medium.close()


class _Medium:
    """An open disk: sectors in and out, past the page cache on block devices."""

    def __init__(self, path: Path, sector_size: int | None, *, write: bool) -> None:
        self.path = path
        mode = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            self._fd = os.open(path, mode)
        except PermissionError as error:
            raise NotPermitted(f"{path}: {error.strerror}", path=str(path)) from error
        except OSError as error:
            raise DeviceOpenError(f"{path}: {error.strerror}", path=str(path)) from error
        # The whole disk and its partitions have page caches of their own: writing through the
        # disk's could carry stale bytes of a neighbouring partition with it.
        self._direct: int | None = None
        try:
            info = os.fstat(self._fd)
            self._block = stat.S_ISBLK(info.st_mode)
            if not self._block and not stat.S_ISREG(info.st_mode):
                raise DeviceOpenError(f"{path} is neither a disk nor a file", path=str(path))
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            if self._block:
                with contextlib.suppress(OSError):
                    self._direct = os.open(path, mode | os.O_DIRECT)
                self.sector_size = sector_size or _device_sector_size(self._fd)
            else:
                self.sector_size = sector_size or gpt.sector_size_of(self.read)
        except OSError as error:
            self.close()
            raise StorageError(f"{path}: {error.strerror}", path=str(path)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in (self._direct, self._fd):
            if fd is not None:
                os.close(fd)

    def lock(self, timeout: float) -> None:
        """Keep other writers of the table out until `close`.

        On a disk ``flock`` on its node, which makes udev wait too (systemd, "Locking Block
        Device Access"). On an image a lock on its first byte only: whoever writes a slot within
        the same image holds the file as a whole.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self._block:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
                    fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, whole)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StorageError(
                        f"cannot lock {self.path}: {error.strerror}", path=str(self.path)
                    ) from error
            if time.monotonic() >= deadline:
                raise DeviceInUse(
                    f"another program holds the partition table of {self.path}",
                    path=str(self.path),
                )
            time.sleep(_LOCK_STEP)

    def examine(self) -> gpt.Copies:
        return gpt.examine(self.read, self.size, self.sector_size)

    def repair(self) -> tuple[gpt.Copies, str | None]:
        found: str | None = None
        for _ in range(_REPAIR_ROUNDS):
            copies = self.examine()
            steps = gpt_writes.repair(copies)
            if not steps:
                return copies, found
            found = found or gpt_writes.repair_reason(copies)
            self.carry_out(steps)
        raise StorageError(f"{self.path}: the partition table does not stay repaired")

    def carry_out(self, steps: list[gpt_writes.Step]) -> None:
        """Write and flush in order, then read back.

        Raises:
            StorageError: the device fails, or reads back something else.
        """
        for step in steps:
            if isinstance(step, gpt_writes.Write):
                self._write(step.offset, step.data)
            else:
                self._flush()
        for step in steps:
            if isinstance(step, gpt_writes.Write):
                there = self.read(step.offset, len(step.data))
                if there != step.data:
                    raise StorageError(
                        f"{self.path}: the partition table does not read back as it was written "
                        f"at byte {step.offset}",
                        path=str(self.path),
                    )

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from the medium, fewer at the end of the disk."""
        length = max(0, min(length, self.size - offset))
        try:
            if self._direct is not None:
                with contextlib.suppress(_NotAlignedError):
                    return self._read_direct(self._direct, offset, length)
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
            return _read_fully(self._fd, offset, length)
        except OSError as error:
            raise self._failed("read", error) from error

    def _read_direct(self, fd: int, offset: int, length: int) -> bytes:
        sector = _device_sector_size(fd)
        begin = offset // sector * sector
        span = -(-(offset + length - begin) // sector) * sector
        if not length:
            return b""
        with mmap.mmap(-1, span) as buffer:
            done = 0
            while done < offset + length - begin:
                try:
                    with memoryview(buffer) as whole, whole[done:] as rest:
                        got = os.preadv(fd, [rest], begin + done)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        raise _NotAlignedError from error
                    raise
                if not got:
                    break
                done += got
            return buffer[offset - begin : min(done, offset - begin + length)]

    def _write(self, offset: int, data: bytes) -> None:
        try:
            if self._direct is not None:
                with contextlib.suppress(_NotAlignedError):
                    _write_direct(self._direct, offset, data)
                    return
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)
        except OSError as error:
            raise self._failed("write", error) from error

    def _flush(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed("flush", error) from error

    def _failed(self, verb: str, error: OSError) -> StorageError:
        return StorageError(
            f"cannot {verb} the partition table of {self.path}: {error.strerror}",
            path=str(self.path),
            errno=error.errno,
        )


class _NotAlignedError(Exception):
    """The device wants other alignment for O_DIRECT than we can give; go through the cache."""


def _device_sector_size(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])


def _read_fully(fd: int, offset: int, length: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _write_direct(fd: int, offset: int, data: bytes) -> None:
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        done = 0
        while done < len(data):
            try:
                with memoryview(buffer) as whole, whole[done:] as rest:
                    done += os.pwritev(fd, [rest], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and not done:
                    raise _NotAlignedError from error
                raise
