"""One HTTP exchange: proxies, TLS, redirects and patience, the same for server and payload.

Rules source: update_engine ``libcurl_http_fetcher.cc`` (reference flatcar.md 2.1, 2.6): connect
within 30 s, give up below 10 bytes/s for 90 s, at most 10 redirects, never from https to http. Time
spent by the consumer (a slow disk) is not counted against the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

from bascule.engine.answer import Answer, StallMeter, Watch
from bascule.engine.proxy import proxy_for
from bascule.engine.trouble import ExchangeFailed, Trouble, explain
from bascule.errors import SettingsError

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

READ_BUFFER = 1 << 20
"""Bytes that aiohttp gathers before a read; larger reads cost less (reference python.md 3)."""

_LEAST_BUFFER = 4096

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def paced_buffer(rate_limit: int) -> int:
    """Bytes to gather at once under a bandwidth limit in bytes per second; 0 for none.

    About a second's worth: a larger piece is paid for with one pause so long that servers and
    firewalls take the connection for dead.
    """
    return min(READ_BUFFER, max(_LEAST_BUFFER, rate_limit)) if rate_limit else READ_BUFFER


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for https; empty for the system's authorities and no client certificate.

    Attributes:
        ca: PEM bundle (or a directory of hashed certificates) that replaces the system's.
        certificate: PEM client certificate, with its chain.
        key: PEM key of the client certificate; may be in the same file.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """A context that verifies peer and name. Blocks on the disk. Raises SettingsError."""
        try:
            if not self.ca:
                context = ssl.create_default_context()
            elif os.path.isdir(self.ca):  # noqa: PTH112
                context = ssl.create_default_context(capath=self.ca)
            else:
                context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as e:
            raise SettingsError(f"the CA bundle {self.ca} cannot be used: {e}") from None
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key or None)
            except (OSError, ValueError) as e:
                raise SettingsError(
                    f"the client certificate {self.certificate} cannot be used: {e}"
                ) from None
        return context


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up. Times in seconds.

    Attributes:
        connect: name lookup, connection and TLS handshake together.
        stall_rate: bytes per second below which an exchange counts as stalled.
        stall_time: how long it may be that slow.
        redirects: followed at most.
        tick: how often a waiting exchange looks at the clock.
    """

    connect: float = 30.0
    stall_rate: float = 10.0
    stall_time: float = 90.0
    redirects: int = 10
    tick: float = 1.0


class Transport:
    """A pool of connections with one set of rules. Use as an async context manager.

    Args:
        tls: authorities and client certificate; read when the first exchange begins.
        patience: see `Patience`.
        environ: where proxies are looked up; the process environment by default.
        clock: seconds, monotonic.
        read_buffer: bytes that aiohttp gathers while nobody reads.
    """

    def __init__(
        self,
        *,
        tls: Tls | None = None,
        patience: Patience | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        read_buffer: int = READ_BUFFER,
    ) -> None:
        self._read_buffer = read_buffer
        self.patience = patience or Patience()
        self._tls = tls or Tls()
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        context = await asyncio.to_thread(self._tls.context)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=None, connect=self.patience.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            read_bufsize=self._read_buffer,
            trust_env=False,
        )
        # aiohttp asks a second time by itself where a connection ends before the answer; tries are
        # counted here, and an Omaha server counts them too. There is no public switch.
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        address: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        secret: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Answer]:
        """Ask `address` and follow redirects.

        Args:
            secret: headers that are sent over https only, and to the first origin only.

        Raises:
            ExchangeFailed: there is no answer. Any HTTP status is an answer.
        """
        url = _url(address)
        origin = url.origin()
        for _ in range(self.patience.redirects + 1):
            sent = dict(headers)
            if secret and url.scheme == "https" and url.origin() == origin:
                sent.update(secret)
            watch = Watch(
                StallMeter(self.patience.stall_rate, self.patience.stall_time),
                self.patience.tick,
                self._clock,
                shown(url),
            )
            response = await self._ask(method, url, sent, body, watch)
            try:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location is not None:
                    url = _redirected(url, location, method, response.status)
                    continue
                yield Answer(
                    response.status,
                    response.reason or "",
                    response.headers,
                    shown(url),
                    response,
                    watch,
                )
                return
            finally:
                response.close()
        raise ExchangeFailed(
            Trouble.REDIRECT, f"{shown(origin)} redirects more than {self.patience.redirects} times"
        )

    async def _ask(
        self, method: str, url: URL, headers: dict[str, str], body: bytes | None, watch: Watch
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        if url.user is not None and "Authorization" not in headers and url.scheme == "https":
            headers["Authorization"] = basic(unquote(url.user), unquote(url.password or ""))
        try:
            proxy = proxy_for(str(url), self._environ)
        except ValueError as e:
            raise ExchangeFailed(Trouble.ADDRESS, str(e)) from None
        session = self._session

        async def send() -> aiohttp.ClientResponse:
            return await session.request(
                method,
                url.with_user(None),
                headers=headers,
                data=body,
                proxy=proxy,
                allow_redirects=False,
            )

        try:
            return await watch.headers(asyncio.create_task(send()))
        except ExchangeFailed:
            raise
        except Exception as e:
            raise explain(e, watch.address, proxy) from e


def basic(user: str, password: str) -> str:
    """The value of an Authorization header (RFC 7617, UTF-8)."""
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def shown(url: URL) -> str:
    """An address fit for messages: no password, no query."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


def _url(address: str) -> URL:
    from yarl import URL

    try:
        url = URL(address, encoded=address.isascii() and address.isprintable())
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise ExchangeFailed(Trouble.ADDRESS, f"not an http or https address: {address[:200]}")
    return url


def _redirected(url: URL, location: str, method: str, status: int) -> URL:
    from yarl import URL

    if method == "POST" and status == 303:
        raise ExchangeFailed(
            Trouble.REDIRECT, f"{shown(url)} takes the request and sends us elsewhere (303)"
        )
    try:
        target = url.join(URL(location, encoded=location.isascii() and location.isprintable()))
        usable = target.scheme in ("http", "https") and bool(target.host)
    except ValueError:
        usable = False
    if not usable:
        raise ExchangeFailed(
            Trouble.REDIRECT, f"{shown(url)} redirects to what is no http or https address"
        )
    if url.scheme == "https" and target.scheme != "https":
        raise ExchangeFailed(
            Trouble.REDIRECT, f"{shown(url)} redirects from https to {shown(target)}"
        )
    return target
