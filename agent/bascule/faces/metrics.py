"""Figures for Prometheus: text format 0.0.4.

Format: prometheus.io/docs/instrumenting/exposition_formats, "Text-based format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bascule import __version__
from bascule.updater.status import State, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BAD_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class Figures:
    """What `Status` does not tell.

    Attributes:
        attempts: result (``updated``, ``rolled-back``, ``failed``, ``withdrawn``) → count.
        failures: error id → count of failed attempts.
        bytes_fetched, bytes_written, bytes_skipped: sums over all updates on record.
        last: durations in seconds of the last update (``download``, ``apply``, ``downtime``).
        budget_limit, budget_used: bytes in the present period; limit 0 for none.
        held: a hold is active.
    """

    attempts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    bytes_fetched: int = 0
    bytes_written: int = 0
    bytes_skipped: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    budget_limit: int = 0
    budget_used: int = 0
    held: bool = False


_RESULTS = {"UPDATED": "updated", "ROLLED_BACK": "rolled-back", "WITHDRAWN": "withdrawn"}


def figures(records: Iterable[Mapping[str, Any]], **more: Any) -> Figures:
    """Sums over history records (`engine.history`), as far back as history is kept.

    Args:
        more: further fields of `Figures`.
    """
    attempts = dict.fromkeys((*_RESULTS.values(), "failed"), 0)
    failures: dict[str, int] = {}
    sums = {"bytes": 0, "written": 0, "skipped": 0}
    last: dict[str, float] = {}
    for record in records:
        facts = record.get("facts")
        facts = facts if isinstance(facts, Mapping) else {}
        if record.get("kind") == "attempt-failed":
            attempts["failed"] += 1
            error = facts.get("error")
            name = str(error.get("id", "unknown")) if isinstance(error, Mapping) else "unknown"
            failures[name] = failures.get(name, 0) + 1
        elif record.get("kind") == "verdict":
            result = _RESULTS.get(str(facts.get("verdict")))
            if result is None:
                continue
            attempts[result] += 1
            for key in sums:
                sums[key] += int(_number(facts.get(key)))
            if result == "updated":
                last = {
                    key: _number(facts.get(f"{key}_s"))
                    for key in ("download", "apply", "downtime")
                    if f"{key}_s" in facts
                }
    return Figures(
        attempts=attempts,
        failures=failures,
        bytes_fetched=sums["bytes"],
        bytes_written=sums["written"],
        bytes_skipped=sums["skipped"],
        last=last,
        **more,
    )


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18:
        return float(value)
    return 0.0


class _Page:
    """Collects metric families in the order in which they are added."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(
        self,
        name: str,
        about: str,
        samples: Sequence[tuple[Mapping[str, str], float]],
        kind: str = "gauge",
    ) -> None:
        if not samples:
            return
        escaped = about.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines += [f"# HELP bascule_{name} {escaped}", f"# TYPE bascule_{name} {kind}"]
        for labels, value in samples:
            inner = ",".join(
                f'{_BAD_NAME.sub("_", key)}="{_label(text)}"' for key, text in labels.items()
            )
            shown = f"{{{inner}}}" if inner else ""
            self._lines.append(f"bascule_{name}{shown} {_value(value)}")

    def one(self, name: str, about: str, value: float, kind: str = "gauge") -> None:
        self.add(name, about, [({}, value)], kind)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _value(value: float) -> str:
    return (
        str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    )


def render(status: Status, told: Figures, now: float) -> str:
    """The whole page. Names and labels are part of the published interface.

    Args:
        now: unix seconds.
    """
    page = _Page()
    page.add(
        "build_info",
        "Versions of agent and release.",
        [
            (
                {
                    "version": __version__,
                    "release": status.current_version,
                    "group": status.group,
                },
                1,
            )
        ],
    )
    page.add(
        "state",
        "1 for the present state, 0 for the others.",
        [({"state": s.name.lower()}, float(s is status.state)) for s in State],
    )
    page.one("state_since_seconds", "When the present state began, unix time.", status.since)
    page.one(
        "last_check_timestamp_seconds",
        "When a check last succeeded, unix time; 0 for never.",
        status.last_checked,
    )
    page.one(
        "last_update_timestamp_seconds",
        "When an update was last confirmed, unix time; 0 for never.",
        status.last_updated,
    )
    if status.last_checked:
        age = max(0.0, now - status.last_checked)
        page.one("last_success_age_seconds", "Time since a check last succeeded.", age)
    page.one(
        "stale",
        "1 if no check has succeeded for longer than `policy.stale_after`.",
        float(status.stale),
    )
    page.one(
        "next_check_timestamp_seconds", "When the next check is due, unix time.", status.next_check
    )
    page.add(
        "verdict",
        "1 for the last update's fate.",
        [({"verdict": status.verdict.lower()}, 1)],
    )
    page.one("failed", "1 if the last attempt failed.", float(status.failure is not None))
    if status.failure is not None:
        page.add(
            "last_failure_timestamp_seconds",
            "When the last attempt failed, unix time.",
            [({"id": status.failure.id}, status.failure.at)],
        )
    page.add(
        "attempts_total",
        "Attempts by result, as far back as history is kept.",
        [({"result": k}, v) for k, v in sorted(told.attempts.items())],
        "counter",
    )
    page.add(
        "failures_total",
        "Failed attempts by error id, as far back as history is kept.",
        [({"id": k}, v) for k, v in sorted(told.failures.items())],
        "counter",
    )
    for name, about, value in (
        ("fetched", "Bytes fetched by all updates on record.", told.bytes_fetched),
        ("written", "Bytes written to slots by all updates on record.", told.bytes_written),
        ("skipped", "Bytes that slots held already, of all updates on record.", told.bytes_skipped),
    ):
        page.one(f"{name}_bytes_total", about, value, "counter")
    page.add(
        "last_update_duration_seconds",
        "How long the last update took, by phase.",
        [({"phase": k}, v) for k, v in sorted(told.last.items())],
    )
    page.one("download_bytes", "Bytes of the present download that are there.", status.bytes_done)
    page.one("download_size_bytes", "Size of the present download.", status.bytes_total)
    page.one("quarantine_releases", "Releases that failed here and are refused.", status.quarantine)
    page.one("held", "1 while a hold is set.", float(told.held))
    if told.budget_limit > 0:
        page.one("budget_bytes", "Data budget of the present period.", told.budget_limit)
        page.one("budget_used_bytes", "Data used in the present period.", told.budget_used)
    page.add(
        "gate_blocked",
        "1 for each gate that holds something back.",
        [
            ({"gate": str(g.get("name", "")), "blocks": str(g.get("blocks", ""))}, 1)
            for g in status.blocked_by
        ],
    )
    for name, about, values in (
        ("booted", "1 for the running slot.", [float(s.booted) for s in status.slots]),
        ("next", "1 for the slot that the next boot takes.", [float(s.next) for s in status.slots]),
        ("good", "1 for slots that are confirmed.", [float(s.successful) for s in status.slots]),
        (
            "tries",
            "Boots that are left to a slot on trial.",
            [float(s.tries) for s in status.slots],
        ),
    ):
        labels = [{"slot": s.name} for s in status.slots]
        page.add(f"slot_{name}", about, list(zip(labels, values, strict=True)))
    return page.text()
