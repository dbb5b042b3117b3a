"""The resume record: durable, checked, dropped when in doubt."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from bascule.engine import checkpoint as module
from bascule.engine.checkpoint import MAX_RESUMES, Checkpoint, CheckpointStore, identity_of
from bascule.errors import LedgerError, ManifestError, NotEnoughSpace

WHO = identity_of({"payload": "x"})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "deep" / "state")
    begun = store.begin(WHO, b"header and manifest", b"signature")
    store.save(replace(begun, next_operation=7, digests={"file": b"\0\xff", "signed": b""}))
    found = CheckpointStore(store.folder).load(WHO)
    assert found == Checkpoint(
        WHO, b"header and manifest", b"signature", 7, {"file": b"\0\xff", "signed": b""}
    )
    assert (store.folder.stat().st_mode & 0o777) == 0o700


def test_another_payloads_record_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.begin(WHO, b"m", b"")
    assert store.load(identity_of({"payload": "y"})) is None


def test_identity_tells_facts_apart() -> None:
    assert identity_of({"a": 1, "b": [2]}) == identity_of({"b": [2], "a": 1})
    assert identity_of({"a": 1}) != identity_of({"a": 2})


@pytest.mark.parametrize("name", ["record", "metadata"])
def test_a_torn_or_changed_file_starts_over(name: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(replace(store.begin(WHO, b"metadata" * 50, b"s"), next_operation=3))
    good = (tmp_path / name).read_bytes()
    rng = random.Random(4)
    variants = [good[:n] for n in (0, 1, len(good) // 2, len(good) - 2)] + [b"\xff" * 40, b"{}\n"]
    for _ in range(40):
        changed = bytearray(good)
        changed[rng.randrange(len(good) - 1)] ^= 1 << rng.randrange(8)
        variants.append(bytes(changed))
    for variant in variants:
        (tmp_path / name).write_bytes(variant)
        assert CheckpointStore(tmp_path).load(WHO) is None
    (tmp_path / name).write_bytes(good)
    assert CheckpointStore(tmp_path).load(WHO) is not None
    (tmp_path / name).unlink()
    assert CheckpointStore(tmp_path).load(WHO) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"next_operation": -1},
        {"next_operation": None},
        {"digests": [1]},
        {"resumes": {}},
    ],
)
def test_a_record_of_another_kind_starts_over(change: dict[str, object], tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(replace(store.begin(WHO, b"m", b""), next_operation=3))
    body = json.loads((tmp_path / "record").read_text().split("\n")[1]) | change
    text = json.dumps(body, sort_keys=True)
    digest = module.hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "record").write_text(f"{digest}\n{text}\n")
    assert store.load(WHO) is None


def test_too_many_resumes_start_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    record = replace(store.begin(WHO, b"m", b""), next_operation=3)
    store.save(record)
    for number in range(MAX_RESUMES):
        record = store.count_resume(record)
        assert store.load(WHO) == record
        assert record.resumes == number + 1
    record = store.count_resume(record)
    assert store.load(WHO) is None


def test_other_metadata_for_the_same_payload_is_refused_once(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.begin(WHO, b"first", b"")
    store.begin(WHO, b"first", b"")
    with pytest.raises(ManifestError):
        store.begin(WHO, b"second", b"")
    store.begin(WHO, b"second", b"")
    store.begin(identity_of({"payload": "y"}), b"third", b"")


def test_every_record_is_flushed_renamed_and_its_folder_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(Path, "rename", lambda self, to: calls.append("rename") or rename(self, to))
    store = CheckpointStore(tmp_path)
    begun = store.begin(WHO, b"m", b"")
    calls.clear()
    store.save(begun)
    assert calls == ["fsync", "rename", "fsync"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        CheckpointStore(tmp_path / "file" / "state").begin(WHO, b"m", b"")


def test_a_full_disk_is_named_and_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    begun = store.begin(WHO, b"m", b"")
    store.save(replace(begun, next_operation=1))

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NotEnoughSpace):
        store.save(replace(begun, next_operation=2))
    monkeypatch.undo()
    found = store.load(WHO)
    assert found is not None
    assert found.next_operation == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_journal_is_whole_or_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.open_journal(5) is None
    data = random.Random(1).randbytes(10_000)
    store.write_journal(5, [data[:3000], data[3000:]], len(data))
    journal = store.open_journal(5)
    assert journal is not None
    assert journal.read(0, 10_000) == data
    assert journal.read(2990, 20) == data[2990:3010]
    journal.close()
    assert store.open_journal(4) is None
    whole = (tmp_path / "journal").read_bytes()
    for wrong in (whole[:-1], whole[:20], b"", whole[:60] + b"?" + whole[61:]):
        (tmp_path / "journal").write_bytes(wrong)
        assert store.open_journal(5) is None
    store.drop_journal()
    store.drop_journal()
    assert store.open_journal(5) is None


def test_clear_leaves_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.begin(WHO, b"m", b"")
    store.write_journal(1, [b"x"], 1)
    store.clear()
    assert list(tmp_path.iterdir()) == []
    store.clear()
