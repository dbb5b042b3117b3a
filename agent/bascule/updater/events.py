"""What the server is told of an attempt: events of Omaha, as the original sends them.

Rules source: update_engine ``update_attempter.cc`` (reference flatcar.md 2.3, 3.7).
"""

from __future__ import annotations

from bascule.errors import (
    BasculeError,
    Busy,
    NoUpdate,
    PolicyRefusal,
    ResponseHandlingError,
    ServerRefused,
    ServerUnreachable,
    Stopped,
    omaha_code,
)
from bascule.formats.omaha_request import (
    DEFERRED,
    DOWNLOAD_FINISHED,
    DOWNLOAD_STARTED,
    FAILURE,
    INSTALL,
    SUCCESS,
    OmahaEvent,
)

OFFICIAL_SERVER = "https://public.update.flatcar-linux.net/v1/update/"

_DEFERRALS = frozenset({35, 36, 40})

DOWNLOADING = OmahaEvent(DOWNLOAD_STARTED, SUCCESS)
"""Before the first payload byte."""

PROVEN = OmahaEvent(DOWNLOAD_FINISHED, SUCCESS)
"""The payload is whole and proven."""

INSTALLED = OmahaEvent(INSTALL, SUCCESS)
"""The slot is staged; the host waits for its reboot."""


def failure_event(
    error: BasculeError,
    *,
    server: str,
    resumed: bool = False,
    dev_mode: bool = False,
) -> OmahaEvent | None:
    """What the server is told of a failed check or attempt, or None where there is nothing to tell.

    Told as the original does: 3/0 with the number and its flag bits, 3/9 for the three deferrals.
    Not told: no update and a handler that cannot act (the original is silent too); an unreachable
    server; what the server itself has just refused; what the operator stopped or was refused
    because something else ran. Such events would fill the outbox with what nobody can use.
    """
    silent = (NoUpdate, Busy, Stopped, ServerUnreachable, ServerRefused)
    if isinstance(error, silent) or type(error) is ResponseHandlingError:
        return None
    code = omaha_code(
        error, resumed=resumed, dev_mode=dev_mode, custom_server=server != OFFICIAL_SERVER
    )
    deferred = isinstance(error, PolicyRefusal) and error.number in _DEFERRALS
    return OmahaEvent(INSTALL, DEFERRED if deferred else FAILURE, errorcode=code)
