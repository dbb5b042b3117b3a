"""What the host is doing: battery, pressure, link, sessions, inhibitors, free space.

Facts only; what they mean for an update is decided in `bascule.updater.gates`. A fact that cannot
be read is None, never a guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

_MAX = 4096
_SESSIONS = 64
_TIMEOUT = 5.0
_LOGIN = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_NETWORK = "org.freedesktop.NetworkManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Battery:
    """The host's own batteries together.

    Attributes:
        percent: charge of the fullest one, 0–100.
        mains: it runs on mains, or its batteries are charging.
    """

    percent: int
    mains: bool


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure stall information (kernel Documentation/accounting/psi.rst).

    Attributes:
        cpu, memory, io: ``some avg60``, percent of the last minute in which a task had to wait.
    """

    cpu: float
    memory: float
    io: float

    @property
    def worst(self) -> tuple[str, float]:
        """The resource under most pressure, and how much."""
        found = (("CPU", self.cpu), ("memory", self.memory), ("I/O", self.io))
        return max(found, key=lambda pair: pair[1])


@dataclass(frozen=True, slots=True)
class Session:
    """One logged-in user session, as logind names it."""

    id: str
    user: str
    uid: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class Inhibitor:
    """One lock that blocks shutdown (``systemd-inhibit --what=shutdown --mode=block``)."""

    who: str
    why: str
    uid: int = -1
    pid: int = -1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that `look` found; None where it could not be read.

    Attributes:
        battery: None also on hosts that have none (`has_battery` is False then).
        metered: the link that is in use costs by volume.
    """

    has_battery: bool = False
    battery: Battery | None = None
    pressure: Pressure | None = None
    metered: bool | None = None
    sessions: tuple[Session, ...] | None = None
    inhibitors: tuple[Inhibitor, ...] | None = None


async def look(
    *,
    sys: Path = Path("/sys"),
    proc: Path = Path("/proc"),
    bus: MessageBus | None = None,
    timeout: float = _TIMEOUT,
) -> Surroundings:
    """Read everything at once. Never raises: what fails is unknown.

    Args:
        bus: a connected system bus; without it link, sessions and inhibitors are unknown.
        timeout: seconds that each service on the bus may take.
    """
    (has_battery, battery), pressure = await asyncio.gather(
        asyncio.to_thread(read_battery, sys), asyncio.to_thread(read_pressure, proc)
    )
    if bus is None:
        return Surroundings(has_battery, battery, pressure)

    metered, sessions, inhibitors = await asyncio.gather(
        read_metered(bus, timeout), read_sessions(bus, timeout), read_inhibitors(bus, timeout)
    )
    return Surroundings(has_battery, battery, pressure, metered, sessions, inhibitors)


def read_battery(sys: Path) -> tuple[bool, Battery | None]:
    """Whether the host has a battery, and its state if it can be read (sysfs-class-power).

    Batteries of devices such as mice (``scope`` Device) do not count.
    """
    folder = sys / "class" / "power_supply"
    found = False
    charges: list[int] = []
    mains = False
    for supply in _entries(folder):
        kind = _text(supply / "type")
        if kind == "Battery":
            if _text(supply / "scope") == "Device" or _text(supply / "present") == "0":
                continue
            found = True
            charge = _text(supply / "capacity")
            if charge.isdecimal() and len(charge) <= 3:
                charges.append(min(100, int(charge)))
            mains = mains or _text(supply / "status") in ("Charging", "Full", "Not charging")
        elif kind in ("Mains", "USB", "Wireless"):
            mains = mains or _text(supply / "online") in ("1", "2")
    if not found or not charges:
        return found, None
    return True, Battery(max(charges), mains)


def read_pressure(proc: Path) -> Pressure | None:
    """``/proc/pressure``; None where the kernel has none."""
    values = []
    for name in ("cpu", "memory", "io"):
        match = re.search(r"^some .*?\bavg60=([0-9]{1,3}(?:\.[0-9]{1,4})?)\b",
                          _text(proc / "pressure" / name), re.ASCII | re.MULTILINE)  # fmt: skip
        if match is None:
            return None
        values.append(float(match[1]))
    return Pressure(*values)


def free_space(path: Path) -> int | None:
    """Bytes that are free for root on the file system of `path` (or of its nearest ancestor)."""
    for place in (path, *path.parents):
        try:
            about = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return about.f_bfree * about.f_frsize
    return None


async def read_metered(bus: MessageBus, timeout: float = _TIMEOUT) -> bool | None:
    """NetworkManager's ``Metered`` (NMMetered): 1 and 3 yes, 2 and 4 no, else unknown."""
    body = await call(
        bus,
        (_NETWORK, "/org/freedesktop/NetworkManager", _PROPERTIES),
        "Get",
        "ss",
        [_NETWORK, "Metered"],
        timeout=timeout,
    )
    value = body[0].value if body and hasattr(body[0], "value") else None
    return {1: True, 3: True, 2: False, 4: False}.get(value) if isinstance(value, int) else None


