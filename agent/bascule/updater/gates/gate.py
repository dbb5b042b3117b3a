"""The value that every gate gives."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bascule.updater.sentences import say

REFUSED_AS: Mapping[str, str] = {
    "busy": "busy",
    "pin": "pinned",
    "floor": "below-floor",
    "quarantine": "quarantined",
    "back-off": "backing-off",
    "budget": "budget-spent",
    "space": "no-space",
    "unblessed": "booted-not-blessed",
    "server.current": "no-update",
    "server.disabled": "no-update",
    "server.deferred": "omaha-deferred",
    "server.refused": "omaha-refused",
    "server.unreachable": "omaha-unreachable",
}
"""By gate or reason: the id of the error with which `update` refuses; ``policy`` for all others."""


class Verdict(enum.Enum):
    """What a gate says."""

    PASS = "pass"
    BLOCK = "block"
    UNKNOWN = "unknown"


class Blocks(enum.Enum):
    """What a gate can hold back."""

    UPDATE = "update"
    DOWNLOAD = "download"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Gate:
    """One reason for or against going on.

    Attributes:
        name: stable name, such as ``hold``.
        blocks: what it holds back if its verdict is BLOCK.
        verdict: UNKNOWN does not hold anything back.
        reason: stable id of the evidence, such as ``hold.until``.
        evidence: one sentence for an operator.
        until: unix seconds at which the verdict changes by itself, if known.
        override: ``--now`` goes past it.
        error: id of the error with which `update` refuses while it is closed, else "".
    """

    name: str
    blocks: Blocks
    verdict: Verdict
    reason: str
    evidence: str
    until: int | None = None
    override: bool = False
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in ``BlockedBy`` and ``explain --json``; ``until`` 0 where unknown."""
        return {
            "name": self.name,
            "blocks": self.blocks.value,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "evidence": self.evidence,
            "until": self.until or 0,
            "override": self.override,
            "error": self.error,
        }


Told = Mapping[str, object] | None


def passes(
    what: Blocks, reason: str, *, until: int | None = None, told: Told = None, **facts: object
) -> Gate:
    """A gate that is open; named by the first part of its reason.

    Args:
        told, facts: what the reason's sentence is filled with.
    """
    return _gate(what, Verdict.PASS, reason, until, False, {**(told or {}), **facts})


def blocks(
    what: Blocks,
    reason: str,
    *,
    until: int | None = None,
    override: bool = False,
    told: Told = None,
    error: str = "",
    **facts: object,
) -> Gate:
    """A gate that is closed.

    Args:
        error: id of the error with which `update` refuses, where `REFUSED_AS` does not know it.
    """
    gate = _gate(what, Verdict.BLOCK, reason, until, override, {**(told or {}), **facts})
    found = error or REFUSED_AS.get(reason) or REFUSED_AS.get(gate.name) or "policy"
    return replace(gate, error="" if what is Blocks.REBOOT else found)


def unknown(what: Blocks, reason: str, *, until: int | None = None, **facts: object) -> Gate:
    """A gate about which nothing is known; it holds nothing back."""
    return _gate(what, Verdict.UNKNOWN, reason, until, False, facts)


def _gate(
    what: Blocks,
    verdict: Verdict,
    reason: str,
    until: int | None,
    override: bool,
    facts: Mapping[str, object],
) -> Gate:
    name = reason.partition(".")[0]
    return Gate(name, what, verdict, reason, say(reason, **facts), until, override)
