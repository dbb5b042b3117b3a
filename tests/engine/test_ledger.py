from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bascule.engine.ledger import OUTBOX_LIMIT, Ledger, Record
from bascule.errors import LedgerError

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_a_fresh_directory_is_a_fresh_record(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "new").read() == Record()


def test_round_trip(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = Record(
        previous_version="",
        outbox=({"type": 3},),
        quarantine={"x": {"reason": "r"}},
        floor="1.2",
        last_checked=5,
    )
    ledger.update(lambda _: record)
    assert Ledger(tmp_path).read() == record
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_previous_version_keeps_missing_and_empty_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.set(last_checked=1)
    assert ledger.read().previous_version is None
    ledger.set(previous_version="")
    assert ledger.read().previous_version == ""


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"schema": 2}', b'{"schema": 1', b"\xff\xfe", b"[" * 100_000],
)
def test_damage_means_afresh_and_is_kept_aside(tmp_path: Path, body: bytes) -> None:
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(body)
    assert ledger.read() == Record()
    assert ledger.damage
    ledger.set(floor="1.0")
    assert ledger.read() == Record(floor="1.0")
    assert (tmp_path / "ledger.damaged").read_bytes() == body


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.dictionaries(st.sampled_from(sorted(Record.__dataclass_fields__)), JSON))
def test_values_of_the_wrong_kind_become_defaults(data: dict[str, object]) -> None:
    record = Record.from_dict(data)
    assert Record.from_dict(json.loads(json.dumps(record.as_dict()))) == record
    fresh = Record()
    for name in Record.__dataclass_fields__:
        if name not in ("previous_version", "intent"):
            assert type(getattr(record, name)) is type(getattr(fresh, name))


def test_the_outbox_is_bounded(tmp_path: Path) -> None:
    many = [{"n": n} for n in range(OUTBOX_LIMIT * 2)]
    assert len(Record.from_dict({"outbox": many}).outbox) == OUTBOX_LIMIT


def test_writers_in_threads_lose_nothing(tmp_path: Path) -> None:
    def work() -> None:
        ledger = Ledger(tmp_path)
        for _ in range(20):
            ledger.update(lambda r: replace(r, last_checked=r.last_checked + 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(tmp_path).read().last_checked == 80


def test_an_unchanged_record_is_not_written_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.set(floor="1.0")
    before = ledger.path.stat().st_ino
    ledger.set(floor="1.0")
    assert ledger.path.stat().st_ino == before


def test_sigkill_while_writing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from bascule.engine.ledger import Ledger\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]))\n"
        "print('up', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    ledger.set(last_checked=n, last_answer='x' * 50_000)\n"
    )
    for delay in (0.01, 0.03, 0.05):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        threading.Event().wait(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        ledger = Ledger(tmp_path)
        record = ledger.read()
        assert not ledger.damage
        assert record == Record() or len(record.last_answer) == 50_000


def test_a_directory_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(LedgerError, match=str(blocker)):
        Ledger(blocker / "state").set(floor="1")


def test_enospc_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.set(floor="1.0")

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.set(floor="2.0")
    monkeypatch.undo()
    assert ledger.read().floor == "1.0"
    assert not list(tmp_path.glob("*.partial"))
