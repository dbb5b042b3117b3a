"""Streaming a payload from servers on loopback, well-behaved and otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.fetch import Credentials, FetchEvent, HttpSource, Kind
from bascule.engine.limits import RateLimit
from bascule.engine.transport import Patience, Tls, paced_buffer
from bascule.errors import (
    BudgetSpent,
    PayloadSizeMismatch,
    TransferError,
    TransferHttpError,
    TransferStalled,
)
from raw_http import RawServer, Request, Ticking, Wire

PAYLOAD = random.Random(5).randbytes(300_000)
SIZE = len(PAYLOAD)
CUT = 123_456


class Naps:
    """Sleeps that take no time and are remembered."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)


class Told(list[FetchEvent]):
    """What the source told its owner."""

    def kinds(self) -> list[Kind]:
        return [event.kind for event in self]


def source(*urls: str, **options: Any) -> HttpSource:
    return HttpSource(
        urls, **{"size": SIZE, "environ": {}, "sleep": Naps(), "retry_wait": 20.0, **options}
    )


async def gather(source: HttpSource, offset: int = 0) -> bytes:
    """All bytes of a stream."""
    return b"".join([chunk async for chunk in source.stream(offset)])


def wanted(request: Request) -> int:
    """The offset that a request asks for."""
    text = request.get("Range")
    return int(text.removeprefix("bytes=").removesuffix("-")) if text else 0


async def good(request: Request, wire: Wire) -> None:
    """A server that does as RFC 9110 says."""
    start = wanted(request)
    if start:
        head = f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}"
        await wire.answer("206 Partial Content", PAYLOAD[start:], head)
    else:
        await wire.answer("200 OK", PAYLOAD)


async def ignores_ranges(request: Request, wire: Wire) -> None:
    await wire.answer("200 OK", PAYLOAD)


async def gone(request: Request, wire: Wire) -> None:
    await wire.answer("404 Not Found", b"no such release")


def drops_after(count: int) -> Callable[[Request, Wire], Awaitable[None]]:
    """A server whose connection ends after `count` bytes of each answer."""

    async def answering(request: Request, wire: Wire) -> None:
        start = wanted(request)
        head = f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}"
        status = "206 Partial Content" if start else "200 OK"
        body = PAYLOAD[start : start + count]
        await wire.answer(status, body, *([head] if start else []), length=SIZE - start)

    return answering


# ── the plain case ───────────────────────────────────────────────────────────────────────────


async def test_the_request_is_the_originals_and_ours() -> None:
    async with RawServer(good) as server:
        assert await gather(source(server.url + "/a%2Fb/u.gz?x=%2B", attempt="a-1")) == PAYLOAD
        (request,) = server.requests
        assert request.line == "GET /a%2Fb/u.gz?x=%2B HTTP/1.1"
        assert {k.lower(): v for k, v in request.headers} == {
            "host": f"127.0.0.1:{server.port}",
            "accept": "*/*",
            "accept-encoding": "identity",
            "x-bascule-attempt": "a-1",
        }


async def test_from_an_offset() -> None:
    async with RawServer(good) as server:
        assert await gather(source(server.url), CUT) == PAYLOAD[CUT:]
        assert server.requests[0].get("Range") == f"bytes={CUT}-"


async def test_at_the_end_nothing_is_asked() -> None:
    async with RawServer(good) as server:
        assert await gather(source(server.url), SIZE) == b""
        assert server.requests == []


@pytest.mark.parametrize("offset", [-1, SIZE + 1])
async def test_an_offset_outside(offset: int) -> None:
    with pytest.raises(ValueError, match="offset"):
        await gather(source("http://127.0.0.1:9/"), offset)


async def test_a_server_that_ignores_ranges() -> None:
    async with RawServer(ignores_ranges) as server:
        assert await gather(source(server.url), CUT) == PAYLOAD[CUT:]


async def test_a_real_web_server(tmp_path: Path) -> None:
    """aiohttp's own file server, which knows ranges; a .gz on it is not unpacked."""
    (tmp_path / "u.gz").write_bytes(PAYLOAD)
    app = web.Application()
    app.router.add_static("/", tmp_path)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found = source(f"http://127.0.0.1:{port}/u.gz")
        assert await gather(found) == PAYLOAD
        assert await gather(found, CUT) == PAYLOAD[CUT:]
    finally:
        await runner.cleanup()


