"""The verbs that are answered with one sentence."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bascule.errors import Exit, UsageError
from bascule.faces.bus_client import options
from bascule.faces.cli.session import Session
from bascule.faces.cli.show import seconds

__all__ = [
    "activate",
    "cancel",
    "deactivate",
    "hold",
    "pin",
    "quarantine_clear",
    "reboot",
    "repair",
    "reset",
    "rollback",
]


def _told(session: Session, sentence: str) -> int:
    session.result({"sentence": sentence})
    session.say(sentence)
    return Exit.DONE


def _act(session: Session, verb: str, wishes: Mapping[str, Any] | None = None) -> int:
    return _told(session, session.steer("Act", "sa{sv}", verb, options(wishes or {})))


def cancel(session: Session, args: argparse.Namespace) -> int:
    return _told(session, session.steer("Cancel"))


def reset(session: Session, args: argparse.Namespace) -> int:
    return _told(session, session.steer("Reset"))


def reboot(session: Session, args: argparse.Namespace) -> int:
    return _told(session, session.steer("Reboot"))


def rollback(session: Session, args: argparse.Namespace) -> int:
    return _told(session, session.steer("Rollback", "a{sv}", options({"once": args.once})))


def activate(session: Session, args: argparse.Namespace) -> int:
    return _act(session, "activate")


def deactivate(session: Session, args: argparse.Namespace) -> int:
    return _act(session, "deactivate")


def hold(session: Session, args: argparse.Namespace) -> int:
    reason = {"reason": args.reason}
    if args.clear:
        return _act(session, "hold", {"clear": True})
    if args.span is not None:
        return _act(session, "hold", {"seconds": seconds(args.span), **reason})
    if args.until is not None:
        return _act(session, "hold", {"until": _time(args.until), **reason})
    if args.indefinite:
        return _act(session, "hold", {"indefinite": True, **reason})
    from bascule.faces.cli.read import shown

    return shown(session, "hold")


def _time(text: str) -> int:
    """A local time, or one with its own offset, as unix seconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a time such as 2026-12-01T08:00") from error
    unix = int(moment.timestamp())
    if unix <= time.time():
        raise UsageError(f"{text} has passed")
    return unix


def pin(session: Session, args: argparse.Namespace) -> int:
    if args.clear and args.range:
        raise UsageError("a range and --clear exclude each other")
    if args.clear:
        return _act(session, "pin", {"clear": True})
    if args.range:
        return _act(session, "pin", {"range": args.range})
    from bascule.faces.cli.read import shown

    return shown(session, "pin")


def quarantine_clear(session: Session, args: argparse.Namespace) -> int:
    return _act(session, "quarantine-clear", {"version": args.release})


def repair(session: Session, args: argparse.Namespace) -> str:
    sentence: str = session.steer("Act", "sa{sv}", "doctor-repair", options({}))
    return sentence
