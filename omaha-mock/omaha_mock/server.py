"""The server: Omaha requests and payloads over HTTP, with faults on purpose.

``Server`` serves any source of states; ``MockServer`` is one whose state a test edits while it
runs; ``omaha-mock serve`` serves a directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import web

from omaha_mock.errors import UsageError
from omaha_mock.faults import Fault, FaultBook
from omaha_mock.omaha import App, Asked, BadRequest, answer_document, parse_request
from omaha_mock.ranges import Span, requested
from omaha_mock.releases import Answer, Group, Release, Rules, State, answer, describe
from omaha_mock.versions import order

__all__ = ["AskedRecord", "MockServer", "PayloadRecord", "Server", "Source"]

UPDATE_PATH = "/v1/update/"
_MAX_BODY = 1 << 20
_PIECE = 256 << 10
_ENDLESS_LIMIT = 64 << 20
_STOP_SECONDS = 0.5


class Source(Protocol):
    """Where the server looks up, at each request, what to answer."""

    def state(self) -> State:
        """The state now. Raises UsageError if it cannot be read."""

    def payload(self, name: str) -> Path:
        """Where the payload file ``name`` is."""


@dataclass(slots=True)
class AskedRecord:
    """An Omaha request and its answer, as recorded.

    ``app`` and ``events`` are those of the first app; ``said`` is the updatecheck's status, the
    app's refusal, or "" without an updatecheck.
    """

    time: float
    body: bytes
    headers: dict[str, str]
    asked: Asked | None
    status: int
    said: str = ""
    version: str = ""
    answer: bytes = b""

    @property
    def app(self) -> Mapping[str, str]:
        return self.asked.apps[0].attributes if self.asked else {}

    @property
    def attributes(self) -> Mapping[str, str]:
        return self.asked.attributes if self.asked else {}

    @property
    def ping(self) -> bool:
        return bool(self.asked and self.asked.apps[0].ping)

    @property
    def updatecheck(self) -> bool:
        return bool(self.asked and self.asked.apps[0].updatecheck)

    @property
    def events(self) -> tuple[Mapping[str, str], ...]:
        return self.asked.apps[0].events if self.asked else ()


@dataclass(slots=True)
class PayloadRecord:
    """A request for a payload: what was asked for, and how much of it was sent.

    ``first`` is the offset of the first byte sent, ``sent`` counts body bytes handed to the
    connection, ``whole`` says that the body was sent to its end.
    """

    time: float
    path: str
    name: str
    range: str
    headers: dict[str, str]
    status: int = 0
    first: int = 0
    sent: int = 0
    whole: bool = False
    faults: tuple[str, ...] = ()


class Server:
    """Serves one source until stopped.

    Args:
        source: asked at each request.
        log: a file that gets one JSON line per request; None for none.
        problem: told, in a sentence, when the state cannot be read and the last one stays.
    """

    def __init__(
        self,
        source: Source,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        log: Path | None = None,
        problem: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
        keep: bool = True,
    ) -> None:
        self.source = source
        self.requests: list[AskedRecord] = []
        self.payload_requests: list[PayloadRecord] = []
        self._host, self._port, self._tls = host, port, tls
        self._log_path, self._log = log, None  # type: Path | None, Any
        self._problem = problem
        self._clock = clock
        self._keep = keep
        self._last = State()
        self._complaint = ""
        self._faults = FaultBook()
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    @property
    def base(self) -> str:
        """The server's address without a path, such as ``http://127.0.0.1:8080``."""
        scheme = "https" if self._tls else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self._port}"

    @property
    def url(self) -> str:
        """Where update requests go."""
        return self.base + UPDATE_PATH

    async def start(self) -> None:
        """Listen; afterwards ``url`` holds the real port. Raises UsageError."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post(UPDATE_PATH, self._on_update)
        app.router.add_post(UPDATE_PATH.rstrip("/"), self._on_update)
        app.router.add_get("/{folder:.+}/{name}", self._on_payload)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_STOP_SECONDS
        )
        await runner.setup()
        self._runner = runner
        site = web.TCPSite(runner, self._host, self._port, ssl_context=self._tls, backlog=1024)
        try:
            if self._log_path is not None:
                self._log = self._log_path.open("a", encoding="utf-8", buffering=1)
            await site.start()
        except OSError as error:
            await self.stop()
            raise UsageError(f"Cannot serve on {self._host}:{self._port}: {error}.") from error
        self._site = site
        listening: Any = site._server
        self._port = listening.sockets[0].getsockname()[1]

    async def pause(self) -> None:
        """Stop listening, as if the server were down; connections that are open stay."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def resume(self) -> None:
        """Listen again, on the same port."""
        if self._runner is not None and self._site is None:
            self._site = web.TCPSite(
                self._runner, self._host, self._port, ssl_context=self._tls, reuse_address=True
            )
            await self._site.start()

    async def stop(self) -> None:
        """Close all connections and the log."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._log is not None:
            self._log.close()
            self._log = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _state(self) -> State:
        try:
            self._last = self.source.state()
            self._complaint = ""
        except UsageError as error:
            # An editor may be in the middle of saving: go by what was last good.
            if self._problem is not None and str(error) != self._complaint:
                self._complaint = str(error)
                self._problem(f"{error} The state of before stays in force.")
        return self._last

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(entry) + "\n")

    # --- update requests -------------------------------------------------------------------

    async def _on_update(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        state = self._state()
        record = AskedRecord(self._clock(), body, dict(request.headers), None, 200)
        faults = self._faults.due(state.faults, on="omaha", path=request.path)
        try:
            return await self._answer(request, state, record, faults)
        finally:
            if self._keep:
                self.requests.append(record)
            self._write_log(
                {
                    "time": round(record.time, 6),
                    "kind": "omaha",
                    "status": record.status,
                    "request": dict(record.attributes),
                    "app": dict(record.app),
                    "ping": record.ping,
                    "updatecheck": record.updatecheck,
                    "events": [dict(event) for event in record.events],
                    "said": record.said,
                    "version": record.version,
                    "faults": [fault.kind for fault in faults],
                }
            )

    async def _answer(
        self, request: web.Request, state: State, record: AskedRecord, faults: Sequence[Fault]
    ) -> web.StreamResponse:
        try:
            asked = record.asked = parse_request(record.body)
        except BadRequest as error:
            record.status = 400
            return web.Response(status=400, text=f"{error}\n")
        for fault in faults:
            early = await self._early(request, fault)
            if early is not None:
                record.status = early.status
                return early
        answers = [self._decide(state, app) for app in asked.apps]
        first = answers[0]
        if first is not None:
            record.said = first.error or ("ok" if first.release else "noupdate")
            record.version = first.release.version if first.release else ""
        origin = f"{request.scheme}://{request.host}"
        urls = [origin + url if url.startswith("/") else url for url in state.rules.urls]
        record.answer = answer_document(asked, answers, urls, state.rules.poll_interval)
        return web.Response(body=record.answer, content_type="text/xml")

    def _decide(self, state: State, app: App) -> Answer | None:
        return answer(state, app.attributes) if app.updatecheck else None

    async def _early(self, request: web.Request, fault: Fault) -> web.StreamResponse | None:
        """Carry out a fault that comes before, or instead of, the answer."""
        match fault.kind:
            case "delay":
                await self._pause(request, fault.seconds)
            case "status":
                return web.Response(status=fault.code or 500, text="A fault on purpose.\n")
            case "body":
                return web.Response(text=fault.body, content_type="text/xml")
            case "redirect":
                return web.Response(status=fault.code or 302, headers={"Location": fault.to})
            case "refuse":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=500)
        return None

    # --- payloads --------------------------------------------------------------------------

    async def _on_payload(self, request: web.Request) -> web.StreamResponse:
        state = self._state()
        name = request.match_info["name"]
        record = PayloadRecord(
            self._clock(),
            request.path,
            name,
            request.headers.get("Range", ""),
            dict(request.headers),
        )
        if self._keep:
            # At once, so that a test sees a request that is still being answered.
            self.payload_requests.append(record)
        try:
            return await self._send(request, state, record)
        finally:
            self._write_log({"kind": "payload", **asdict(record), "time": round(record.time, 6)})

    def _find(self, state: State, request: web.Request, name: str) -> Path | None:
        known = {release.file for release in state.releases}
        folders = [url for url in state.rules.urls if url.startswith("/")]
        folder = "/" + request.match_info["folder"] + "/"
        if folder not in [url.rstrip("/") + "/" for url in [*folders, "/payload/", "/mirror/"]]:
            return None
        if name not in known and name.removesuffix(".DIGESTS.asc") not in known:
            return None
        path = self.source.payload(name)
        return path if path.is_file() else None

    async def _send(
        self, request: web.Request, state: State, record: PayloadRecord
    ) -> web.StreamResponse:
        path = self._find(state, request, record.name)
        if path is None:
            record.status = 404
            return web.Response(status=404, text="No such payload.\n")
        size = path.stat().st_size
        span = requested(record.range, size)
        faults = self._faults.due(
            state.faults,
            on="payload",
            path=request.path,
            name=record.name,
            start=span.start if span else 0,
            ranged=span is not None and span.partial,
        )
        record.faults = tuple(fault.kind for fault in faults)
        for fault in faults:
            early = await self._early(request, fault)
            if early is not None:
                record.status = early.status
                return early
        by_kind = {fault.kind: fault for fault in faults}
        if "truncate" in by_kind:
            size = min(size, by_kind["truncate"].at)
            span = requested(record.range, size)
        if "ignore_range" in by_kind:
            span = Span(0, size, False)
        if span is None:
            record.status = 416
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        if "wrong_range" in by_kind and span.partial:
            start = max(0, min(span.start + by_kind["wrong_range"].shift, size - 1))
            span = Span(start, max(span.end, start + 1), True)
        response = web.StreamResponse(status=206 if span.partial else 200)
        response.headers["Accept-Ranges"] = "bytes"
        response.content_type = "application/octet-stream"
        if span.partial:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
        length = by_kind.get("length")
        if "endless" not in by_kind:
            response.content_length = length.value if length else span.end - span.start
        else:
            response.enable_chunked_encoding()
        record.status, record.first = response.status, span.start
        await response.prepare(request)
        if request.method != "HEAD":
            with contextlib.suppress(ConnectionError):
                await self._stream(request, response, path, span, by_kind, record)
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        path: Path,
        span: Span,
        faults: Mapping[str, Fault],
        record: PayloadRecord,
    ) -> None:
        ends = [span.end]
        ends += [max(span.start, faults[kind].at) for kind in ("drop", "stall") if kind in faults]
        end = min(ends)
        slow, corrupt = faults.get("slow"), faults.get("corrupt")
        piece = max(1, min(_PIECE, slow.rate // 10)) if slow else _PIECE
        position = span.start
        with path.open("rb") as file:
            file.seek(position)
            while position < end and not self._stopping.is_set():
                data = file.read(min(piece, end - position))
                if not data:
                    break
                if corrupt and position <= corrupt.at < position + len(data):
                    changed = bytearray(data)
                    changed[corrupt.at - position] ^= 1
                    data = bytes(changed)
                await response.write(data)
                position += len(data)
                record.sent += len(data)
                if slow:
                    await self._pause(request, len(data) / slow.rate)
        if "stall" in faults and position < span.end:
            await self._pause(request, None)
        if "drop" in faults or position < span.end or self._lies(faults, span):
            if request.transport is not None:
                request.transport.close()
            return
        if "endless" in faults:
            zeros = bytes(_PIECE)
            for _ in range(_ENDLESS_LIMIT // _PIECE):
                if self._gone(request):
                    return
                await response.write(zeros)
                record.sent += len(zeros)
        await response.write_eof()
        record.whole = True

    @staticmethod
    def _lies(faults: Mapping[str, Fault], span: Span) -> bool:
        return "length" in faults and faults["length"].value > span.end - span.start

    def _gone(self, request: web.Request) -> bool:
        transport = request.transport
        return self._stopping.is_set() or transport is None or transport.is_closing()

    async def _pause(self, request: web.Request, seconds: float | None) -> None:
        """Wait, or wait for ever if None; not longer than the client or the server is there."""
        loop = asyncio.get_running_loop()
        until = None if seconds is None else loop.time() + seconds
        while not self._gone(request):
            left = 0.1 if until is None else min(0.1, until - loop.time())
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), left)


@dataclass(slots=True)
class _Memory:
    """A state in memory, edited by a test."""

    now: State = field(default_factory=State)
    files: dict[str, Path] = field(default_factory=dict)

    def state(self) -> State:
        return self.now

    def payload(self, name: str) -> Path:
        if name in self.files:
            return self.files[name]
        listed = self.files.get(name.removesuffix(".DIGESTS.asc"))
        return listed.with_name(listed.name + ".DIGESTS.asc") if listed else Path(name)


class MockServer(Server):
    """A server in this process that a test edits while it runs.

    ``requests`` and ``payload_requests`` hold what was asked so far; ``events`` is a short form.
    Nothing is on offer at first. Groups are not looked at: what is offered is for everybody.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._memory = _Memory(State(rules=Rules(appid="")))
        super().__init__(self._memory, host=host, port=port, tls=tls)
        self._error = ""

    @property
    def events(self) -> list[tuple[int, int, int | None, str | None]]:
        """(type, result, error code, previous version) of every event so far, in order."""
        return [
            (
                int(event.get("eventtype", -1)),
                int(event.get("eventresult", -1)),
                int(event["errorcode"]) if "errorcode" in event else None,
                event.get("previousversion"),
            )
            for record in self.requests
            for event in record.events
        ]

    @property
    def checks(self) -> list[AskedRecord]:
        """The requests with an updatecheck."""
        return [record for record in self.requests if record.updatecheck]

    @property
    def bytes_sent(self) -> int:
        """Body bytes of all payload requests so far."""
        return sum(record.sent for record in self.payload_requests)

    def _edit(self, **changes: Any) -> None:
        self._memory.now = replace(self._memory.now, **changes)

    def _decide(self, state: State, app: App) -> Answer | None:
        if not app.updatecheck:
            return None
        if self._error:
            return Answer(error=self._error)
        client = app.attributes
        # The last offer made wins; a delta only if it starts from what the client has.
        for release in reversed(state.releases):
            if release.version == client.get("version"):
                continue
            if not release.origin or (
                release.origin == client.get("version")
                and (state.rules.deltas == "always" or client.get("delta_okay") == "true")
            ):
                return Answer(release=release)
        return Answer()

    def offer(self, version: str, payload: Path, **attributes: Any) -> Release:
        """Offer ``payload`` as ``version`` to every client that has another version.

        Args:
            attributes: fields of Release: ``origin`` (makes it a delta from that version),
                ``metadata_size``, ``metadata_signature``, ``disable_backoff``, ``max_failures``,
                ``size``, ``sha256`` (to lie about them), ``file``, ``extra``.

        A further offer is added and goes first; ``noupdate`` takes all back.
        """
        facts: dict[str, Any] = {**describe(payload), "file": payload.name, **attributes}
        release = Release(version=version, **facts)
        self._memory.files[release.file] = payload
        releases = [r for r in self._memory.now.releases if r.file != release.file]
        self._edit(releases=(*releases, release))
        self._error = ""
        return release

    def noupdate(self) -> None:
        """From now on there is nothing new."""
        self._edit(releases=())
        self._error = ""

    def status(self, error: str) -> None:
        """Refuse update checks with this application status (``error-…``), as Nebraska does."""
        self._error = error

    def rules(self, **changes: Any) -> None:
        """Change fields of Rules: ``poll_interval``, ``deltas``, ``urls``."""
        self._edit(rules=replace(self._memory.now.rules, **changes))

    def urls(self, *urls: str) -> None:
        """Where payloads are said to be, in order; ``/mirror/`` is a second one on this server."""
        self.rules(urls=urls)

    # --- faults: each adds one, `times` 0 is always -------------------------------------------

    def fault(self, kind: str, **attributes: Any) -> None:
        """Add any fault of ``omaha_mock.faults``."""
        fault = Fault(kind=kind, **attributes)
        fault.check()
        self._edit(faults=(*self._memory.now.faults, fault))

    def heal(self) -> None:
        """Take all faults back."""
        self._edit(faults=())
        self._faults = FaultBook()

    def http_error(self, code: int = 500, *, times: int = 1, on: str = "omaha") -> None:
        self.fault("status", code=code, times=times, on=on)

    def answer_with(self, body: str, *, times: int = 1) -> None:
        """Answer Omaha requests with this text."""
        self.fault("body", body=body, times=times, on="omaha")

    def refuse(self, *, times: int = 1, on: str = "omaha") -> None:
        """Close the connection without an answer."""
        self.fault("refuse", times=times, on=on)

    def drop(self, at: int, *, times: int = 1, **more: Any) -> None:
        """Close the connection after byte ``at`` of the file."""
        self.fault("drop", at=at, times=times, **more)

    def truncate(self, at: int, *, times: int = 1, **more: Any) -> None:
        """Send a body that ends at byte ``at`` and says so."""
        self.fault("truncate", at=at, times=times, **more)

    def stall(self, at: int, *, times: int = 1, **more: Any) -> None:
        """Send up to byte ``at``, then hang."""
        self.fault("stall", at=at, times=times, **more)

    def slow(self, rate: int, *, times: int = 0, **more: Any) -> None:
        """Send ``rate`` bytes a second."""
        self.fault("slow", rate=rate, times=times, **more)

    def corrupt(self, at: int, *, times: int = 1, **more: Any) -> None:
        """Flip a bit of byte ``at``."""
        self.fault("corrupt", at=at, times=times, **more)

    def wrong_range(self, shift: int = 1, *, times: int = 1, **more: Any) -> None:
        """Answer Range requests with 206 and another range."""
        self.fault("wrong_range", shift=shift, times=times, **more)

    def ignore_range(self, *, times: int = 0, **more: Any) -> None:
        """Answer Range requests with 200 and everything."""
        self.fault("ignore_range", times=times, **more)

    def redirect(self, to: str, *, code: int = 302, times: int = 0, **more: Any) -> None:
        self.fault("redirect", to=to, code=code, times=times, **more)

    def content_length(self, value: int, *, times: int = 1, **more: Any) -> None:
        """Send a wrong Content-Length."""
        self.fault("length", value=value, times=times, **more)

    def endless(self, *, times: int = 1, **more: Any) -> None:
        """Never end the body (64 MiB of zeros too many, in fact)."""
        self.fault("endless", times=times, **more)

    def clear(self) -> None:
        """Forget what was asked so far."""
        self.requests.clear()
        self.payload_requests.clear()

    def newest(self) -> str:
        """The highest version on offer, or ""."""
        return max((r.version for r in self._memory.now.releases), key=order, default="")

    def group(self, name: str, **attributes: Any) -> None:
        """Change a group's record; only servers of a directory go by it."""
        self._edit(groups={**self._memory.now.groups, name: Group(**attributes)})
