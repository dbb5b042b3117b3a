"""`explain --history`: every kind of record has its sentences, and each of them is produced here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bascule
from bascule.daemon import HISTORIC
from bascule.updater.chronicle import KINDS, actor_words, explain_history
from bascule.updater.explain import Line
from bascule.updater.sentences import SENTENCES

NOW = 1_711_800_000.0  # Sat 2024-03-30 12:00 UTC
WHEN = "Sat 2024-03-30 12:00 UTC"
ROOT = {"via": "bus", "uid": 0, "sender": ":1.5", "pid": 1}
ALICE = {"via": "bus", "uid": 1000}
BROKEN = {"error": {"message": "Slot A is empty."}}


def told(kind: str, actor: Any, facts: dict[str, Any]) -> Line:
    record = {"kind": kind, "time": NOW, "actor": actor, "facts": facts}
    (line,) = explain_history([record], zone_name="UTC")
    return line


CASES: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("history.rebooted", "reboot", None, {"version": "5.0"}, f"Rebooted {WHEN} into 5.0: an update was staged."),
    ("history.rebooted", "reboot", None, {"version": "5.0", "why": "the window opened"},
     f"Rebooted {WHEN} into 5.0: the window opened."),
    ("history.asked-reboot", "asked", ALICE, {"verb": "reboot"}, f"Rebooted {WHEN} because user 1000 asked for it."),
    ("history.asked-reboot", "asked", None, {"verb": "reboot", "actor": ROOT},
     f"Rebooted {WHEN} because root asked for it."),
    ("history.asked", "asked", ROOT, {"verb": "update"}, f"Root asked for update {WHEN}."),
    ("history.staged", "staged", None, {"version": "5.0", "slot": "B", "bytes": 482_000_000},
     f"Release 5.0 was written to slot B and staged {WHEN} (482 MB)."),
    ("history.prepared", "prepared", None, {"version": "5.0", "slot": "B"},
     f"Release 5.0 was written to slot B {WHEN} and waits for `updatectl activate`."),
    ("history.updated", "verdict", None,
     {"verdict": "UPDATED", "version": "5.0", "origin_version": "4.9", "bytes": 482_000_000, "download_s": 61,
      "downtime_s": 42.4},
     f"Updated from 4.9 to 5.0 {WHEN} (482 MB, download 1 min 1 s, downtime 42 s)."),
    ("history.updated", "verdict", None, {"verdict": "UPDATED"},
     f"Updated from the old release to the new release {WHEN}."),
    ("history.rolled-back", "verdict", None,
     {"verdict": "ROLLED_BACK", "version": "5.0", "origin_version": "4.9", "failure": "nginx.service failed"},
     f"Rolled back {WHEN}: 5.0 did not prove itself (nginx.service failed); 4.9 runs again, and 5.0 is in quarantine."),
    ("history.rolled-back", "verdict", None, {"verdict": "ROLLED_BACK", "version": "5.0", "origin_version": "4.9"},
     f"Rolled back {WHEN}: 5.0 did not prove itself (it did not boot far enough to say why); 4.9 runs again, and "
     "5.0 is in quarantine."),
    ("history.withdrawn", "verdict", None, {"verdict": "WITHDRAWN", "version": "5.0"},
     f"5.0 was staged and taken back {WHEN}: somebody chose otherwise."),
    ("history.delta-refused", "delta-refused", None, {"version": "5.0", "why": "usr is another."},
     f"The delta to 5.0 did not do {WHEN} (usr is another), so a full payload was asked for."),
    ("history.withdrawn", "withdrawn", None, {"version": "5.0", "why": "updatectl cancel"},
     f"5.0 was staged and taken back {WHEN}: updatectl cancel."),
    ("history.judged", "verdict", None, {"verdict": "UNFINISHED", "version": "5.0"},
     f"The fate of 5.0 was unfinished {WHEN}."),
    ("history.chosen", "rollback", ROOT, {"version": "4.9"}, f"Root chose 4.9 by hand {WHEN}."),
    ("history.once", "rollback", ROOT, {"version": "4.9", "once": True}, f"Root chose 4.9 for one boot {WHEN}."),
    ("history.once-over", "once-over", None, {"version": "4.9", "slot": "A"},
     f"The one boot of 4.9 that was asked for was over {WHEN}."),
    ("history.late", "rollback", None, {"version": "4.9", "by": "late", "reason": "nginx.service failed."},
     f"Returned to 4.9 {WHEN}, within the time in which the new release was watched: nginx.service failed."),
    ("history.no-way-back", "no-way-back", None, BROKEN,
     f"The release that runs failed {WHEN}, and the old one cannot be booted: Slot A is empty."),
    ("history.late-trouble", "late-trouble", None, BROKEN,
     f"Whether the running release still does well could not be told {WHEN}: Slot A is empty."),
    ("history.failed", "attempt-failed", None, {"version": "5.0", "error": {"message": "The download stalled."}},
     f"The update to 5.0 failed {WHEN}: The download stalled."),
    ("history.booted", "boot", None, {"slot": "B"}, f"Booted slot B {WHEN}."),
    ("history.repaired", "boot-repaired", None, {"why": "The tries were lost."},
     f"What boots next was repaired {WHEN}: The tries were lost."),
    ("history.doctor", "repaired", ROOT, {"sentence": "The partition table's copy was renewed."},
     f"Root had this host repaired {WHEN}: The partition table's copy was renewed."),
    ("history.healthy", "health", None, {"outcome": "PASS", "report": ["All is well."]},
     f"The health checks passed {WHEN}."),
    ("history.unhealthy", "health", None, {"outcome": "FAIL", "report": ["10-app failed.", 5, "so did 20-db."]},
     f"The health checks failed {WHEN}: 10-app failed; so did 20-db."),
    ("history.blessed", "blessed", None, {"slot": "B"}, f"Slot B was confirmed {WHEN}."),
    ("history.given-up", "given-up", None, {"reason": "Its health was not decided in time."},
     f"The boot on trial was given up {WHEN}: Its health was not decided in time."),
    ("history.stays-up", "stays-up", None, {"reason": "The other slot cannot be booted."},
     f"The boot on trial was not given up {WHEN}: The other slot cannot be booted."),
    ("history.ledger", "ledger-damaged", None, {"why": "ledger.json was not usable"},
     f"The ledger was damaged and begun afresh {WHEN}: ledger.json was not usable."),
    ("history.held", "hold", ROOT, {"until": None, "reason": "fair"},
     f"Root held updates {WHEN}, until further notice (fair)."),
    ("history.hold-lifted", "hold", ROOT, {"cleared": True}, f"Root lifted the hold {WHEN}."),
    ("history.pinned", "pin", ROOT, {"pin": "<6"}, f"Root pinned this host to <6 {WHEN}."),
    ("history.pin-lifted", "pin", ROOT, {"pin": ""}, f"Root lifted the pin {WHEN}."),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "kind", "actor", "facts", "text"), CASES)
def test_history_in_sentences(
    reason: str, kind: str, actor: Any, facts: dict[str, Any], text: str
) -> None:
    assert told(kind, actor, facts) == Line(reason, text)


def test_a_hold_that_ends_says_when() -> None:
    assert "until Sun 2024-03-31" in told("hold", ROOT, {"until": int(NOW) + 86400}).text


def test_every_sentence_of_history_is_produced_above() -> None:
    expected = {key for key in SENTENCES if key.startswith("history.")}
    assert {case[0] for case in CASES} | {"history.empty"} == expected


def written() -> set[str]:
    """Every kind of record that any part of the agent writes, found in its source.

    Kinds reach `History.append` by a few functions; what is passed to those by name counts.
    """
    trees = [ast.parse(p.read_text()) for p in Path(bascule.__file__).parent.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    writers = {
        node.name
        for node in nodes
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        and "history().append" in ast.unparse(node)
    }
    assert writers
    kinds = set(HISTORIC)
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in writers:
            kinds |= {
                a.value
                for a in node.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
    return kinds


def test_every_kind_that_is_written_has_a_sentence() -> None:
    kinds = written()
    assert {"health", "blessed", "given-up", "verdict"} <= kinds
    assert kinds <= set(KINDS)
    assert {case[1] for case in CASES} == set(KINDS)


def test_history_is_newest_first_and_bounded() -> None:
    records = [{"kind": "reboot", "time": NOW + i, "facts": {"version": str(i)}} for i in range(20)]
    lines = explain_history(records, zone_name="UTC", limit=3)
    assert [line.text.split(":")[-2][-2:].strip() for line in lines] == ["19", "18", "17"]


def test_an_empty_history_says_so() -> None:
    assert explain_history([{"kind": "unheard-of", "facts": {}}]) == [
        Line("history.empty", SENTENCES["history.empty"])
    ]


def test_actors_in_words() -> None:
    assert actor_words({"via": "schedule"}) == "the schedule"
    assert actor_words({"via": "signal"}) == "a signal to the daemon"
    assert actor_words({"via": "bus", "uid": -1}) == "somebody on the bus"
    assert actor_words(None) == "nobody on record"


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*sorted(KINDS), ""]),
    anything,
    anything,
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("version", "origin_version", "failure", "error", "bytes", "download_s", "until",
             "report", "verb", "slot", "pin", "once", "cleared", "reason"),
            anything,
        )
        | {"verdict": st.sampled_from(["UPDATED", "ROLLED_BACK", "WITHDRAWN"])},
    ),
)  # fmt: skip
def test_any_record_gives_sentences(kind: str, time: Any, actor: Any, facts: Any) -> None:
    record = {"kind": kind, "time": time, "actor": actor, "facts": facts}
    assert all(line.text for line in explain_history([record]))
