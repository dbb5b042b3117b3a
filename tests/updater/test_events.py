"""What the server is told of an attempt."""

from __future__ import annotations

import pytest

from bascule.errors import (
    BackingOff,
    BasculeError,
    BudgetSpent,
    Busy,
    DeferredByServer,
    NoUpdate,
    PayloadSizeMismatch,
    Quarantined,
    ResponseEmpty,
    ResponseHandlingError,
    ServerHttpError,
    ServerRefused,
    ServerUnreachable,
    Stopped,
    TransferError,
    catalogue,
)
from bascule.formats.omaha import OmahaEvent
from bascule.updater.events import (
    DOWNLOADING,
    INSTALLED,
    OFFICIAL_SERVER,
    PROVEN,
    failure_event,
)


def test_milestones() -> None:
    assert OmahaEvent(13, 1) == DOWNLOADING
    assert OmahaEvent(14, 1) == PROVEN
    assert OmahaEvent(3, 1) == INSTALLED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PayloadSizeMismatch(), 268435467),
        (ServerHttpError(status=500), 268437956),
        (ResponseEmpty(), 268435486),
        (TransferError(), 268435465),
    ],
)
def test_failures_as_recorded_with_a_server_of_ones_own(error: BasculeError, code: int) -> None:
    assert failure_event(error, server="http://nebraska/") == OmahaEvent(3, 0, errorcode=code)


def test_flag_bits() -> None:
    error = PayloadSizeMismatch()
    assert failure_event(error, server=OFFICIAL_SERVER) == OmahaEvent(3, 0, errorcode=11)
    full = failure_event(error, server="x", resumed=True, dev_mode=True)
    assert full == OmahaEvent(3, 0, errorcode=11 | 7 << 28)


@pytest.mark.parametrize("error", [BackingOff(), Quarantined(), BudgetSpent()])
def test_deferrals(error: BasculeError) -> None:
    event = failure_event(error, server=OFFICIAL_SERVER)
    assert event == OmahaEvent(3, 9, errorcode=error.number)


@pytest.mark.parametrize(
    "error",
    [
        NoUpdate(),
        Busy(),
        Stopped(),
        ServerUnreachable(),
        ServerRefused(),
        DeferredByServer(),
        ResponseHandlingError(),
    ],
)
def test_what_nobody_can_use_is_not_told(error: BasculeError) -> None:
    assert failure_event(error, server=OFFICIAL_SERVER) is None


def test_every_error_has_a_code_that_servers_know() -> None:
    for kind in catalogue():
        event = failure_event(kind("x"), server=OFFICIAL_SERVER)
        if event is not None:
            assert event.errorcode is not None and 0 < event.errorcode < 3000
