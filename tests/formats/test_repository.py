"""The index of a static repository: what is read, what is refused, what is chosen."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import IndexInvalid
from bascule.formats.repository import Index, choose, parse_index
from bascule.formats.version import key, older

DIGEST = "ab" * 32


def payload(path: str = "u.gz", **members: Any) -> dict[str, Any]:
    return {"path": path, "size": 10, "sha256": DIGEST, **members}


def release(version: str, *payloads: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"version": version, "payloads": list(payloads) or [payload(f"{version}.gz")], **members}


def index(*releases: dict[str, Any], **members: Any) -> bytes:
    document = {"format": "bascule-repository", "version": 1, "releases": list(releases)}
    return json.dumps({**document, **members}).encode()


def chosen(body: bytes, running: str = "1.0.0", **options: Any) -> tuple[str, str] | None:
    """Version and path of what is chosen."""
    options = {"group": "stable", "board": "amd64-usr", **options}
    found = choose(parse_index(body), running=running, **options)
    return (found.release.version, found.payload.path) if found is not None else None


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def test_everything_that_an_index_may_hold() -> None:
    body = index(
        release(
            "2.0.0",
            payload(
                "2/full.gz",
                metadata_size=99,
                metadata_signature=base64.b64encode(bytes(256)).decode(),
            ),
            payload("2/delta.gz", delta_from="1.0.0"),
            groups=["stable", "beta"],
            boards=["amd64-usr"],
            minimum="0.9",
            notes="https://example/notes",
            packages=[{"name": "oem.gz", "size": 3, "sha256": DIGEST, "required": True}],
            unknown={"is": "passed over"},
        ),
        serial=7,
        expires="2027-01-31T00:00:00Z",
        comment="also",
    )
    found = parse_index(body)
    assert (found.serial, found.expires) == (7, 1801353600)
    (one,) = found.releases
    assert one.groups == {"stable", "beta"} and one.boards == {"amd64-usr"}
    assert (one.minimum, one.notes) == ("0.9", "https://example/notes")
    full, delta = one.payloads
    assert (full.metadata_size, full.metadata_signature) == (99, bytes(256))
    assert (full.sha256, full.size, full.delta_from) == (bytes.fromhex(DIGEST), 10, "")
    assert delta.delta_from == "1.0.0"
    assert one.packages[0].required and one.packages[0].name == "oem.gz"


def test_the_least_that_an_index_must_hold() -> None:
    assert parse_index(index()) == Index(0, None, ())
    assert parse_index(b"\xef\xbb\xbf" + index()).releases == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        index(format="other"),
        index(version=2),
        index(version=True, format=None),
        index(releases={}),
        index(releases=[5]),
        index(serial=-1),
        index(serial=1.5),
        index(serial=True),
        index(serial=1 << 70),
        index(expires="soon"),
        index(expires="2027-01-31T00:00:00"),
        index(expires=5),
        index(release("next")),
        index(release("")),
        index(release("1.0.0", minimum="x")),
        index(release("1.0.0", groups="stable")),
        index(release("1.0.0", boards=[5])),
        index(release("1.0.0", payloads=[])),
        index(release("1.0.0", payloads={})),
        index(release("1.0.0", notes="a\nb")),
        index(release("1.0.0", payload(size=0))),
        index(release("1.0.0", payload(size="10"))),
        index(release("1.0.0", payload(size=-1))),
        index(release("1.0.0", payload(sha256="xyz"))),
        index(release("1.0.0", payload(sha256=DIGEST + "00"))),
        index(release("1.0.0", payload(metadata_size=5))),
        index(release("1.0.0", payload(metadata_signature="AA=="))),
        index(release("1.0.0", payload(metadata_size=5, metadata_signature="%"))),
        index(release("1.0.0", packages=[{"name": "a"}])),
        index(release("1.0.0", packages=[{"name": "a", "sha256": DIGEST, "required": 1}])),
        index(*[release("1.0.0")] * 4097),
        b'{"format": "bascule-repository", "version": 1, "version": 1, "releases": []}',
        b'{"format": "bascule-repository", "version": 1, "releases": [], "serial": NaN}',
        b'{"format": "bascule-repository", "version": 1.0, "releases": []}',
        b'{"format": "bascule-repository", "version": 1, "releases": [], "serial": 1e999}',
    ],
)
def test_refused(body: bytes) -> None:
    with pytest.raises(IndexInvalid) as caught:
        parse_index(body)
    assert len(str(caught.value)) < 400


def test_an_index_over_the_cap() -> None:
    with pytest.raises(IndexInvalid, match="longer"):
        parse_index(index(comment="x" * (4 << 20)))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../u", "a/../u", "a//b", ".", "a\\b", "a b", "a?b", "a%2fb", "u#x", "a\0"],
)
def test_hostile_paths(path: str) -> None:
    with pytest.raises(IndexInvalid):
        parse_index(index(release("1.0.0", payload(path))))
    package = {"name": path, "size": 1, "sha256": DIGEST}
    with pytest.raises(IndexInvalid):
        parse_index(index(release("1.0.0", packages=[package])))


# ── choosing ─────────────────────────────────────────────────────────────────────────────────

THREE = index(release("1.0.0"), release("3.0.0"), release("2.0.0"))


def test_the_newest() -> None:
    assert chosen(THREE) == ("3.0.0", "3.0.0.gz")


@pytest.mark.parametrize("running", ["3.0.0", "3.1", "4.0.0"])
def test_nothing_newer(running: str) -> None:
    assert chosen(THREE, running) is None


@pytest.mark.parametrize("running", ["", "unknown", "12-custom build"])
def test_a_host_of_unknown_release_takes_the_newest(running: str) -> None:
    assert chosen(THREE, running) == ("3.0.0", "3.0.0.gz")


def test_a_wanted_version_even_an_older_one() -> None:
    assert chosen(THREE, "3.0.0", wanted="1.0.0") == ("1.0.0", "1.0.0.gz")
    assert chosen(THREE, wanted="9.0.0") is None


def test_group_and_board() -> None:
    body = index(
        release("2.0.0"),
        release("3.0.0", groups=["stable"]),
        release("4.0.0", groups=["beta"]),
        release("5.0.0", boards=["arm64-usr"]),
    )
    assert chosen(body) == ("3.0.0", "3.0.0.gz")
    assert chosen(body, group="beta") == ("4.0.0", "4.0.0.gz")
    assert chosen(body, group="other") == ("2.0.0", "2.0.0.gz")
    assert chosen(body, board="arm64-usr") == ("5.0.0", "5.0.0.gz")


def test_stepping_stones() -> None:
    body = index(release("2.0.0"), release("3.0.0", minimum="2.0.0"))
    assert chosen(body, "1.0.0") == ("2.0.0", "2.0.0.gz")
    assert chosen(body, "2.0.0") == ("3.0.0", "3.0.0.gz")
    assert chosen(body, "1.0.0", wanted="3.0.0") is None


def test_a_delta_from_here_is_preferred_and_one_from_elsewhere_is_useless() -> None:
    both = index(release("2.0.0", payload("f"), payload("d", delta_from="1.0.0")))
    assert chosen(both, "1.0.0") == ("2.0.0", "d")
    assert chosen(both, "1.0.1") == ("2.0.0", "f")
    assert chosen(both, "1.0.0", deltas=False) == ("2.0.0", "f")
    body = index(release("3.0.0", payload("d", delta_from="2.0.0")), release("2.0.0"))
    assert chosen(body, "1.0.0") == ("2.0.0", "2.0.0.gz")
    assert chosen(body, "") == ("2.0.0", "2.0.0.gz")


VERSIONS = st.sampled_from(["0.9", "1.0.0", "1.0.1", "2.0.0-rc.1", "2.0.0", "2.1", "10.0.0"])


@settings(max_examples=150)
@given(
    st.lists(
        st.builds(
            lambda v, m, d, g: release(
                v,
                payload(f"{v}.gz", **({"delta_from": d} if d else {})),
                groups=g,
                **({"minimum": m} if m else {}),
            ),
            VERSIONS,
            st.none() | VERSIONS,
            st.none() | VERSIONS,
            st.sampled_from([[], ["stable"], ["beta"]]),
        ),
        max_size=8,
    ),
    VERSIONS,
)
def test_what_is_chosen_is_newer_reachable_and_the_best(
    releases: list[dict[str, Any]], running: str
) -> None:
    fitting = [
        r
        for r in releases
        if older(running, r["version"])
        and not older(running, r.get("minimum", "0"))
        and "beta" not in r["groups"]
        and r["payloads"][0].get("delta_from", running) == running
    ]
    found = chosen(index(*releases), running)
    if found is None:
        assert not fitting
    else:
        best = max(key(r["version"]) or ((), 0, ()) for r in fitting)
        assert key(found[0]) == best


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_index_never_escapes_the_error_tree(data: st.DataObject) -> None:
    body = bytearray(THREE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=5))
    try:
        found = parse_index(bytes(body))
    except IndexInvalid:
        return
    choose(found, running="1.0.0", group="stable", board="x")
