"""Shows the daemon's figures where `metrics.mode` says: on a unix socket, or in a file.

Idle, it does not wake: the socket is served when somebody asks, the file is written when something
has changed, and at most once a minute.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bascule.engine.ledger import Record
from bascule.engine.limits import DataUse
from bascule.errors import BasculeError
from bascule.faces.metrics import Figures, figures, render
from bascule.faces.metrics_outlets import SocketServer, write_textfile
from bascule.settings import Settings
from bascule.updater.hold import Hold

if TYPE_CHECKING:
    from bascule.daemon import Daemon
    from bascule.engine.history import History
    from bascule.updater.status import Status

PAUSE = 60.0
"""Seconds between two writings of the file at least."""

_log = structlog.get_logger("bascule.metrics")


DEFAULT_PATHS = {
    "socket": "/run/bascule/metrics.sock",
    "textfile": "/var/lib/prometheus/node-exporter/bascule.prom",
}
"""Where `metrics.path` is empty: our run directory; where Debian's node exporter looks."""


def outlet(settings: Settings) -> tuple[str, str]:
    """(mode, path)."""
    mode = settings.metrics.mode
    return mode, settings.metrics.path or DEFAULT_PATHS.get(mode, "")


class Exporter:
    """The outlet of one daemon; follows its settings while it runs."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._wake = asyncio.Event()
        self._shown = ("off", "")
        self._server: SocketServer | None = None
        self._seen: tuple[int, ...] = ()
        self._sums = Figures()

    def wake(self) -> None:
        """The settings may have changed."""
        self._wake.set()

    def _on_status(self, old: Status, new: Status) -> None:
        if self._shown[0] == "textfile":
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled. What fails is logged: figures never stop an update."""
        self._daemon.updater.subscribe(self._on_status)
        try:
            while True:
                await self._settle()
                mode, path = self._shown
                if mode == "textfile":
                    await self._write(Path(path))
                    await asyncio.sleep(PAUSE)
                await self._wake.wait()
                self._wake.clear()
        finally:
            await self._close()

    async def _settle(self) -> None:
        """Bring the outlet to what the settings say."""
        wanted = outlet(self._daemon.settings)
        if wanted == self._shown:
            return
        await self._close()
        mode, path = self._shown = wanted
        if mode != "socket":
            return
        server = SocketServer(Path(path), self.page)
        try:
            await server.start()
        except BasculeError as error:
            _log.error("Figures are not shown", error=error)
            return
        self._server = server

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def _write(self, path: Path) -> None:
        page = await self.page()
        try:
            await asyncio.to_thread(write_textfile, path, page)
        except BasculeError as error:
            _log.error("Figures are not shown", error=error)

    async def page(self) -> str:
        """The present page."""
        assembly = self._daemon.assembly
        record, told = await asyncio.to_thread(self._gather, assembly.history())
        settings = assembly.settings
        now = time.time()
        told = replace(
            told,
            budget_limit=settings.download.budget,
            budget_used=DataUse.from_dict(record.budget).at(now).used,
            held=_held(record, now),
        )
        return render(self._daemon.updater.status, told, now)

    def _gather(self, history: History) -> tuple[Record, Figures]:
        """Ledger and sums; history is read anew only where it has grown."""
        record = self._daemon.updater.ledger.read()
        try:
            seen = history.stamp()
            if seen != self._seen:
                self._sums, self._seen = figures(history.read()), seen
        except BasculeError as error:
            _log.error("Figures are incomplete", error=error)
        return record, self._sums


def _held(record: Record, now: float) -> bool:
    held = Hold.from_dict(record.hold)
    return held is not None and held.active(now)
