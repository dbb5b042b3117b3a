"""Coordinators that ask nobody: ``off`` and ``reboot``."""

from __future__ import annotations

from bascule.engine.coordination.interface import Grant, LockView, Refused


class Off:
    """Never reboots: somebody else does."""

    name = "off"

    async def acquire(self) -> Grant | Refused:
        """Always refused, for good."""
        return Refused(self.name, "`reboot.strategy` is off: reboot this host by hand.", final=True)

    async def release(self) -> str:
        """Nothing is held."""
        return ""

    async def view(self) -> LockView:
        """No lock."""
        return LockView(self.name)

    async def close(self) -> None:
        """Nothing to give back."""


class Reboot:
    """Reboots as soon as the local gates are open."""

    name = "reboot"

    async def acquire(self) -> Grant | Refused:
        """Always granted."""
        return Grant(self.name, "No lock is needed.")

    async def release(self) -> str:
        """Nothing is held."""
        return ""

    async def view(self) -> LockView:
        """No lock."""
        return LockView(self.name)

    async def close(self) -> None:
        """Nothing to give back."""
