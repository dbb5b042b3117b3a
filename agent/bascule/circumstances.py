"""Brings together what the gates look at: settings, ledger, status and this host's surroundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.assembly import DISABLED, Assembly
from bascule.engine.coordination.interface import LockView, RebootCoordinator
from bascule.engine.coordination.neighbours import COORDINATOR, CoordinatorFile
from bascule.engine.coordination.registry import Credentials, coordinator
from bascule.engine.ledger import Record
from bascule.engine.surroundings import Surroundings, free_space, look
from bascule.formats.slots import Slot
from bascule.updater.gates import Answer, Answered, Facts, Locksmithd, Room
from bascule.updater.gather import with_record
from bascule.updater.late import watched_until
from bascule.updater.schedule import Schedule, parse_schedule
from bascule.updater.status import State, Status
from bascule.updater.windows import Windows, parse_locksmith, parse_windows

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

ETCD = "http://127.0.0.1:2379"
"""Where locksmith looks for etcd if nobody says where."""

STATE_ROOM = 8 << 20
"""Bytes that state needs free: metadata of a payload and the journal of one operation."""


class Circumstances:
    """Facts for `updater.gates`, gathered anew each time.

    Args:
        assembly: the present settings' parts.
        status: the updater's status.
        bus: the connected bus, or None.
        clock: unix seconds.
    """

    def __init__(
        self,
        assembly: Callable[[], Assembly],
        status: Callable[[], Status],
        bus: Callable[[], MessageBus | None],
        clock: Callable[[], float],
    ) -> None:
        self._assembly = assembly
        self._status = status
        self._bus = bus
        self._clock = clock
        self._file: CoordinatorFile | None = None

    def schedule(self) -> Schedule:
        """What the settings say about the clock. Raises SettingsError."""
        settings = self._assembly().settings
        reboots = parse_windows(settings.reboot.windows)
        window = parse_locksmith(settings.reboot.window_start, settings.reboot.window_length)
        if window is not None:
            reboots = Windows((*reboots.windows, window))
        return parse_schedule(
            settings.policy.mode,
            checks=settings.policy.schedule,
            downloads=parse_windows(settings.download.windows),
            reboots=reboots,
            machine_id=self._assembly().host.machine_id,
            spread=settings.reboot.spread,
        )

    def coordinator(self) -> RebootCoordinator:
        """Who agrees to reboots. Raises SettingsError."""
        reboot = self._assembly().settings.reboot
        return coordinator(
            reboot.strategy,
            machine_id=self._assembly().host.machine_id,
            group=reboot.group,
            endpoints=_endpoints(reboot.strategy, reboot.endpoints),
            command=reboot.command,
            etcd_api=reboot.etcd_api,
            credentials=Credentials(
                reboot.ca_file, reboot.certificate, reboot.key, reboot.user, reboot.password
            ),
            clock=self._clock,
        )

    @property
    def coordinator_file(self) -> CoordinatorFile:
        """Where locksmithd and we see each other; the same object, for it holds a lock."""
        path = self._assembly().run_directory / COORDINATOR
        if self._file is None or self._file.path != path:
            if self._file is not None:
                self._file.release()
            self._file = CoordinatorFile(path)
        return self._file

    async def lock(self) -> LockView | None:
        """The reboot lock, where a strategy has one."""
        if self._assembly().settings.reboot.strategy in ("off", "reboot"):
            return None
        found = self.coordinator()
        try:
            return await found.view()
        finally:
            await found.close()

    async def surroundings(self) -> Surroundings:
        """Battery, pressure, link, sessions, inhibitors; unknown where they cannot be read."""
        root = self._assembly().root
        return await look(sys=root / "sys", proc=root / "proc", bus=self._bus())

    def _rooms(self) -> tuple[Room, ...]:
        """What an update writes outside the slot: state, and a kernel on /boot beside the present one."""
        assembly = self._assembly()
        state = assembly.state_directory
        rooms = [Room(str(state), STATE_ROOM, free_space(state))]
        layout = assembly.layout
        kernel = layout.parts[layout.booted].get("kernel")
        target = layout.parts[layout.booted.other].get("kernel")
        if kernel is not None and target is not None and kernel.file and kernel.path.exists():
            folder: Path = target.path.parent
            rooms.append(Room(str(folder), kernel.path.stat().st_size, free_space(folder)))
        return tuple(rooms)

    async def facts(
        self,
        record: Record,
        *,
        asked: bool = False,
        allow_downgrade: bool = False,
        lock: LockView | None = None,
        local: str = "",
        wanted: str = "",
    ) -> Facts:
        """Everything that is known now.

        Args:
            asked: somebody asked for this update.
            local: the file or repository that it comes from instead of the server.
            wanted: the only release that will do, or "".
        """
        assembly, status = self._assembly(), self._status()
        settings = assembly.settings
        now = self._clock()
        booted = next((s for s in status.slots if s.booted), None)
        other = self.coordinator_file.other()
        facts = Facts(
            schedule=self.schedule(),
            server=settings.server.url,
            group=status.group,
            running=status.current_version,
            staged=status.new_version if status.state is State.UPDATED_NEED_REBOOT else "",
            next_check=status.next_check,
            under_way=status.phase or status.state.words
            if status.state not in (State.IDLE, State.UPDATED_NEED_REBOOT)
            else "",
            way_back=status.sentence if record.once or record.late else "",
            asked=asked,
            stays=bool(record.stay),
            wanted=wanted,
            allow_downgrade=allow_downgrade or settings.policy.allow_downgrade,
            blessed=booted.successful if booted else None,
            watched_until=watched_until(record, Slot(booted.name), now, settings.reboot.late_window)
            if booted is not None
            else 0,
            rooms=self._rooms(),
            allow_metered=settings.download.metered,
            battery_floor=settings.policy.battery_floor,
            load_ceiling=settings.policy.load_ceiling,
            surroundings=await self.surroundings(),
            wait_for_sessions=settings.reboot.sessions,
            wait_for_inhibitors=settings.reboot.inhibitors,
            strategy=settings.reboot.strategy,
            locksmithd=Locksmithd(other.strategy, other.state)
            if other is not None and other.name != "bascule"
            else None,
            lock=lock,
            stale_after=int(settings.reboot.stale_after),
        )
        answer: Answer | None
        if local:
            answer = Answer(Answered.LOCAL, detail=local)
        elif settings.server.url == DISABLED and not settings.server.repository:
            answer = Answer(Answered.DISABLED)
        else:
            answer = None
        facts = with_record(facts, record, now, budget_limit=settings.download.budget)
        if assembly.dev_mode:
            facts = replace(facts, back_off_until=0)
        return facts if answer is None else replace(facts, answer=answer)


def _endpoints(strategy: str, written: Sequence[str]) -> tuple[str, ...]:
    """As in the settings, or as locksmith has them: a list with commas, and a default."""
    found = tuple(e.strip() for text in written for e in text.split(",") if e.strip())
    return found or ((ETCD,) if strategy == "etcd-lock" else ())
