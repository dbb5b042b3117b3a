"""The verbs that start a job, or follow what goes on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bascule.errors import (
    BasculeError,
    DaemonNotRunning,
    Exit,
    NothingPending,
    NoUpdate,
    RolledBack,
    UsageError,
    from_dict,
)
from bascule.faces.bus_client import Signal, options
from bascule.faces.cli.progress import Bar, Lines, Silent, View
from bascule.faces.cli.read import absolute
from bascule.faces.cli.session import INTERFACE, PATH, Session
from bascule.faces.cli.show import headline, status_document
from bascule.faces.cli.text import size

__all__ = ["check", "prepare", "update", "watch"]

JOB_INTERFACE = "org.bascule.Update1.Job"
TICK = 1.0


def check(session: Session, args: argparse.Namespace) -> int:
    return _start(session, "Check", {}, args, Silent())


def update(session: Session, args: argparse.Namespace) -> int:
    return _update(session, args, {})


def prepare(session: Session, args: argparse.Namespace) -> int:
    return _update(session, args, {"prepare": True})


def _update(session: Session, args: argparse.Namespace, more: Mapping[str, Any]) -> int:
    wishes = {
        "version": args.version,
        **_source(args),
        # Options that are not asked for are not sent: an older daemon need not know them.
        "now": args.now or None,
        "no_reboot": args.no_reboot or None,
        "allow_downgrade": args.allow_downgrade or None,
        "force_full": args.full or None,
        **more,
    }
    code = _start(session, "Update", wishes, args, _view(session, quiet=args.quiet))
    if args.wait and code == Exit.DONE:
        return _await_verdict(session)
    return code


def _source(args: argparse.Namespace) -> dict[str, Any]:
    """Where the release comes from, if not from the server."""
    if args.file and args.repository:
        raise UsageError("--file and --repository exclude each other")
    path = absolute(args.file)
    if path and Path(path).is_dir():
        return {"repository": path}
    return {"file": path, "repository": args.repository}


def _view(session: Session, *, quiet: bool = False) -> View:
    if session.json or quiet:
        return Silent()
    return Bar(sys.stdout) if sys.stdout.isatty() else Lines(session.say)


def _start(
    session: Session, member: str, wishes: Mapping[str, Any], args: argparse.Namespace, view: View
) -> int:
    if not args.no_wait:
        # Before the start, so that a job that ends at once is not missed.
        session.client.listen(namespace=PATH)
    if member == "Update":
        path = str(session.steer("Update", "a{sv}", options(wishes)))
    else:
        path = str(session.steer(member))
    number = int(path.rpartition("/")[2])
    if args.no_wait:
        session.result({"job": number})
        session.say("Started; follow it with `updatectl watch`.")
        return Exit.DONE
    try:
        properties, job = _follow(session, path, view)
    except KeyboardInterrupt:
        view.close()
        session.result({"job": number, "detached": True})
        session.say(
            "Detached; it goes on. `updatectl watch` follows it, `updatectl cancel` stops it."
        )
        return Exit.STOPPED
    return _end(session, number, properties, job)


def _follow(session: Session, path: str, view: View) -> tuple[dict[str, Any], dict[str, Any]]:
    """Until the job at `path` has ended; returns the last properties of daemon and job."""
    client = session.client
    properties = session.status()
    job = client.properties(path, JOB_INTERFACE)
    try:
        while job["State"] != "ended":
            view.show(properties)
            signal = client.next_signal(timeout=TICK)
            if signal is None:
                continue
            if _changed(signal, PATH, INTERFACE):
                properties |= signal.values[1]
            elif _changed(signal, path, JOB_INTERFACE):
                job |= signal.values[1]
            elif signal.path == path and signal.member == "Finished":
                job = client.properties(path, JOB_INTERFACE)
    finally:
        view.close()
    return session.status(), job


def _changed(signal: Signal, path: str, interface: str) -> bool:
    return (
        signal.path == path
        and signal.member == "PropertiesChanged"
        and signal.values[0] == interface
    )


def _end(
    session: Session, number: int, properties: Mapping[str, Any], job: Mapping[str, Any]
) -> int:
    outcome = dict(job["Outcome"])
    if job["Result"] == "failed":
        raise from_dict(job["Error"]) if job["Error"] else BasculeError("the job failed")
    if job["Result"] == "no-update":
        code: Exit = Exit.NO_UPDATE
        current = properties["CurrentVersion"]
        sentence = outcome.get("sentence") or (
            f"No update: the server has nothing newer than {current}."
            if current
            else NoUpdate.cause
        )
    else:
        code = Exit.DONE
        sentence = outcome.get("sentence") or _done_sentence(job["Kind"], properties, outcome)
    session.result(
        {
            "job": number,
            "kind": job["Kind"],
            "result": job["Result"],
            "sentence": sentence,
            "outcome": outcome,
            "status": status_document(properties),
        }
    )
    session.say(sentence)
    return code


def _done_sentence(kind: str, properties: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
    version = outcome.get("version") or properties["NewVersion"] or "A new release"
    amount = outcome.get("size") or properties["NewSize"]
    if kind == "check":
        volume = f" ({size(amount)})" if amount else ""
        return f"{version}{volume} is available. `updatectl update` installs it."
    if properties["State"] == "UPDATED_NEED_REBOOT":
        return f"{version} is installed and boots next. `updatectl reboot` starts it."
    return f"{version} is installed."


def watch(session: Session, args: argparse.Namespace) -> int:
    session.client.listen(namespace=PATH)
    properties = session.status()
    view = _view(session)
    session.line({"event": "status", "status": status_document(properties)})
    said = _announce(session, view, properties, "")
    try:
        while True:
            view.show(properties)
            signal = session.client.next_signal(timeout=TICK)
            if signal is None:
                continue
            if _changed(signal, PATH, INTERFACE):
                properties |= signal.values[1]
                session.line({"event": "status", "status": status_document(properties)})
                said = _announce(session, view, properties, said)
            elif signal.member == "Finished":
                view.close()
                result, error_id, message = signal.values
                session.line(
                    {
                        "event": "finished",
                        "job": int(signal.path.rpartition("/")[2]),
                        "result": result,
                        "error": error_id or None,
                        "message": message or None,
                    }
                )
                if message:
                    session.say(f"Failed: {message}")
    except KeyboardInterrupt:
        return Exit.DONE
    finally:
        view.close()


def _announce(session: Session, view: View, properties: Mapping[str, Any], said: str) -> str:
    """Say the headline when the host rests in another way than before."""
    if properties["State"] not in ("IDLE", "UPDATED_NEED_REBOOT"):
        return said
    sentence = headline(status_document(properties))
    if sentence != said:
        view.close()
        session.say(sentence)
    return sentence


def _await_verdict(session: Session) -> int:
    """Follow across the reboot (or the daemon's restart) to the update's fate."""
    session.hint("Waiting for the reboot and the verdict; Ctrl-C ends only the waiting.")
    try:
        while True:
            time.sleep(TICK)
            try:
                properties = session.status()
            except DaemonNotRunning:
                session.reconnect()
                continue
            if properties["State"] == "UPDATED_NEED_REBOOT":
                continue
            verdict = properties["Verdict"]
            if verdict in ("WAITING", "ON_TRIAL"):
                continue
            if verdict == "ROLLED_BACK":
                raise RolledBack(properties["Sentence"])
            if verdict != "UPDATED":
                raise NothingPending("the update was undone before it could be judged")
            session.result({"verdict": verdict, "status": status_document(properties)})
            session.say(headline(status_document(properties)))
            return Exit.DONE
    except KeyboardInterrupt:
        return Exit.STOPPED
