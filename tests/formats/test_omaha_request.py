"""Requests against those that the original sent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.formats.omaha import (
    ON_DEMAND,
    SCHEDULED,
    Client,
    OmahaEvent,
    build_request,
    check_event,
)

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
RECORDED = sorted(
    p for p in VECTORS.glob("*/0*.txt") if p.read_bytes().partition(b"\n")[2].startswith(b"POST ")
)

CLIENT = Client(
    version="3510.2.0",
    track="stable",
    machineid="0123456789abcdef0123456789abcdef",
    bootid="d7d691f7-8c5a-4d2c-bf07-d4c730651df5",
    board="amd64-usr",
    machine="x86_64",
    oem="qemu",
    oemversion="1.2.3",
    alephversion="3510.2.0",
    machinealias="oracle-node",
)


def recorded_body(path: Path) -> tuple[dict[str, str], bytes]:
    """Headers and body of a recorded request; the body's length is what Content-Length says."""
    raw = path.read_bytes().partition(b"\n")[2]
    head, _, rest = raw.partition(b"\n\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\n")[1:])
    return headers, rest[: int(headers["Content-Length"])]


def rebuilt(body: bytes) -> bytes:
    """What we send when we know only the facts of a recorded request."""
    root = ElementTree.fromstring(body)
    app, system = root.find("app"), root.find("os")
    assert app is not None and system is not None
    client = Client(
        version=app.attrib["version"],
        track=app.attrib["track"],
        machineid=app.attrib["machineid"],
        bootid=app.attrib["bootid"].strip("{}"),
        board=app.attrib["board"],
        machine=system.attrib["sp"].partition("_")[2],
        appid=app.attrib["appid"],
        oem=app.attrib["oem"],
        oemversion=app.attrib["oemversion"],
        alephversion=app.attrib["alephversion"],
        machinealias=app.attrib["machinealias"],
    )
    events = [
        OmahaEvent(
            int(e.attrib["eventtype"]),
            int(e.attrib["eventresult"]),
            int(e.attrib["errorcode"]) if "errorcode" in e.attrib else None,
            e.attrib.get("previousversion"),
        )
        for e in app.findall("event")
    ]
    return build_request(
        client,
        ping=app.find("ping") is not None,
        updatecheck=app.find("updatecheck") is not None,
        events=events,
        installsource=root.attrib["installsource"],
    )


@pytest.mark.skipif(not RECORDED, reason="the recorded requests are not here (../shared/vectors)")
@pytest.mark.parametrize("path", RECORDED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_equals_the_recorded_request(path: Path) -> None:
    headers, body = recorded_body(path)
    ours = rebuilt(body)
    theirs_xml, ours_xml = ElementTree.fromstring(body), ElementTree.fromstring(ours)
    for theirs, mine in zip(theirs_xml.iter(), ours_xml.iter(), strict=True):
        assert (mine.tag, list(mine.attrib.items())) == (theirs.tag, list(theirs.attrib.items()))
    assert ours == body
    assert len(ours) == int(headers["Content-Length"])


@pytest.mark.skipif(not RECORDED, reason="the recorded requests are not here (../shared/vectors)")
def test_every_kind_is_recorded() -> None:
    kinds = {re.sub(r"^\d+_+", "", p.stem) for p in RECORDED}
    assert {
        "check_event3-2_ping",
        "check_event3-0-err44_ping",
        "event13-1",
        "event14-1",
        "event3-1",
        "event3-0-err268435474",
        "ping",
    } <= kinds


@pytest.mark.parametrize(
    ("previous", "event"),
    [
        (None, '<event eventtype="3" eventresult="2" previousversion="0.0.0.0"></event>'),
        ("3510.2.0", '<event eventtype="3" eventresult="0" errorcode="44"></event>'),
        ("", '<event eventtype="3" eventresult="2" previousversion=""></event>'),
        ("3374.2.0", '<event eventtype="3" eventresult="2" previousversion="3374.2.0"></event>'),
    ],
)
def test_the_event_inside_a_check(previous: str | None, event: str) -> None:
    body = build_request(
        CLIENT, ping=True, updatecheck=True, events=[check_event(previous, CLIENT.version)]
    )
    assert body.decode().count("<event ") == 1
    assert event in body.decode()


def test_a_running_version_that_is_empty_is_no_rollback() -> None:
    assert check_event("", "").result == 2


def test_success_carries_no_errorcode() -> None:
    assert OmahaEvent(14, 1, errorcode=7).attributes() == [
        ("eventtype", "14"),
        ("eventresult", "1"),
    ]


def test_install_source() -> None:
    assert b'installsource="scheduler"' in build_request(CLIENT, ping=True)
    assert b'installsource="ondemandupdate"' in build_request(CLIENT, installsource=ON_DEMAND)
    assert SCHEDULED == "scheduler"


def test_values_are_escaped_as_the_original_does() -> None:
    odd = replace(CLIENT, machinealias="a&b<c>\"d'")
    assert b'machinealias="a&amp;b&lt;c&gt;&quot;d&apos;"' in build_request(odd)


@settings(max_examples=150)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_survives_or_is_replaced(alias: str, version: str) -> None:
    odd = replace(CLIENT, machinealias=alias, version=version)
    root = ElementTree.fromstring(build_request(odd, ping=True))
    app = root.find("app")
    assert app is not None
    legal = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", alias)
    assert app.attrib["machinealias"] == legal
    assert [child.tag for child in app] == ["ping"]


@given(
    st.builds(
        OmahaEvent,
        st.sampled_from([3, 13, 14]),
        st.sampled_from([0, 1, 2, 9]),
        st.none() | st.integers(0, 2**31),
        st.none() | st.text(max_size=10),
    )
)
def test_an_event_survives_the_outbox(event: OmahaEvent) -> None:
    assert OmahaEvent.from_dict(event.as_dict()) == event


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": "3", "result": 1},
        {"type": 3, "result": 1, "errorcode": "x"},
        {"type": 3, "result": 1, "previousversion": 5},
    ],
)
def test_a_damaged_outbox_entry_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="event"):
        OmahaEvent.from_dict(data)
