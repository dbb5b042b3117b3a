"""What is kept of a payload whose operations are all on the medium, so that its slot can be proven
again without a server: the bytes after the last operation, and the digest list.

Together with the resume record (`engine.checkpoint`) they are all that `engine.stream.install` asks
for. Nothing here is trusted: whatever is read goes through the same proofs as a download.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.engine.ledger import write_durably
from bascule.errors import LedgerError, NothingPending

if TYPE_CHECKING:
    from bascule.engine.stream import ByteSource

TAIL_LIMIT = 128 << 10
"""Bytes after the last operation: one message of signatures, 64 KiB at most by `manifest.Limits`."""

_LIST_LIMIT = 1 << 20
_AGAIN = "`updatectl prepare` fetches it again"


class TailRecorder:
    """A source that remembers the last `TAIL_LIMIT` bytes of what went through it."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._tail = bytearray()
        self._end = 0

    async def stream(self, offset: int) -> AsyncGenerator[bytes, None]:
        """As `engine.stream.ByteSource`."""
        self._tail.clear()
        self._end = offset
        async with contextlib.aclosing(_generator(self._source.stream(offset))) as chunks:
            async for chunk in chunks:
                self._end += len(chunk)
                self._tail += chunk[-TAIL_LIMIT:]
                del self._tail[:-TAIL_LIMIT]
                yield chunk

    def since(self, start: int, size: int) -> bytes:
        """The bytes from `start` to the payload's end, `size`.

        Raises:
            LedgerError: there are more than were kept.
        """
        wanted = size - start
        if not 0 <= wanted <= TAIL_LIMIT:
            raise LedgerError(f"{wanted} bytes after the last operation")
        if not wanted:
            return b""
        if self._end != size or len(self._tail) < wanted:
            raise LedgerError("the end of the payload was not seen")
        return bytes(self._tail[-wanted:])


async def _generator(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(chunks, AsyncGenerator):
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk
        return
    async for chunk in chunks:
        yield chunk


class TailSource:
    """A payload of which only the end is there. Implements `engine.stream.ByteSource`."""

    def __init__(self, tail: bytes, *, size: int) -> None:
        self._tail = tail
        self._size = size

    async def stream(self, offset: int) -> AsyncGenerator[bytes, None]:
        """Bytes from `offset`.

        Raises:
            NothingPending: they would have to be fetched.
        """
        start = self._size - len(self._tail)
        if offset < start:
            raise NothingPending(f"the resume record of what was prepared is gone; {_AGAIN}")
        yield self._tail[offset - start :]


class Keepsake:
    """The folder of one prepared payload. Methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether something is kept."""
        return self.folder.is_dir()

    def keep(self, tail: bytes, digest_list: bytes) -> None:
        """Keep both durably. Raises LedgerError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{self.folder}: {error.strerror}") from error
        write_durably(self.folder / "list", digest_list)
        write_durably(self.folder / "tail", tail)

    def tail(self) -> bytes:
        """The bytes after the last operation. Raises NothingPending."""
        return self._read("tail", TAIL_LIMIT)

    def digest_list(self) -> bytes:
        """The OpenPGP-signed list, b"" where none was asked for. Raises NothingPending."""
        return self._read("list", _LIST_LIMIT)

    def drop(self) -> None:
        """Forget it. Raises LedgerError."""
        try:
            for name in ("tail", "list", "tail.partial", "list.partial"):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise LedgerError(f"{self.folder}: {error.strerror}") from error

    def _read(self, name: str, limit: int) -> bytes:
        try:
            with (self.folder / name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise NothingPending(
                f"what was kept of the prepared release cannot be read ({error.strerror}); {_AGAIN}"
            ) from error
        if len(data) > limit:
            raise NothingPending(f"what was kept of the prepared release is damaged; {_AGAIN}")
        return data
