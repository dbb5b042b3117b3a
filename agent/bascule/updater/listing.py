"""Why a release of a repository would not be installed here. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bascule.formats.repository import Release, payload_for
from bascule.formats.version import key, older
from bascule.updater.pin import Pin

MOST = 200
"""Releases that one answer lists; the newest come first."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides it on this host.

    Attributes:
        running: the running release.
        group, board: as in an Omaha request.
        floor: the version floor, or "".
        pin: the operator's pin, or None.
        quarantine: hex SHA-256 of payloads that failed here.
        deltas: whether deltas are taken.
        downgrades: the floor is not asked for (``policy.allow_downgrade``).
    """

    running: str
    group: str = ""
    board: str = ""
    floor: str = ""
    pin: Pin | None = None
    quarantine: Collection[str] = ()
    deltas: bool = False
    downgrades: bool = False


def why_not(release: Release, terms: Terms) -> str:
    """The first reason against a release of a repository, as a sentence; "" where there is none."""
    if release.version == terms.running:
        return "It is what runs."
    if release.groups and terms.group not in release.groups:
        return f"It is for other groups: {', '.join(sorted(release.groups))}."
    if release.boards and terms.board not in release.boards:
        return f"It is for other boards: {', '.join(sorted(release.boards))}."
    if release.minimum and older(terms.running, release.minimum):
        return f"It needs {release.minimum} first."
    payload = payload_for(release, terms.running, terms.deltas)
    if payload is None:
        return "It has no full payload, and no delta of it starts from what runs."
    return against(release.version, payload.sha256.hex(), terms)


def against(version: str, payload: str, terms: Terms) -> str:
    """The host's own reasons against a release, whoever offers it; "" where there are none.

    Args:
        version: "" where it is not known.
        payload: hex SHA-256.
    """
    if payload in terms.quarantine:
        return "It failed here and is in quarantine; `updatectl quarantine`."
    if version and version == terms.running:
        return "It is what runs."
    if terms.pin is not None and not terms.pin.allows(version):
        return f"The pin allows {terms.pin} only."
    if older(version, terms.floor) and not terms.downgrades:
        return f"It is below the version floor {terms.floor}; `updatectl update --allow-downgrade`."
    if older(version, terms.running):
        return f"It is older than what runs; `updatectl update --version {version}` asks for it."
    return ""


def newest_first(releases: Iterable[Release]) -> list[Release]:
    """At most `MOST` releases, newest first."""
    return sorted(releases, key=lambda release: key(release.version) or (), reverse=True)[:MOST]
