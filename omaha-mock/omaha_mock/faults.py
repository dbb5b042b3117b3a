"""Things to do wrong on purpose, each a given number of times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from omaha_mock.errors import UsageError

__all__ = ["KINDS", "Fault", "FaultBook"]

KINDS: dict[str, str] = {
    "drop": "promise the whole body, close the connection after byte `at`",
    "truncate": "behave as if the file ended at byte `at`",
    "stall": "send up to byte `at`, then nothing more, and keep the connection open",
    "slow": "send `rate` bytes a second",
    "corrupt": "flip a bit of byte `at`",
    "wrong_range": "answer a Range request with a range that begins `shift` bytes later",
    "ignore_range": "answer a Range request with 200 and the whole file",
    "redirect": "answer with `code` (302) and Location `to`",
    "length": "send Content-Length `value`, whatever the body's length is",
    "endless": "send no length, and zeros for ever after the body",
    "status": "answer with HTTP status `code`",
    "refuse": "close the connection without an answer",
    "delay": "wait `seconds` before the answer",
    "body": "answer 200 with the text `body`",
}
_INSTEAD = {"status", "refuse", "body", "redirect"}
_OMAHA = {"delay", *_INSTEAD}


@dataclass(frozen=True, slots=True)
class Fault:
    """Table ``[[fault]]``.

    Attributes:
        kind: one of KINDS.
        on: ``payload`` or ``omaha``: which requests.
        times: how often; 0 is always.
        match: only payloads whose name contains this.
        url: only requests whose path begins with this, such as ``/payload/``.
        at, rate, shift, value, code, seconds, to, body: as the kind says; offsets count from the
            beginning of the file, whatever range is asked for.
    """

    kind: str
    on: str = "payload"
    times: int = 0
    match: str = ""
    url: str = ""
    at: int = 0
    rate: int = 65536
    shift: int = 1
    value: int = 0
    code: int = 0
    seconds: float = 0.0
    to: str = ""
    body: str = ""

    def check(self) -> None:
        """Raises UsageError if this is no fault we know."""
        if self.kind not in KINDS:
            raise UsageError(f"There is no fault {self.kind!r}; there are {', '.join(KINDS)}.")
        if self.on not in ("payload", "omaha"):
            raise UsageError('A fault is on "payload" or on "omaha".')
        if self.on == "omaha" and self.kind not in _OMAHA:
            raise UsageError(f"The fault {self.kind!r} is for payloads only.")


class FaultBook:
    """Counts how often each fault was done, so that ``times`` holds."""

    def __init__(self) -> None:
        self._done: Counter[tuple[int, Fault]] = Counter()

    def due(
        self,
        listed: Iterable[Fault],
        *,
        on: str,
        path: str,
        name: str = "",
        start: int = 0,
        ranged: bool = False,
    ) -> list[Fault]:
        """The faults that this request meets; they are counted as done.

        A fault at a byte that the request does not cover, or on ranges where none was asked for,
        waits for a request that it fits. So does what comes after a fault that takes the
        answer's place.
        """
        faults = list(enumerate(listed))
        for gone in set(self._done) - set(faults):
            del self._done[gone]
        result = []
        for index, fault in faults:
            if fault.on != on or fault.match not in name or not path.startswith(fault.url):
                continue
            if fault.kind in ("drop", "stall", "corrupt") and start > fault.at:
                continue
            if fault.kind in ("wrong_range", "ignore_range") and not ranged:
                continue
            if fault.times and self._done[index, fault] >= fault.times:
                continue
            self._done[index, fault] += 1
            result.append(fault)
            if fault.kind in _INSTEAD:
                break
        return result
