"""Posting to Omaha servers on loopback, well-behaved and otherwise."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme

from bascule.engine.omaha_client import post_omaha
from bascule.engine.transport import Patience, Tls
from bascule.engine.trouble import Trouble, explain
from bascule.errors import (
    ResponseNotXml,
    ServerHttpError,
    ServerRedirectRefused,
    ServerUnreachable,
    SettingsError,
)
from raw_http import RawServer, Request, Ticking, Wire

ANSWER = b'<response protocol="3.0"></response>'
BODY = b'<?xml version="1.0" encoding="UTF-8"?>\n<request/>\n'
SHORT = Patience(connect=0.3, tick=0.01)


async def post(url: str, **options: object) -> bytes:
    return await post_omaha(url, BODY, **{"environ": {}, **options})  # type: ignore[arg-type]


async def good(request: Request, wire: Wire) -> None:
    await wire.answer("200 OK", ANSWER)


def redirect(to: str, status: str = "302 Found") -> object:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(status, b"", f"Location: {to}")

    return answering


async def test_the_request_is_the_originals() -> None:
    async with RawServer(good) as server:
        assert await post(server.url + "/v1/update/") == ANSWER
        (request,) = server.requests
        assert request.line == "POST /v1/update/ HTTP/1.1"
        assert request.body == BODY
        assert {k.lower(): v for k, v in request.headers} == {
            "host": f"127.0.0.1:{server.port}",
            "accept": "*/*",
            "content-type": "text/xml",
            "content-length": str(len(BODY)),
        }


async def test_bare_line_feeds_of_flatcar_update() -> None:
    async def ncat(request: Request, wire: Wire) -> None:
        head = f"HTTP/1.1 200 OK\ncontent-type: text/xml\ncontent-length: {len(ANSWER)}\n\n"
        await wire.send(head.encode(), ANSWER)

    async with RawServer(ncat) as server:
        assert await post(server.url + "/update") == ANSWER


async def test_a_server_that_answers_before_it_has_read() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\ncontent-length: %d\n\n" % len(ANSWER) + ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hasty, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await post(f"http://127.0.0.1:{port}/update") == ANSWER


async def test_the_end_of_the_connection_is_the_end_of_the_answer() -> None:
    async def old(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n", ANSWER)

    async with RawServer(old) as server:
        assert await post(server.url) == ANSWER


async def test_chunked() -> None:
    async def chunked(request: Request, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(b"1\r\n%c\r\n" % c for c in ANSWER),
            b"0\r\n\r\n",
        )

    async with RawServer(chunked) as server:
        assert await post(server.url) == ANSWER


@pytest.mark.parametrize("status", [204, 299])
async def test_any_2xx_is_an_answer(status: int) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(f"{status} Fine")

    async with RawServer(answering) as server:
        assert await post(server.url) == b""


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 407, 429, 500, 503])
async def test_any_other_status_is_2000_and_more(status: int) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer(f"{status} Nope", b"oops" if status != 304 else b"")

    async with RawServer(answering) as server:
        with pytest.raises(ServerHttpError) as caught:
            await post(server.url)
    assert caught.value.number == 2000 + status
    assert caught.value.status == status
    assert f"{status} Nope" in str(caught.value)


async def test_go_omaha_explains_its_400() -> None:
    words = (
        b'<response protocol="3.0"><app appid="x" status="error-unknownApplication"/></response>'
    )

    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("400 Bad Request", words)

    async with RawServer(answering) as server:
        with pytest.raises(ServerHttpError, match="does not know this application"):
            await post(server.url)


async def test_an_error_answer_that_breaks_off_is_still_that_error() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("503 Later", b"oo", length=100)

    async with RawServer(answering) as server:
        with pytest.raises(ServerHttpError) as caught:
            await post(server.url)
    assert caught.value.number == 2503


# ── too much, too little ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("announce", [True, False])
async def test_an_answer_over_the_cap_is_not_read_to_its_end(announce: bool) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", b"", length=1 << 40 if announce else -1)
        while True:
            await wire.send(b"x" * 65536)

    async with RawServer(answering) as server:
        with pytest.raises(ResponseNotXml, match="longer"):
            await post(server.url)


async def test_a_short_answer_is_no_answer() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", ANSWER[:9], length=len(ANSWER))

    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable, match="too early"):
            await post(server.url)


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 100])
async def test_not_http(reply: bytes) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.send(reply)

    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable):
            await post(server.url)


async def test_headers_without_end() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await wire.send(b"X-More: " + b"y" * 4000 + b"\r\n")

    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable):
            await post(server.url)


@pytest.mark.parametrize("part", ["headers", "body"])
async def test_a_silent_server_is_given_up(part: str) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        if part == "body":
            await wire.answer("200 OK", b"<", length=1000)
        await wire.gone()

    clock = Ticking(step=20.0)
    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable, match="next to nothing"):
            await post(server.url, clock=clock, patience=Patience(tick=0.01))


async def test_a_trickling_server_is_given_up() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await wire.send(b"<" * 1000)
            await asyncio.sleep(0.001)

    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable, match="too long"):
            await post(server.url, clock=Ticking(step=10.0))


async def test_nobody_listens() -> None:
    async with RawServer(good) as server:
        url = server.url
    with pytest.raises(ServerUnreachable, match="Connect"):
        await post(url)


@pytest.mark.parametrize(
    "url", ["ftp://a/", "http://", "nonsense", "http://a:99999/", "http://[::1/", ""]
)
async def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ServerUnreachable):
        await post(url)


async def test_disabled() -> None:
    with pytest.raises(ServerUnreachable, match="disabled") as caught:
        await post("disabled")
    assert caught.value.context == {"disabled": True}


async def test_cancelling_closes_the_connection() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("200 OK", b"<", length=1000)
        await wire.gone()

    async with RawServer(answering) as server:
        task = asyncio.create_task(post(server.url))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_no_connection_is_tried_again_as_often_as_asked() -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async with RawServer(good) as server:
        url = server.url
    with pytest.raises(ServerUnreachable):
        await post(url, retries=3, sleep=nap)
    assert naps == [10.0] * 3


async def test_a_host_whose_network_comes_up_late() -> None:
    server = RawServer(good)
    async with server:
        port = server.port

    async def nap(seconds: float) -> None:
        late.append(await asyncio.start_server(server._begin, "127.0.0.1", port))

    late: list[asyncio.Server] = []
    assert await post(f"http://127.0.0.1:{port}/", retries=1, sleep=nap) == ANSWER
    late[0].close()


async def test_what_may_have_arrived_is_not_said_twice() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        wire.reset()

    async with RawServer(answering) as server:
        with pytest.raises(ServerUnreachable):
            await post(server.url, retries=3)
        assert len(server.requests) == 1


# ── redirects ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_posted_again(status: int) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        if request.path == "/old":
            await wire.answer(f"{status} Moved", b"", "Location: /new/?a=%2F")
        else:
            await wire.answer("200 OK", ANSWER)

    async with RawServer(answering) as server:
        assert await post(server.url + "/old") == ANSWER
        assert server.requests[1].line == "POST /new/?a=%2F HTTP/1.1"
        assert server.requests[1].body == BODY


async def test_see_other_is_refused() -> None:
    async with RawServer(redirect("/", "303 See Other")) as server:  # type: ignore[arg-type]
        with pytest.raises(ServerRedirectRefused):
            await post(server.url)
        assert len(server.requests) == 1


async def test_ten_redirects_and_no_more() -> None:
    async def answering(request: Request, wire: Wire) -> None:
        number = int(request.path[1:])
        if number:
            await wire.answer("302 Found", b"", f"Location: /{number - 1}")
        else:
            await wire.answer("200 OK", ANSWER)

    async with RawServer(answering) as server:
        assert await post(server.url + "/10") == ANSWER
        server.requests.clear()
        with pytest.raises(ServerRedirectRefused, match="more than 10"):
            await post(server.url + "/11")
        assert len(server.requests) == 11


@pytest.mark.parametrize("target", ["ftp://a/", "file:///etc/passwd", "http://", "http://[x"])
async def test_redirects_to_other_schemes(target: str) -> None:
    async with RawServer(redirect(target)) as server:  # type: ignore[arg-type]
        with pytest.raises(ServerRedirectRefused):
            await post(server.url)


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────


class Authority:
    """A certificate authority with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def server(
        self, name: str = "localhost", *, expires: datetime | None = None, clients: bool = False
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(name, not_after=expires).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client(self, name: str) -> Path:
        path = self.folder / f"{name}.pem"
        self.ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_https_with_our_own_authority(authority: Authority) -> None:
    async with RawServer(good, tls=authority.server()) as server:
        assert await post(server.url, tls=Tls(ca=str(authority.file))) == ANSWER


async def test_an_unknown_authority(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with RawServer(good, tls=authority.server()) as server:
        with pytest.raises(ServerUnreachable, match="authority that this host does not know"):
            await post(server.url, tls=Tls(ca=str(other.file)))
        assert server.requests == []


async def test_the_clock_is_named(authority: Authority) -> None:
    past = datetime.now(UTC) - timedelta(days=3)
    async with RawServer(good, tls=authority.server(expires=past)) as server:
        with pytest.raises(ServerUnreachable, match="check the clock") as caught:
            await post(server.url, tls=Tls(ca=str(authority.file)))
    assert caught.value.context == {"trouble": "tls"}


async def test_another_name(authority: Authority) -> None:
    async with RawServer(good, tls=authority.server("elsewhere.example")) as server:
        with pytest.raises(ServerUnreachable, match="another name"):
            await post(server.url, tls=Tls(ca=str(authority.file)))


async def test_a_client_certificate(authority: Authority) -> None:
    tls = Tls(ca=str(authority.file), certificate=str(authority.client("node-1")))
    async with RawServer(good, tls=authority.server(clients=True)) as server:
        assert await post(server.url, tls=tls) == ANSWER


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("-tls1_3", "wants a client certificate"),
        ("-tls1_2", "may want a client certificate"),
    ],
)
async def test_a_server_that_wants_a_client_certificate(
    authority: Authority, version: str, words: str
) -> None:
    """asyncio's own server hangs up without an alert, so OpenSSL's plays the server."""
    pem, ca = authority.client("localhost"), authority.file
    command = f"s_server -accept 127.0.0.1:0 -cert {pem} -CAfile {ca} -WWW {version}"
    server = await asyncio.create_subprocess_exec(
        "openssl",
        *command.split(),
        *("-Verify", "1", "-verify_return_error"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert server.stdout is not None
    try:
        while not (line := await server.stdout.readline()).startswith(b"ACCEPT"):
            assert line, "s_server did not start"
        port = int(line.decode().rpartition(":")[2])
        with pytest.raises(ServerUnreachable, match=words) as caught:
            await post(f"https://localhost:{port}/", tls=Tls(ca=str(ca)))
        assert caught.value.context == {"trouble": "tls"}
    finally:
        server.kill()
        await server.wait()


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "wants a client certificate"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "one of the two clocks is wrong"),
        ("TLSV1_ALERT_UNKNOWN_CA", "refuses this host's client certificate"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "refuses this host's client certificate"),
        ("TLSV1_ALERT_INTERNAL_ERROR", "no secure connection"),
    ],
)
def test_words_for_alerts_that_come_after_the_handshake(alert: str, words: str) -> None:
    late = aiohttp.ClientOSError(1, alert)
    late.__cause__ = ssl.SSLError(1, f"[SSL: {alert}] alert")
    failure = explain(late, "https://a/")
    assert failure.trouble is Trouble.TLS
    assert words in failure.sentence


