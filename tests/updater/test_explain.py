"""`explain`: summaries and `--now`; every sentence of theirs is produced here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from bascule.engine.surroundings import Surroundings
from bascule.updater.explain import explain
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


def test_an_attempt_under_way_is_all_there_is_to_say() -> None:
    busy = replace(HELD, under_way="download")
    assert texts(busy, by_hand=True) == ["An attempt is under way: download."]
    assert explain(busy, NOW).opens is None


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
    assert len(lines) == 2 + 21


def test_json_carries_the_same() -> None:
    data = json.loads(json.dumps(explain(HELD, NOW).as_dict()))
    assert data["schema"] == 1
    assert data["summary"][0] == {
        "reason": "summary.one",
        "text": "One gate holds the update back: hold.",
    }
    assert data["opens"] == NOW + 7 * 86400
    assert [g["name"] for g in data["gates"] if g["verdict"] == "block"] == ["hold"]


def test_words_for_sizes_and_lists() -> None:
    assert [size_words(n) for n in (0, 999, 1500, 482_000_000, 1_900_000_000)] == [
        "0 B",
        "999 B",
        "2 kB",
        "482 MB",
        "1.9 GB",
    ]
    assert listed([]) == "" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"


def test_every_summary_was_produced() -> None:
    """Enumerates the ids and fails for one that no test above has produced."""
    for name, test in list(globals().items()):
        if name.startswith("test_") and name != "test_every_summary_was_produced":
            test()
    expected = {k for k in SENTENCES if k.startswith(("summary.", "now."))}
    assert produced == expected
