"""``updatectl status`` and ``updatectl slots``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from bascule.errors import Exit, UsageError, catalogue
from bascule.faces.cli.session import Session
from bascule.faces.cli.text import ago, columns, duration, moment, printable, rate, size

__all__ = ["seconds", "slots", "snake", "status", "status_document"]

STATES = {
    "IDLE": "waiting for the next check",
    "CHECKING_FOR_UPDATE": "asking the update server",
    "UPDATE_AVAILABLE": "an update is there; getting ready",
    "DOWNLOADING": "downloading and writing",
    "VERIFYING": "reading back and verifying",
    "FINALIZING": "finishing",
    "UPDATED_NEED_REBOOT": "installed; waiting for a reboot",
    "REPORTING_ERROR_EVENT": "telling the server of a failure",
}
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> int:
    """``90``, ``45m``, ``2h``, ``1h30m`` and ``7d`` in seconds.

    Raises:
        UsageError: not a duration, or longer than ten years.
    """
    parts = re.findall(r"(\d{1,9})\s*(min|[smhdw])?\s*", text)
    total = sum(int(count) * _SECONDS[unit or "s"] for count, unit in parts)
    if not re.fullmatch(r"(?:\d{1,9}\s*(?:min|[smhdw])?\s*)+", text) or total > 315_360_000:
        raise UsageError(f"{text!r} is not a duration such as 45m, 2h or 3d")
    return total


def snake(name: str) -> str:
    """``NewVersion`` → ``new_version``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def status_document(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The properties as ``--json`` shows them: the same names in snake case."""
    document = {snake(name): value for name, value in properties.items()}
    document["last_error"] = document.get("last_error") or None
    job = str(document.get("job", "/"))
    document["job"] = int(job.rpartition("/")[2]) if job != "/" else None
    return document


def status(session: Session, args: argparse.Namespace) -> int:
    properties = session.status()
    document = status_document(properties)
    code, complaint = _health(session, document, args) if args.check else (Exit.DONE, "")
    session.result({**document, **({"check": complaint or "ok"} if args.check else {})})
    if args.short:
        session.say(_short(document))
    else:
        for line in _status_lines(session, document):
            session.say(line)
    if complaint and not session.json:
        session.hint(f"updatectl: {complaint}")
    return code


def _health(
    session: Session, document: Mapping[str, Any], args: argparse.Namespace
) -> tuple[Exit, str]:
    """The exit code of ``status --check``, and the reason where it is not 0."""
    if document["verdict"] == "ROLLED_BACK":
        return Exit.ROLLED_BACK, document["sentence"] or "The last update was rolled back."
    if error := document["last_error"]:
        known = {cls.id: cls.exit for cls in catalogue()}
        return known.get(str(error.get("id")), Exit.FAILED), str(error.get("message", ""))
    limit = seconds(args.max_age)
    age = session.now() - document["last_checked"]
    if document["last_checked"] <= 0:
        return Exit.FAILED, "The update server has not been reached since the daemon started."
    if age > limit:
        return Exit.FAILED, f"The last successful check was {duration(age)} ago."
    return Exit.DONE, ""


def headline(document: Mapping[str, Any]) -> str:
    """The one sentence that matters most."""
    if document["sentence"]:
        return str(document["sentence"])
    state, new = document["state"], document["new_version"]
    current = document["current_version"] or "an unknown release"
    if state == "UPDATED_NEED_REBOOT":
        return f"Release {new or 'unknown'} is installed and boots next; {current} is running."
    if state == "IDLE":
        return f"Release {current} is running."
    return f"Release {current} is running; {STATES.get(state, state)}."


def _short(document: Mapping[str, Any]) -> str:
    warnings = document["warnings"]
    return headline(document) + (f" {warnings[0]}" if warnings else "")


def _status_lines(session: Session, document: Mapping[str, Any]) -> list[str]:
    paint, now = session.paint, session.now()
    error, verdict, state = document["last_error"], document["verdict"], document["state"]
    bad = verdict == "ROLLED_BACK" or (error and state == "IDLE")
    mark = paint.bad("●") if bad else paint.good("●")
    lines = [f"{mark} {paint.strong(printable(headline(document)))}", ""]

    def fact(label: str, text: str) -> None:
        lines.append(f"  {paint.faint(label.ljust(11))} {printable(text)}")

    age = now - document["since"]
    since = f", for {duration(age)}" if document["since"] > 0 and 1 <= age < 120 else ""
    if document["since"] > 0 and age >= 120:
        since = f", for {ago(document['since'], now).removesuffix(' ago')}"
    fact("State", STATES.get(state, state) + since)
    if document["bytes_total"] > 0 and document["phase"] in ("source", "download", "verify"):
        done, total = document["bytes_done"], document["bytes_total"]
        text = f"{document['progress']:.0%}, {size(done)} of {size(total)}"
        if document["rate"] > 0:
            text += f", {rate(document['rate'])}"
        if document["eta"] >= 0:
            text += f", {duration(document['eta'])} left"
        fact(document["phase"].capitalize() or "Progress", text)
    if document["new_version"]:
        amount = f" ({size(document['new_size'])})" if document["new_size"] else ""
        fact("New", document["new_version"] + amount)
    where = " at ".join(part for part in (document["group"], document["server"]) if part)
    fact("Server", where or "none set")
    following = ago(document["next_check"], now) if document["next_check"] else "not planned"
    fact("Checked", f"{ago(document['last_checked'], now)}; next {following}")
    fact("Updated", ago(document["last_updated"], now))
    for number, row in enumerate(columns(_slot_rows(document))):
        fact("" if number else "Slots", row)
    for gate in document["blocked_by"]:
        fact("Held by", str(gate.get("evidence") or gate.get("name") or gate))
    if document["quarantine"]:
        count = document["quarantine"]
        fact("Quarantine", f"{count} release{'s' if count > 1 else ''}: updatectl quarantine")
    if error:
        lines.append("")
        when = f" ({moment(error['at'])})" if error.get("at") else ""
        lines.append(f"  {paint.bad('Last error')}  {printable(str(error.get('message')))}{when}")
        lines.append(f"              {printable(str(error.get('remedy', '')))}")
    for warning in document["warnings"]:
        lines.append(f"  {paint.warn('Warning')}     {printable(warning)}")
    return lines


def _slot_rows(document: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for slot in document["slots"]:
        notes = [
            note for key, note in (("booted", "running"), ("next", "boots next")) if slot.get(key)
        ]
        rows.append(
            [
                str(slot.get("name", "?")),
                str(slot.get("version") or "-"),
                str(slot.get("words", "")),
                f"← {', '.join(notes)}" if notes else "",
            ]
        )
    return rows or [["-", "not known", "", ""]]


def slots(session: Session, args: argparse.Namespace) -> int:
    document = status_document(session.status())
    shown = document["slots"]
    following = next((slot for slot in shown if slot.get("next")), None)
    session.result({"slots": shown, "next": following["name"] if following else None})
    if not shown:
        session.say("The slots are not known; `updatectl doctor` says why.")
        return Exit.DONE
    head = ["Slot", "Release", "Flags", "Priority", "Tries", "Good", ""]
    rows = [
        [name, version, words, str(slot["priority"]), str(slot["tries"]), good, note]
        for slot, (name, version, words, note) in zip(shown, _slot_rows(document), strict=True)
        for good in ("yes" if slot["successful"] else "no",)
    ]
    for line in columns([head, *rows]):
        session.say(printable(line))
    session.say()
    if following is None:
        session.say(session.paint.bad("No slot would boot: do not reboot; see `updatectl doctor`."))
    elif following["booted"]:
        session.say(f"Slot {following['name']} boots next; it is the one that is running.")
    else:
        session.say(f"Slot {following['name']} boots next.")
    return Exit.DONE
