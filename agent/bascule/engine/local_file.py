"""The payload as a stream of bytes from a file: a stick, a share, a download of the operator's."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from bascule.engine.thread import in_thread
from bascule.errors import PayloadSizeMismatch, TransferError

CHUNK = 2 << 20
"""Bytes read at once: each read is a way to another thread and back."""


def file_url(path: Path) -> str:
    """``file:///…`` for an absolute path, any byte in it."""
    return "file://" + quote(os.fsencode(path))


def url_file(url: str) -> Path:
    """The path of a ``file:`` address on this host. Raises ValueError for any other."""
    parts = urlsplit(url)
    path = os.fsdecode(
        unquote(parts.path, encoding="utf-8", errors="surrogateescape").encode(
            "utf-8", "surrogateescape"
        )
    )
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ValueError(f"not the address of a file on this host: {url[:200]}")
    if "\0" in path:
        raise ValueError("the address of a file contains a zero byte")
    return Path(path)


class FileSource:
    """A payload in a file. Implements `engine.stream.ByteSource`.

    Args:
        path: a regular file.
        size: announced bytes, or None to take the file as it is.
    """

    def __init__(self, path: Path, *, size: int | None) -> None:
        self._path = path
        self._size = size

    async def stream(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Bytes from `offset` to the end.

        Raises:
            PayloadSizeMismatch: the file is not as long as was announced.
            TransferError: it cannot be opened or read (a stick was pulled), or is no regular file.
            ValueError: `offset` is negative or beyond the end.
        """
        handle = await in_thread(lambda: open_regular(self._path))
        try:
            length = os.fstat(handle).st_size
            if self._size is not None and length != self._size:
                raise PayloadSizeMismatch(f"{self._path} has {length} bytes, not {self._size}")
            if not 0 <= offset <= length:
                raise ValueError(f"offset {offset} is not within the payload")
            while offset < length:
                chunk = await in_thread(lambda at=offset: _read(self._path, handle, at, length))  # type: ignore[misc]
                offset += len(chunk)
                yield chunk
        finally:
            os.close(handle)


def measure(path: Path) -> tuple[int, bytes]:
    """Size and SHA-256 of a payload file, read whole. Blocks. Raises TransferError."""
    handle = open_regular(path)
    try:
        length, digest, offset = os.fstat(handle).st_size, hashlib.sha256(), 0
        while offset < length:
            chunk = _read(path, handle, offset, length)
            digest.update(chunk)
            offset += len(chunk)
        return length, digest.digest()
    finally:
        os.close(handle)


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, never of a fifo or a device. Raises TransferError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        raise TransferError(f"{path}: {e.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise TransferError(f"{path}: not a regular file")
    return handle


def _read(path: Path, handle: int, offset: int, length: int) -> bytes:
    try:
        chunk = os.pread(handle, min(CHUNK, length - offset), offset)
    except OSError as e:
        raise TransferError(f"{path}: {e.strerror} at byte {offset}") from None
    if not chunk:
        raise TransferError(f"{path}: it became shorter while it was read")
    return chunk
