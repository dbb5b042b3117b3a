"""PropertiesChanged: what differs from what was last sent, gathered where it moves fast."""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_fast.service import ServiceInterface

from bascule.faces.bus_shown import Shown

__all__ = ["Changes"]


class Changes:
    """PropertiesChanged for one interface: what differs from what was last sent, gathered."""

    def __init__(
        self, interface: ServiceInterface, shown: tuple[Shown, ...], interval: float
    ) -> None:
        self._interface = interface
        self._shown = shown
        self._interval = interval
        self._sent: Any = None
        self._view: Any = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._prompt = False

    def start(self, view: Any) -> None:
        """`view` is what everybody can read already; nothing is sent."""
        self._sent = self._view = view

    def show(self, view: Any) -> None:
        """Send what `view` changes: at once, or within the interval if only bytes moved."""
        self._view = view
        loop = asyncio.get_running_loop()
        prompt = any(
            entry.read(view) != entry.read(self._sent) for entry in self._shown if not entry.fluid
        )
        if self._timer is not None:
            if not prompt or self._prompt:
                return
            self._timer.cancel()
        self._prompt = prompt
        self._timer = (
            loop.call_soon(self.flush) if prompt else loop.call_later(self._interval, self.flush)
        )

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changed = {
            entry.name: value
            for entry in self._shown
            if (value := entry.read(self._view)) != entry.read(self._sent)
        }
        self._sent = self._view
        if changed:
            self._interface.emit_properties_changed(changed)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
