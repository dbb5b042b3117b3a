"""The answer to one HTTP exchange, read with an eye on the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bascule.engine.trouble import ExchangeFailed, Trouble, explain

if TYPE_CHECKING:
    import aiohttp


class StallMeter:
    """Tells when an exchange has been slower than the floor for too long.

    Fed with time spent waiting and bytes received, in any portions.
    """

    def __init__(self, rate: float, limit: float) -> None:
        self._rate = rate
        self._limit = limit
        self._slow = 0.0
        self._seconds = 0.0
        self._bytes = 0

    def note(self, waited: float, received: int) -> bool:
        """Account for one portion; True means: give up."""
        self._seconds += max(0.0, waited)
        self._bytes += received
        if self._seconds >= 1.0:
            fast = self._bytes >= self._rate * self._seconds
            self._slow = 0.0 if fast else self._slow + self._seconds
            self._seconds, self._bytes = 0.0, 0
        return self._slow >= self._limit > 0


@dataclass(slots=True)
class Answer:
    """The answer to one exchange; valid while the exchange is open.

    Attributes:
        status: HTTP status, after redirects.
        reason: as the server words it.
        headers: case-insensitive.
        address: what answered in the end.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    address: str
    _response: aiohttp.ClientResponse
    _watch: Watch

    @property
    def length(self) -> int | None:
        """Content-Length in bytes, or None."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, never empty chunks. Raises ExchangeFailed."""
        content = self._response.content
        while True:
            try:
                chunk = await self._watch.read(content.readany)
            except ExchangeFailed:
                rest = _salvaged(content)
                if rest:
                    yield rest
                raise
            if not chunk:
                return
            yield chunk

    async def body(self, limit: int, seconds: float) -> tuple[bytes, bool]:
        """The body, and whether it ends within `limit` bytes; never more than that is kept.

        Raises ExchangeFailed: also where it takes longer than `seconds`, however steadily it comes.
        """
        pieces: list[bytes] = []
        room = limit
        deadline = self._watch.clock() + seconds
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                pieces.append(chunk[:room])
                if len(chunk) > room:
                    return b"".join(pieces), False
                room -= len(chunk)
                if self._watch.clock() > deadline:
                    raise ExchangeFailed(
                        Trouble.STALLED, f"{self.address} takes too long for its answer"
                    )
        return b"".join(pieces), True


@dataclass(slots=True)
class Watch:
    """Waits for one exchange with an eye on the clock."""

    meter: StallMeter
    tick: float
    clock: Callable[[], float]
    address: str

    async def headers(self, work: asyncio.Task[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """The response once its headers are here. Raises TransferError when it stalls."""
        try:
            while True:
                before = self.clock()
                done, _ = await asyncio.wait({work}, timeout=self.tick)
                if done:
                    return work.result()
                self._account(before, 0)
        except BaseException:
            work.cancel()
            with contextlib.suppress(BaseException):
                await work
            raise

    async def read(self, readany: Callable[[], Awaitable[bytes]]) -> bytes:
        """The next bytes of the body, b"" at its end. Raises TransferError when it stalls."""
        while True:
            before = self.clock()
            try:
                async with asyncio.timeout(self.tick):
                    chunk = await readany()
            except TimeoutError:
                self._account(before, 0)
                continue
            except Exception as e:
                raise explain(e, self.address) from e
            self._account(before, len(chunk))
            return chunk

    def _account(self, before: float, received: int) -> None:
        if self.meter.note(self.clock() - before, received):
            raise ExchangeFailed(Trouble.STALLED, f"{self.address} sends next to nothing; given up")


def _salvaged(content: aiohttp.StreamReader) -> bytes:
    """What came before the connection broke; aiohttp raises instead of handing it out.

    Without it a line that drops every few hundred kilobytes would never get anywhere.
    """
    if content.exception() is None:
        return b""
    content.set_exception(None)  # type: ignore[arg-type]
    return content.read_nowait()
