"""``bascule run``: builds every part, owns the TaskGroup, and lives quietly between errands."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from bascule.assembly import DISABLED, LOG_STYLES, Assembly
from bascule.child import ChildErrand
from bascule.conductor import Conductor
from bascule.documents import Documents
from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Record
from bascule.engine.markers import leave_markers, remove_markers
from bascule.errors import BasculeError, Exit, LedgerError, SettingsError, Stopped, from_dict
from bascule.faces.bus import NAME as BUS_NAME
from bascule.faces.bus import BusFace
from bascule.faces.bus_connection import BusConnection
from bascule.faces.journal import configure_logging
from bascule.faces.legacy_bus import NAME as LEGACY_BUS_NAME
from bascule.faces.legacy_bus import LegacyBusFace
from bascule.faces.systemd import Notifier, keep_watchdog
from bascule.figures import Exporter
from bascule.late_watch import LateWatch
from bascule.settings import differences, load
from bascule.updater import policy
from bascule.updater.scheduler import Scheduler
from bascule.updater.staleness import is_stale, warning
from bascule.updater.status import State, Status
from bascule.updater.steering import Actor
from bascule.updater.updater import Orders, Updater
from bascule.updater.verdict import Verdict

_log = structlog.get_logger()

TRIAL_LOOK = 60.0
"""Seconds between looks at the ledger while the booted slot is on trial."""

SCHEDULE = Actor(via="schedule")

HISTORIC = frozenset(
    {
        "asked",
        "verdict",
        "staged",
        "attempt-failed",
        "delta-refused",
        "withdrawn",
        "rollback",
        "reboot",
        "boot",
        "ledger-damaged",
        "prepared",
        "boot-repaired",
        "once-over",
        "no-way-back",
        "late-trouble",
        "hold",
        "pin",
        "repaired",
    }
)
"""What goes into history; everything goes to the journal."""


class Daemon:
    """One daemon.

    Args:
        root, extra: where settings are read from, as in `settings.load`.
        rng: spreads checks and names attempts.
    """

    def __init__(self, root: Path, extra: Sequence[Path], rng: random.Random | None = None) -> None:
        self._root = root
        self._extra = list(extra)
        self._rng = rng or random.SystemRandom()
        self.settings = load(root, self._extra)
        self.assembly = Assembly(self.settings)
        self._notifier = Notifier()
        self._begun = 0
        self.settings_error: SettingsError | None = None
        self._untold: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._interval = self.settings.check.interval
        self.updater = Updater(
            orders=self._orders,
            boot=self._boot,
            boot_id=self.assembly.host.boot_id,
            ledger=self.assembly.ledger(),
            launch=self.launch,
            tell=self.tell,
            staged=self._on_staged,
            withdrawn=self._on_withdrawn,
            concluded=self._on_concluded,
        )
        self.conductor = Conductor(self, self.updater)
        self.late_watch = LateWatch(
            self.updater,
            settings=lambda: self.settings,
            bus=lambda: self.message_bus,
            reboot=self.conductor.rebooting.by_hand,
            clock=time.time,
        )
        self._connection: BusConnection | None = None
        self.documents = Documents(self)
        self.exporter = Exporter(self)

    # ── settings ─────────────────────────────────────────────────────────────────────────────

    def _orders(self) -> Orders:
        self.reread()
        settings, host = self.settings, self.assembly.host
        enabled, why = True, ""
        if settings.server.url == DISABLED and not settings.server.repository:
            enabled, why = False, "`server.url` is `disabled`, so no server is asked"
        return Orders(
            mode=settings.policy.mode,
            enabled=enabled,
            disabled_why=why,
            current_version=host.version,
            group=settings.server.group,
            server=settings.server.repository or settings.server.url,
            stale_after=settings.policy.stale_after,
        )

    def reread(self) -> None:
        """Settings are read anew at each check, as the original does; changes are never silent."""
        try:
            fresh = load(self._root, self._extra)
        except SettingsError as error:
            if str(error) != str(self.settings_error):
                _log.error("The settings are wrong; the last good ones stay in force", error=error)
            self.settings_error = error
            return
        self.settings_error = None
        for change in differences(self.settings, fresh):
            _log.info("A setting has changed", change=change)
        if fresh != self.settings:
            self.settings = fresh
            self.assembly = Assembly(fresh)
            self.exporter.wake()

    @property
    def message_bus(self) -> Any:
        """The connected bus, or None."""
        return self._connection.bus if self._connection is not None else None

    def _boot(self) -> BootBackend:
        return self.assembly.boot()

    # ── history ──────────────────────────────────────────────────────────────────────────────

    async def _write_history(self) -> None:
        while True:
            await self._write_one(*await self._untold.get())

    async def _write_one(self, event: str, facts: dict[str, Any]) -> None:
        attempt, actor = str(facts.pop("attempt", "") or ""), facts.pop("actor", None)
        try:
            await asyncio.to_thread(
                self.assembly.history().append, event, attempt=attempt, actor=actor, facts=facts
            )
        except BasculeError as error:
            _log.error("history is not written", error=error)

    async def _finish_history(self) -> None:
        while not self._untold.empty():
            await self._write_one(*self._untold.get_nowait())

    # ── errands ──────────────────────────────────────────────────────────────────────────────

    async def launch(self, job: Mapping[str, Any]) -> ChildErrand:
        """Start a child at a job."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return await ChildErrand.launch(
            {
                **job,
                "attempt": f"{stamp}-{self._rng.getrandbits(32):08x}",
                "on_trial": self.updater.verdict is Verdict.ON_TRIAL,
                "settings": self.settings.as_dict(),
            }
        )

    def tell(self, event: str, **facts: Any) -> None:
        if event in HISTORIC:
            self._untold.put_nowait((event, dict(facts)))
        error = facts.pop("error", None)
        if isinstance(error, dict):
            # As the error that it was, so that the journal gets number and MESSAGE_ID with it.
            _log.error(event, error=from_dict(error), **facts)
        else:
            _log.info(event, **facts)

    def _on_staged(self) -> None:
        for trouble in leave_markers(self.assembly.run_directory):
            self.tell("marker-not-written", why=trouble)

    def _on_withdrawn(self) -> None:
        remove_markers(self.assembly.run_directory)

    def _on_concluded(self) -> None:
        try:
            self.assembly.checkpoint().clear()
            self.assembly.keepsake().drop()
        except LedgerError as error:
            self.tell("not-forgotten", error=error.as_dict())

    # ── the loop ─────────────────────────────────────────────────────────────────────────────

    async def _tick(self) -> float:
        updater = self.updater
        orders = updater.read_orders()
        if updater.verdict is Verdict.ON_TRIAL:
            await updater.settle()
            if updater.verdict is Verdict.ON_TRIAL:
                return TRIAL_LOOK
        if orders.enabled and orders.mode != "none":
            await updater.idle()
            if updater.status.state is State.UPDATED_NEED_REBOOT:
                updater.begin("ping", {}, SCHEDULE)
            elif kind := await self.conductor.by_the_clock():
                updater.begin(kind, {}, SCHEDULE)
            await updater.idle()
        self.warn()
        record = await asyncio.to_thread(updater.ledger.read)
        return self._next_delay(record.answer)

    def warn(self) -> None:
        """Show what an operator should look at: in status, on the bus, at login."""
        orders, now = self.updater.read_orders(), time.time()
        checked = self.updater.status.last_checked
        asks = orders.enabled and orders.mode != "none"
        stale = asks and is_stale(checked, self._begun, orders.stale_after, now)
        warnings = []
        if self.settings_error is not None:
            warnings.append(f"{self.settings_error} The last good settings stay in force.")
        if stale:
            warnings.append(warning(checked, self._begun, now))
        warnings.extend(self.conductor.warnings)
        self.updater.show(warnings=tuple(warnings), stale=stale)

    async def _note_first_run(self) -> None:
        def change(record: Record) -> Record:
            return record if record.begun else replace(record, begun=int(time.time()))

        self._begun = (await asyncio.to_thread(self.updater.ledger.update, change)).begun

    def _next_delay(self, answer: Mapping[str, Any]) -> float:
        scheduled = self.conductor.next_scheduled(time.time())
        if scheduled is not None:
            return scheduled
        check = self.settings.check
        error = self.updater.end_of_errand.get("error") or {}
        pause, self._interval = policy.next_pause(
            self._rng,
            last=self._interval,
            poll_interval=policy.wished_pause(error, answer),
            http_status=(error.get("context") or {}).get("status"),
            regular=check.interval,
            fuzz=check.fuzz,
            spread=check.spread,
        )
        return pause

    async def _tick_or_later(self) -> float:
        """`_tick`; what has a name does not end the daemon, it is logged and tried again later."""
        try:
            return await self._tick()
        except BasculeError as error:
            _log.error("The check by the clock could not begin", error=error)
            return self._interval

    def _show_status(self, old: Status, new: Status) -> None:
        if (old.state, old.sentence) != (new.state, new.sentence):
            words = new.state.words
            self._notifier.status(f"{words}: {new.sentence}" if new.sentence else words)
        if old.state is not new.state:
            _log.info("state", state=new.state.name, version=new.new_version or None)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises what keeps the daemon from starting."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._orders)
        settings = self.settings
        connection = self._connection = BusConnection(settings.bus.address or None)
        updater = self.updater
        await updater.start()
        await self._note_first_run()
        self.warn()
        face = BusFace(updater, connection)
        names = [BUS_NAME]
        legacy = None
        if settings.bus.legacy:
            legacy = LegacyBusFace(updater, connection)
            names.append(LEGACY_BUS_NAME)
        updater.subscribe(self._show_status)
        await connection.connect(names)
        self._notifier.ready()
        _log.info("ready", version=updater.status.current_version, verdict=updater.verdict.name)
        scheduled = self.conductor.next_scheduled(time.time())
        scheduler = Scheduler(
            first=scheduled
            if scheduled is not None
            else policy.first_pause(
                self._rng,
                first=settings.check.first,
                regular=settings.check.interval,
                fuzz=settings.check.fuzz,
                spread=settings.check.spread,
            ),
            tick=self._tick_or_later,
            due=lambda at: updater.show(next_check=at),
            clock=time.time,
        )
        tasks = [
            asyncio.create_task(scheduler.run()),
            asyncio.create_task(connection.stay()),
            asyncio.create_task(stop.wait()),
            asyncio.create_task(self._write_history()),
            asyncio.create_task(self.conductor.run()),
            asyncio.create_task(self.late_watch.run()),
            asyncio.create_task(self.exporter.run()),
            asyncio.create_task(keep_watchdog(self._notifier)),
        ]
        try:
            # The last one ends at once where no watchdog is set.
            done, _ = await asyncio.wait(tasks[:-1], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._notifier.stopping()
            await updater.note_stop()
            for task in tasks:
                task.cancel()
            await updater.stop_errand(Stopped("the daemon stops"))
            face.close()
            if legacy is not None:
                legacy.close()
            await connection.hang_up()
            connection.close()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._finish_history()
        _log.info("stopped")


def run(root: Path, extra: Sequence[Path]) -> int:
    """Entry of ``bascule run``; the exit code."""
    try:
        daemon = Daemon(root, extra)
    except BasculeError as error:
        configure_logging()
        _log.error("cannot start", error=error)
        return int(error.exit)
    configure_logging(level=daemon.settings.log.level, style=LOG_STYLES[daemon.settings.log.format])
    try:
        asyncio.run(daemon.run())
    except BasculeError as error:
        _log.error("cannot go on", error=error)
        return int(error.exit)
    except Exception:
        _log.exception("An error that has no name has ended the daemon")
        return int(Exit.FAILED)
    return 0