async def read_sessions(bus: MessageBus, timeout: float = _TIMEOUT) -> tuple[Session, ...] | None:
    """People's sessions at logind: of class ``user``, not closing."""
    body = await call(bus, _LOGIN, "ListSessions", "", [], timeout=timeout)
    if body is None or not isinstance(body[0], list):
        return None
    found: list[Session] = []
    for entry in body[0][:_SESSIONS]:
        name, uid, user, _seat, path = entry
        about = await call(
            bus,
            (_LOGIN[0], path, _PROPERTIES),
            "GetAll",
            "s",
            ["org.freedesktop.login1.Session"],
            timeout=timeout,
        )
        if about is None:
            # It may have ended meanwhile; one that hides its class is counted as a person's.
            found.append(Session(_clean(name), _clean(user), uid))
            continue
        values = {k: getattr(v, "value", None) for k, v in about[0].items()}
        kind = str(values.get("Class", "user"))
        if not kind.startswith("user") or values.get("State") == "closing":
            continue
        host = _clean(values.get("RemoteHost") or "")
        where = f"from {host}" if values.get("Remote") and host else _clean(values.get("TTY") or "")
        found.append(Session(_clean(name), _clean(user), uid, where))
    return tuple(found)


async def read_inhibitors(
    bus: MessageBus, timeout: float = _TIMEOUT
) -> tuple[Inhibitor, ...] | None:
    """logind's inhibitor locks that block a shutdown; those that only delay it do not count."""
    body = await call(bus, _LOGIN, "ListInhibitors", "", [], timeout=timeout)
    if body is None or not isinstance(body[0], list):
        return None
    return tuple(
        Inhibitor(_clean(who), _clean(why), uid, pid)
        for what, who, why, mode, uid, pid in body[0][:_SESSIONS]
        if mode in ("block", "block-weak") and "shutdown" in str(what).split(":")
    )


async def call(
    bus: MessageBus,
    target: tuple[str, str, str],
    member: str,
    signature: str,
    body: list[Any],
    *,
    timeout: float,
) -> list[Any] | None:
    """The body of the answer to a method call; None where there is none in time, or an error.

    Args:
        target: bus name, object path, interface.
    """
    from dbus_fast import Message, MessageFlag, MessageType

    destination, path, interface = target
    with contextlib.suppress(OSError, TimeoutError, EOFError):
        async with asyncio.timeout(timeout):
            reply = await bus.call(
                Message(
                    destination=destination,
                    path=path,
                    interface=interface,
                    member=member,
                    signature=signature,
                    body=body,
                    flags=MessageFlag.NO_AUTOSTART,
                )
            )
        if reply is not None and reply.message_type is MessageType.METHOD_RETURN and reply.body:
            return list(reply.body)
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:256]
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _clean(value: object) -> str:
    return _CONTROL.sub(" ", str(value))[:128]
