"""The payload as a stream of bytes from any offset, whatever its servers do on the way.

Rules source: reference flatcar.md 2.6, 3.5, 6.5: no Range header from offset 0, ``bytes=N-`` else;
a dropped connection is taken up again after 20 s, up to 20 times; several addresses, each given up
after its share of failures. Where the original trusts "2xx", this insists on 206 with the right
Content-Range, or cuts the prefix off a 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bascule.engine.answer import Answer
from bascule.engine.transport import READ_BUFFER, Patience, Tls, Transport, basic
from bascule.engine.trouble import ExchangeFailed, Trouble
from bascule.errors import (
    BasculeError,
    PayloadSizeMismatch,
    TransferError,
    TransferHttpError,
    TransferStalled,
)

PROGRESS = 1 << 20
"""Bytes after which a reconnection counts as a fresh start: 20 in a row, not 20 in a week."""

LONGEST_RETRY_AFTER = 600.0

_TRY_AGAIN = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)


class Kind(enum.Enum):
    """What happened to a download on its way."""

    ASKED = "a request is sent"
    FAILED = "a try failed; the same address is tried again"
    ABANDONED = "an address is given up"


@dataclass(frozen=True, slots=True)
class FetchEvent:
    """One thing that happened.

    Attributes:
        kind: see `Kind`.
        url_index: which address.
        offset: bytes of the payload that were there already.
        sentence: what was seen; "" for ASKED.
        number: error number for the back-off rules (reference 3.5); 0 for ASKED.
    """

    kind: Kind
    url_index: int
    offset: int
    sentence: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """HTTP Basic, sent over https only and never to where a redirect leads."""

    user: str
    password: str


class _Fault(Exception):
    """One try failed.

    Attributes:
        error: what it would be called if it were the last one.
        lasting: the address is no good; trying it again is pointless.
        wait: seconds that the server asks for.
    """

    def __init__(self, error: BasculeError, *, lasting: bool, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.lasting = lasting
        self.wait = wait


class HttpSource:
    """A payload at one or several addresses. Implements `engine.stream.ByteSource`.

    Args:
        urls: complete addresses, in the order of preference.
        size: announced bytes, or None; more never comes out.
        start: index of the address to begin with (`updater.payload_state`).
        max_failures: failures in a row before an address is given up.
        max_reconnects: tries in a row without `PROGRESS` new bytes, over all addresses.
        retry_wait: seconds before an address that failed is asked again.
        credentials: see `Credentials`.
        attempt: id of the attempt, sent as ``X-Bascule-Attempt``.
        limiter: awaited with the number of bytes that came, those of a prefix that is cut off too,
            before they come out (`engine.limits`); what it raises ends the stream.
        read_buffer: bytes gathered before they come out; less for a tight bandwidth limit, so that
            a server does not see one long pause after another.
        on_event: told of every request and failure, in the loop.
        sleep: how to wait.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        size: int | None,
        start: int = 0,
        max_failures: int = 10,
        max_reconnects: int = 20,
        retry_wait: float = 20.0,
        credentials: Credentials | None = None,
        attempt: str = "",
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        patience: Patience | None = None,
        environ: Mapping[str, str] | None = None,
        limiter: Callable[[int], Awaitable[None]] | None = None,
        read_buffer: int = READ_BUFFER,
        on_event: Callable[[FetchEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not urls:
            raise ValueError("a payload needs an address")
        self._urls = tuple(urls)
        self._size = size
        self._max_failures = max(1, max_failures)
        self._max_reconnects = max_reconnects
        self._retry_wait = retry_wait
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        if attempt:
            self._headers["X-Bascule-Attempt"] = attempt
        self._secret = (
            {"Authorization": basic(credentials.user, credentials.password)} if credentials else {}
        )
        self._tls = tls
        self._patience = patience
        self._environ = environ
        self._limiter = limiter
        self._read_buffer = read_buffer
        self._on_event = on_event
        self._clock = clock
        self._sleep = sleep
        self.url_index = start % len(self._urls)
        self.url_failures = 0

    async def stream(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Bytes of the payload from `offset` to its end.

        Close it (``contextlib.aclosing``) if it is left early; that ends the connection.

        Raises:
            TransferHttpError: every address answers with an HTTP error.
            TransferStalled: every address is too slow.
            PayloadSizeMismatch: every address has a file of another length.
            TransferError: any other way in which no address gives the payload.
            ValueError: `offset` is negative or beyond the announced size.
        """
        if offset < 0 or (self._size is not None and offset > self._size):
            raise ValueError(f"offset {offset} is not within the payload")
        position, reconnects, fresh = offset, 0, 0
        given_up: dict[int, BasculeError] = {}
        async with Transport(
            tls=self._tls,
            patience=self._patience,
            environ=self._environ,
            clock=self._clock,
            read_buffer=self._read_buffer,
        ) as transport:
            while self._size is None or position < self._size:
                try:
                    body = self._once(transport, position)
                    async with contextlib.aclosing(body):
                        async for chunk in body:
                            position += len(chunk)
                            fresh += len(chunk)
                            self.url_failures = 0
                            yield chunk
                    return
                except _Fault as fault:
                    if fresh >= PROGRESS:
                        reconnects = fresh = 0
                    reconnects += 1
                    wait = await self._after(fault, position, given_up, reconnects)
                if wait > 0:
                    await self._sleep(wait)

    async def _after(
        self, fault: _Fault, position: int, given_up: dict[int, BasculeError], reconnects: int
    ) -> float:
        """Decide what follows a failed try: seconds to wait, or the error that ends it all."""
        self.url_failures += 1
        index = self.url_index
        sentence = str(fault)
        spent = reconnects > self._max_reconnects
        if fault.lasting or spent or self.url_failures >= self._max_failures:
            given_up[index] = fault.error
            self._tell(Kind.ABANDONED, position, sentence, fault.error.number)
            left = [i for i in range(len(self._urls)) if i not in given_up]
            self.url_failures = 0
            if spent or not left:
                self.url_index = (index + 1) % len(self._urls)
                raise self._verdict(list(given_up.values())) from fault
            self.url_index = next((i for i in left if i > index), left[0])
            return 0.0
        self._tell(Kind.FAILED, position, sentence, fault.error.number)
        return max(self._retry_wait, fault.wait)

    def _verdict(self, errors: list[BasculeError]) -> BasculeError:
        if len(errors) == 1:
            return errors[0]
        kinds = {type(e) for e in errors}
        kind = kinds.pop() if len(kinds) == 1 else TransferError
        return kind("; ".join(e.detail for e in errors))

    def _tell(self, kind: Kind, offset: int, sentence: str = "", number: int = 0) -> None:
        if self._on_event is not None:
            self._on_event(FetchEvent(kind, self.url_index, offset, sentence, number))

    async def _once(self, transport: Transport, position: int) -> AsyncGenerator[bytes, None]:
        """One request; ends where the payload ends. Raises _Fault."""
        headers = dict(self._headers)
        if position:
            headers["Range"] = f"bytes={position}-"
        self._tell(Kind.ASKED, position)
        try:
            async with transport.exchange(
                "GET", self._urls[self.url_index], headers=headers, secret=self._secret
            ) as answer:
                skip = self._accept(answer, position)
                async with contextlib.aclosing(self._pieces(answer)) as pieces:
                    async for chunk in pieces:
                        if self._limiter is not None:
                            await self._limiter(len(chunk))
                        if skip:
                            cut = min(skip, len(chunk))
                            skip -= cut
                            chunk = chunk[cut:]
                            if not chunk:
                                continue
                        position += len(chunk)
                        if self._size is not None and position > self._size:
                            raise _wrong_size(
                                answer, f"sends more than the announced {self._size} bytes"
                            )
                        yield chunk
                        if position == self._size:
                            return
        except ExchangeFailed as e:
            raise _fault(e) from e
        if self._size is not None:
            raise _Fault(
                TransferError(
                    f"{answer.address}: it ended {self._size - position} bytes too early"
                ),
                lasting=False,
            )
        if skip:
            raise _wrong_size(answer, "has fewer bytes than were there before")

    async def _pieces(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The body; under a limit in pieces that are each paid for with a short pause.

        A socket hands out 256 KiB at once, whatever aiohttp is asked to gather.
        """
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if self._limiter is None or len(chunk) <= self._read_buffer:
                    yield chunk
                    continue
                for start in range(0, len(chunk), self._read_buffer):
                    yield chunk[start : start + self._read_buffer]

    def _accept(self, answer: Answer, position: int) -> int:
        """Check status and lengths; bytes to cut off the front. Raises _Fault."""
        if answer.status == 206 and position:
            self._check_range(answer, position)
            return 0
        if answer.status == 200:
            if None not in (self._size, answer.length) and answer.length != self._size:
                raise _wrong_size(
                    answer, f"has {answer.length} bytes instead of {self._size}{_page(answer)}"
                )
            return position
        if answer.status == 416:
            raise _wrong_size(answer, f"has nothing from byte {position} on")
        detail = f"{answer.address}: {answer.status} {answer.reason}".rstrip()
        error = TransferHttpError(detail, status=answer.status)
        passing = answer.status >= 500 or answer.status in _TRY_AGAIN
        raise _Fault(error, lasting=not passing, wait=_retry_after(answer))

    def _check_range(self, answer: Answer, position: int) -> None:
        text = answer.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if match is None or int(match[1]) != position:
            raise _Fault(
                TransferError(
                    f"{answer.address}: asked for bytes from {position}, it sends {text[:80]!r}"
                ),
                lasting=True,
            )
        last, total = int(match[2]), match[3]
        if self._size is not None and (
            last >= self._size or (total != "*" and int(total) != self._size)
        ):
            raise _wrong_size(answer, f"has {total} bytes instead of {self._size}")


def _wrong_size(answer: Answer, what: str) -> _Fault:
    return _Fault(PayloadSizeMismatch(f"{answer.address} {what}"), lasting=True)


def _page(answer: Answer) -> str:
    kind = answer.headers.get("Content-Type", "").lower()
    return ", and it is a web page" if kind.startswith("text/html") else ""


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("Retry-After", "").strip()
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return 0.0
    return min(float(text), LONGEST_RETRY_AFTER)


def _fault(failure: ExchangeFailed) -> _Fault:
    if failure.trouble is Trouble.STALLED:
        return _Fault(TransferStalled(failure.sentence), lasting=False)
    lasting = failure.trouble in (
        Trouble.ADDRESS,
        Trouble.TLS,
        Trouble.REDIRECT,
        Trouble.MALFORMED,
    )
    return _Fault(
        TransferError(failure.sentence, trouble=failure.trouble.name.lower()), lasting=lasting
    )
