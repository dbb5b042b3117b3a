"""TCP and HTTP probes against real sockets on loopback."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from bascule.engine.health import CheckResult, HttpProbe, Outcome, Pace, TcpProbe, run
from bascule.engine.health.check import Check
from bascule.errors import SettingsError

ONCE = Pace(timeout=20)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def asked(check: Check) -> CheckResult:
    (result,) = await run([check], clock=asyncio.get_running_loop().time)
    return result


@asynccontextmanager
async def serving(
    answer: bytes, tls: ssl.SSLContext | None = None, *, closes: bool = True
) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if not closes:
                await reader.read()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def test_tcp() -> None:
    async with serving(b"") as port:
        assert (await asked(TcpProbe("127.0.0.1", port, pace=ONCE))).outcome is Outcome.PASS
    port = unused_port()
    result = await asked(TcpProbe("127.0.0.1", port, pace=ONCE))
    assert result.outcome is Outcome.FAIL
    assert result.reason == f"nothing answers on 127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nready", Outcome.PASS),
        (b"HTTP/1.0 204 No Content\r\n\r\n", Outcome.PASS),
        (b"HTTP/1.1 503 Busy\r\n\r\nno", Outcome.FAIL),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", Outcome.PASS),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Outcome.FAIL),
        (b"", Outcome.FAIL),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, Outcome.FAIL),
    ],
)
async def test_http_status(answer: bytes, outcome: Outcome) -> None:
    async with serving(answer) as port:
        result = await asked(HttpProbe(f"http://127.0.0.1:{port}/healthz?x=1", pace=ONCE))
    assert result.outcome is outcome, result


async def test_http_contains_and_statuses() -> None:
    async with serving(b"HTTP/1.1 401 Unauthorized\r\n\r\n{status: ready}") as port:
        url = f"http://127.0.0.1:{port}"
        good = HttpProbe(url, pace=ONCE, statuses=(200, 401), contains="ready")
        assert (await asked(good)).outcome is Outcome.PASS
        bad = HttpProbe(url, pace=ONCE, statuses=(200, 401), contains="green")
        result = await asked(bad)
    assert result.reason.endswith("does not say 'green'")
    assert "ready" in result.output


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nI am ready", Outcome.PASS),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nI am ready", Outcome.PASS),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nI am green", Outcome.FAIL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nI am ready", Outcome.FAIL),
        (CHUNKED + b"8\r\nI am rea\r\n2;x=y\r\ndy\r\n", Outcome.PASS),
        (CHUNKED + b"8\r\nI am rea\r\n3\r\nlly\r\n0\r\n\r\n", Outcome.FAIL),
        (CHUNKED + b"ready\r\n0\r\n\r\n" + bytes(100_000), Outcome.FAIL),
    ],
)
async def test_what_a_server_says_that_does_not_hang_up(answer: bytes, outcome: Outcome) -> None:
    async with serving(answer, closes=False) as port:
        probe = HttpProbe(f"http://127.0.0.1:{port}/", pace=ONCE, contains="ready")
        result = await asked(probe)
    assert result.outcome is outcome, result
    assert "was still" not in result.reason


async def test_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n", server) as port:
        url = f"https://localhost:{port}/"
        trusted = HttpProbe(url, pace=ONCE, ca_file=str(tmp_path / "ca.pem"))
        assert (await asked(trusted)).outcome is Outcome.PASS
        assert (await asked(HttpProbe(url, pace=ONCE, verify=False))).outcome is Outcome.PASS
        refused = await asked(HttpProbe(url, pace=ONCE))
        assert refused.outcome is Outcome.FAIL
        assert "certificate" in refused.reason
        no_file = await asked(HttpProbe(url, pace=ONCE, ca_file=str(tmp_path / "none.pem")))
        assert no_file.outcome is Outcome.FAIL


async def test_clock_not_set_is_inconclusive(tmp_path: Path) -> None:
    import datetime

    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now = datetime.datetime.now(datetime.UTC)
    authority.issue_cert(
        "localhost",
        not_before=now + datetime.timedelta(days=2),
        not_after=now + datetime.timedelta(days=9),
    ).configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n", server) as port:
        probe = HttpProbe(f"https://localhost:{port}/", pace=ONCE, ca_file=str(tmp_path / "ca.pem"))
        result = await asked(probe)
    assert result.outcome is Outcome.INCONCLUSIVE, result


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "later"), Outcome.INCONCLUSIVE),
        (socket.gaierror(socket.EAI_NONAME, "never"), Outcome.FAIL),
    ],
)
async def test_names(monkeypatch: pytest.MonkeyPatch, error: OSError, outcome: Outcome) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    assert (await asked(TcpProbe("db.example", 5432, pace=ONCE))).outcome is outcome


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ENETUNREACH, Outcome.INCONCLUSIVE),
        (errno.EHOSTUNREACH, Outcome.INCONCLUSIVE),
        (errno.ECONNRESET, Outcome.FAIL),
    ],
)
async def test_no_route_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, number: int, outcome: Outcome
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError(number, "x")

    monkeypatch.setattr(asyncio, "open_connection", fail)
    assert (await asked(TcpProbe("192.0.2.1", 80, pace=ONCE))).outcome is outcome


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "http://",
        "http://user:pw@x/",
        "http://x:0/",
        "http://x:99999/",
        "http://x/a b",
        "http://x/\r\nEvil: 1",
        "http://[::1",
    ],
)
def test_unfit_addresses_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        HttpProbe(url)


def test_unfit_tcp_addresses_are_refused() -> None:
    for address, port in (("", 80), ("x", 0), ("x", 70000)):
        with pytest.raises(SettingsError):
            TcpProbe(address, port)
