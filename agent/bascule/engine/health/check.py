"""What a health check is, and what comes out of one.

A check is a value with a name, a pace and one question. The answer is *pass*, *fail* or
*inconclusive*: "the network is not up yet" is no evidence against a release.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

OUTPUT_LIMIT = 64 * 1024
"""Bytes of output kept of one check: its last ones, where the reason stands."""


class Outcome(enum.Enum):
    """What a check says of this boot."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Pace:
    """How patiently a check is asked.

    Attributes:
        timeout: seconds one attempt may take.
        retries: further attempts after the first one that did not pass.
        interval: seconds between two attempts.
    """

    timeout: float = 30.0
    retries: int = 0
    interval: float = 5.0

    @property
    def patience(self) -> float:
        """Seconds after which all attempts are over, however long each one took."""
        return (self.timeout + self.interval) * (self.retries + 1)


@dataclass(frozen=True, slots=True)
class Host:
    """What a check may use of the host.

    Attributes:
        systemctl: path of systemctl, or of a stand-in.
        environment: the whole environment of the programs that checks start.
    """

    systemctl: str = "systemctl"
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
    )


class Tail:
    """The last bytes of a stream of any length, in bounded memory."""

    def __init__(self, limit: int = OUTPUT_LIMIT) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take `data`; forget what is more than the limit before its end."""
        self.total += len(data)
        self._kept += data[-self._limit :]
        if len(self._kept) > self._limit:
            del self._kept[: len(self._kept) - self._limit]

    def text(self) -> str:
        """What is kept, as text; a first line says how much is missing."""
        text = self._kept.decode("utf-8", "replace")
        missing = self.total - len(self._kept)
        return f"[{missing} bytes before this are not kept]\n{text}" if missing else text


@dataclass(slots=True)
class Attempt:
    """One asking, under way: what the runner needs if it has to cut it short.

    Attributes:
        output: what the check has printed so far.
        doing: what it is doing now, for the sentence "... was still <doing> after 30 s".
        if_cut: what a timeout at this moment means.
    """

    output: Tail = field(default_factory=Tail)
    doing: str = "running"
    if_cut: Outcome = Outcome.FAIL


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt found.

    Attributes:
        outcome: pass, fail or inconclusive.
        reason: a clause such as ``myapp.service failed``; "" on a pass.
        subjects: what exactly failed where one check looks at many things (unit names).
    """

    outcome: Outcome
    reason: str = ""
    subjects: tuple[str, ...] = ()


PASSED = Answer(Outcome.PASS)


class Check(Protocol):
    """One question about the health of this boot."""

    @property
    def name(self) -> str:
        """Stable across releases: the baseline is compared by it."""
        ...

    @property
    def required(self) -> bool:
        """Whether its failure condemns the boot."""
        ...

    @property
    def pace(self) -> Pace:
        """How patiently it is asked."""
        ...

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """Ask once. May be cancelled at any await; leaves nothing running."""
        ...


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one check after all its attempts.

    Attributes:
        name, required: as the check's.
        outcome, reason, subjects: the last attempt's answer.
        output: last 64 KiB of what the last attempt printed.
        attempts: how often it was asked.
        seconds: from the first asking to the last answer.
    """

    name: str
    required: bool
    outcome: Outcome
    reason: str = ""
    subjects: tuple[str, ...] = ()
    output: str = ""
    attempts: int = 1
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For history, the ledger and ``--json``."""
        return {
            "name": self.name,
            "required": self.required,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "subjects": list(self.subjects),
            "output": self.output,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CheckResult:
        """The reverse of `as_dict`. Raises ValueError where the record is not one."""
        try:
            return cls(
                name=str(data["name"]),
                required=data["required"] is True,
                outcome=Outcome(data["outcome"]),
                reason=str(data.get("reason", "")),
                subjects=tuple(str(s) for s in data.get("subjects", ())),
                output=str(data.get("output", ""))[-OUTPUT_LIMIT:],
                attempts=int(data.get("attempts", 1)),
                seconds=float(data.get("seconds", 0.0)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a check result: {error}") from error


def sentence_of(units: Sequence[str]) -> str:
    """``a.service failed`` or ``a.service, b.service, c.service and 3 more failed``."""
    shown = ", ".join(units[:3])
    more = len(units) - 3
    return f"{shown} and {more} more failed" if more > 0 else f"{shown} failed"
