"""``updatectl logs``: the journal's lines of the daemon, made readable."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

from bascule.errors import BasculeError, Exit
from bascule.faces.cli.session import Session
from bascule.faces.cli.text import printable

__all__ = ["logs", "readable"]

UNITS = ("bascule.service", "bascule-bless.service")
_SHOWN_FIRST = ("timestamp", "level", "event", "error", "remedy", "exception", "MESSAGE_ID")


def logs(session: Session, args: argparse.Namespace) -> int:
    command = ["journalctl", "--no-pager", "--output=cat"]
    command += [f"--unit={unit}" for unit in UNITS]
    command += [f"--since={args.since}"] if args.since else [f"--lines={max(0, args.lines)}"]
    command += ["--follow"] if args.follow else []
    try:
        journal = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    except FileNotFoundError as error:
        raise BasculeError("journalctl is not installed") from error
    assert journal.stdout is not None
    try:
        for line in journal.stdout:
            entry = _parsed(line)
            if args.attempt and (entry or {}).get("attempt") != args.attempt:
                continue
            if args.raw or session.json:
                print(line, end="", flush=True)  # noqa: T201
            else:
                session.say(readable(entry) if entry else line.rstrip("\n"))
    except KeyboardInterrupt:
        journal.terminate()
        return Exit.DONE
    finally:
        journal.stdout.close()
        code = journal.wait()
    return Exit.DONE if code == 0 else Exit.FAILED


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None


def readable(entry: dict[str, Any]) -> str:
    """One line of ours for people: time, level, what happened, then the facts."""
    stamp = str(entry.get("timestamp", ""))[:19].replace("T", " ")
    text = f"{stamp} {entry.get('level', '')!s:8} {entry['event']}"
    if entry.get("error"):
        text += f": {entry['error']}"
    facts = [f"{key}={value}" for key, value in entry.items() if key not in _SHOWN_FIRST]
    if facts:
        text += f"  ({', '.join(facts)})"
    if entry.get("remedy"):
        text += f"\n{'':29}{entry['remedy']}"
    return printable(text)
