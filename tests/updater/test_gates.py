"""Gates: every reason is produced, and every gate keeps its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.coordination.interface import Holder, LockView
from bascule.engine.surroundings import Battery, Inhibitor, Pressure, Session, Surroundings
from bascule.errors import catalogue
from bascule.formats.omaha_words import REFUSALS
from bascule.updater.gates import (
    GATES,
    Answer,
    Answered,
    Blocks,
    Budget,
    Facts,
    Gate,
    Locksmithd,
    Quarantined,
    Room,
    Verdict,
    blocking,
    evaluate,
    opens,
)
from bascule.updater.gates.gate import REFUSED_AS
from bascule.updater.hold import Hold
from bascule.updater.pin import parse_pin
from bascule.updater.schedule import Schedule, parse_schedule
from bascule.updater.sentences import SENTENCES
from bascule.updater.windows import Window, Windows, parse_windows

NOW = 1_711_800_000.0  # Sat 2024-03-30 12:00 UTC
DAY = 86400
MACHINE = "0123456789abcdef0123456789abcdef"
NEVER = Windows((Window(frozenset(range(7)), 0, 0),))


def facts(**changes: object) -> Facts:
    return replace(Facts(zone="UTC"), **changes)  # type: ignore[arg-type]


def around(**changes: object) -> Facts:
    return facts(surroundings=Surroundings(**changes))  # type: ignore[arg-type]


def offered(version: str = "4081.2.0", **changes: object) -> Facts:
    answer = Answer(Answered.OFFERED, version=version, payload="ab" * 32, size=482_000_000)
    return facts(answer=answer, **changes)


def reboots(*lines: str, **more: object) -> Facts:
    return facts(
        schedule=parse_schedule(reboots=parse_windows(lines), machine_id=MACHINE, **more)  # type: ignore[arg-type]
    )


def downloads(*lines: str) -> Facts:
    return facts(schedule=parse_schedule(downloads=parse_windows(lines)))


def locked(strategy: str = "etcd-lock", **view: object) -> Facts:
    return facts(strategy=strategy, lock=LockView(strategy, **view))  # type: ignore[arg-type]


PASS, BLOCK, UNKNOWN = Verdict.PASS, Verdict.BLOCK, Verdict.UNKNOWN
NEXT = {"next_check": int(NOW) + 3600}
# reason, facts, verdict, evidence, until, override
CASES: list[tuple[str, Facts, Verdict, str, int | None, bool]] = [
    ("server.offered", offered(), PASS, "The server offers release 4081.2.0 (482 MB).", None, False),
    ("server.local", facts(answer=Answer(Answered.LOCAL, version="5.0", detail="/mnt/5.gz")), PASS,
     "Release 5.0 is installed from /mnt/5.gz, without the server.", None, False),
    ("server.current", facts(answer=Answer(Answered.CURRENT), running="4081.1.0", group="stable", **NEXT), BLOCK,
     "The server has nothing newer than 4081.1.0 for this host in group stable.", int(NOW) + 3600, False),
    ("server.not-asked", facts(**NEXT), UNKNOWN,
     "The server has not been asked yet; the next check is Sat 2024-03-30 13:00 UTC.", int(NOW) + 3600, False),
    ("server.not-asked", facts(), UNKNOWN,
     "The server has not been asked yet; no next check is planned.", None, False),
    ("server.unreachable", facts(answer=Answer(Answered.UNREACHABLE, detail="connection refused"), next_check=5), BLOCK,
     "The server could not be asked: connection refused; the next check is due.", 5, False),
    ("server.deferred", facts(answer=Answer(Answered.REFUSED, "error-maxConcurrentUpdatesLimitReached"), **NEXT), BLOCK,
     "The server asks this host to wait: as many hosts of this group as the server allows at one time are updating "
     "(error-maxConcurrentUpdatesLimitReached); the next check is Sat 2024-03-30 13:00 UTC.", int(NOW) + 3600, False),
    ("server.refused", facts(answer=Answer(Answered.REFUSED, "error-unknownApplication")), BLOCK,
     "The server refuses this host: the server does not know this application id (error-unknownApplication); "
     "no next check is planned.", None, False),
    ("server.disabled", facts(answer=Answer(Answered.DISABLED), server="disabled"), BLOCK,
     "Checks are off: the server is set to 'disabled'.", None, False),
    ("busy.idle", facts(), PASS, "No attempt is under way.", None, False),
    ("busy.under-way", facts(under_way="download"), BLOCK, "An attempt is under way: download.", None, False),
    ("busy.staged", facts(staged="5.0"), BLOCK,
     "Release 5.0 is staged already; reboot into it, or take it back with `updatectl cancel`.", None, False),
    ("busy.way-back", facts(way_back="Slot A starts once with the next reboot."), BLOCK,
     "Slot A starts once with the next reboot.", None, False),
    ("busy.prepared",
     facts(prepared="ab", prepared_words="Release 5.0 is prepared in slot B.", answer=Answer(Answered.OFFERED, version="5.0", payload="ab")),
     BLOCK, "Release 5.0 is prepared in slot B.", None, False),
    ("mode.apply", facts(), PASS, "Policy lets updates be installed and the host be rebooted.", None, False),
    ("mode.stage", facts(schedule=parse_schedule("stage")), BLOCK,
     "Policy is `stage`: updates are installed, and somebody else reboots.", None, True),
    ("mode.no-reboot", facts(staged="5.0", stays=True), BLOCK,
     "The update was asked for with `--no-reboot`: somebody else reboots.", None, True),
    ("mode.check", facts(schedule=parse_schedule("check")), BLOCK,
     "Policy is `check`: updates are reported and not installed.", None, True),
    ("mode.none", facts(schedule=parse_schedule("none")), BLOCK,
     "Policy is `none`: nothing is done unless somebody asks for it.", None, True),
    ("schedule.interval", facts(**NEXT), PASS,
     "Checks are made at intervals; the next check is Sat 2024-03-30 13:00 UTC.", None, False),
    ("schedule.due", facts(schedule=parse_schedule(checks=["0 2 * * *"]), next_check=int(NOW)), PASS,
     "A scheduled check is due now.", None, False),
    ("schedule.due", facts(schedule=parse_schedule(checks=["0 2 * * *"]), asked=True), PASS,
     "A scheduled check is due now.", None, False),
    ("schedule.waits", facts(schedule=parse_schedule(checks=["0 2 * * *"], zone_name="UTC")), BLOCK,
     "The schedule's next check is Sun 2024-03-31 02:00 UTC.", int(NOW) + 14 * 3600, True),
    ("schedule.never", facts(schedule=parse_schedule(checks=["0 0 31 2 *"])), BLOCK,
     "The schedule never comes again: no check will be made by itself.", None, True),
    ("hold.none", facts(), PASS, "No hold is set.", None, False),
    ("hold.over", facts(hold=Hold(int(NOW) - 3 * DAY, int(NOW) - DAY)), PASS,
     "The hold of Wed 2024-03-27 12:00 UTC ended Fri 2024-03-29 12:00 UTC.", None, False),
    ("hold.until", facts(hold=Hold(int(NOW), int(NOW) + 3 * DAY, "moving the rack")), BLOCK,
     "Updates are held until Tue 2024-04-02 12:00 UTC (moving the rack).", int(NOW) + 3 * DAY, False),
    ("hold.ending", facts(hold=Hold(int(NOW), int(NOW) + 7200)), BLOCK,
     "Updates are held until Sat 2024-03-30 14:00 UTC; that is 2 h from now.", int(NOW) + 7200, False),
    ("hold.indefinite", facts(hold=Hold(int(NOW) - 9 * DAY, None, "fair")), BLOCK,
     "Updates are held until further notice, since Thu 2024-03-21 12:00 UTC (9 d) (fair).", None, False),
    ("download-window.always", facts(), PASS, "Payloads may be fetched at any time.", None, False),
    ("download-window.open", downloads("Sat 10:00 4h UTC"), PASS,
     "The download window is open until Sat 2024-03-30 14:00 UTC.", int(NOW) + 7200, False),
    ("download-window.whole", downloads("daily 00:00-24:00 UTC"), PASS,
     "The download window is open all week.", None, False),
    ("download-window.closed", downloads("Sat 20:00 4h UTC"), BLOCK,
     "The download window is closed; it opens Sat 2024-03-30 20:00 UTC.", int(NOW) + 8 * 3600, True),
    ("download-window.never", facts(schedule=Schedule(downloads=NEVER)), BLOCK,
     "The download window never opens (daily 00:00 for 0 s).", None, True),
    ("window.always", facts(), PASS, "This host may reboot at any time.", None, False),
    ("window.open", reboots("Sat 10:00 4h UTC"), PASS,
     "The reboot window is open until Sat 2024-03-30 14:00 UTC.", int(NOW) + 7200, False),
    ("window.whole", reboots("Mon 00:00 168h UTC"), PASS, "The reboot window is open all week.", None, False),
    ("window.closed", reboots("Sat 20:00 4h UTC"), BLOCK,
     "The reboot window is closed; it opens Sat 2024-03-30 20:00 UTC, and this host's turn is Sat 2024-03-30 20:45 UTC.",
     int(NOW) + 8 * 3600 + 2711, True),
    ("window.turn", reboots("Sat 11:59 4h UTC"), BLOCK,
     "The reboot window is open; this host's turn in it is Sat 2024-03-30 12:44 UTC.", int(NOW) - 60 + 2711, True),
    ("window.never", facts(schedule=Schedule(reboots=NEVER)), BLOCK,
     "The reboot window never opens (daily 00:00 for 0 s).", None, True),
    ("pin.wanted", offered(wanted="4081.2.0", pin=parse_pin("<4000")), PASS,
     "Release 4081.2.0 was asked for, and the server offers it.", None, False),
    ("pin.other", offered(wanted="4081.9.0"), BLOCK,
     "Release 4081.9.0 was asked for, and the server offers 4081.2.0.", None, False),
    ("pin.none", facts(), PASS, "No pin is set.", None, False),
    ("pin.waits", facts(pin=parse_pin("4081.*")), PASS, "This host is pinned to 4081.*.", None, False),
    ("pin.allows", offered(pin=parse_pin("4081.*")), PASS,
     "Release 4081.2.0 is within the pin 4081.*.", None, False),
    ("pin.refuses", offered(pin=parse_pin("<4000")), BLOCK,
     "Release 4081.2.0 is outside the pin <4000.", None, False),
    ("floor.none", facts(), PASS, "There is no version floor yet.", None, False),
    ("floor.waits", facts(floor="4081.1.0"), PASS, "Releases older than 4081.1.0 are refused.", None, False),
    ("floor.above", offered(floor="4081.2.0"), PASS,
     "Release 4081.2.0 is not older than the floor 4081.2.0.", None, False),
    ("floor.below", offered(floor="4100.0.0"), BLOCK,
     "Release 4081.2.0 is older than the floor 4100.0.0.", None, False),
    ("floor.lowered", offered(floor="4100.0.0", allow_downgrade=True), PASS,
     "Release 4081.2.0 is older than the floor 4100.0.0, which was allowed explicitly.", None, False),
    ("quarantine.none", offered(quarantine={"ab" * 32: Quarantined("x", "y", 0, 5)}), PASS,
     "No release is in quarantine.", None, False),
    ("quarantine.others", offered(quarantine={"cd" * 32: Quarantined("4000.0.0", "x", 0)}), PASS,
     "One release is in quarantine, not the one that is offered.", None, False),
    ("quarantine.others", facts(quarantine={"1": Quarantined("a", "", 0), "2": Quarantined("b", "", 0)}), PASS,
     "2 releases are in quarantine, not the one that is offered.", None, False),
    ("quarantine.this", offered(quarantine={"ab" * 32: Quarantined("4081.2.0", "nginx did not start", int(NOW) - DAY)}), BLOCK,
     "Release 4081.2.0 failed here Fri 2024-03-29 12:00 UTC and is not tried again: nginx did not start.", None, False),
    ("quarantine.until", offered(quarantine={"ab" * 32: Quarantined("", "", int(NOW), int(NOW) + DAY)}), BLOCK,
     "Release 4081.2.0 failed here Sat 2024-03-30 12:00 UTC and is left alone until Sun 2024-03-31 12:00 UTC: "
     "the reason was not recorded.", int(NOW) + DAY, False),
    ("back-off.none", facts(), PASS, "No earlier failure makes this host wait.", None, False),
    ("back-off.until", offered(back_off_until=int(NOW) + DAY, failures=3), BLOCK,
     "Release 4081.2.0 failed before; it is tried again Sun 2024-03-31 12:00 UTC (failures: 3).", int(NOW) + DAY, True),
    ("unblessed.blessed", facts(blessed=True), PASS,
     "The running release is confirmed, so the other slot may be written.", None, False),
    ("unblessed.trial", facts(blessed=False), BLOCK,
     "The running release is not confirmed yet, so the other slot must be kept.", None, False),
    ("unblessed.late", facts(blessed=True, watched_until=int(NOW) + 3600), BLOCK,
     "The running release is watched until Sat 2024-03-30 13:00 UTC; the other slot is kept until then.", int(NOW) + 3600, False),
    ("unblessed.unknown", facts(), UNKNOWN, "Whether the running release is confirmed is not known.", None, False),
    ("space.enough", facts(rooms=(Room("/boot", 5, 6), Room("/var", 5, 5))), PASS,
     "There is room on /boot and /var.", None, False),
    ("space.none", facts(), PASS, "No file system needs room for this update.", None, False),
    ("space.short", facts(rooms=(Room("/var", 1, None), Room("/boot", 62_000_000, 1500))), BLOCK,
     "/boot needs 62 MB and has 2 kB.", None, False),
    ("space.unknown", facts(rooms=(Room("/boot", 1, None),)), UNKNOWN,
     "The free space on /boot is not known.", None, False),
    ("metered.no", around(metered=False), PASS, "The link is not metered.", None, False),
    ("metered.allowed", facts(surroundings=Surroundings(metered=True), allow_metered=True), PASS,
     "The link is metered, and `download.metered` allows that.", None, False),
    ("metered.yes", around(metered=True), BLOCK, "The link is metered.", None, True),
    ("metered.unknown", facts(), UNKNOWN,
     "Whether the link is metered is not known; it is taken as not metered.", None, False),
    ("budget.none", facts(budget=Budget(0, 5, 5)), PASS, "There is no data budget.", None, False),
    ("budget.left", facts(budget=Budget(2_000_000_000, 500_000_000, int(NOW) + DAY), needed=5), PASS,
     "1.5 GB of the data budget of 2.0 GB are left until Sun 2024-03-31 12:00 UTC.", None, False),
    ("budget.spent", facts(budget=Budget(1000, 1500, int(NOW) + DAY)), BLOCK,
     "The data budget of 1 kB is spent (2 kB used); the next period begins Sun 2024-03-31 12:00 UTC.", int(NOW) + DAY, True),
    ("budget.too-small", facts(budget=Budget(1000, 600, int(NOW) + DAY), needed=700), BLOCK,
     "400 B of the data budget of 1 kB are left, and the update needs 700 B; "
     "the next period begins Sun 2024-03-31 12:00 UTC.", int(NOW) + DAY, True),
    ("budget.too-small", facts(budget=Budget(1000, 0, int(NOW) + DAY), needed=2000), BLOCK,
     "1 kB of the data budget of 1 kB are left, and the update needs 2 kB; "
     "the next period begins Sun 2024-03-31 12:00 UTC.", None, True),
    ("battery.off", around(has_battery=True, battery=Battery(1, False)), PASS,
     "The battery's charge does not matter here.", None, False),
    ("battery.none", facts(battery_floor=30), PASS, "This host has no battery.", None, False),
    ("battery.mains", facts(battery_floor=30, surroundings=Surroundings(True, Battery(5, True))), PASS,
     "This host runs on mains (battery 5 %).", None, False),
    ("battery.enough", facts(battery_floor=30, surroundings=Surroundings(True, Battery(30, False))), PASS,
     "The battery is at 30 %, at least 30 %.", None, False),
    ("battery.low", facts(battery_floor=30, surroundings=Surroundings(True, Battery(29, False))), BLOCK,
     "The battery is at 29 %, below 30 %, and not charging.", None, False),
    ("battery.unknown", facts(battery_floor=30, surroundings=Surroundings(True)), UNKNOWN,
     "The battery's charge cannot be read.", None, False),
    ("load.off", around(pressure=Pressure(99, 99, 99)), PASS, "The host's load does not matter here.", None, False),
    ("load.low", facts(load_ceiling=50, surroundings=Surroundings(pressure=Pressure(1, 2, 50))), PASS,
     "The host is not under pressure (I/O 50 %, ceiling 50 %).", None, False),
    ("load.high", facts(load_ceiling=50, surroundings=Surroundings(pressure=Pressure(71, 2, 5))), BLOCK,
     "The host is under pressure: CPU 71 %, above 50 %.", None, True),
    ("load.unknown", facts(load_ceiling=50), UNKNOWN, "This kernel does not tell its pressure (PSI).", None, False),
    ("strategy.reboot", facts(), PASS, "Reboots are made by strategy `reboot`.", None, False),
    ("strategy.off", facts(strategy="off"), BLOCK,
     "`reboot.strategy` is off: somebody else reboots this host.", None, True),
    ("strategy.locksmith", facts(locksmithd=Locksmithd("etcd-lock", "running")), BLOCK,
     "locksmithd reboots this host (strategy etcd-lock, running).", None, True),
    ("sessions.off", around(sessions=(Session("1", "core", 500),)), PASS,
     "Logged-in users are given notice and not waited for.", None, False),
    ("sessions.none", facts(wait_for_sessions=True, surroundings=Surroundings(sessions=())), PASS,
     "Nobody is logged in.", None, False),
    ("sessions.some", facts(wait_for_sessions=True, surroundings=Surroundings(
        sessions=(Session("1", "core", 500, "from 10.0.0.7"), Session("2", "root", 0)))), BLOCK,
     "Logged in: core (from 10.0.0.7) and root.", None, True),
    ("sessions.unknown", facts(wait_for_sessions=True), UNKNOWN, "Who is logged in cannot be read.", None, False),
    ("inhibitors.off", facts(wait_for_inhibitors=False), PASS, "Inhibitors are not waited for.", None, False),
    ("inhibitors.none", around(inhibitors=()), PASS, "Nothing inhibits a reboot.", None, False),
    ("inhibitors.some", around(inhibitors=(Inhibitor("dnf", "installing"), Inhibitor("x", ""))), BLOCK,
     "A reboot is inhibited by dnf (installing) and x.", None, False),
    ("inhibitors.unknown", facts(), UNKNOWN, "What inhibits a reboot cannot be read.", None, False),
    ("lock.none", facts(), PASS, "No lock is needed to reboot.", None, False),
    ("lock.held", locked(held=True), PASS, "This host holds the reboot lock (etcd-lock).", None, False),
    ("lock.free", locked(free=1, places=2), PASS, "The reboot lock is free (etcd-lock, 1 of 2).", None, False),
    ("lock.ask", facts(strategy="fleetlock"), PASS,
     "The reboot lock is asked for when everything else is ready (fleetlock).", None, False),
    ("lock.taken", locked(free=0, places=1, holders=(Holder("node-7", int(NOW) - 300), Holder("node-8"))), BLOCK,
     "The reboot lock is held by node-7 for 5 min and node-8 (etcd-lock).", None, False),
    ("lock.stale", locked(free=0, holders=(Holder("node-7", int(NOW) - 9 * DAY, at_least=True),), release="unlock {id}"), BLOCK,
     "The reboot lock is held by node-7 for at least 9 d (etcd-lock), longer than a reboot takes; "
     "if that host is gone, release it: unlock node-7.", None, False),
    ("lock.closed", locked(free=0, places=0), BLOCK,
     "The reboot lock is closed: it has no place at all (etcd-lock).", None, False),
    ("lock.unreachable", locked(trouble="timed out"), BLOCK,
     "The reboot lock cannot be asked (etcd-lock): timed out.", None, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "given_facts", "verdict", "evidence", "until", "override"),
    CASES,
    ids=[c[0] for c in CASES],
)
def test_each_reason(
    reason: str,
    given_facts: Facts,
    verdict: Verdict,
    evidence: str,
    until: int | None,
    override: bool,
) -> None:
    gate = next(g for g in evaluate(given_facts, NOW) if g.name == reason.partition(".")[0])
    assert (gate.reason, gate.verdict, gate.evidence, gate.until, gate.override) == (
        reason,
        verdict,
        evidence,
        until,
        override,
    )


def test_every_sentence_of_a_gate_is_produced_above() -> None:
    apart = ("summary.", "now.", "history.")
    gates = {key for key in SENTENCES if not key.startswith(apart)}
    assert {case[0] for case in CASES} == gates


def test_every_word_of_a_server_is_told_in_plain_language() -> None:
    for status, meaning in REFUSALS.items():
        gates = evaluate(facts(answer=Answer(Answered.REFUSED, status)), NOW)
        gate = next(g for g in gates if g.name == "server")
        assert meaning.sentence in gate.evidence and status in gate.evidence
    gates = evaluate(facts(answer=Answer(Answered.REFUSED, "error-brandNew")), NOW)
    assert "'error-brandNew'" in next(g for g in gates if g.name == "server").evidence


def test_names_are_unique_and_stable() -> None:
    assert [g.name for g in evaluate(Facts(), NOW)] == [
        "busy", "mode", "schedule", "server", "hold", "pin", "floor", "quarantine", "back-off",
        "unblessed", "space", "battery", "load", "download-window", "metered", "budget",
        "strategy", "window", "sessions", "inhibitors", "lock",
    ]  # fmt: skip
    assert len(GATES) == 21


def test_what_update_would_say_is_in_the_catalogue() -> None:
    ids = {kind.id for kind in catalogue()}
    named = set()
    for reason, given_facts, *_ in CASES:
        for gate in evaluate(given_facts, NOW):
            expected = gate.verdict is BLOCK and gate.blocks is not Blocks.REBOOT
            assert bool(gate.error) == expected, reason
            assert gate.error in ids | {""}
            named.add(gate.error)
    assert named >= set(REFUSED_AS.values())


def test_what_no_now_may_override() -> None:
    safety = {"busy", "server", "hold", "pin", "floor", "quarantine", "unblessed", "space", "battery",
              "inhibitors", "lock"}  # fmt: skip
    for reason, given_facts, *_ in CASES:
        for gate in evaluate(given_facts, NOW):
            if gate.override:
                assert gate.verdict is BLOCK
                assert gate.name not in safety, reason


@pytest.mark.parametrize("case", [c for c in CASES if c[2] is BLOCK and c[4]], ids=lambda c: c[0])
def test_a_gate_that_names_a_moment_changes_then_and_not_before(
    case: tuple[str, Facts, Verdict, str, int, bool],
) -> None:
    reason, given_facts, *_, until, _override = case
    if reason.startswith(("server.", "schedule.")):
        return  # Those change by a check that is made then.
    name = reason.partition(".")[0]

    def verdict(at: float) -> Verdict:
        return next(g for g in evaluate(given_facts, at) if g.name == name).verdict

    if until > NOW:
        assert verdict(until - 2) is BLOCK
        assert verdict(until) is PASS


surroundings = st.builds(
    Surroundings,
    has_battery=st.booleans(),
    battery=st.one_of(st.none(), st.builds(Battery, st.integers(0, 100), st.booleans())),
    pressure=st.one_of(st.none(), st.builds(Pressure, *[st.floats(0, 100)] * 3)),
    metered=st.one_of(st.none(), st.booleans()),
    sessions=st.one_of(st.none(), st.just(()), st.just((Session("1", "a", 1),))),
    inhibitors=st.one_of(st.none(), st.just(()), st.just((Inhibitor("a", "b"),))),
)
any_facts = st.builds(
    Facts,
    schedule=st.sampled_from([c[1].schedule for c in CASES]),
    answer=st.builds(
        Answer,
        st.sampled_from(list(Answered)),
        st.text(max_size=8),
        st.text(max_size=8),
        st.sampled_from(["", "1.0", "4081.2.0", "{odd}"]),
        st.just("ab" * 32),
        st.integers(0, 10**12),
    ),
    server=st.text(max_size=5),
    staged=st.sampled_from(["", "5.0"]),
    next_check=st.integers(0, 2 * 10**9),
    hold=st.one_of(
        st.none(),
        st.builds(Hold, st.integers(0, 2 * 10**9), st.one_of(st.none(), st.integers(0, 2 * 10**9))),
    ),
    pin=st.one_of(st.none(), st.just(parse_pin("<3"))),
    floor=st.sampled_from(["", "2.0", "x"]),
    blessed=st.one_of(st.none(), st.booleans()),
    budget=st.one_of(
        st.none(), st.builds(Budget, *[st.integers(0, 10**10)] * 2, st.integers(0, 2 * 10**9))
    ),
    needed=st.integers(0, 10**10),
    battery_floor=st.integers(0, 100),
    load_ceiling=st.integers(0, 100),
    surroundings=surroundings,
    wait_for_sessions=st.booleans(),
    strategy=st.sampled_from(["off", "reboot", "etcd-lock", "fleetlock", "command"]),
)


@settings(max_examples=150, deadline=None)
@given(any_facts, st.integers(10**9, 2 * 10**9))
def test_any_facts_give_whole_sentences(given_facts: Facts, now: int) -> None:
    gates = evaluate(given_facts, now)
    assert len(gates) == len(GATES)
    for gate in gates:
        assert gate.reason in SENTENCES
        assert gate.evidence.endswith((".", ".)"))
        assert gate.until is None or isinstance(gate.until, int)
        assert set(gate.as_dict()) == {
            "name", "blocks", "verdict", "reason", "evidence", "until", "override", "error",
        }  # fmt: skip
    closed = blocking(gates)
    assert all(g.verdict is BLOCK for g in closed)
    assert blocking(gates, overriding=True) == [g for g in closed if not g.override]
    at = opens(gates, Blocks.UPDATE)
    if at is not None:
        assert all(g.until is not None and g.until <= at for g in blocking(gates, Blocks.UPDATE))


def test_what_is_unknown_holds_nothing_back() -> None:
    closed = blocking(evaluate(Facts(), NOW))
    assert closed == []
    assert any(g.verdict is UNKNOWN for g in evaluate(Facts(), NOW))


def test_a_gates_dictionary_is_json_with_zero_for_never() -> None:
    gate = Gate("hold", Blocks.UPDATE, BLOCK, "hold.until", "x.", None)
    assert gate.as_dict()["until"] == 0
    assert gate.as_dict()["blocks"] == "update"
