"""How systemd's units fare, over D-Bus: what the late-regression window looks at.

Interfaces: org.freedesktop.systemd1(5), Manager.LoadUnit, and the properties ``ActiveState`` of
``.Unit`` and ``NRestarts`` of ``.Service``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bascule.engine.surroundings import call

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

_NAME = "org.freedesktop.systemd1"
_MANAGER = (_NAME, "/org/freedesktop/systemd1", f"{_NAME}.Manager")
_PROPERTIES = "org.freedesktop.DBus.Properties"
TIMEOUT = 10.0
"""Seconds that systemd may take to answer one question."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """One unit now.

    Attributes:
        active: systemd's ActiveState: ``active``, ``failed``, ``activating`` …
        restarts: automatic restarts so far, 0 for what is no service.
    """

    active: str
    restarts: int = 0


async def read_units(
    bus: MessageBus, units: Iterable[str], timeout: float = TIMEOUT
) -> dict[str, UnitState]:
    """The states of `units`; one that systemd does not tell of is left out."""
    found = {}
    for unit in units:
        loaded = await call(bus, _MANAGER, "LoadUnit", "s", [unit], timeout=timeout)
        if not loaded or not isinstance(loaded[0], str):
            continue
        active = await _property(bus, loaded[0], "Unit", "ActiveState", timeout)
        if not isinstance(active, str) or not active:
            continue
        restarts = await _property(bus, loaded[0], "Service", "NRestarts", timeout)
        count = restarts if isinstance(restarts, int) and restarts >= 0 else 0
        found[unit] = UnitState(active, count)
    return found


async def _property(
    bus: MessageBus, path: str, interface: str, name: str, timeout: float
) -> object:
    target = (_NAME, path, _PROPERTIES)
    body = await call(bus, target, "Get", "ss", [f"{_NAME}.{interface}", name], timeout=timeout)
    return getattr(body[0], "value", None) if body else None
