"""URL failover and back-off of one offer: which address next, and how long to leave it alone.

Rules source: update_engine ``payload_state.cc`` (reference flatcar.md 3.5). Pure: the state is a
value that the ledger keeps as JSON; clock and chance are passed in (`jitter` is uniform in [0, 1)).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bascule.errors import BackingOff

if TYPE_CHECKING:
    from bascule.formats.omaha import Offer

DAY = 86400
LONGEST = 16 * DAY
FUZZ = 12 * 3600
"""Width of the spread around a back-off: ± 6 hours."""

FLAGS = 0xF << 28
"""Flag bits of an error number (resumed, developer mode, custom server)."""

BAD_PAYLOAD = frozenset({10, 11, 12, 17, 18, 21, 22, 23, 24, 25, 26, 27, 28, 29, 32, 33, 38, 39})
"""The payload, or this address of it, is bad: the next address at once."""

TRANSIENT = frozenset({1, 9, 14, 20, 37})
"""May pass: the next address after the offer's `max_failures`."""


@dataclass(frozen=True, slots=True)
class PayloadState:
    """What is remembered of one offer between attempts.

    Attributes:
        signature: which offer this is about; see `fingerprint`.
        attempt: completed downloads and whole rounds through the addresses.
        url_index: the address to use next.
        url_failures: transient failures of that address in a row.
        backoff_until: unix seconds before which the offer is left alone; 0 for no back-off.
    """

    signature: str = ""
    attempt: int = 0
    url_index: int = 0
    url_failures: int = 0
    backoff_until: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as the ledger keeps it."""
        return {
            "signature": self.signature,
            "attempt": self.attempt,
            "url_index": self.url_index,
            "url_failures": self.url_failures,
            "backoff_until": self.backoff_until,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PayloadState:
        """Load what the ledger kept. Anything senseless starts afresh."""
        fresh = cls()
        values: dict[str, Any] = {}
        for name in cls.__slots__:
            value, default = data.get(name, getattr(fresh, name)), getattr(fresh, name)
            if type(value) is not type(default) or (isinstance(value, int) and value < 0):
                return fresh
            values[name] = value
        return cls(**values)


def fingerprint(offer: Offer) -> str:
    """Tells one offer from another: addresses, size, digest and the server's wishes.

    A change in any of them, an address included, starts afresh without back-off, as in the original.
    """
    facts = [
        list(offer.urls),
        offer.size,
        offer.sha256.hex(),
        offer.is_delta,
        offer.max_failures,
        offer.disable_backoff,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def take_offer(state: PayloadState, offer: Offer, now: float) -> PayloadState:
    """The state to go on with for this offer: the same one, or a fresh one for another offer.

    A back-off that ends later than the longest one possible comes from a clock that was wrong: it
    ends now, as in the original.
    """
    signature = fingerprint(offer)
    if state.signature != signature:
        return PayloadState(signature=signature)
    if state.url_index >= len(offer.urls):
        state = replace(state, url_index=0, url_failures=0)
    if state.backoff_until > now + LONGEST:
        state = replace(state, backoff_until=int(now))
    return state


def received(state: PayloadState) -> PayloadState:
    """A byte came: the address works."""
    return replace(state, url_failures=0) if state.url_failures else state


def downloaded(state: PayloadState, offer: Offer, now: float, jitter: float) -> PayloadState:
    """The whole payload came; the back-off begins even if it then succeeds.

    So a release that boots badly and is rolled back is not fetched again at once.
    """
    return _next_attempt(state, offer, now, jitter)


def failed(
    state: PayloadState, offer: Offer, number: int, now: float, jitter: float
) -> PayloadState:
    """The attempt failed with an error number (flag bits may be set)."""
    number &= ~FLAGS
    if 2000 <= number < 3000:
        number = 37
    if number in BAD_PAYLOAD:
        return _next_url(state, offer, now, jitter)
    if number not in TRANSIENT:
        return state
    if state.url_failures + 1 < offer.max_failures:
        return replace(state, url_failures=state.url_failures + 1)
    return _next_url(state, offer, now, jitter)


def backing_off(
    state: PayloadState, offer: Offer, now: float, *, dev_mode: bool = False
) -> int | None:
    """Unix seconds until which this offer is left alone, or None to go ahead."""
    if offer.disable_backoff or offer.is_delta or dev_mode:
        return None
    return state.backoff_until if state.backoff_until > now else None


def refuse_if_backing_off(state: PayloadState, offer: Offer, now: float) -> None:
    """Raises BackingOff, with ``until`` in its context, while the offer is to be left alone."""
    until = backing_off(state, offer, now)
    if until is not None:
        when = datetime.datetime.fromtimestamp(until, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise BackingOff(
            f"{offer.version or 'this release'} was fetched {state.attempt} times, again from {when}",
            until=until,
            attempt=state.attempt,
        )


def _next_url(state: PayloadState, offer: Offer, now: float, jitter: float) -> PayloadState:
    if state.url_index + 1 < len(offer.urls):
        return replace(state, url_index=state.url_index + 1, url_failures=0)
    return _next_attempt(replace(state, url_index=0, url_failures=0), offer, now, jitter)


def _next_attempt(state: PayloadState, offer: Offer, now: float, jitter: float) -> PayloadState:
    if offer.is_delta:
        return state
    attempt = state.attempt + 1
    if offer.disable_backoff:
        return replace(state, attempt=attempt, backoff_until=0)
    days = min(1 << min(attempt - 1, 16), LONGEST // DAY)
    wait = days * DAY + (jitter - 0.5) * FUZZ
    return replace(state, attempt=attempt, backoff_until=int(now + wait))
