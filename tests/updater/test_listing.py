"""Why a release would not be installed: every reason, and the order of the newest first."""

from __future__ import annotations

from typing import Any

import pytest

from bascule.formats.repository import Payload, Release
from bascule.updater.listing import MOST, Terms, against, newest_first, why_not
from bascule.updater.pin import parse_pin

TERMS = Terms(running="2.0.0", group="stable", board="amd64-usr", floor="1.5")


def release(version: str = "3.0.0", **more: Any) -> Release:
    values: dict[str, Any] = {
        "version": version,
        "groups": frozenset(),
        "boards": frozenset(),
        "minimum": "",
        "payloads": (Payload("a", 1, b"\1" * 32),),
        "packages": (),
        "notes": "",
        **more,
    }
    return Release(**values)


@pytest.mark.parametrize(
    ("candidate", "terms", "words"),
    [
        (release(), TERMS, ""),
        (release("2.0.0"), TERMS, "what runs"),
        (release(groups=frozenset({"beta"})), TERMS, "other groups: beta"),
        (release(boards=frozenset({"arm64-usr"})), TERMS, "other boards"),
        (release(minimum="2.5"), TERMS, "needs 2.5 first"),
        (release(payloads=(Payload("d", 1, b"", "1.0"),)), TERMS, "no full payload"),
        (release(payloads=(Payload("d", 1, b"", "2.0.0"),)), TERMS, "no full payload"),
        (release("1.0"), TERMS, "below the version floor"),
        (release("1.7"), TERMS, "older than what runs"),
    ],
)
def test_each_reason(candidate: Release, terms: Terms, words: str) -> None:
    told = why_not(candidate, terms)
    assert (words in told) if words else not told, told


def test_the_hosts_own_reasons() -> None:
    digest = "01" * 32
    pinned = Terms(running="2.0.0", pin=parse_pin("<3"))
    assert "pin allows" in against("3.0.0", digest, pinned)
    assert "quarantine" in against("3.0.0", digest, Terms("2.0.0", quarantine={digest}))
    assert not against("", digest, TERMS)
    down = Terms(running="1.0", floor="2.0", downgrades=True)
    assert not against("1.5", digest, down)


def test_deltas_count_where_they_are_taken() -> None:
    delta = release(payloads=(Payload("d", 1, b"", "2.0.0"),))
    assert not why_not(delta, Terms(running="2.0.0", deltas=True))


def test_newest_first_and_bounded() -> None:
    many = [release(f"1.{n}.0") for n in range(MOST + 50)]
    shown = [r.version for r in newest_first(many)]
    assert len(shown) == MOST
    assert shown[:2] == [f"1.{MOST + 49}.0", f"1.{MOST + 48}.0"]
