"""Asking for a reboot: logind, or a file for tests and the demo."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from bascule.errors import NotRebootable


class Rebooter(Protocol):
    """One way to reboot."""

    async def reboot(self, reason: str) -> None:
        """Ask for it; returns once the request is taken. Raises NotRebootable."""
        ...


class LogindRebooter:
    """``org.freedesktop.login1.Manager.Reboot(false)`` on the system bus, as locksmith does.

    Args:
        address: bus address, "" for the system bus.
        timeout: seconds that logind may take to answer.
    """

    def __init__(self, address: str = "", timeout: float = 30.0) -> None:
        self._address = address
        self._timeout = timeout

    async def reboot(self, reason: str) -> None:
        """Not interactive: a polkit question that nobody answers would hang an unattended host."""
        from dbus_fast import BusType, Message, MessageType
        from dbus_fast.aio import MessageBus

        try:
            async with asyncio.timeout(self._timeout):
                bus = await MessageBus(
                    bus_address=self._address or None, bus_type=BusType.SYSTEM
                ).connect()
                try:
                    reply = await bus.call(
                        Message(
                            destination="org.freedesktop.login1",
                            path="/org/freedesktop/login1",
                            interface="org.freedesktop.login1.Manager",
                            member="Reboot",
                            signature="b",
                            body=[False],
                        )
                    )
                finally:
                    bus.disconnect()
        except (OSError, TimeoutError, EOFError) as error:
            raise NotRebootable(f"logind did not answer: {error or 'timed out'}") from error
        if reply is None or reply.message_type is MessageType.ERROR:
            why = reply.body[0] if reply is not None and reply.body else "no reply"
            raise NotRebootable(f"logind: {why}")


class FileRebooter:
    """Writes the reason to `path`; whoever re-enacts the firmware waits for it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def reboot(self, reason: str) -> None:
        """Never refused."""

        def write() -> None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(reason + "\n")

        await asyncio.to_thread(write)


class NoRebooter:
    """For hosts whose operator reboots by hand."""

    async def reboot(self, reason: str) -> None:
        """Always refused."""
        raise NotRebootable("`reboot.via` is none: reboot this host by hand")
