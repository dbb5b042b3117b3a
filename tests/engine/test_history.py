"""History: append, read, verify; every edit, gap and cut shows, a power cut does no harm."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bascule.engine.history import BEGINNING, History
from bascule.errors import LedgerError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def history(folder: Path, **more: Any) -> History:
    return History(folder, clock=Clock(), **more)


def filled(folder: Path, count: int = 6, **more: Any) -> History:
    found = history(folder, **more)
    for number in range(count):
        found.append("note", facts={"number": number})
    return found


def test_records_come_back_in_order(tmp_path: Path) -> None:
    found = history(tmp_path / "new")
    first = found.append("asked", attempt="a1", actor={"uid": 0}, facts={"verb": "update"})
    second = found.append(
        "verdict", facts={"verdict": "UPDATED", "odd": {1, 2}, "nan": float("nan")}
    )
    assert first == {
        "sequence": 1,
        "previous": BEGINNING,
        "time": 1001.0,
        "kind": "asked",
        "attempt": "a1",
        "actor": {"uid": 0},
        "facts": {"verb": "update"},
    }
    assert second["facts"] == {"verdict": "UPDATED", "odd": [1, 2], "nan": "nan"}
    assert found.read() == [first, second]
    assert found.read(1) == [second]
    assert found.read(0) == []
    assert found.read(kind="asked") == [first]
    assert found.verify().flaw is None
    assert (found.path.stat().st_mode & 0o777) == 0o600


def test_none_yet(tmp_path: Path) -> None:
    found = history(tmp_path / "none")
    assert found.read() == []
    assert found.verify().records == 0
    assert found.verify().flaw is None


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path)
    again = history(tmp_path)
    assert again.append("note")["sequence"] == 7
    check = again.verify()
    assert (check.records, check.first, check.flaw) == (7, 1, None)
    assert len(check.digest) == 64


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(place=1159, bit=2)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_changed_bit_shows(tmp_path: Path, place: int, bit: int) -> None:
    source = tmp_path / "source"
    if not source.exists():
        filled(source)
    raw = bytearray((source / "history.jsonl").read_bytes())
    place %= len(raw)
    raw[place] ^= 1 << bit
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    (copy / "history.jsonl").write_bytes(raw)
    (copy / "history.head").write_bytes((source / "history.head").read_bytes())
    flaw = history(copy).verify().flaw
    assert flaw is not None
    changed_line = bytes(raw[:place]).count(b"\n") + 1
    # Line 0 is "missing at the end"; the number of a record may be what was changed.
    assert changed_line - 1 <= (flaw.line or flaw.sequence) <= changed_line + 1


@pytest.mark.parametrize("gone", range(6))
def test_a_missing_line_shows(tmp_path: Path, gone: int) -> None:
    found = filled(tmp_path)
    lines = found.path.read_bytes().splitlines(keepends=True)
    found.path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    flaw = found.verify().flaw
    assert flaw is not None and flaw.sequence == gone + 1


@pytest.mark.parametrize("kept", range(6))
def test_a_cut_at_the_end_shows(tmp_path: Path, kept: int) -> None:
    found = filled(tmp_path)
    lines = found.path.read_bytes().splitlines(keepends=True)
    found.path.write_bytes(b"".join(lines[:kept]))
    flaw = found.verify().flaw
    assert flaw is not None and flaw.sequence == kept + 1
    assert "cut off" in flaw.why
    # And it still shows after the next record.
    found.append("note")
    flaw = found.verify().flaw
    if kept:
        assert flaw is not None and flaw.sequence == kept + 1
    assert found.read()[-1]["sequence"] == 7


def test_a_replaced_record_that_is_chained_anew_shows_at_the_head(tmp_path: Path) -> None:
    found = filled(tmp_path)
    head = (tmp_path / "history.head").read_bytes()
    found.path.unlink()
    (tmp_path / "history.head").unlink()
    filled(tmp_path, 5)
    found.append("forged")
    (tmp_path / "history.head").write_bytes(head)
    flaw = found.verify().flaw
    assert flaw is not None and flaw.sequence == 6 and "changed" in flaw.why


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_is_tolerated_and_told(tmp_path: Path, cut: int) -> None:
    found = filled(tmp_path, 3)
    head = (tmp_path / "history.head").read_bytes()
    found.append("lost")
    # A power cut before the line was flushed: the head still names the line before.
    (tmp_path / "history.head").write_bytes(head)
    size = found.path.stat().st_size
    os.truncate(found.path, size - cut)
    check = found.verify()
    assert check.flaw is None and check.records == 3 and check.torn > 0
    assert [r["kind"] for r in found.read()] == ["note"] * 3
    found.append("next")
    assert [r["kind"] for r in found.read()] == ["note", "note", "note", "history-torn", "next"]
    assert found.read()[3]["facts"] == {"bytes": check.torn}
    assert found.verify().flaw is None and found.verify().torn == 0


def test_a_lost_head_or_a_late_one_does_no_harm(tmp_path: Path) -> None:
    found = filled(tmp_path, 3)
    late = (tmp_path / "history.head").read_bytes()
    found.append("note")
    (tmp_path / "history.head").write_bytes(late)
    assert found.verify().flaw is None
    (tmp_path / "history.head").write_bytes(b"{")
    assert found.verify().flaw is None
    assert found.append("note")["sequence"] == 5
    assert found.verify().flaw is None


def test_rotation_keeps_the_chain(tmp_path: Path) -> None:
    found = filled(tmp_path, 40, max_size=1500, keep=3)
    files = sorted(p.name for p in tmp_path.glob("history*.jsonl"))
    assert len(files) == 3
    check = found.verify()
    assert check.flaw is None
    assert check.first > 1 and check.first + check.records - 1 == 40
    numbers = [r["facts"]["number"] for r in found.read()]
    assert numbers == list(range(check.first - 1, 40))
    assert [r["sequence"] for r in found.read(12)] == list(range(29, 41))
    again = history(tmp_path, max_size=1500, keep=3)
    assert again.append("note")["sequence"] == 41
    assert again.verify().flaw is None


def test_a_missing_file_in_the_middle_shows(tmp_path: Path) -> None:
    found = filled(tmp_path, 40, max_size=1500, keep=5)
    middle = sorted(tmp_path.glob("history-*.jsonl"), key=lambda p: int(p.stem[8:]))[1]
    middle.unlink()
    flaw = found.verify().flaw
    assert flaw is not None and "missing" in flaw.why


def test_a_line_that_is_no_record_shows_and_the_rest_is_read(tmp_path: Path) -> None:
    found = filled(tmp_path, 2)
    with found.path.open("ab") as file:
        file.write(b"[1,2]\n")
    found.append("note")
    assert [r["kind"] for r in found.read()] == ["note"] * 3
    flaw = found.verify().flaw
    assert flaw is not None and (flaw.sequence, flaw.line) == (3, 3)


def test_large_facts_are_left_out_and_that_is_told(tmp_path: Path) -> None:
    record = history(tmp_path).append("note", facts={"output": "x" * 20_000})
    assert list(record["facts"]) == ["left-out"]
    assert record["facts"]["left-out"] > 20_000


def test_an_overlong_line_does_not_fill_memory(tmp_path: Path) -> None:
    found = filled(tmp_path, 1)
    with found.path.open("ab") as file:
        file.write(b"a" * 300_000 + b"\n")
    assert found.verify().flaw is not None
    assert len(found.read()) == 1


def _append_some(folder: str, who: int) -> None:
    found = History(Path(folder), clock=lambda: 5.0)
    for number in range(10):
        found.append("note", facts={"who": who, "number": number})


def test_several_processes_append_in_turn(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_some, args=(str(tmp_path), w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = history(tmp_path)
    assert found.verify().flaw is None
    assert found.verify().records == 30


def test_a_directory_that_cannot_be_used_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="file"):
        history(tmp_path / "file" / "x").append("note")


def test_every_line_is_one_json_object(tmp_path: Path) -> None:
    found = history(tmp_path)
    found.append("note", facts={"text": "two\nlines\u2028and more", "nested": [[[[{"a": (1,)}]]]]})
    lines = found.path.read_bytes().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["facts"]["text"] == "two\nlines\u2028and more"
