"""Who decides what boots: one interface, one module for each kind of bootloader.

A backend is blocking and thread-safe enough to be called through ``asyncio.to_thread``; it
reads the medium every time, for others (the bootloader, `cgpt`, an operator) write it too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Protocol

from bascule.errors import SettingsError
from bascule.formats.slots import BootFlags, Slot

if TYPE_CHECKING:
    from bascule.engine.layout import Layout
    from bascule.engine.verify import VerifiedSlot

__all__ = ["CLEARER", "BootBackend", "ClearedSlot", "backends", "open_backend", "register"]

CLEARER = object()
"""What a backend shows when it makes a `ClearedSlot`."""


@dataclass(frozen=True, slots=True)
class ClearedSlot:
    """Witness: no bootloader will take what is about to be overwritten.

    Made only by `BootBackend.clear` and `bascule.engine.boot.files.clear_files`. The applier
    asks for one before the first byte.

    Attributes:
        slot: the slot, or None for plain files and devices that are no slot of this host.
    """

    slot: Slot | None
    maker: InitVar[object] = None

    def __post_init__(self, maker: object) -> None:
        if maker is not CLEARER:
            raise TypeError("only a boot backend's clear() and clear_files() make a ClearedSlot")


class BootBackend(Protocol):
    """The boot decisions of one host.

    Every method may raise `StorageError` and what comes under it; the refusals of a step are
    under `BootError`.
    """

    name: str
    booted: Slot

    def flags(self) -> dict[Slot, BootFlags]:
        """What the bootloader knows of both slots now."""
        ...

    def next(self) -> Slot | None:
        """The slot of the next boot; None if nothing, or nothing of ours, would be booted."""
        ...

    def clear(self, slot: Slot) -> ClearedSlot:
        """Make `slot` unbootable, flushed, before its first byte is overwritten.

        Raises:
            WouldTouchBootedSlot: it is running.
            BootedSlotNotBlessed: the running slot is on trial, so `slot` is the last known good.
        """
        ...

    def stage(self, verified: VerifiedSlot, tries: int = 1) -> None:
        """The next boot is a trial of `verified`, which may fail `tries` times.

        Raises:
            WouldTouchBootedSlot: it is running.
            UsageError: `tries` is not within 1–15.
        """
        ...

    def bless(self, slot: Slot) -> None:
        """The running slot is good: it is booted from now on.

        Raises:
            BlessRefused: `slot` is not running, so nothing is known of it.
        """
        ...

    def prefer(self, slot: Slot) -> None:
        """`slot` is booted next; rollback by hand.

        Raises:
            SlotNotBootable: a bootloader would not take it.
        """
        ...

    def cancel(self, slot: Slot) -> None:
        """Undo `stage` or `prefer` of `slot`: the running slot is booted next.

        A slot on trial becomes unbootable; a blessed one only loses its rank.

        Raises:
            WouldTouchBootedSlot: `slot` is running.
            SlotNotBootable: the running slot could not be booted again.
        """
        ...

    def once(self, slot: Slot) -> None:
        """The next boot is of `slot`, the one after it of the running slot again, whatever happens.

        The caller has made durable that it is for once: `reinstate` must follow.

        Raises:
            WouldTouchBootedSlot: `slot` is running.
            SlotNotBootable: one of the two was never found good.
        """
        ...

    def reinstate(self, slot: Slot, keep: Slot) -> None:
        """End `once` of `slot`: it is good as before, and `keep` is booted next. Idempotent.

        Raises:
            SlotNotBootable: `keep` cannot be booted.
        """
        ...

    def damage(self) -> str | None:
        """What `repair` would mend, in a clause; None where nothing is wrong. Changes nothing."""
        ...

    def repair(self) -> str | None:
        """Mend what the bootloader reads; a sentence of what was wrong, or None."""
        ...


class _Opener(Protocol):
    def __call__(self, layout: Layout, options: Mapping[str, str]) -> BootBackend: ...


_openers: dict[str, str | _Opener] = {
    "gpt": "bascule.engine.boot.gpt:open_gpt",
    "systemd-boot": "bascule.engine.boot.systemd_boot:open_systemd_boot",
}


def register(name: str, opener: str | _Opener) -> None:
    """Make a backend known: a callable, or ``module:callable``, imported when it is used.

    The callable takes a `Layout` and the strings of the settings' table of that name.
    """
    _openers[name] = opener


def backends() -> list[str]:
    """The names that `open_backend` knows."""
    return sorted(_openers)


def open_backend(
    name: str, layout: Layout, options: Mapping[str, str] | None = None
) -> BootBackend:
    """The backend of that name for this host.

    Raises:
        SettingsError: there is no backend of that name, or it cannot work with the options.
    """
    opener = _openers.get(name)
    if opener is None:
        raise SettingsError(f"boot backend {name!r} is unknown; there are {', '.join(backends())}")
    if isinstance(opener, str):
        module, _, attribute = opener.partition(":")
        loaded: _Opener = getattr(importlib.import_module(module), attribute)
        opener = loaded
    return opener(layout, options or {})
