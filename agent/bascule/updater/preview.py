"""What a plan says to people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bascule.updater.duration import words
from bascule.updater.estimate import Estimate, Rates
from bascule.updater.gates import Blocks, Gate, blocking
from bascule.updater.sentences import size_words

DECIDED = frozenset({"server", "pin", "floor", "quarantine", "back-off", "unblessed"})
"""Gates that the plan's own refusal tells of already."""


def plan_sentences(
    found: Mapping[str, Any],
    known: Rates | None,
    time: Estimate | None,
    gates: Iterable[Gate],
) -> list[str]:
    """The lines of ``updatectl plan``.

    Args:
        found: as `bascule.inquiry.plan` gives it.
        known: this host's rates, or None.
        time: what they make of this release, or None.
        gates: every gate, for the offered release.
    """
    release = found.get("release")
    if not release:
        return [str(found.get("why") or "There is nothing to install.")]
    lines = [_what(release, found), *_fetched(found), *_written(found, known)]
    lines.append(_time(known, time, found))
    refused = found.get("refused")
    if refused:
        lines.append(f"It would be refused: {refused['message']} {refused['remedy']}")
    gates = list(gates)
    ahead = [
        gate
        for gate in blocking(gates, Blocks.UPDATE, Blocks.DOWNLOAD)
        if not (refused and gate.name in DECIDED)
    ]
    for gate in ahead:
        passed = " (`--now` goes past it)" if gate.override else ""
        lines.append(f"Held back by {gate.name}: {gate.evidence}{passed}")
    for gate in blocking(gates, Blocks.REBOOT):
        lines.append(f"Then the reboot waits for {gate.name}: {gate.evidence}")
    if not ahead and not refused:
        lines.append("Nothing holds the installation back now.")
    return lines


def _what(release: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    kind = "delta" if release.get("delta") else "full payload"
    name = release.get("version") or f"{release.get('sha256', '')[:12]} (of unnamed version)"
    return f"Release {name} ({kind}) would go into slot {found['slot']}."


def _fetched(found: Mapping[str, Any]) -> list[str]:
    size, here = int(found["release"]["size"]), int(found["resumed_bytes"])
    local = str(found["release"]["source"]).startswith("file:")
    verb = "To read" if local else "To fetch"
    part = f", {size_words(here)} of it here already" if here else ""
    return [f"{verb}: {size_words(size)} from {found['release']['source']}{part}."]


def _written(found: Mapping[str, Any], known: Rates | None) -> list[str]:
    image = int(found["image_bytes"])
    if not image:
        return [f"To write: not known before it is fetched ({found['metadata']['why']})."]
    lines = [f"To write: at most {size_words(image)}; blocks that the slot holds are skipped"]
    if known is not None and known.kept > 0:
        lines[0] += f" ({known.kept:.0%} of them lately)"
    lines[0] += "."
    proven = found["metadata"].get("proven_by")
    if proven:
        lines.append(f"These figures are signed with {proven}.")
    else:
        lines.append("These figures are not proven yet: the signature stands at the payload's end.")
    return lines


def _time(known: Rates | None, time: Estimate | None, found: Mapping[str, Any]) -> str:
    if known is None or time is None:
        return "Time: no estimate, because no installation is on record here."
    by = "the last update" if known.updates == 1 else f"the last {known.updates} updates"
    reboot = f", and {words(time.downtime)} of reboot" if time.downtime else ""
    return f"Time: about {words(max(1.0, time.total))} to install{reboot}, going by {by} here."
