"""From the health settings to the checks that are asked.

``[health.checks."NAME"]`` changes one of them. The fields of a check's class are what such a table
may set, besides its pace; a field whose metadata say why it is ``fixed`` is none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bascule.engine.health import (
    SCRIPT_NAMES,
    Check,
    Found,
    Host,
    HttpProbe,
    NoFailedUnits,
    Pace,
    Script,
    TcpProbe,
    UnitActive,
    greenboot,
    own,
)
from bascule.errors import SettingsError
from bascule.settings import CHECK_OPTIONS, Health, check_path

AnyCheck = UnitActive | NoFailedUnits | TcpProbe | HttpProbe | Script

_BEGINS: Mapping[str, tuple[type[AnyCheck], str]] = {
    "unit:": (UnitActive, "NAME"),
    "no-failed-units": (NoFailedUnits, ""),
    "tcp:": (TcpProbe, "HOST:PORT"),
    "http://": (HttpProbe, "…"),
    "https://": (HttpProbe, "…"),
    **dict.fromkeys(SCRIPT_NAMES, (Script, "NAME")),
}

KINDS: Mapping[str, type[AnyCheck]] = {
    begin + rest: kind for begin, (kind, rest) in _BEGINS.items()
}
"""What the checks of each kind are called → the kind. The name of an HTTP probe is its URL."""

_PACE = frozenset(field.name for field in dataclasses.fields(Pace))


def host_of(health: Health) -> Host:
    """What the checks may use of this host."""
    return Host()


def options_of(kind: type[AnyCheck]) -> tuple[str, ...]:
    """The options that the table of a check of this kind may hold."""
    own_fields = {f.name for f in dataclasses.fields(kind) if "fixed" not in f.metadata}
    return tuple(option for option in CHECK_OPTIONS if option in _PACE | own_fields)


def checks_of(health: Health) -> list[Check]:
    """Every check that the settings and the directories name, each as its own table has it.

    Raises:
        SettingsError: an address is none; a table says what a check of that kind does not take.
    """
    pace = Pace(health.timeout, health.retries, health.interval)
    _refuse_what_does_not_fit(health)
    every = [*_listed(health, pace), *_found(health, pace).checks]
    return [_as_told(check, health.checks.get(check.name, {})) for check in every]


def left_out(health: Health, asked: Collection[str]) -> list[str]:
    """A sentence for each file in a directory of checks that is not run (disabled, masked, not
    executable), and for each table of a check that is not `asked`."""
    return [*_found(health).notes, *idle_tables(health, asked)]


def idle_tables(health: Health, asked: Collection[str]) -> list[str]:
    """A sentence for each table of a check that is not asked.

    No error: releases differ in their scripts, and a host may not ask what its vendor's file has a
    table for; no release is given up for that.

    Args:
        asked: names of `checks_of` these settings.
    """
    return [
        f"`{_key(name)}` has no effect, because no such check is asked here"
        for name in health.checks
        if name not in asked
    ]


def longest_asking(health: Health) -> float:
    """Seconds that one attempt of any check may take.

    From the settings alone: the deadman, who counts with it, acts whatever the rest of them says.
    """
    own_ones: list[float] = [
        told["timeout"] for told in health.checks.values() if "timeout" in told
    ]
    return max([health.timeout, *own_ones])


def _listed(health: Health, pace: Pace) -> list[AnyCheck]:
    checks: list[AnyCheck] = [UnitActive(unit, pace=pace) for unit in health.units]
    if health.no_failed_units:
        checks.append(NoFailedUnits(pace=pace))
    for address in health.tcp:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(f"`health.tcp`: {address!r} is not host:port", key="health.tcp")
        checks.append(TcpProbe(host.strip("[]"), int(port), pace=pace))
    return checks + [HttpProbe(url, pace=pace) for url in health.http]


def _found(health: Health, pace: Pace | None = None) -> Found:
    root = Path(health.root)
    ours, theirs = own(root, pace=pace), Found((), ())
    if health.greenboot:
        theirs = greenboot(root, pace=pace)
    return Found(ours.checks + theirs.checks, ours.notes + theirs.notes)


def _as_told(check: AnyCheck, options: Mapping[str, Any]) -> Check:
    pace = {option: value for option, value in options.items() if option in _PACE}
    others = {option: value for option, value in options.items() if option not in _PACE}
    return dataclasses.replace(check, pace=dataclasses.replace(check.pace, **pace), **others)


def _key(name: str, option: str = "") -> str:
    return f"health.checks{check_path(name, option)}"


def _refuse_what_does_not_fit(health: Health) -> None:
    """Whether or not the check is asked: the next release may ask it, and must not be given up."""
    for name, options in health.checks.items():
        kind = next((kind for begin, (kind, _) in _BEGINS.items() if name.startswith(begin)), None)
        if kind is None:
            raise SettingsError(
                f"`{_key(name)}` is the name of no check: they are called {', '.join(KINDS)}",
                key=_key(name),
            )
        taken = options_of(kind)
        fixed = {f.name: f.metadata.get("fixed") for f in dataclasses.fields(kind)}
        for option in options:
            if option not in taken:
                why = fixed.get(option) or f"this check takes {', '.join(taken)}; remove the key"
                key = _key(name, option)
                raise SettingsError(f"`{key}` cannot be set: {why}", key=key)
