"""From the health settings to the checks that are asked."""

from __future__ import annotations

from pathlib import Path

from bascule.engine.health import (
    Check,
    Host,
    HttpProbe,
    NoFailedUnits,
    Pace,
    TcpProbe,
    UnitActive,
    greenboot,
    own,
)
from bascule.errors import SettingsError
from bascule.settings import Health


def host_of(health: Health) -> Host:
    """What the checks may use of this host."""
    return Host()


def checks_of(health: Health) -> list[Check]:
    """Every check that the settings and the directories name. Raises SettingsError."""
    pace = Pace(health.timeout, health.retries, health.interval)
    root = Path(health.root)
    checks: list[Check] = [UnitActive(unit, pace=pace) for unit in health.units]
    if health.no_failed_units:
        checks.append(NoFailedUnits(pace=pace))
    for address in health.tcp:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(f"`health.tcp`: {address!r} is not host:port", key="health.tcp")
        checks.append(TcpProbe(host.strip("[]"), int(port), pace=pace))
    checks += [HttpProbe(url, pace=pace) for url in health.http]
    checks += own(root, pace=pace).checks
    if health.greenboot:
        checks += greenboot(root, pace=pace).checks
    return checks


def left_out(health: Health) -> list[str]:
    """A sentence for each file in a directory of checks that is not run: disabled, masked, not executable."""
    root = Path(health.root)
    notes = list(own(root).notes)
    if health.greenboot:
        notes += greenboot(root).notes
    return notes
