"""Who is offered what, and the state file that a person edits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from omaha_mock.errors import UsageError
from omaha_mock.faults import Fault, FaultBook
from omaha_mock.ranges import Span, requested
from omaha_mock.releases import (
    APPID,
    Directory,
    Group,
    Release,
    Rules,
    State,
    answer,
    parse_state,
    rollout_place,
)
from omaha_mock.versions import newer, order

FULL = Release(version="2.0.0", file="full-2", size=1, sha256="x")
OLDER = Release(version="1.5.0", file="full-1.5", size=1, sha256="x")
DELTA = Release(version="2.0.0", file="delta", size=1, sha256="x", origin="1.0.0")


def client(**changes: str) -> Mapping[str, str]:
    return {
        "appid": APPID,
        "track": "stable",
        "version": "1.0.0",
        "machineid": "m",
        "board": "amd64-usr",
        "delta_okay": "false",
        **changes,
    }


def offered(state: State, **changes: str) -> str:
    found = answer(state, client(**changes))
    return found.error or (found.release.file if found.release else "nothing")


def test_versions_are_ordered_as_semver_says() -> None:
    ascending = ["junk", "0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2"]
    ascending += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.10.0", "3510.2.0", "3602.1.5"]
    assert sorted(set(ascending), key=order) == ascending
    assert not newer("1.0", "1.0.0") and not newer("1.0.0", "1.0")
    assert not newer("1.0.0+build.2", "1.0.0+build.1")


def test_newest_release_of_the_group_wins() -> None:
    state = State(releases=(FULL, OLDER))
    assert offered(state) == "full-2"
    assert offered(state, version="2.0.0") == "nothing"
    assert offered(state, version="3.0.0") == "nothing"
    assert offered(state, track="beta") == "error-unknownApplicationOrGroup"
    assert offered(state, appid="{other}") == "error-unknownApplication"
    assert offered(replace(state, rules=Rules(appid="")), appid="{other}") == "full-2"
    beta = replace(state, groups={"beta": Group()})
    assert offered(beta, track="beta") == "nothing"
    arm = replace(state, releases=(replace(FULL, board="arm64-usr"), OLDER))
    assert offered(arm) == "full-1.5"
    assert offered(arm, board="arm64-usr") == "full-2"


def test_groups_pin_refuse_and_go_back() -> None:
    releases = (FULL, OLDER)
    for group, version, expected in (
        (Group(target="1.5.0"), "1.0.0", "full-1.5"),
        (Group(target="1.5.0"), "2.0.0", "full-1.5"),
        (Group(noupdate=True), "1.0.0", "nothing"),
        (Group(status="error-updatesDisabled"), "1.0.0", "error-updatesDisabled"),
    ):
        state = State(groups={"stable": group}, releases=releases)
        assert offered(state, version=version) == expected
    forced = State(releases=(replace(FULL, forced=True),))
    assert offered(forced, version="9.0.0") == "full-2"


@pytest.mark.parametrize(
    ("deltas", "okay", "version", "expected"),
    [
        ("asked", "true", "1.0.0", "delta"),
        ("asked", "false", "1.0.0", "full-2"),
        ("always", "false", "1.0.0", "delta"),
        ("always", "true", "1.2.0", "full-2"),
        ("never", "true", "1.0.0", "full-2"),
    ],
)
def test_deltas_go_to_those_they_fit(deltas: str, okay: str, version: str, expected: str) -> None:
    for releases in ((FULL, DELTA), (DELTA, FULL)):
        state = State(rules=Rules(deltas=deltas), releases=releases)
        assert offered(state, delta_okay=okay, version=version) == expected


def test_rollout_takes_its_share_and_never_takes_it_back() -> None:
    machines = [f"machine-{number}" for number in range(2000)]

    def reached(percent: int, version: str = "2.0.0") -> set[str]:
        release = replace(FULL, rollout=percent, version=version)
        state = State(releases=(release, OLDER))
        return {name for name in machines if offered(state, machineid=name) == "full-2"}

    assert reached(0) == set() and reached(100) == set(machines)
    assert 500 < len(reached(30)) < 700
    assert reached(10) < reached(30) < reached(80)
    assert reached(30) != reached(30, "2.1.0")
    # Who is not reached yet still gets the release before.
    state = State(releases=(replace(FULL, rollout=0), OLDER))
    assert offered(state) == "full-1.5"
    assert all(0 <= rollout_place(name, "1") < 100 for name in machines)
    half = State(groups={"stable": Group(rollout=0)}, releases=(FULL,))
    assert offered(half) == "nothing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server", "not TOML"),
        ("[sever]", "sever"),
        ("[server]\npoll = 3", "poll_interval"),
        ('[server]\npoll_interval = "3"', "int"),
        ("[server]\npoll_interval = true", "int"),
        ('[server]\ndeltas = "sometimes"', "deltas"),
        ("group = 3", "group"),
        ("[group]\nstable = 3", "stable"),
        ("[release]\nversion = '1'", r"\[\[release\]\]"),
        ("[[release]]\nversion = '1'", "lacks file, size, sha256"),
        ("[[release]]\nversion='x'\nfile='f'\nsize=1\nsha256='s'", "version"),
        ("[[release]]\nversion='1'\nfile='../f'\nsize=1\nsha256='s'", "file name"),
        ("[[release]]\nversion='1'\nfile='f'\nsize=1\nsha256='s'\ngroups='stable'", "groups"),
        ("[[fault]]\nkind='explode'", "explode"),
        ("[[fault]]\nkind='drop'\non='omaha'", "payloads only"),
        ("[[fault]]\nkind='drop'\non='elsewhere'", "omaha"),
    ],
)
def test_mistakes_in_the_state_file_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_state(text)


def test_publish_appends_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    site, payload = Directory(tmp_path / "site"), tmp_path / "p.bin"
    payload.write_bytes(b"payload")
    (tmp_path / "p.bin.DIGESTS.asc").write_text("signed")
    odd = replace(
        FULL, file="2.bin", sha256='a"b\\', groups=("stable", "beta"), extra={"deadline": "now"}
    )
    site.publish(payload, odd)
    assert site.state().releases == (odd,)
    text = site.file.read_text()
    edited = text.replace("# poll_interval = 300 ", "poll_interval = 300 # mine ")
    site.file.write_text(edited + "# my remark\n")
    assert site.state().rules.poll_interval == 300
    site.publish(payload, replace(OLDER, file="1.bin"))
    assert "# my remark\n" in site.file.read_text() and "# mine" in site.file.read_text()
    assert [release.file for release in site.state().releases] == ["2.bin", "1.bin"]
    assert sorted(path.name for path in site.payloads.iterdir()) == [
        "1.bin",
        "1.bin.DIGESTS.asc",
        "2.bin",
        "2.bin.DIGESTS.asc",
    ]
    with pytest.raises(UsageError, match="published already"):
        site.publish(payload, replace(odd, file="3.bin"))
    with pytest.raises(UsageError, match="other bytes"):
        site.publish(payload, replace(odd, version="4.0.0", sha256="other"))


def test_state_is_read_again_when_it_changes_and_only_then(tmp_path: Path) -> None:
    site = Directory(tmp_path)
    assert site.state() == State()
    site.file.write_text("[server]\npoll_interval = 1\n")
    first = site.state()
    assert first.rules.poll_interval == 1 and site.state() is first
    site.file.write_text("[server]\npoll_interval = 22\n")
    assert site.state().rules.poll_interval == 22
    site.file.write_text("[server\n")
    with pytest.raises(UsageError):
        site.state()
    assert site.last_good.rules.poll_interval == 22
    os.unlink(site.file)
    assert site.state() == State()


def test_faults_are_counted_and_wait_for_a_request_that_fits() -> None:
    book = FaultBook()
    faults = (
        Fault("drop", at=100, times=1),
        Fault("wrong_range", times=1),
        Fault("slow", match="big"),
        Fault("status", on="omaha", times=2),
        Fault("corrupt", url="/mirror/"),
    )

    def due(**request: object) -> list[str]:
        facts = {"on": "payload", "path": "/payload/x", "name": "x", **request}
        return [fault.kind for fault in book.due(faults, **facts)]  # type: ignore[arg-type]

    assert due(start=101) == []
    assert due() == ["drop"] and due() == []
    assert due(ranged=True) == ["wrong_range"]
    assert due(name="big-one") == due(name="big-one") == ["slow"]
    assert due(path="/mirror/x") == ["corrupt"]
    assert [due(on="omaha") for _ in range(3)] == [["status"], ["status"], []]
    assert book.due((), on="payload", path="/") == []
    assert due() == ["drop"], "a fault that was taken out and put back begins anew"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Span(0, 100, False)),
        ("bytes=0-", Span(0, 100, True)),
        ("bytes=10-19", Span(10, 20, True)),
        ("bytes=90-1000", Span(90, 100, True)),
        ("bytes=-10", Span(90, 100, True)),
        ("bytes=-1000", Span(0, 100, True)),
        ("bytes=100-", None),
        ("bytes=-0", None),
        ("bytes=20-10", Span(0, 100, False)),
        ("bytes=0-1,5-6", Span(0, 100, False)),
        ("bytes=-", Span(0, 100, False)),
        ("lines=1-2", Span(0, 100, False)),
    ],
)
def test_ranges(header: str, expected: Span | None) -> None:
    assert requested(header, 100) == expected
