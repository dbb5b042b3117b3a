"""What a verdict does to the ledger, and how it is told in one sentence. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bascule.engine.ledger import Record
from bascule.formats.version import newest, older
from bascule.updater.intent import Intent, Phase
from bascule.updater.verdict import Verdict

CUT_SHORT = "it went down before it was confirmed"
"""Why a release is given up that passed its health checks and lost its power, or hung, in the soak."""


def settle(record: Record, verdict: Verdict, now: int) -> Record:
    """The ledger after `verdict` was acted on. Idempotent: settling twice changes nothing more.

    Args:
        now: unix seconds.
    """
    intent = Intent.from_dict(record.intent)
    if intent is None:
        return record if record.intent is None else dataclasses.replace(record, intent=None)
    told = {
        "verdict": verdict.name,
        "attempt": intent.attempt,
        "version": intent.version,
        "origin_version": intent.origin_version,
        "slot": intent.target.name,
        "payload": intent.payload,
        "failure": intent.failure,
        "at": now,
        **intent.cost,
    }
    if verdict in (Verdict.UPDATED, Verdict.ROLLED_BACK):
        told.update(_downtime(record, verdict, now))
    match verdict:
        case Verdict.WAITING:
            staged = dataclasses.replace(intent, phase=Phase.STAGED)
            return dataclasses.replace(
                record, intent=staged.as_dict(), previous_version=intent.origin_version
            )
        case Verdict.ON_TRIAL:
            return record
        case Verdict.UPDATED:
            floor = intent.version if intent.lowers_floor else newest(record.floor, intent.version)
            return dataclasses.replace(
                record,
                intent=None,
                verdict=told,
                floor=floor,
                last_updated=now,
                releases={**record.releases, intent.target.name: intent.version},
                quarantine={
                    payload: entry
                    for payload, entry in record.quarantine.items()
                    if payload != intent.payload and not superseded(entry, intent.version, floor)
                },
                prepared={},
                reboot={},
            )
        case Verdict.ROLLED_BACK:
            told["failure"] = intent.failure or (CUT_SHORT if intent.trial_boot else "")
            reason = told["failure"] or "it did not boot far enough to say why"
            return quarantine(
                dataclasses.replace(record, intent=None, verdict=told, prepared={}, reboot={}),
                intent.payload,
                version=intent.version,
                kind="boot",
                reason=reason,
                now=now,
            )
        case Verdict.WITHDRAWN:
            return dataclasses.replace(record, intent=None, verdict=told, previous_version="")
        case _:
            return dataclasses.replace(record, intent=None)


LONGEST_DOWNTIME = 30 * 86400
"""Seconds; more than that is a clock that was set, not a reboot."""


def _downtime(record: Record, verdict: Verdict, now: int) -> dict[str, int]:
    """Whole seconds, one at least, from the daemon's stop before the reboot until the new release was
    found healthy, or the old one was up again. Clocks that went backwards leave it untold."""
    stopped, health = record.reboot.get("stopped_at"), record.health
    if not isinstance(stopped, int):
        return {}
    ended, at = now, health.get("at")
    passed = health.get("outcome") == "PASS" and health.get("boot_id") != record.reboot.get(
        "boot_id"
    )
    if verdict is Verdict.UPDATED and passed and isinstance(at, int):
        ended = at
    took = ended - stopped
    return {"downtime_s": max(1, took)} if 0 <= took <= LONGEST_DOWNTIME else {}


def quarantine(
    record: Record, payload: str, *, version: str, kind: str, reason: str, now: int
) -> Record:
    """Refuse `payload` (hex SHA-256) from now on.

    Args:
        kind: ``boot``, ``verify``, ``postinst`` or ``operator``.
    """
    entry = {"version": version, "kind": kind, "reason": reason, "at": now, "until": 0}
    return dataclasses.replace(record, quarantine={**record.quarantine, payload: entry})


def superseded(entry: Mapping[str, Any], blessed: str, floor: str) -> bool:
    """Whether a quarantined payload is settled by a release that was blessed here.

    Either the same release came as another payload and did well, or the entry is older than the
    floor, which refuses it anyhow.
    """
    version = str(entry.get("version") or "")
    return bool(version) and (version == blessed or older(version, floor))


def sentence(verdict: Verdict, told: Mapping[str, Any], clock_text: str = "") -> str:
    """One plain sentence for an operator.

    Args:
        told: version, origin_version and failure, as in `Record.verdict` or an intent's JSON form;
            ``by`` and ``running`` (the release still runs) for one that was given up after its
            blessing; ``quarantined`` is False where an operator lets it be tried again.
        clock_text: when it happened, in local time, or "".
    """
    version = told.get("version") or "the new release"
    origin = told.get("origin_version") or "the old one"
    since = f" since {clock_text}" if clock_text else ""
    match verdict:
        case Verdict.WAITING:
            return f"Release {version} is staged and starts with the next reboot."
        case Verdict.ON_TRIAL:
            return (
                f"Release {version} is on trial; {origin} comes back if it does not prove itself."
            )
        case Verdict.UPDATED:
            if told.get("running") is False:
                return f"Release {version} was confirmed, but someone chose {origin} by hand since."
            return f"Updated from {origin} to {version}{since}."
        case Verdict.ROLLED_BACK:
            why = told.get("failure") or "it never reached its health checks"
            match told.get("by"):
                case "operator":
                    fate = f"Release {version} was rolled back by hand"
                case "late":
                    fate = f"Release {version} was given up after it had been confirmed ({why})"
                case _:
                    fate = f"Release {version} did not boot healthy ({why})"
            back = (
                f"{origin} starts with the next reboot"
                if told.get("running")
                else f"back on {origin}{since}"
            )
            again = (
                f"{version} will not be tried again"
                if told.get("quarantined", True)
                else f"{version} may be tried again"
            )
            return f"{fate}; {back}; {again}."
        case Verdict.WITHDRAWN:
            return f"Release {version} was staged, but someone chose {origin} by hand; nothing is pending."
        case Verdict.UNFINISHED:
            return f"The installation of {version} was interrupted; it goes on at the next check."
        case _:
            return "No update is pending."
