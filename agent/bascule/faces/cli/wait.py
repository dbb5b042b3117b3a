"""``updatectl update --wait``: across the reboot, to the verdict about this very attempt.

The bus goes away with the host. A command that runs elsewhere (``--bus`` with a forwarded socket, a
test's private bus) connects again until the daemon answers; one that runs on the host itself ends
with it, and says before that what to ask afterwards.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from bascule.errors import (
    AnswerNotUnderstood,
    DaemonNotRunning,
    Exit,
    NothingPending,
    NotPermitted,
    RolledBack,
)
from bascule.faces.cli.session import Session

__all__ = ["Verdict", "await_verdict"]

TICK = 1.0
AFTERWARDS = (
    "Afterwards `updatectl status` tells the verdict, and `updatectl explain --history` the reason."
)

_FATES = ("UPDATED", "ROLLED_BACK")

Verdict = dict[str, Any]
"""The daemon's properties when it had judged."""


class _Ended(Exception):
    """The session is taken away: a hang-up, or the host's shutdown."""


def _end(number: int, frame: object) -> NoReturn:
    raise _Ended


@contextmanager
def _told_of_the_end() -> Iterator[None]:
    """Turn the signals that a shutdown sends into `_Ended`."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def await_verdict(session: Session, attempt: str) -> Verdict | Exit:
    """Wait until the daemon has judged `attempt` (any, if empty).

    Returns:
        The properties with the verdict UPDATED, or `Exit.STOPPED` if the waiting was ended.

    Raises:
        RolledBack, NothingPending: the other verdicts.
    """
    session.hint("Waiting for the reboot and the verdict; Ctrl-C ends only the waiting.")
    if session.local:
        session.hint(f"If this session ends with the host: {AFTERWARDS}")
    try:
        with _told_of_the_end():
            return _follow(session, attempt)
    except KeyboardInterrupt:
        session.hint(f"\nThe update stands as it was. {AFTERWARDS}")
    except _Ended:
        session.hint(f"This session ends. {AFTERWARDS}")
    return Exit.STOPPED


def _follow(session: Session, attempt: str) -> Verdict:
    away, said = False, ""
    while True:
        try:
            properties = session.status()
        except (DaemonNotRunning, AnswerNotUnderstood, NotPermitted):
            # A bus that has just begun may not have its policy yet.
            session.reconnect()
            if not away:
                away = True
                session.hint("The host went down, or its daemon did; waiting for it to come back.")
            time.sleep(TICK)
            continue
        news = _pending(properties)
        if news is None:
            return _judged(properties, attempt)
        if away:
            news = f"It answers again. {news}"
        if news.removeprefix("It answers again. ") != said:
            session.hint(news)
        away, said = False, news.removeprefix("It answers again. ")
        time.sleep(TICK)


def _pending(properties: Mapping[str, Any]) -> str | None:
    """What is waited for, in a sentence; None if there is a verdict."""
    if properties["Verdict"] == "ON_TRIAL":
        return str(properties["Sentence"])
    if properties["State"] == "UPDATED_NEED_REBOOT" or properties["Verdict"] == "WAITING":
        gates = [str(gate.get("evidence") or "") for gate in properties["BlockedBy"]]
        held = " ".join(gate for gate in gates if gate)
        return f"{properties['Sentence']} {held}".strip()
    return None


def _judged(properties: Verdict, attempt: str) -> Verdict:
    judged = str((properties.get("Extra") or {}).get("verdict_attempt") or "")
    if properties["Verdict"] == "UNFINISHED":
        raise NothingPending(properties["Sentence"])
    if (attempt and judged and judged != attempt) or properties["Verdict"] not in _FATES:
        raise NothingPending("the update was taken back before it could be judged")
    if properties["Verdict"] == "ROLLED_BACK":
        raise RolledBack(properties["Sentence"])
    return properties
