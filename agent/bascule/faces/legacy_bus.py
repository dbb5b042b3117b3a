"""``com.coreos.update1``, byte-compatible with Flatcar's update_engine.

Source: reference 4.1–4.3 and the introspection data recorded from the original. What locksmith,
FLUO, ``update_engine_client`` and kola rely on is kept: names, path, signature, the eight
strings, silence of AttemptUpdate while busy, and when the signal comes. Mended (reference 3.3):
a reset is signalled and undoes the staged slot; both are the updater's doing, so this face only
passes them on. Who may call is left to the bus policy, as in the original.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import structlog
from dbus_fast import introspection as intr
from dbus_fast.annotations import DBusSignature
from dbus_fast.constants import ArgDirection
from dbus_fast.service import ServiceInterface, dbus_method, dbus_signal

from bascule.errors import BasculeError
from bascule.faces.authority import Authority
from bascule.faces.bus_connection import BusConnection, current_call
from bascule.faces.bus_values import RefusedCall, answered, as_text
from bascule.updater.status import State, Status
from bascule.updater.steering import Steering

_log = structlog.get_logger("bascule.legacy_bus")

__all__ = ["INTERFACE", "NAME", "PATH", "LegacyBusFace"]

NAME = "com.coreos.update1"
PATH = "/com/coreos/update1"
INTERFACE = "com.coreos.update1.Manager"

# dbus-glib's name for a method that failed without saying why; clients test for any error.
REFUSED = "org.freedesktop.DBus.GLib.ErrorError"

PROGRESS_STEP = 0.01
PROGRESS_SECONDS = 10.0

_INT64_MAX = (1 << 63) - 1
_STATUS_FIELDS = (
    ("x", "last_checked_time"),
    ("d", "progress"),
    ("s", "current_operation"),
    ("s", "new_version"),
    ("x", "new_size"),
)

# dbus-fast cannot read a plain None.
Nothing = Annotated[None, DBusSignature("")]
LegacyStatus = Annotated[tuple[int, float, str, str, int], DBusSignature("xdssx")]


def _tuple(status: Status) -> tuple[int, float, str, str, int]:
    checked, progress, operation, version, size = status.legacy()
    return (
        max(0, min(int(checked), _INT64_MAX)),
        float(progress),
        operation,
        as_text(version),
        max(0, min(int(size), _INT64_MAX)),
    )


class _Manager(ServiceInterface):
    def __init__(self, face: LegacyBusFace) -> None:
        super().__init__(INTERFACE)
        self._face = face

    def introspect(self) -> intr.Interface:
        """Exactly the original's description: order, argument names, bare signal arguments."""
        return intr.Interface(
            INTERFACE,
            methods=[
                intr.Method(
                    "GetStatus",
                    [],
                    [intr.Arg(kind, ArgDirection.OUT, name) for kind, name in _STATUS_FIELDS],
                ),
                intr.Method("ResetStatus"),
                intr.Method("AttemptUpdate"),
            ],
            signals=[intr.Signal("StatusUpdate", [intr.Arg(kind) for kind, _ in _STATUS_FIELDS])],
        )

    @dbus_method()
    def GetStatus(self) -> LegacyStatus:
        return _tuple(self._face.steering.status)

    @dbus_method()
    async def ResetStatus(self) -> Nothing:
        with answered():
            actor = await self._face.authority.caller(current_call(), "legacy-bus")
            try:
                await self._face.steering.reset(actor)
            except BasculeError as error:
                raise RefusedCall(error, REFUSED) from error

    @dbus_method()
    async def AttemptUpdate(self) -> Nothing:
        with answered():
            actor = await self._face.authority.caller(current_call(), "legacy-bus")
            try:
                await self._face.steering.attempt_update(actor)
            except BasculeError as error:
                # It never answers with an error (reference 3.3); what went wrong is in the status.
                _log.warning("An update asked for by AttemptUpdate did not begin", error=error)

    @dbus_signal()
    def StatusUpdate(self, status: Status) -> LegacyStatus:
        return _tuple(status)


class LegacyBusFace:
    """Puts a `Steering` on the bus as ``com.coreos.update1``.

    Args:
        clock: monotonic seconds, for the ten-second rule of progress signals.
    """

    def __init__(
        self,
        steering: Steering,
        connection: BusConnection,
        *,
        authority: Authority | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steering = steering
        self.authority = authority or Authority(connection)
        self._clock = clock
        self._sent_at = 0.0
        self._sent_progress = 0.0
        self._interface = _Manager(self)
        connection.export(PATH, self._interface)
        # The original announces itself once at its start; so do we, whenever we are (back) on
        # the bus, which is when a listener that kept waiting needs it.
        connection.on_connect(lambda: self._emit(self.steering.status))
        self._unsubscribe: Callable[[], None] | None = steering.subscribe(self._on_status)

    def close(self) -> None:
        """Stop listening to the updater."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _on_status(self, old: Status, new: Status) -> None:
        if old.state is not new.state or self._progress_is_due(new):
            self._emit(new)

    def _progress_is_due(self, status: Status) -> bool:
        if status.state is not State.DOWNLOADING or status.progress == self._sent_progress:
            return False
        return (
            int(status.progress / PROGRESS_STEP) > int(self._sent_progress / PROGRESS_STEP)
            or status.progress < self._sent_progress
            or status.progress >= 1.0
            or self._clock() - self._sent_at >= PROGRESS_SECONDS
        )

    def _emit(self, status: Status) -> None:
        self._sent_at = self._clock()
        self._sent_progress = status.progress
        self._interface.StatusUpdate(status)