async def test_https_on_a_port_that_speaks_http() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerUnreachable, match="does not speak TLS"):
            await post(f"https://127.0.0.1:{port}/", patience=SHORT)


async def test_a_handshake_that_never_ends() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerUnreachable, match="no connection in time"):
            await post(f"https://127.0.0.1:{port}/", patience=SHORT)


async def test_https_never_becomes_http(authority: Authority) -> None:
    async with RawServer(good) as plain:
        answering = redirect(plain.url + "/")
        async with RawServer(answering, tls=authority.server()) as server:  # type: ignore[arg-type]
            with pytest.raises(ServerRedirectRefused, match="from https to"):
                await post(server.url, tls=Tls(ca=str(authority.file)))
        assert plain.requests == []


async def test_http_may_become_https(authority: Authority) -> None:
    async with RawServer(good, tls=authority.server()) as secure:
        async with RawServer(redirect(secure.url + "/")) as server:  # type: ignore[arg-type]
            assert await post(server.url, tls=Tls(ca=str(authority.file))) == ANSWER


@pytest.mark.parametrize("field", ["ca", "certificate"])
async def test_certificate_files_that_are_none(tmp_path: Path, field: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("not a certificate")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=path.name):
            await post("http://127.0.0.1:9/", tls=Tls(**{field: str(path)}))


