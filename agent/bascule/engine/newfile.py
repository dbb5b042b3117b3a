"""A part that is a file of its own (the kernel on /boot): written aside, then put in place.

``name.partial`` in the same folder takes the bytes; it is cut to size, flushed and renamed only
when the payload is proven. Its whole room is taken before the first byte is fetched, so a short
/boot is found out then, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from bascule.engine.claim import refuse_booted
from bascule.engine.device import flush_folder, open_target
from bascule.engine.region import Region
from bascule.engine.room import Want, shortfalls
from bascule.errors import DeviceOpenError, NotEnoughSpace, StorageError

SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Where the bytes of `path` are gathered."""
    return path.with_name(path.name + SUFFIX)


def discard(path: Path) -> None:
    """Remove what an earlier, unfinished installation left beside `path`."""
    with contextlib.suppress(OSError):
        partial_path(path).unlink()


class NewFile:
    """The file while it is being written.

    Attributes:
        path: what it will be called.
        device: where the bytes go.
        kept: an earlier attempt's bytes are still there.
    """

    def __init__(
        self, region: Region, room: int, *, resume: bool, booted: Iterable[Region] = ()
    ) -> None:
        """Take `room` bytes.

        Args:
            resume: keep an earlier attempt's bytes, if there are any.

        Raises:
            NotEnoughSpace: the file system is too small, even without the old file.
            WouldTouchBootedSlot: the path is the running slot's.
            DeviceOpenError, StorageError: it cannot be made.
        """
        self.path = region.path
        self._partial = partial_path(region.path)
        running = tuple(booted)
        refuse_booted(region, running)
        # What an earlier attempt left, and the old file of the cleared slot, both give way.
        want = Want(self.path.name, self.path.parent, room, (self._partial, self.path))
        if lacking := shortfalls([want]):
            raise NotEnoughSpace(lacking[0], path=str(self.path), needed=room)
        self.kept = resume and self._partial.is_file()
        if not self.kept:
            discard(self.path)
        try:
            self._reserve(room)
            self.device = open_target(Region(self._partial, 0, room), booted=running)
        except BaseException:
            if not self.kept:
                discard(self.path)
            raise

    def commit(self, size: int) -> None:
        """Cut to `size` bytes, flush, and put it in place.

        Raises:
            StorageError: one of these failed; the old file is then still there.
        """
        try:
            fd = os.open(self._partial, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.device.close()
            self._partial.rename(self.path)
        except OSError as error:
            raise StorageError(
                f"cannot put {self.path} in place: {error.strerror}", path=str(self.path)
            ) from error
        flush_folder(self.path.parent)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self.device.close()
        discard(self.path)

    def close(self) -> None:
        """Leave the bytes for a later attempt."""
        self.device.close()

    def _reserve(self, room: int) -> None:
        try:
            self._allocate(room)
        except OSError as error:
            if error.errno != 28:
                raise DeviceOpenError(
                    f"{self._partial}: {error.strerror}", path=str(self._partial)
                ) from error
        else:
            return
        # The slot is cleared, so its old file boots nothing any more: it gives way.
        with contextlib.suppress(OSError):
            self.path.unlink()
        try:
            self._allocate(room)
        except OSError as error:
            kind = NotEnoughSpace if error.errno == 28 else DeviceOpenError
            raise kind(
                f"{room} bytes for {self._partial}: {error.strerror}", path=str(self._partial)
            ) from error

    def _allocate(self, room: int) -> None:
        fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if room:
                os.posix_fallocate(fd, 0, room)
            os.ftruncate(fd, room)
            os.fsync(fd)
        finally:
            os.close(fd)
        flush_folder(self.path.parent)
