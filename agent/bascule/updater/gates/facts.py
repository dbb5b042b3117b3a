"""All that gates look at, in one frozen value."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from bascule.engine.coordination.interface import LockView
from bascule.engine.surroundings import Surroundings
from bascule.updater.hold import Hold
from bascule.updater.pin import Pin
from bascule.updater.schedule import Schedule


class Answered(enum.Enum):
    """What came of the last check."""

    NOT_ASKED = "not-asked"
    OFFERED = "offered"
    CURRENT = "current"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DISABLED = "disabled"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's last word.

    Attributes:
        status: its own word where it refused, such as ``error-updatesDisabled``.
        detail: why it could not be asked; or where a local release lies.
        version: the release that is offered.
        payload: hex SHA-256 of its payload.
        size: bytes of its payload, 0 where unknown.
        backs_off: it is left alone for a while after failures.
        error: id of the error that a check ended with, or "".
    """

    kind: Answered = Answered.NOT_ASKED
    status: str = ""
    detail: str = ""
    version: str = ""
    payload: str = ""
    size: int = 0
    backs_off: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One entry of the quarantine; `until` None for good."""

    version: str
    reason: str
    at: int
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Space that an update needs on one file system, in bytes; `available` None if unknown."""

    path: str
    needed: int
    available: int | None


@dataclass(frozen=True, slots=True)
class Budget:
    """The data budget of the present period, in bytes; `ends` in unix seconds."""

    limit: int
    used: int
    ends: int


@dataclass(frozen=True, slots=True)
class Locksmithd:
    """locksmithd, if it coordinates reboots on this host: its strategy and state."""

    strategy: str
    state: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of host, server and operator's wishes at one moment.

    Times are unix seconds, sizes bytes. What is unknown is None or empty; a gate about it does not
    hold anything back.

    Attributes:
        running: the running release.
        staged: the release that the next boot starts, or "".
        next_check: when the server is asked next, 0 where unknown.
        under_way: what an attempt does at this moment, or "".
        way_back: why the other slot is spoken for, in one sentence: a boot of it, or from it, is meant.
        prepared: digest of the payload that lies prepared; `prepared_words` says so.
        asked: somebody asked for this update; the schedule does not matter.
        stays: what is staged was asked for without a reboot.
        wanted: the only release that will do, or "".
        allow_downgrade: the operator or a setting allows a release below the floor.
        blessed: the booted slot is blessed.
        watched_until: the late-regression window ends then.
        rooms: what the update needs; only those that are known.
        needed: bytes that are still to be fetched, 0 where unknown.
        battery_floor, load_ceiling: percent, 0 for off.
        wait_for_sessions, wait_for_inhibitors: `reboot.sessions`, `reboot.inhibitors`.
        strategy: `reboot.strategy`.
        lock: the reboot lock, where one was looked at.
        stale_after: seconds after which a lock holder counts as stale.
        zone: zone in which moments are told; "" for the host's own.
    """

    schedule: Schedule = field(default_factory=Schedule)
    answer: Answer = field(default_factory=Answer)
    server: str = ""
    group: str = ""
    running: str = ""
    staged: str = ""
    next_check: int = 0
    under_way: str = ""
    way_back: str = ""
    prepared: str = ""
    prepared_words: str = ""
    asked: bool = False
    stays: bool = False
    wanted: str = ""
    hold: Hold | None = None
    pin: Pin | None = None
    floor: str = ""
    allow_downgrade: bool = False
    quarantine: Mapping[str, Quarantined] = field(default_factory=dict)
    back_off_until: int = 0
    failures: int = 0
    blessed: bool | None = None
    watched_until: int = 0
    rooms: tuple[Room, ...] = ()
    needed: int = 0
    budget: Budget | None = None
    allow_metered: bool = False
    battery_floor: int = 0
    load_ceiling: int = 0
    surroundings: Surroundings = field(default_factory=Surroundings)
    wait_for_sessions: bool = False
    wait_for_inhibitors: bool = True
    strategy: str = "reboot"
    locksmithd: Locksmithd | None = None
    lock: LockView | None = None
    stale_after: int = 3600
    zone: str = ""
