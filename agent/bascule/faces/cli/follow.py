"""The verbs that start a job, or follow what goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bascule.errors import (
    BasculeError,
    DaemonNotRunning,
    Exit,
    NoUpdate,
    UsageError,
    from_dict,
)
from bascule.faces.bus_client import Signal, options
from bascule.faces.cli.progress import Bar, Lines, Silent, View
from bascule.faces.cli.read import absolute
from bascule.faces.cli.session import INTERFACE, PATH, Session
from bascule.faces.cli.show import headline, status_document
from bascule.faces.cli.text import size
from bascule.faces.cli.wait import await_verdict
from bascule.faces.streams import silence

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
        "no_reboot": getattr(args, "no_reboot", False) or None,
        "allow_downgrade": args.allow_downgrade or None,
        "force_full": args.full or None,
        **more,
    }
    return _start(session, "Update", wishes, args, _view(session, quiet=args.quiet))


def _source(args: argparse.Namespace) -> dict[str, Any]:
    """Where the release comes from, if not from the server."""
    if args.file and args.repository:
        raise UsageError("--file and --repository exclude each other")
    path = absolute(args.file)
    if path and Path(path).is_dir():
        return {"repository": path}
    return {"file": path, "repository": absolute(args.repository)}


def _view(session: Session, *, quiet: bool = False) -> View:
    if session.json or quiet:
        return Silent()
    return Bar(sys.stdout) if sys.stdout.isatty() else Lines(session.say)


def _start(
    session: Session, member: str, wishes: Mapping[str, Any], args: argparse.Namespace, view: View
) -> int:
    wired = options(wishes)
    if not args.no_wait:
        # Before the start, so that a job that ends at once is not missed.
        session.client.listen(namespace=PATH)
    try:
        path, number = (
            session.job("Update", "a{sv}", wired) if member == "Update" else session.job(member)
        )
    except KeyboardInterrupt:
        session.hint("\nInterrupted before the answer; `updatectl status` shows if it has begun.")
        return Exit.STOPPED
    if args.no_wait:
        session.result({"job": number})
        session.say("Started; follow it with `updatectl watch`.")
        return Exit.DONE
    waits = getattr(args, "wait", False)
    properties: dict[str, Any] = {}
    try:
        job = _follow(session, path, view, properties)
    except KeyboardInterrupt:
        view.close()
        session.result({"job": number, "detached": True})
        session.say(
            "Detached; it goes on. `updatectl watch` follows it, `updatectl cancel` stops it."
        )
        return Exit.STOPPED
    except BrokenPipeError:
        # Who read the output has left, as with Ctrl-C: nothing was learned of the end.
        silence(sys.stdout)
        return Exit.STOPPED
    except DaemonNotRunning:
        # A host that reboots as soon as it is done leaves no time to ask how it ended.
        if not waits or not properties.get("Attempt"):
            raise
        job = {"Kind": "update", "Result": "done", "Outcome": {}}
        code, sentence = Exit.DONE, ""
    else:
        code, sentence = _end(properties, job)
    answer = {
        "job": number,
        "kind": job["Kind"],
        "result": job["Result"],
        "sentence": sentence,
        "outcome": dict(job["Outcome"]),
    }
    if sentence:
        session.say(sentence)
    if code == Exit.DONE and waits:
        verdict = await_verdict(session, str(properties.get("Attempt") or ""))
        if isinstance(verdict, Exit):
            session.result({"job": number, "detached": True})
            return verdict
        properties = verdict
        told = headline(status_document(properties))
        answer |= {"verdict": properties["Verdict"], "sentence": sentence or told}
        session.say(told)
    session.result({**answer, "status": status_document(properties)})
    return code


def _follow(session: Session, path: str, view: View, properties: dict[str, Any]) -> dict[str, Any]:
    """Until the job at `path` has ended; returns its last properties.

    Args:
        properties: the daemon's, kept up to date here as long as it answers.
    """
    client = session.client
    properties |= session.status()
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
    properties |= session.status()
    return job


def _changed(signal: Signal, path: str, interface: str) -> bool:
    return (
        signal.path == path
        and signal.member == "PropertiesChanged"
        and signal.values[0] == interface
    )


def _end(properties: Mapping[str, Any], job: Mapping[str, Any]) -> tuple[Exit, str]:
    """Exit code and sentence of a job that has ended. Raises what it failed with."""
    outcome = dict(job["Outcome"])
    if job["Result"] == "failed":
        raise from_dict(job["Error"]) if job["Error"] else BasculeError("the job failed")
    if job["Result"] != "no-update":
        return Exit.DONE, outcome.get("sentence") or _done_sentence(
            job["Kind"], properties, outcome
        )
    current = properties["CurrentVersion"]
    nothing = f"No update: the server has nothing newer than {current}."
    return Exit.NO_UPDATE, outcome.get("sentence") or (nothing if current else NoUpdate.cause)


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
