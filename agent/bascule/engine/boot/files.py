"""Targets that are no slot of this host: image files and devices that an operator names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bascule.engine.boot import CLEARER, ClearedSlot
from bascule.engine.claim import refuse_booted, refuse_mounted
from bascule.engine.region import Region

__all__ = ["clear_files"]


def clear_files(
    targets: Mapping[str, Region], *, booted: Iterable[Region] = (), proc: Path = Path("/proc")
) -> ClearedSlot:
    """Witness that nothing boots from `targets`, for ``bascule payload apply``.

    Args:
        targets: part name → where it is to be written.
        booted: parts of the running slot, as far as they are known.

    Raises:
        WouldTouchBootedSlot: a target is part of the running slot.
        DeviceInUse: a target is mounted.
        DeviceOpenError: a target is neither a file nor a block device.
    """
    running = tuple(booted)
    for region in targets.values():
        refuse_booted(region, running)
        if region.path.exists():
            refuse_mounted(region.path, proc=proc)
    return ClearedSlot(None, CLEARER)
