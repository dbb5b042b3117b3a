"""The variables through which systemd-boot and the running system talk (efivarfs).

Source: systemd's Boot Loader Interface. What ``bootctl set-default`` and ``bootctl set-oneshot``
do is to write two of them; doing it here needs no program and works on any folder in tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from bascule.errors import NotPermitted, StorageError

__all__ = ["EFIVARS", "LoaderVariables"]

EFIVARS = Path("/sys/firmware/efi/efivars")
_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ATTRIBUTES = struct.pack("<I", 0x7)  # non-volatile, boot services, run time
_LIMIT = 4096
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


class LoaderVariables:
    """The loader's variables in `folder`. Without such a folder there are none.

    Attributes:
        present: whether the firmware keeps variables at all.
    """

    def __init__(self, folder: Path = EFIVARS) -> None:
        self._folder = folder
        self.present = folder.is_dir()

    def get(self, name: str) -> str | None:
        """The text of a variable, or None if it is not set."""
        try:
            with self._path(name).open("rb") as file:
                data = file.read(_LIMIT)
        except OSError:
            return None
        return data[4:].decode("utf-16-le", "replace").split("\0", 1)[0] or None

    def set(self, name: str, value: str | None) -> None:
        """Set a variable, or remove it; nothing happens where there are no variables.

        Raises:
            NotPermitted, StorageError: the firmware does not take it.
        """
        if not self.present or self.get(name) == value:
            return
        path = self._path(name)
        try:
            if path.exists():
                _unlock(path)
                path.unlink()
            if value is not None:
                # One write call: efivarfs hands each to the firmware as a whole variable.
                data = _ATTRIBUTES + f"{value}\0".encode("utf-16-le")
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)
        except PermissionError as error:
            raise NotPermitted(f"EFI variable {name}: {error.strerror}") from error
        except OSError as error:
            raise StorageError(f"EFI variable {name}: {error.strerror}") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{_VENDOR}"


def _unlock(path: Path) -> None:
    """Take the immutable flag away that efivarfs puts on every variable."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = struct.unpack("i", fcntl.ioctl(fd, _GET_FLAGS, bytes(4)))[0]
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("i", flags & ~_IMMUTABLE))
        finally:
            os.close(fd)