async def test_what_calls_itself_compressed_is_the_payload_all_the_same() -> None:
    async def labelled(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD, "Content-Encoding: gzip", "Content-Type: text/plain")

    async with RawServer(labelled) as server:
        assert await gather(source(server.url)) == PAYLOAD


async def test_chunked_and_close_delimited() -> None:
    async def chunked(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, SIZE, 70_000):
            piece = PAYLOAD[at : at + 70_000]
            await wire.send(b"%x\r\n" % len(piece), piece, b"\r\n")
        await wire.send(b"0\r\n\r\n")

    async def closing(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.0 200 OK\r\n\r\n", PAYLOAD)

    for answering in (chunked, closing):
        async with RawServer(answering) as server:
            assert await gather(source(server.url)) == PAYLOAD
            assert await gather(source(server.url, size=None)) == PAYLOAD
            assert await gather(source(server.url), CUT) == PAYLOAD[CUT:]


async def test_flatcar_updates_payload_server() -> None:
    """Answers before it has read, with bare line feeds, whatever was asked, and hangs up."""

    async def ncat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\ncontent-type: application/gzip\n")
        writer.write(b"content-length: %d\n\n" % SIZE)
        writer.write(PAYLOAD)
        await writer.drain()
        await reader.read(65536)
        writer.close()

    server = await asyncio.start_server(ncat, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/flatcar_production_update.gz"
        assert await gather(source(url)) == PAYLOAD
        assert await gather(source(url), CUT) == PAYLOAD[CUT:]


async def test_the_first_line_is_three_words_and_nothing_follows_the_head() -> None:
    seen: list[bytes] = []

    async def socat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + PAYLOAD)
        await writer.drain()
        seen.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(socat, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await gather(source(f"http://127.0.0.1:{port}/u.gz")) == PAYLOAD
        while len(seen) < 2:
            await asyncio.sleep(0.005)
    assert seen[0].split(b"\r\n")[0].split(b" ") == [b"GET", b"/u.gz", b"HTTP/1.1"]
    assert b"expect" not in seen[0].lower() and seen[1] == b""


# ── wrong lengths and ranges ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 5])
async def test_another_length_is_refused_before_a_byte_comes_out(size: int) -> None:
    async with RawServer(good) as server:
        with pytest.raises(PayloadSizeMismatch, match=f"instead of {size}"):
            await gather(source(server.url, size=size))


async def test_a_login_page_is_named() -> None:
    async def portal(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", b"<html>", "Content-Type: text/html; charset=utf-8")

    async with RawServer(portal) as server:
        with pytest.raises(PayloadSizeMismatch, match="web page"):
            await gather(source(server.url))


async def test_more_than_announced_never_comes_out() -> None:
    async def endless(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n", PAYLOAD[:-1])
        while True:
            await wire.send(b"x" * 50_000)

    received = 0
    async with RawServer(endless) as server:
        with pytest.raises(PayloadSizeMismatch, match="more than the announced"):
            async for chunk in source(server.url).stream(0):
                received += len(chunk)
    assert received <= SIZE


@pytest.mark.parametrize(
    ("content_range", "error"),
    [
        (None, TransferError),
        ("bytes 0-299999/300000", TransferError),
        (f"bytes {CUT + 1}-299999/300000", TransferError),
        ("bytes */300000", TransferError),
        ("items 5-9/10", TransferError),
        (f"bytes {CUT}-299999/300001", PayloadSizeMismatch),
        (f"bytes {CUT}-300000/*", PayloadSizeMismatch),
    ],
)
async def test_a_range_that_was_not_asked_for(
    content_range: str | None, error: type[Exception]
) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        head = [f"Content-Range: {content_range}"] if content_range else []
        await wire.answer("206 Partial Content", PAYLOAD[CUT:], *head)

    async with RawServer(answering) as server:
        with pytest.raises(error) as caught:
            await gather(source(server.url), CUT)
        assert type(caught.value) is error
        assert len(server.requests) == 1


async def test_a_range_of_unknown_total_is_fine() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        head = f"Content-Range: bytes {CUT}-{SIZE - 1}/*"
        await wire.answer("206 Partial Content", PAYLOAD[CUT:], head)

    async with RawServer(answering) as server:
        assert await gather(source(server.url), CUT) == PAYLOAD[CUT:]


async def test_partial_content_that_nobody_asked_for() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(
            "206 Partial Content", PAYLOAD, f"Content-Range: bytes 0-{SIZE - 1}/{SIZE}"
        )

    async with RawServer(answering) as server:
        with pytest.raises(TransferHttpError, match="206"):
            await gather(source(server.url))


async def test_a_server_that_gives_its_ranges_in_slices() -> None:
    async def sliced(request: Request, wire: Wire) -> None:
        start = wanted(request)
        end = min(start + 100_000, SIZE)
        head = f"Content-Range: bytes {start}-{end - 1}/{SIZE}"
        await wire.answer("206 Partial Content", PAYLOAD[start:end], head)

    async with RawServer(sliced) as server:
        assert await gather(source(server.url), 10) == PAYLOAD[10:]
        assert [wanted(r) for r in server.requests] == [10, 100_010, 200_010]


async def test_416() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("416 Range Not Satisfiable", b"", "Content-Range: bytes */100")

    async with RawServer(answering) as server:
        with pytest.raises(PayloadSizeMismatch):
            await gather(source(server.url), CUT)


# ── dropped connections ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reset", [False, True])
async def test_a_dropped_connection_is_taken_up_where_it_stopped(reset: bool) -> None:
    async def first(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[:CUT], length=SIZE)
        if reset:
            await came.wait()
            wire.reset()

    naps, told, came = Naps(), Told(), asyncio.Event()
    async with RawServer([first, good]) as server:
        found = source(server.url, sleep=naps, on_event=told.append)
        body = bytearray()
        async for chunk in found.stream(0):
            body += chunk
            came.set()
        assert bytes(body) == PAYLOAD
        again = wanted(server.requests[1])
        assert server.requests[0].get("Range") is None
        assert (again == CUT) if not reset else (0 < again <= CUT)
    assert naps.taken == [20.0]
    assert told.kinds() == [Kind.ASKED, Kind.FAILED, Kind.ASKED]
    assert told[1].number == 9 and "too early" in told[1].sentence


async def test_a_resume_that_is_answered_with_everything() -> None:
    async with RawServer([drops_after(CUT), ignores_ranges]) as server:
        assert await gather(source(server.url)) == PAYLOAD


async def test_the_prefix_of_a_200_that_ends_early_is_cut_off_too() -> None:
    async def short(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[: CUT // 2], length=SIZE)

    async with RawServer([drops_after(CUT), short, ignores_ranges]) as server:
        assert await gather(source(server.url)) == PAYLOAD
        assert [wanted(r) for r in server.requests] == [0, CUT, CUT]


async def test_twenty_reconnections_in_a_row_and_no_more() -> None:
    naps, told = Naps(), Told()
    async with RawServer(drops_after(10)) as server:
        found = source(server.url, sleep=naps, on_event=told.append, max_failures=1000)
        with pytest.raises(TransferError):
            await gather(found)
        assert len(server.requests) == 21
        assert [wanted(r) for r in server.requests] == [10 * i for i in range(21)]
    assert naps.taken == [20.0] * 20
    assert told.kinds()[-1] is Kind.ABANDONED


async def test_progress_makes_the_count_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bascule.engine.fetch.PROGRESS", 9_000)
    async with RawServer(drops_after(10_000)) as server:
        assert await gather(source(server.url, max_reconnects=2)) == PAYLOAD
        assert len(server.requests) == 30


async def test_failures_in_a_row_give_an_address_up() -> None:
    naps = Naps()

    async def silent(request: Request, wire: Wire) -> None:
        wire.reset()

    async with RawServer(silent) as server:
        with pytest.raises(TransferError) as caught:
            await gather(source(server.url, sleep=naps, max_failures=4))
        assert caught.value.number == 9
        assert len(server.requests) == 4
    assert naps.taken == [20.0] * 3


async def test_a_byte_forgives_the_failures() -> None:
    async def silent(request: Request, wire: Wire) -> None:
        wire.reset()

    answers = [silent, silent, silent, drops_after(CUT), silent, silent, good]
    async with RawServer(answers) as server:
        found = source(server.url, max_failures=4)
        assert await gather(found) == PAYLOAD
        assert found.url_failures == 0


async def test_a_silent_server_stalls() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[:100], length=SIZE)
        await wire.gone()

    async with RawServer(answering) as server:
        found = source(
            server.url, clock=Ticking(15.0), patience=Patience(tick=0.01), max_failures=2
        )
        with pytest.raises(TransferStalled, match="next to nothing"):
            await gather(found)


async def test_a_slow_consumer_is_not_a_slow_server() -> None:
    clock = Ticking()
    async with RawServer(good) as server:
        found = source(server.url, clock=clock, patience=Patience(tick=0.01))
        pieces = []
        async for chunk in found.stream(0):
            clock.now += 1000.0
            pieces.append(chunk)
        assert b"".join(pieces) == PAYLOAD
        assert len(server.requests) == 1


# ── several addresses ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 302, 204])
async def test_a_lasting_error_means_the_next_address_at_once(status: int) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(f"{status} Nope", b"")

    naps, told = Naps(), Told()
    async with RawServer(answering) as bad, RawServer(good) as fine:
        found = source(bad.url, fine.url, sleep=naps, on_event=told.append)
        assert await gather(found) == PAYLOAD
        assert (len(bad.requests), found.url_index) == (1, 1)
    assert naps.taken == []
    assert told.kinds() == [Kind.ASKED, Kind.ABANDONED, Kind.ASKED]
    assert told[1].number == 37 and str(status) in told[1].sentence


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_passing_error_is_tried_again_as_often_as_the_offer_says(status: int) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(f"{status} Later", b"")

    naps = Naps()
    async with RawServer(answering) as bad, RawServer(good) as fine:
        found = source(bad.url, fine.url, sleep=naps, max_failures=3)
        assert await gather(found) == PAYLOAD
        assert len(bad.requests) == 3
    assert naps.taken == [20.0, 20.0]


@pytest.mark.parametrize(
    ("header", "nap"), [("45", 45.0), ("5", 20.0), ("99999", 600.0), ("soon", 20.0), ("-1", 20.0)]
)
async def test_retry_after(header: str, nap: float) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("503 Later", b"", f"Retry-After: {header}")

    naps = Naps()
    async with RawServer([answering, good]) as server:
        assert await gather(source(server.url, sleep=naps)) == PAYLOAD
    assert naps.taken == [nap]


async def test_the_next_address_goes_on_from_where_the_first_stopped() -> None:
    async def closed(request: Request, wire: Wire) -> None:
        await wire.answer("410 Gone")

    async with RawServer([drops_after(CUT), closed]) as first, RawServer(good) as second:
        assert await gather(source(first.url, second.url)) == PAYLOAD
        assert wanted(second.requests[0]) == CUT


async def test_beginning_with_a_later_address_and_coming_round() -> None:
    async with RawServer(good) as first, RawServer(gone) as second:
        found = source(first.url, second.url, start=1)
        assert await gather(found) == PAYLOAD
        assert (len(first.requests), len(second.requests), found.url_index) == (1, 1, 0)


@pytest.mark.parametrize("bad", ["ftp://a/u", "http://a:99999/u", "nonsense"])
async def test_an_address_that_is_none_is_given_up_at_once(bad: str) -> None:
    naps = Naps()
    async with RawServer(good) as server:
        assert await gather(source(bad, server.url, sleep=naps)) == PAYLOAD
    assert naps.taken == []


async def test_when_all_are_bad_each_is_named() -> None:
    async with RawServer(gone) as first, RawServer(gone) as second:
        with pytest.raises(TransferHttpError) as caught:
            await gather(source(first.url, second.url))
        assert first.url in str(caught.value) and second.url in str(caught.value)
    assert caught.value.number == 37


async def test_different_reasons_are_one_transfer_error() -> None:
    async def portal(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", b"<html>")

    async with RawServer(gone) as first, RawServer(portal) as second:
        with pytest.raises(TransferError) as caught:
            await gather(source(first.url, second.url))
    assert type(caught.value) is TransferError and caught.value.number == 9


async def test_a_wrong_file_on_one_mirror_does_not_stop_the_other() -> None:
    async def stale(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[:-7])

    async with RawServer(stale) as first, RawServer(good) as second:
        assert await gather(source(first.url, second.url)) == PAYLOAD


async def test_the_status_of_one_address_is_kept_for_the_schedule() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("503 Later", b"")

    async with RawServer(answering) as server:
        with pytest.raises(TransferHttpError) as caught:
            await gather(source(server.url, max_failures=1))
    assert caught.value.context["status"] == 503


# ── secrets, redirects, TLS ──────────────────────────────────────────────────────────────────


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Tls]:
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, Tls(ca=str(path))


SECRET = Credentials("core", "geheim")


async def test_the_password_goes_over_https_only(tls: tuple[ssl.SSLContext, Tls]) -> None:
    async with RawServer(good) as plain, RawServer(good, tls=tls[0]) as secure:
        assert await gather(source(plain.url, credentials=SECRET)) == PAYLOAD
        assert plain.requests[0].get("Authorization") is None
        assert await gather(source(secure.url, credentials=SECRET, tls=tls[1])) == PAYLOAD
        assert secure.requests[0].get("Authorization") == "Basic Y29yZTpnZWhlaW0="


async def test_the_password_does_not_follow_a_redirect(tls: tuple[ssl.SSLContext, Tls]) -> None:
    async with RawServer(good, tls=tls[0]) as other:

        async def away(request: Request, wire: Wire) -> None:
            if request.path == "/here":
                await good(request, wire)
            else:
                to = "/here" if request.path == "/near" else other.url + "/there"
                await wire.answer("302 Found", b"", f"Location: {to}")

        async with RawServer(away, tls=tls[0]) as server:
            near = source(server.url + "/near", credentials=SECRET, tls=tls[1])
            assert await gather(near) == PAYLOAD
            assert server.requests[1].get("Authorization") is not None
            far = source(server.url + "/far", credentials=SECRET, tls=tls[1])
            assert await gather(far, CUT) == PAYLOAD[CUT:]
        assert other.requests[0].get("Authorization") is None
        assert other.requests[0].get("Range") == f"bytes={CUT}-"


async def test_a_redirect_from_https_to_http_is_an_address_given_up(
    tls: tuple[ssl.SSLContext, Tls],
) -> None:
    async with RawServer(good) as plain:

        async def weaker(request: Request, wire: Wire) -> None:
            await wire.answer("302 Found", b"", f"Location: {plain.url}/")

        async with RawServer(weaker, tls=tls[0]) as server:
            with pytest.raises(TransferError, match="from https to"):
                await gather(source(server.url, tls=tls[1]))
            assert len(server.requests) == 1
        assert plain.requests == []


async def test_an_unknown_authority_is_an_address_given_up(
    tls: tuple[ssl.SSLContext, Tls],
) -> None:
    async with RawServer(good, tls=tls[0]) as server, RawServer(good) as fine:
        told = Told()
        assert await gather(source(server.url, fine.url, on_event=told.append)) == PAYLOAD
        assert "authority that this host does not know" in told[1].sentence


async def test_through_a_proxy() -> None:
    async with RawServer(good) as proxy:
        found = source("http://cdn.example/u.gz", environ={"http_proxy": proxy.url})
        assert await gather(found, CUT) == PAYLOAD[CUT:]
        assert proxy.requests[0].line == "GET http://cdn.example/u.gz HTTP/1.1"


# ── the consumer ─────────────────────────────────────────────────────────────────────────────


async def test_the_limiter_is_asked_for_every_byte() -> None:
    asked: list[int] = []

    async def limiter(count: int) -> None:
        asked.append(count)

    async with RawServer([drops_after(CUT), ignores_ranges]) as server:
        assert await gather(source(server.url, limiter=limiter)) == PAYLOAD
    assert sum(asked) == CUT + SIZE and min(asked) > 0


async def test_a_small_read_buffer_gives_small_pieces() -> None:
    asked: list[int] = []

    async def limiter(count: int) -> None:
        asked.append(count)
        await asyncio.sleep(0)

    async with RawServer(good) as server:
        found = source(server.url, limiter=limiter, read_buffer=8192)
        assert await gather(found) == PAYLOAD
    assert len(asked) > 1 and max(asked) < SIZE


async def test_a_slow_limit_never_pauses_for_long() -> None:
    """A mebibyte at once, at 8 KiB a second, would be one pause of two minutes."""
    rate, naps = 8192, []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    assert (paced_buffer(0), paced_buffer(100), paced_buffer(1 << 30)) == (1 << 20, 4096, 1 << 20)
    limit = RateLimit(rate, sleep=sleep, clock=lambda: sum(naps))
    async with RawServer(good) as server:
        found = source(server.url, limiter=limit, read_buffer=paced_buffer(rate))
        assert await gather(found) == PAYLOAD
    assert naps and max(naps) <= 1.01
    assert sum(naps) >= (SIZE - 2 * rate) / rate


async def test_what_the_limiter_raises_ends_the_stream() -> None:
    async def limiter(count: int) -> None:
        raise BudgetSpent("2 GiB of 2 GiB")

    async with RawServer(good) as server:
        with pytest.raises(BudgetSpent):
            await gather(source(server.url, limiter=limiter))
        assert len(server.requests) == 1


async def test_leaving_early_closes_the_connection() -> None:
    async def endless(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[:1000], length=SIZE)
        await wire.gone()

    async with RawServer(endless) as server:
        async with contextlib.aclosing(source(server.url).stream(0)) as stream:
            async for _ in stream:
                break
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_cancelling_closes_the_connection() -> None:
    async def endless(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", PAYLOAD[:1000], length=SIZE)
        await wire.gone()

    async with RawServer(endless) as server:
        task = asyncio.create_task(gather(source(server.url)))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_a_waiting_source_can_be_cancelled() -> None:
    napping = asyncio.Event()

    async def nap(seconds: float) -> None:
        napping.set()
        await asyncio.Event().wait()

    async with RawServer(drops_after(10)) as server:
        task = asyncio.create_task(gather(source(server.url, sleep=nap)))
        await asyncio.wait_for(napping.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_memory_is_bounded_when_nobody_reads() -> None:
    """The server can send only what sockets and one read buffer hold before it has to wait."""
    sent = 0

    async def firehose(request: Request, wire: Wire) -> None:
        nonlocal sent
        await wire.answer("200 OK", b"", length=1 << 40)
        while True:
            await wire.send(b"x" * 65536)
            sent += 65536

    async with RawServer(firehose) as server:
        found = source(server.url, size=1 << 40)
        async with contextlib.aclosing(found.stream(0)) as stream:
            taken = 0
            async for chunk in stream:
                taken += len(chunk)
                before = -1
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.05)
                assert sent - taken < 32 << 20
                if taken > 4 << 20:
                    break


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_however_the_servers_misbehave_the_bytes_are_right(data: st.DataObject) -> None:
    """Any mixture of answers either yields the payload or a typed error, never other bytes."""
    payload = PAYLOAD[:5000]
    size = len(payload)
    plan = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["good", "all", "short", "404", "503", "wrong", "reset", "lie"]),
                st.integers(0, size),
            ),
            max_size=8,
        )
    )
    offset = data.draw(st.integers(0, size))
    steps = iter(plan)

    async def answering(request: Request, wire: Wire) -> None:
        kind, count = next(steps, ("good", 0))
        start = wanted(request)
        head = f"Content-Range: bytes {start}-{size - 1}/{size}"
        partial = ("206 Partial Content", [head]) if start else ("200 OK", [])
        match kind:
            case "good":
                await wire.answer(partial[0], payload[start:], *partial[1])
            case "all":
                await wire.answer("200 OK", payload)
            case "short":
                body = payload[start : start + count]
                await wire.answer(partial[0], body, *partial[1], length=size - start)
            case "wrong":
                await wire.answer("200 OK", payload + b"!" * (count + 1))
            case "reset":
                wire.reset()
            case "lie":
                lied = f"Content-Range: bytes {count}-{size - 1}/{size}"
                await wire.answer("206 Partial Content", payload[count:], lied)
            case status:
                await wire.answer(f"{status} Nope")

    async def run() -> None:
        async with RawServer(answering) as first, RawServer(answering) as second:
            found = source(first.url, second.url, size=size, max_failures=3)
            pieces = []
            try:
                async for chunk in found.stream(offset):
                    pieces.append(chunk)
            except (TransferError, PayloadSizeMismatch):
                assert payload[offset:].startswith(b"".join(pieces))
            else:
                assert b"".join(pieces) == payload[offset:]

    asyncio.run(run())
