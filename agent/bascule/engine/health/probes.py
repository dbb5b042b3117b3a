"""TCP and HTTP probes on asyncio's own streams: no client library is loaded for one question."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Container
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from bascule.engine.health.check import PASSED, Answer, Attempt, Host, Outcome, Pace
from bascule.errors import SettingsError

BODY_LIMIT = 64 * 1024
_NOT_UP_YET = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
    }
)
_CERT_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID: the host's clock is not set
_CHUNKED = re.compile(rb"\r\nTransfer-Encoding:[^\r\n]*\bchunked", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length:[ \t]*(\d{1,18})\b", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]*\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r|$)")
_PROBE_PACE = Pace(timeout=10, retries=5, interval=5)


class _Unreached(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Something must accept a TCP connection on `host`:`port`."""

    address: str
    port: int
    required: bool = True
    pace: Pace = field(default_factory=lambda: _PROBE_PACE)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536 or not self.address:
            raise SettingsError(f"health: {self.address}:{self.port} is no TCP address")

    @property
    def name(self) -> str:
        """``tcp:127.0.0.1:80``."""
        return f"tcp:{self.address}:{self.port}"

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """Connect and close."""
        try:
            _, writer = await _connect(self.address, self.port, attempt, None)
        except _Unreached as error:
            return error.answer
        await _close(writer)
        return PASSED


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """A GET of `url` must answer with one of the given statuses, and, if asked, a given text.

    Attributes:
        url: http or https, without credentials.
        statuses: those that pass.
        contains: must occur in the first 64 KiB of the body; "" for anything.
        ca_file: PEM file of further roots for https; "" for the system's.
        verify: False accepts any certificate (a service on this host with its own).
    """

    url: str
    required: bool = True
    pace: Pace = field(default_factory=lambda: _PROBE_PACE)
    statuses: Container[int] = range(200, 400)
    contains: str = ""
    ca_file: str = ""
    verify: bool = True

    def __post_init__(self) -> None:
        parts, port = self._parts()
        unfit = (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or "@" in parts.netloc
            or not 0 < port < 65536
            or re.search(r"[\x00-\x20\x7f-\uffff]", self.url)
        )
        if unfit:
            raise SettingsError(f"health: {self.url!r} is no http or https address")

    def _parts(self) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"health: {self.url!r} is no address ({error})") from error
        if port is None:
            port = 443 if parts.scheme == "https" else 80
        return parts, port

    @property
    def name(self) -> str:
        """The address itself, ``http://127.0.0.1/healthz``."""
        return self.url

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """One GET; redirects are not followed."""
        parts, port = self._parts()
        address = parts.hostname or ""
        tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                tls = await asyncio.to_thread(self.tls)
            except OSError as error:
                return Answer(Outcome.FAIL, f"{self.ca_file} cannot be used ({error})")
        try:
            reader, writer = await _connect(address, port, attempt, tls)
        except _Unreached as error:
            return error.answer
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            request = (
                f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: bascule-health\r\n"
                "Accept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
            )
            attempt.doing = f"waiting for {self.url}"
            writer.write(request.encode("ascii"))
            await writer.drain()
            return await self._read(reader, attempt)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            return Answer(Outcome.FAIL, f"{self.url} broke off ({error or type(error).__name__})")
        finally:
            await _close(writer)

    async def _read(self, reader: asyncio.StreamReader, attempt: Attempt) -> Answer:
        head = await reader.readuntil(b"\r\n\r\n")
        attempt.output.add(head)
        match = _STATUS_LINE.match(head)
        if not match:
            return Answer(Outcome.FAIL, f"{self.url} does not speak HTTP")
        status = int(match[1])
        if status not in self.statuses:
            attempt.output.add(await reader.read(BODY_LIMIT))
            return Answer(Outcome.FAIL, f"{self.url} answered {status}")
        if not self.contains or await self._says(self.contains.encode(), head, reader, attempt):
            return PASSED
        return Answer(Outcome.FAIL, f"{self.url} does not say {self.contains!r}")

    async def _says(
        self, wanted: bytes, head: bytes, reader: asyncio.StreamReader, attempt: Attempt
    ) -> bool:
        """Whether the body has it: looked for as it arrives, for not every server closes in the end."""
        chunked, length = _CHUNKED.search(head), _LENGTH.search(head)
        limit = min(BODY_LIMIT, int(length[1])) if length and not chunked else BODY_LIMIT
        body, ended = b"", False
        while not ended and len(body) < limit and (data := await reader.read(limit - len(body))):
            attempt.output.add(data)
            body += data
            text, ended = _unchunked(body) if chunked else (body, False)
            if wanted in text:
                return True
        return False

    def tls(self) -> ssl.SSLContext:
        """What https is spoken with. Raises OSError: `ca_file` cannot be used."""
        context = ssl.create_default_context()
        if self.ca_file:
            context.load_verify_locations(self.ca_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    """The text of a chunked body as far as it has come, and whether that is all (RFC 9112, 7.1)."""
    pieces: list[bytes] = []
    at = 0
    while match := _CHUNK.match(data, at):
        size = int(match[1], 16)
        if not size:
            return b"".join(pieces), True
        pieces.append(data[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(pieces), False


async def _connect(
    address: str, port: int, attempt: Attempt, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    attempt.doing = f"looking up {address}"
    attempt.if_cut = Outcome.INCONCLUSIVE
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        later = error.errno == socket.EAI_AGAIN
        outcome = Outcome.INCONCLUSIVE if later else Outcome.FAIL
        raise _Unreached(Answer(outcome, f"{address} cannot be resolved")) from error
    attempt.doing = f"connecting to {where}"
    attempt.if_cut = Outcome.FAIL
    answers: list[Answer] = []
    for family, _, _, _, sockaddr in found:
        try:
            return await asyncio.open_connection(
                str(sockaddr[0]),
                port,
                family=family,
                ssl=tls,
                server_hostname=address if tls else None,
                limit=BODY_LIMIT,
            )
        except OSError as error:
            answers.append(_judge(error, where))
    # One address that answers and refuses is evidence; addresses without a route are none.
    worst = next((a for a in answers if a.outcome is Outcome.FAIL), None)
    raise _Unreached(
        worst or (answers or [Answer(Outcome.INCONCLUSIVE, f"{where} has no address")])[0]
    )


def _judge(error: OSError, where: str) -> Answer:
    if isinstance(error, ssl.SSLCertVerificationError):
        early = error.verify_code == _CERT_NOT_YET_VALID
        outcome = Outcome.INCONCLUSIVE if early else Outcome.FAIL
        return Answer(outcome, f"the certificate of {where} is refused ({error.verify_message})")
    if isinstance(error, ssl.SSLError):
        return Answer(Outcome.FAIL, f"{where} does not speak TLS ({error.reason})")
    if error.errno in _NOT_UP_YET:
        return Answer(Outcome.INCONCLUSIVE, f"there is no way to {where} yet ({error.strerror})")
    if isinstance(error, ConnectionRefusedError):
        return Answer(Outcome.FAIL, f"nothing answers on {where}")
    return Answer(Outcome.FAIL, f"{where} cannot be reached ({error.strerror or error})")


async def _close(writer: asyncio.StreamWriter) -> None:
    # Not wait_closed(): a peer that never answers the TLS farewell must not hold the check.
    writer.transport.abort()
    await asyncio.sleep(0)