# ── proxies ──────────────────────────────────────────────────────────────────────────────────


async def test_plain_http_through_a_proxy() -> None:
    async with RawServer(good) as proxy:
        environ = {"HTTP_PROXY": f"http://user:pass@127.0.0.1:{proxy.port}"}
        assert await post("http://update.example/v1/update/", environ=environ) == ANSWER
        (request,) = proxy.requests
        assert request.line == "POST http://update.example/v1/update/ HTTP/1.1"
        assert request.get("Host") == "update.example"
        assert request.get("Proxy-Authorization") == "Basic dXNlcjpwYXNz"
        assert request.get("Authorization") is None


async def test_https_through_a_proxy(authority: Authority) -> None:
    async with RawServer(good, tls=authority.server()) as server:

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            there = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        seen: list[bytes] = []
        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        async with proxy:
            port = proxy.sockets[0].getsockname()[1]
            environ = {"https_proxy": f"http://127.0.0.1:{port}"}
            tls = Tls(ca=str(authority.file))
            assert await post(server.url, tls=tls, environ=environ) == ANSWER
        assert seen[0].startswith(b"CONNECT localhost:%d " % server.port)


async def test_no_proxy_goes_direct() -> None:
    async with RawServer(good) as server:
        environ = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
        assert await post(server.url, environ=environ) == ANSWER


async def test_a_proxy_that_refuses(authority: Authority) -> None:
    async def answering(request: Request, wire: Wire) -> None:
        await wire.answer("407 Proxy Authentication Required")

    async with RawServer(answering) as proxy:
        environ = {"ALL_PROXY": proxy.url}
        with pytest.raises(ServerUnreachable, match="the proxy answers 407"):
            await post("https://update.example/", environ=environ)


async def test_a_proxy_that_is_not_there() -> None:
    async with RawServer(good) as server:
        port = server.port
    with pytest.raises(ServerUnreachable, match="proxy"):
        await post("http://update.example/", environ={"http_proxy": f"http://127.0.0.1:{port}"})


async def test_a_kind_of_proxy_that_we_do_not_speak() -> None:
    with pytest.raises(ServerUnreachable, match="socks5"):
        await post("http://update.example/", environ={"all_proxy": "socks5://127.0.0.1:9"})
