"""A web server that answers with exactly the bytes that a test wants, right or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(slots=True)
class Request:
    """One request as it came: request line, header lines in order, body."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """The first header of this name, in any case."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    @property
    def path(self) -> str:
        """The second word of the request line."""
        return self.line.split(" ")[1]


class Wire:
    """The server's end of one exchange."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send and wait until the socket has taken it."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()

    async def answer(
        self, status: str = "200 OK", body: bytes = b"", *headers: str, length: int | None = None
    ) -> None:
        """A well-formed answer; `length` lies about its size."""
        announced = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", *headers]
        if length != -1:
            lines.append(f"Content-Length: {announced}")
        await self.send("\r\n".join([*lines, "", ""]).encode(), body)

    async def gone(self) -> None:
        """Wait until the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            await self._reader.read()

    def reset(self) -> None:
        """End the connection without a goodbye."""
        self._writer.transport.abort()


Answering = Callable[[Request, Wire], Awaitable[None]]


@dataclass
class RawServer:
    """A server on loopback. ``async with RawServer(answering) as server: server.url``.

    Attributes:
        requests: what was asked, in order.
        closed: set whenever a connection has ended.
    """

    answering: Answering | Sequence[Answering]
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def port(self) -> int:
        """The port that the system chose."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Address without a path."""
        name = "localhost" if self.tls else self.host
        return f"{'https' if self.tls else 'http'}://{name}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._begin, self.host, 0, ssl=self.tls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            self.closed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = [
            (name, value.strip()) for name, _, value in (li.partition(":") for li in lines[1:-2])
        ]
        request = Request(lines[0], headers, b"")
        request.body = await reader.readexactly(int(request.get("Content-Length") or 0))
        number = len(self.requests)
        self.requests.append(request)
        if callable(self.answering):
            answering = self.answering
        else:
            answering = self.answering[min(number, len(self.answering) - 1)]
        await answering(request, Wire(reader, writer))


class Ticking:
    """A clock that goes on by `step` seconds each time someone looks."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 1000.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now
