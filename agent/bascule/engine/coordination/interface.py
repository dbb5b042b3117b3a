"""The interface that every coordinator fulfils, and its values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_FIRST, _LAST = 5.0, 300.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock.

    Attributes:
        id: machine id, or what the coordinator calls a host.
        since: unix seconds since when, or None where nobody recorded it.
        at_least: `since` is when somebody first saw it; it may hold for longer.
    """

    id: str
    since: int | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class LockView:
    """The lock as it is now.

    Attributes:
        strategy: name of the coordinator.
        held: this host holds it.
        free: places left; None where the coordinator does not tell.
        places: places in all; None where the coordinator does not tell.
        holders: who holds it, as far as known.
        trouble: why the coordinator could not be asked, or "".
        release: a command that releases a stale holder's place, with ``{id}`` for the holder.
    """

    strategy: str
    held: bool = False
    free: int | None = None
    places: int | None = None
    holders: tuple[Holder, ...] = ()
    trouble: str = ""
    release: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """This host may reboot now."""

    strategy: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """This host may not reboot now.

    Attributes:
        evidence: one sentence, for an operator.
        holders: who holds the lock, as far as known.
        final: asking again does not help; somebody has to do something.
        unsure: the answer got lost, so this host may hold the lock all the same.
    """

    strategy: str
    evidence: str
    holders: tuple[Holder, ...] = ()
    final: bool = False
    unsure: bool = False


class RebootCoordinator(Protocol):
    """One way to agree on who reboots. No method raises for what a server does or says."""

    name: str

    async def acquire(self) -> Grant | Refused:
        """Ask to reboot now. Idempotent: whoever holds the lock is granted it again."""
        ...

    async def release(self) -> str:
        """Give the lock back; does nothing if it is not held. "" or why it did not work."""
        ...

    async def view(self) -> LockView:
        """The lock as it is now; changes nothing."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


def retry_delay(attempt: int) -> float:
    """Seconds to wait after refusal number `attempt` (from 0): 5 s doubling to 5 min, as locksmith."""
    return min(_LAST, _FIRST * 2.0 ** min(attempt, 16))


def clean(text: object, limit: int = 200) -> str:
    """A server's words, fit for a terminal and a log line."""
    return _CONTROL.sub(" ", str(text)).strip()[:limit]
