"""Where figures are shown: a unix socket, or a file for node_exporter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from bascule.errors import StorageError
from bascule.faces.metrics import CONTENT_TYPE

_REQUEST_WAIT = 1.0
_REQUEST_MAX = 8192
_CLIENTS = 8


class SocketServer:
    """Serves the page on a unix socket: as HTTP to who asks in HTTP, else as plain text.

    Args:
        path: the socket; a stale one is replaced, a live one is not.
        page: makes the page, for every client anew.
        mode: permissions of the socket.

    Raises (start):
        StorageError: the socket cannot be made, or somebody serves it already.
    """

    def __init__(
        self, path: Path, page: Callable[[], Awaitable[str]], *, mode: int = 0o660
    ) -> None:
        self.path = path
        self._page = page
        self._mode = mode
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen."""
        if self._server is not None:
            return
        try:
            await self._remove_stale()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(str(self.path))
                # Before it listens: nobody may connect under wider permissions.
                self.path.chmod(self._mode)
                self._server = await asyncio.start_unix_server(
                    self._serve, sock=listener, limit=_REQUEST_MAX
                )
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Stop, and take the socket away."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _remove_stale(self) -> None:
        if not self.path.is_socket():
            return
        try:
            _, writer = await asyncio.open_unix_connection(self.path)
        except OSError:
            self.path.unlink()
            return
        writer.close()
        raise StorageError(f"{self.path}: somebody serves this socket already")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= _CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            async with asyncio.timeout(10 * _REQUEST_WAIT):
                await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Zincati's exporters only listen; Prometheus' own tools and curl speak HTTP. Who says
        # nothing for a moment, or nothing more at all, gets plain text.
        request = b""
        with contextlib.suppress(
            TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_REQUEST_WAIT):
                request = await reader.readuntil(b"\r\n\r\n")
        if not request:
            writer.write((await self._page()).encode("utf-8", "replace"))
        else:
            words = request.split(b"\r\n", 1)[0].split(b" ")
            known = len(words) == 3 and words[0] in (b"GET", b"HEAD")
            body = (await self._page()).encode("utf-8", "replace") if known else b"only GET\n"
            status = "200 OK" if known else "405 Method Not Allowed"
            kind = CONTENT_TYPE if known else "text/plain"
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode() + (b"" if words[0] == b"HEAD" else body))
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def write_textfile(path: Path, page: str) -> None:
    """Replace `path` in one step, readable for node_exporter. Blocks: call it in a thread.

    Raises:
        StorageError: the file cannot be written.
    """
    import tempfile  # brings shutil and three decoders: not into a daemon that writes no file

    temporary = ""
    try:
        # Not a name that ends in .prom: node_exporter would read the unfinished file.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(page.encode("utf-8", "replace"))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise StorageError(f"{path}: {error.strerror}") from error
