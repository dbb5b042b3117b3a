"""From the ledger to the facts of the gates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.ledger import Record
from bascule.errors import DeferredByServer, ServerRefused, ServerUnreachable
from bascule.formats.omaha import Offer
from bascule.updater.gates import Answer, Answered, Budget, Facts, Quarantined, evaluate
from bascule.updater.gather import (
    answer_from_error,
    answer_from_offer,
    answer_from_record,
    answer_from_words,
    kept_answer,
    pin_from_record,
    with_record,
)
from bascule.updater.hold import Hold

NOW = 1_711_800_000.0


def test_all_that_the_ledger_knows() -> None:
    record = Record(
        last_answer="offers 5.0",
        hold=Hold(1, None, "x").as_dict(),
        pin="<6",
        floor="4.0",
        quarantine={"ab": {"version": "4.9", "kind": "boot", "reason": "r", "at": 7, "until": 0}},
        payload_state={"attempt": 2, "backoff_until": int(NOW) + 5},
        budget={"period": "2024-03", "used": 70},
    )
    facts = with_record(Facts(zone="UTC"), record, NOW, budget_limit=100)
    assert facts.answer == Answer(Answered.OFFERED, version="5.0")
    assert facts.hold == Hold(1, None, "x")
    assert facts.pin is not None and facts.pin.allows("5.0") and not facts.pin.allows("6.0")
    assert facts.floor == "4.0"
    assert facts.quarantine == {"ab": Quarantined("4.9", "r", 7, None)}
    assert (facts.back_off_until, facts.failures) == (NOW + 5, 2)
    assert facts.budget == Budget(100, 70, 1_711_929_600)
    assert with_record(Facts(), Record(), NOW).budget is None


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        ("", Answered.NOT_ASKED, ""),
        ("nothing newer", Answered.CURRENT, ""),
        ("offers 5.0", Answered.OFFERED, ""),
        (
            str(ServerRefused("x (error-updatesDisabled)")),
            Answered.REFUSED,
            "error-updatesDisabled",
        ),
        ("The update server did not answer: refused", Answered.UNREACHABLE, ""),
    ],
)
def test_the_last_answers_words(words: str, kind: Answered, status: str) -> None:
    answer = answer_from_words(words)
    assert (answer.kind, answer.status) == (kind, status)


def test_errors_are_a_no_or_silence() -> None:
    refused = answer_from_error(DeferredByServer("limit", status="error-updatesDisabled"))
    assert refused == Answer(
        Answered.REFUSED, status="error-updatesDisabled", error="omaha-deferred"
    )
    assert answer_from_error(ServerRefused("x")).status == "no status"
    silent = answer_from_error(ServerUnreachable("connection refused"))
    assert silent.kind is Answered.UNREACHABLE and "connection refused" in silent.detail


def test_offers() -> None:
    assert answer_from_offer(None) == Answer(Answered.CURRENT)
    offer = Offer("5.0", ("http://x/",), "x", 10, bytes(32))
    assert answer_from_offer(offer) == Answer(
        Answered.OFFERED, version="5.0", payload="00" * 32, size=10
    )
    stick = answer_from_offer(replace(offer, urls=("file:///mnt/a%20b/5.0.bin",)))
    assert (stick.kind, stick.detail) == (Answered.LOCAL, "/mnt/a b/5.0.bin")
    assert not answer_from_offer(replace(offer, disable_backoff=True)).backs_off


@pytest.mark.parametrize(
    "answer",
    [
        Answer(Answered.CURRENT),
        Answer(Answered.OFFERED, version="5.0", payload="ab" * 32, size=10),
        Answer(
            Answered.LOCAL, version="5.0", payload="ab" * 32, detail="/mnt/5.0", backs_off=False
        ),
        Answer(Answered.REFUSED, status="error-internal", error="omaha-refused"),
        Answer(Answered.UNREACHABLE, detail="connection refused"),
    ],
)
def test_the_ledger_keeps_an_answer_whole(answer: Answer) -> None:
    kept = json.loads(json.dumps(kept_answer(answer, at=7, poll_interval=3)))
    record = Record(answer=kept, last_answer="offers 4.0")
    assert answer_from_record(record) == answer
    assert (kept["at"], kept["poll_interval"]) == (7, 3)


def test_an_older_agents_ledger_is_read_by_its_words() -> None:
    assert answer_from_record(Record(last_answer="offers 5.0")).version == "5.0"
    odd = Record(answer={"kind": ["x"]}, last_answer="nothing newer")
    assert answer_from_record(odd).kind is Answered.CURRENT


def test_an_offer_that_wants_no_back_off_is_not_held_back_by_one() -> None:
    state = {"attempt": 2, "backoff_until": int(NOW) + 5}
    for backs_off, until in ((True, int(NOW) + 5), (False, 0)):
        kept = kept_answer(Answer(Answered.OFFERED, version="5.0", backs_off=backs_off), at=1)
        record = Record(answer=kept, payload_state=state)
        assert with_record(Facts(), record, NOW).back_off_until == until


def test_a_damaged_pin_allows_nothing() -> None:
    assert pin_from_record("") is None
    pin = pin_from_record(">=?")
    assert pin is not None and not pin.allows("5.0") and str(pin) == ">=?"


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.none())
)


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.dictionaries(st.sampled_from(["since", "until", "reason"]), anything),
    st.dictionaries(
        st.text(max_size=4),
        st.dictionaries(st.sampled_from(["version", "at", "until", "reason"]), anything),
        max_size=2,
    ),
    st.dictionaries(st.sampled_from(["attempt", "backoff_until"]), anything),
    st.dictionaries(st.sampled_from(["period", "used"]), anything),
    st.dictionaries(
        st.sampled_from(["kind", "status", "detail", "version", "payload", "size", "backs_off"]),
        st.one_of(anything, st.sampled_from([a.value for a in Answered])),
    ),
)
def test_any_ledger_gives_facts_and_gates(
    words: str,
    pin: str,
    hold: dict[str, Any],
    quarantine: dict[str, Any],
    state: dict[str, Any],
    budget: dict[str, Any],
    answer: dict[str, Any],
) -> None:
    record = Record(
        last_answer=words, pin=pin, hold=hold, quarantine=quarantine, payload_state=state,
        budget=budget, answer=answer,
    )  # fmt: skip
    assert evaluate(with_record(Facts(), record, NOW, budget_limit=5), NOW)
