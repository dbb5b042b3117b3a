"""When to ask: pure functions of facts, clock and chance.

Rules source: update_engine ``update_check_scheduler.cc`` and ``update_attempter.cc`` (reference
flatcar.md 2.3, 3.7).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bascule.errors import BasculeError

FIRST = 7 * 60.0
REGULAR = 45 * 60.0
FUZZ = 10 * 60.0
LONGEST = 4 * 3600.0

_BUSY_SERVER = frozenset({500, 503})


@dataclass(frozen=True, slots=True)
class Interval:
    """A pause and the width of the spread around it, both in seconds."""

    base: float
    fuzz: float

    def draw(self, rng: random.Random) -> float:
        """A pause, uniform in base ± fuzz/2, never negative."""
        return max(0.0, self.base + rng.uniform(-self.fuzz / 2, self.fuzz / 2))

    def rest(self, rng: random.Random) -> float:
        """What is left of such a pause for somebody who comes upon it at any moment.

        Hosts that begin with this instead of a whole pause ask at a constant rate from the start,
        however many begin together: the process of their checks is stationary. (The residual life
        of a renewal process: a pause drawn with a weight of its length, then a uniform part of it.)
        """
        low = max(0.0, self.base - self.fuzz / 2)
        high = self.base + self.fuzz / 2
        length = math.sqrt(low * low + rng.random() * (high * high - low * low))
        return rng.random() * length


def first_interval(base: float = FIRST, fuzz: float = FUZZ) -> Interval:
    """From start to the first check: 7 ± 5 minutes."""
    return Interval(base, fuzz)


def first_pause(
    rng: random.Random, *, first: float, regular: float, fuzz: float, spread: bool
) -> float:
    """Seconds from start to the first check.

    Args:
        first, regular, fuzz: `check.first`, `check.interval`, `check.fuzz`.
        spread: begin anywhere in an interval, so that hosts that start together stay apart; else as
            the original does.
    """
    if not spread:
        return first_interval(first, fuzz).draw(rng)
    return max(0.0, first - fuzz / 2) + Interval(regular, fuzz).rest(rng)


def next_interval(
    *,
    last: float,
    poll_interval: int | None = None,
    http_status: int | None = None,
    regular: float = REGULAR,
    fuzz: float = FUZZ,
    longest: float = LONGEST,
) -> Interval:
    """From the end of one check to the next.

    The server's wish counts if it has one; else a busy server (500, 503) doubles the last pause;
    never shorter than `regular` and never longer than `longest`. Pauses that are not the regular
    one spread over ± 50 %, so that a fleet sent away together does not come back together.

    Args:
        last: `Interval.base` of the pause before.
        poll_interval: what the server's answer asked for, in seconds.
        http_status: of the last exchange with server or payload, if it was an error.
    """
    wanted = 0.0
    if poll_interval is not None and poll_interval > 0:
        wanted = float(poll_interval)
    elif http_status in _BUSY_SERVER:
        wanted = 2 * last
    wanted = min(wanted, max(longest, regular))
    if wanted < regular:
        return Interval(regular, fuzz)
    return Interval(wanted, wanted)


def next_pause(
    rng: random.Random,
    *,
    last: float,
    poll_interval: int | None = None,
    http_status: int | None = None,
    regular: float = REGULAR,
    fuzz: float = FUZZ,
    spread: bool = True,
) -> tuple[float, float]:
    """Seconds to the next check, and the pause that they were drawn from (for `last`).

    With `spread` the first regular pause after longer ones takes a place of its own in the interval:
    hosts that a busy server sent away come back in waves, and would keep them up for hours. It is
    never shorter than a regular pause.
    """
    interval = next_interval(
        last=last, poll_interval=poll_interval, http_status=http_status, regular=regular, fuzz=fuzz
    )
    if spread and last > regular >= interval.base:
        return interval.base + interval.rest(rng), interval.base
    return interval.draw(rng), interval.base


def wished_pause(error: Mapping[str, Any], answer: Mapping[str, Any]) -> int | None:
    """The pause that the server's last answer asked for, in seconds; None where it did not.

    An answer that failed speaks for itself: what an older one asked for is not its wish, and must
    not hide that a busy server (500, 503) is asked ever more seldom.

    Args:
        error: JSON form of what the last exchange ended with; {} where it went well.
        answer: ``ledger.Record.answer``.
    """
    kind = str(error.get("id", ""))
    if kind.startswith("omaha-") or kind == "repository-index":
        context = error.get("context")
        asked = context.get("poll_interval") if isinstance(context, Mapping) else None
    else:
        asked = answer.get("poll_interval")
    good = isinstance(asked, int) and not isinstance(asked, bool) and asked > 0
    return asked if good else None


def next_check(now: float, interval: Interval, rng: random.Random) -> float:
    """The moment of the next check, on the same clock as `now`."""
    return now + interval.draw(rng)


def http_status(error: BasculeError | None) -> int | None:
    """The HTTP status behind an error of a check or a download, if there is one."""
    status = error.context.get("status") if error is not None else None
    return status if isinstance(status, int) else None
