"""`explain`: summaries, `--now`, history; every sentence of theirs is produced here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.surroundings import Surroundings
from bascule.updater.explain import Line, actor_words, explain, explain_history
from bascule.updater.gates import Answer, Answered, Facts
from bascule.updater.hold import Hold
from bascule.updater.schedule import parse_schedule
from bascule.updater.sentences import SENTENCES, listed, size_words
from bascule.updater.windows import parse_windows

NOW = 1_711_800_000.0  # Sat 2024-03-30 12:00 UTC
KNOWN = Surroundings(metered=False, sessions=(), inhibitors=())
FREE = Facts(
    answer=Answer(Answered.OFFERED, version="5.0"), blessed=True, surroundings=KNOWN, zone="UTC"
)
HELD = replace(FREE, hold=Hold(int(NOW), int(NOW) + 7 * 86400))
NIGHT = parse_schedule(
    downloads=parse_windows(["daily 22:00-04:00 UTC"]),
    reboots=parse_windows(["Sun 02:00 2h UTC"]),
    spread=False,
)

produced: set[str] = set()


def texts(facts: Facts, **more: Any) -> list[str]:
    explanation = explain(facts, NOW, **more)
    produced.update(line.reason for line in explanation.summary)
    return [line.text for line in explanation.summary]


def told(kind: str, actor: Any, facts: dict[str, Any]) -> str:
    lines = explain_history(
        [{"kind": kind, "time": NOW, "actor": actor, "facts": facts}], zone_name="UTC"
    )
    produced.update(line.reason for line in lines)
    assert len(lines) == 1
    return lines[0].text


def test_nothing_holds_it_back() -> None:
    assert texts(FREE) == ["Nothing holds an update back."]
    assert texts(replace(FREE, staged="5.0")) == ["Nothing holds the reboot into 5.0 back."]


def test_one_gate_that_opens_by_itself() -> None:
    assert texts(HELD) == [
        "One gate holds the update back: hold.",
        "As things stand, it goes on Sat 2024-04-06 12:00 UTC.",
    ]
    assert explain(HELD, NOW).opens == NOW + 7 * 86400


def test_several_gates_open_when_the_last_one_does() -> None:
    assert texts(replace(HELD, schedule=NIGHT)) == [
        "2 gates hold the update back: hold and download-window.",
        "As things stand, it goes on Sat 2024-04-06 12:00 UTC.",
    ]


def test_a_gate_that_only_somebody_can_open() -> None:
    blocked = replace(HELD, blessed=False, schedule=NIGHT)
    assert texts(blocked) == [
        "3 gates hold the update back: hold, unblessed and download-window.",
        "It goes on when somebody acts on: unblessed.",
    ]
    assert explain(blocked, NOW).opens is None


def test_a_staged_release_waits_for_its_reboot_only() -> None:
    assert texts(replace(HELD, schedule=NIGHT, staged="5.0")) == [
        "One gate holds the reboot into 5.0 back: window.",
        "As things stand, it goes on Sun 2024-03-31 02:00 UTC.",
    ]


def test_what_is_not_known_is_said() -> None:
    assert texts(replace(FREE, blessed=None, surroundings=Surroundings())) == [
        "Nothing holds an update back.",
        "Not known: unblessed and metered.",
    ]


def test_now_says_what_it_overrides_and_what_not() -> None:
    assert texts(replace(HELD, schedule=NIGHT), by_hand=True)[-2:] == [
        "--now overrides: download-window.",
        "--now does not override: hold.",
    ]
    assert texts(HELD, by_hand=True)[-2:] == [
        "--now overrides nothing: no gate that it could override holds anything back.",
        "--now does not override: hold.",
    ]


def test_lines_show_every_gate_with_its_verdict() -> None:
    lines = explain(HELD, NOW).lines()
    assert "closed  hold             Updates are held until Sat 2024-04-06 12:00 UTC." in lines
    assert "open    pin              No pin is set." in lines
    assert len(lines) == 2 + 20


def test_json_carries_the_same() -> None:
    data = json.loads(json.dumps(explain(HELD, NOW).as_dict()))
    assert data["schema"] == 1
    assert data["summary"][0] == {
        "reason": "summary.one",
        "text": "One gate holds the update back: hold.",
    }
    assert data["opens"] == NOW + 7 * 86400
    assert [g["name"] for g in data["gates"] if g["verdict"] == "block"] == ["hold"]


ROOT = {"via": "bus", "uid": 0, "sender": ":1.5", "pid": 1}
ALICE = {"via": "bus", "uid": 1000}


@pytest.mark.parametrize(
    ("kind", "actor", "facts", "text"),
    [
        ("reboot", None, {"version": "5.0"},
         "Rebooted Sat 2024-03-30 12:00 UTC into 5.0: an update was staged."),
        ("reboot", None, {"version": "5.0", "why": "the window opened"},
         "Rebooted Sat 2024-03-30 12:00 UTC into 5.0: the window opened."),
        ("asked", ALICE, {"verb": "reboot"},
         "Rebooted Sat 2024-03-30 12:00 UTC because user 1000 asked for it."),
        ("asked", None, {"verb": "reboot", "actor": ROOT},
         "Rebooted Sat 2024-03-30 12:00 UTC because root asked for it."),
        ("verdict", None, {"verdict": "UPDATED", "version": "5.0", "origin_version": "4.9",
                           "bytes": 482_000_000, "download_s": 61, "downtime_s": 42.4},
         "Updated from 4.9 to 5.0 Sat 2024-03-30 12:00 UTC (482 MB, download 1 min 1 s, downtime 42 s)."),
        ("verdict", None, {"verdict": "UPDATED"},
         "Updated from the old release to the new release Sat 2024-03-30 12:00 UTC."),
        ("verdict", None, {"verdict": "ROLLED_BACK", "version": "5.0", "origin_version": "4.9",
                           "failure": "nginx.service failed"},
         "Rolled back Sat 2024-03-30 12:00 UTC: 5.0 did not prove itself (nginx.service failed); "
         "4.9 runs again, and 5.0 is in quarantine."),
        ("verdict", None, {"verdict": "ROLLED_BACK", "version": "5.0", "origin_version": "4.9"},
         "Rolled back Sat 2024-03-30 12:00 UTC: 5.0 did not prove itself (it did not boot far enough "
         "to say why); 4.9 runs again, and 5.0 is in quarantine."),
        ("verdict", None, {"verdict": "WITHDRAWN", "version": "5.0"},
         "5.0 was staged and taken back Sat 2024-03-30 12:00 UTC: somebody chose otherwise."),
        ("withdrawn", None, {"version": "5.0", "why": "updatectl cancel"},
         "5.0 was staged and taken back Sat 2024-03-30 12:00 UTC: updatectl cancel."),
        ("rollback", ROOT, {"version": "4.9"}, "Root chose 4.9 by hand Sat 2024-03-30 12:00 UTC."),
        ("attempt-failed", None, {"version": "5.0", "error": {"message": "The download stalled."}},
         "The update to 5.0 failed Sat 2024-03-30 12:00 UTC: The download stalled."),
    ],
)  # fmt: skip
def test_history_in_sentences(kind: str, actor: Any, facts: dict[str, Any], text: str) -> None:
    assert told(kind, actor, facts) == text


def test_history_is_newest_first_and_bounded() -> None:
    records = [{"kind": "reboot", "time": NOW + i, "facts": {"version": str(i)}} for i in range(20)]
    lines = explain_history(records, zone_name="UTC", limit=3)
    assert [line.text.split(":")[-2][-2:].strip() for line in lines] == ["19", "18", "17"]


def test_an_empty_history_says_so() -> None:
    lines = explain_history([{"kind": "asked", "facts": {"verb": "check"}}])
    produced.update(line.reason for line in lines)
    assert lines == [Line("history.empty", SENTENCES["history.empty"])]


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


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["verdict", "reboot", "asked", "rollback", "attempt-failed", "withdrawn", ""]),
    anything,
    anything,
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("version", "origin_version", "failure", "error", "bytes", "download_s"), anything
        )
        | {"verdict": st.sampled_from(["UPDATED", "ROLLED_BACK", "WITHDRAWN"])},
    ),
)
def test_any_record_gives_sentences(kind: str, time: Any, actor: Any, facts: Any) -> None:
    record = {"kind": kind, "time": time, "actor": actor, "facts": facts}
    assert all(line.text for line in explain_history([record]))


def test_every_sentence_of_explain_was_produced() -> None:
    """Runs last in this file: what the tests above have produced is all there is."""
    for name, test in list(globals().items()):
        if name in (
            "test_nothing_holds_it_back",
            "test_one_gate_that_opens_by_itself",
            "test_several_gates_open_when_the_last_one_does",
            "test_a_gate_that_only_somebody_can_open",
            "test_what_is_not_known_is_said",
            "test_now_says_what_it_overrides_and_what_not",
            "test_an_empty_history_says_so",
        ):
            test()
    for mark in test_history_in_sentences.pytestmark:  # type: ignore[attr-defined]
        for kind, actor, facts, _text in mark.args[1]:
            told(kind, actor, facts)
    expected = {k for k in SENTENCES if k.startswith(("summary.", "now.", "history."))}
    assert produced >= expected


def test_words_for_sizes_and_lists() -> None:
    assert [size_words(n) for n in (0, 999, 1500, 482_000_000, 1_900_000_000)] == [
        "0 B",
        "999 B",
        "2 kB",
        "482 MB",
        "1.9 GB",
    ]
    assert listed([]) == "" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
