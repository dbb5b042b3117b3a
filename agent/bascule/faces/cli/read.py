"""The verbs that show a document of the daemon: history, explain, plan, config and others.

A document is a JSON object. Its ``sentences`` are all that people are shown of it, where there are
any; else its ``sentence`` comes first, lists of objects become tables, and fields whose names tell
their unit (``…_at``, ``bytes…``, ``…_s``) are shown in words. ``--json`` prints it as it came.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bascule.errors import Exit, UsageError, from_dict
from bascule.faces.cli.session import Session
from bascule.faces.cli.text import columns, duration, moment, printable, size

__all__ = [
    "config",
    "doctor",
    "explain",
    "history",
    "plan",
    "quarantine",
    "releases",
    "shown",
]

_HIDDEN = frozenset({"schema", "ok", "sentence", "sentences"})
_DIGESTS = ("payload", "digest", "previous", "sha256")
_AMOUNTS = ("skipped", "written", "fetched")
_TIMES = ("at", "time", "since", "until", "opens", "changes", "started", "ended")


def shown(
    session: Session,
    name: str,
    wishes: Mapping[str, Any] | None = None,
    words: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> int:
    """Show the document `name` in `words` (`lines_of`); exit code 1 if it says ``ok: false``."""
    document = session.document(name, wishes)
    # `whole` is how the history's verification puts it, `error` how the settings do.
    ok = document.get("ok") is not False and document.get("whole") is not False
    body = {key: value for key, value in document.items() if key not in ("schema", "ok")}
    session.result(body, ok=ok)
    if not session.json:
        for line in (words or lines_of)(document):
            session.say(line)
    return Exit.DONE if ok else Exit.FAILED


def lines_of(document: Mapping[str, Any]) -> list[str]:
    """A document for people."""
    if document.get("sentences"):
        return [printable(str(line)) for line in document["sentences"]]
    lines: list[str] = [document["sentence"]] if document.get("sentence") else []
    facts = [(key, value) for key, value in document.items() if key not in _HIDDEN]
    for key, value in facts:
        if isinstance(value, Mapping) and value:
            lines += ["", f"{_label(key)}:", *_facts(value, "  ")]
        elif _is_table(value):
            lines += ["", f"{_label(key)}:", *_table(value, "  ")]
        elif value not in (None, "", [], {}):
            lines.append(f"{_label(key)}: {_cell(key, value)}")
    if lines and not lines[0]:
        lines.pop(0)
    return [printable(line) for line in lines] or ["Nothing to show."]


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)
    )


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) not in (None, "", [], {}) for row in rows)
    ]
    if not keys:
        return [f"{indent}-"]
    head = [_label(key) for key in keys]
    body = [[_cell(key, row.get(key)) for key in keys] for row in rows]
    return columns([head, *body], indent)


def _facts(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{_label(key)}:", *_facts(value, indent + "  ")]
        elif _is_table(value):
            lines += [f"{indent}{_label(key)}:", *_table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{_label(key)}: {_cell(key, value)}")
    return lines


def _label(key: str) -> str:
    return key.removesuffix("_s").replace("_", " ").capitalize()


def _cell(key: str, value: Any) -> str:
    match value:
        case None | "" | [] | {}:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() | float() if key in _TIMES or key.endswith(("_at", "_until")):
            return moment(value) if value > 0 else "-"
        case str() if key in _DIGESTS and len(value) > 16:
            return value[:12]
        case int() if key.startswith("bytes") or key.endswith(("bytes", "size", *_AMOUNTS)):
            return size(value)
        case int() | float() if key.endswith("_s"):
            return duration(value)
        case float():
            return f"{value:.3g}"
        case list():
            return ", ".join(_cell("", item) for item in value)
        case Mapping():
            return ", ".join(f"{name} {_cell(name, item)}" for name, item in value.items())
    # One row is one line, whatever was captured into it.
    return " ".join(str(value).split())


def explain(session: Session, args: argparse.Namespace) -> int:
    paint = session.paint
    looks = {"open": paint.faint, "closed": paint.bad, "unknown": paint.warn}

    def words(document: Mapping[str, Any]) -> list[str]:
        lines = lines_of(document)
        return [looks.get(line.partition(" ")[0], str)(line) for line in lines]

    return shown(session, "explain", {"history": True} if args.history else None, words)


def history(session: Session, args: argparse.Namespace) -> int:
    if args.what == "verify":
        return shown(session, "history", {"verify": True})
    return shown(session, "history", {"limit": args.last}, _history)


def _history(document: Mapping[str, Any]) -> list[str]:
    """A line for each record: when, what, and its facts."""
    lines = []
    for record in document.get("history") or ():
        facts = dict(record.get("facts") or {})
        error = facts.pop("error", None)
        if isinstance(error, Mapping):
            facts["error"] = error.get("message")
        actor = record.get("actor") or {}
        if isinstance(actor, Mapping) and actor.get("via"):
            uid = actor.get("uid", -1)
            facts["by"] = f"user id {uid}" if uid >= 0 else actor["via"]
        told = ", ".join(
            f"{_label(name).lower()} {text}"
            for name, value in facts.items()
            if (text := _cell(name, value)) != "-"
        )
        kind = str(record.get("kind", "?"))
        lines.append(f"{moment(record.get('time', 0))}  {kind:15} {told}".rstrip())
    return [printable(line) for line in lines] or ["Nothing has happened yet."]


def releases(session: Session, args: argparse.Namespace) -> int:
    return shown(session, "list", {"file": absolute(args.file)})


def plan(session: Session, args: argparse.Namespace) -> int:
    return shown(session, "plan", {"version": args.version, "file": absolute(args.file)})


def absolute(path: str | None) -> str | None:
    """The daemon works in another folder than the one where the command was typed.

    An address stays as it is.
    """
    if path and path.startswith(("http://", "https://", "file:")):
        return path
    try:
        return str(Path(path).absolute()) if path else None
    except OSError as error:
        raise UsageError("the present directory is gone; give the whole path") from error


def quarantine(session: Session, args: argparse.Namespace) -> int:
    if args.what == "clear":
        from bascule.faces.cli.steer import quarantine_clear

        return quarantine_clear(session, args)
    return shown(session, "quarantine")


def config(session: Session, args: argparse.Namespace) -> int:
    if args.what == "show":
        return shown(session, "config")
    document = session.document("config", {"check": True})
    if document.get("error"):
        raise from_dict(document["error"])
    problems = [str(problem) for problem in document.get("problems") or ()]
    session.result({"problems": problems}, ok=not problems)
    for problem in problems or ["No mistake was found in the settings."]:
        session.say(problem)
    return Exit.SETTINGS if problems else Exit.DONE


def doctor(session: Session, args: argparse.Namespace) -> int:
    if args.repair:
        from bascule.faces.cli.steer import repair

        sentence = repair(session, args)
        session.hint(sentence)
    return shown(session, "doctor")
