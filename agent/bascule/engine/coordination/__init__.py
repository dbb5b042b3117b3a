"""Who may reboot now: one interface, several coordinators.

A coordinator is asked after every local gate is open, so that nobody holds a lock while waiting
for a window. Its lock is released when the boot is blessed, or when the window ends unused.
"""

from __future__ import annotations

from bascule.engine.coordination.interface import (
    Grant,
    Holder,
    LockView,
    RebootCoordinator,
    Refused,
    retry_delay,
)
from bascule.engine.coordination.registry import STRATEGIES, coordinator

__all__ = [
    "STRATEGIES",
    "Grant",
    "Holder",
    "LockView",
    "RebootCoordinator",
    "Refused",
    "coordinator",
    "retry_delay",
]
