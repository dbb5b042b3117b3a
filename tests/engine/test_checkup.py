"""The doctor's checks one by one: each finds its damage, and its repair ends it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from bascule.engine import checkup
from bascule.engine.checkpoint import CheckpointStore, identity_of
from bascule.engine.findings import Finding
from bascule.engine.history import History
from bascule.engine.ledger import Ledger
from bascule.engine.units import UNITS, units
from bascule.errors import LedgerError

SHIPPED = Path(__file__).resolve().parents[2] / "systemd/system"


def ids(found: Iterable[Finding]) -> list[str]:
    return [finding.id for finding in found]


def mend(found: Iterable[Finding]) -> None:
    for finding in found:
        assert finding.repair is not None, finding
        assert finding.repair()


def test_permissions(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert ids(checkup.state_directory(state)) == ["state-missing"]
    state.mkdir(mode=0o755)
    assert ids(checkup.state_directory(state)) == []
    (state / "ledger.json").touch()
    (state / "ledger.json").chmod(0o640)
    state.chmod(0o775)
    found = list(checkup.state_directory(state))
    assert ids(found) == ["state-writable", "state-file-mode"]
    mend(found)
    assert ids(checkup.state_directory(state)) == []


def test_leftovers(tmp_path: Path) -> None:
    (tmp_path / "ledger.json.partial").touch()
    (tmp_path / "ledger.json").touch()
    found = list(checkup.leftovers([tmp_path, tmp_path / "none"]))
    assert ids(found) == ["leftover"]
    mend(found)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"schema": 99}', b"\0" * 100])
def test_a_damaged_ledger(tmp_path: Path, body: bytes) -> None:
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(body)
    found = list(checkup.ledger(Ledger(tmp_path)))
    assert ids(found) == ["ledger-damaged"]
    mend(found)
    after = list(checkup.ledger(Ledger(tmp_path)))
    assert ids(after) == ["ledger-was-damaged"] and after[0].severity == "note"
    assert ledger.path.with_suffix(".damaged").read_bytes() == body


def test_a_checkpoint_of_another_payload(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoint")
    wanted = identity_of({"n": 1})
    assert ids(checkup.checkpoint(store, [wanted])) == []
    store.begin(wanted, b"metadata", b"")
    assert ids(checkup.checkpoint(store, [identity_of({"n": 2}), wanted])) == []
    found = list(checkup.checkpoint(store, [identity_of({"n": 2})]))
    assert ids(found) == ["checkpoint-orphan"]
    mend(found)
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_history_markers_and_keys(tmp_path: Path) -> None:
    told = History(tmp_path, clock=lambda: 1.0)
    told.append("asked")
    told.append("asked")
    assert ids(checkup.history(told)) == []
    told.path.write_bytes(told.path.read_bytes().split(b"\n")[1] + b"\n")
    assert ids(checkup.history(told)) == ["history-chain"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "reboot-required").touch()
    assert ids(checkup.markers(run, staged=False)) == [], "apt writes this one too"
    (run / "update_engine_autoupdate_completed").touch()
    assert ids(checkup.markers(run, staged=True)) == []
    found = list(checkup.markers(run, staged=False))
    mend(found)
    assert list(run.iterdir()) == []
    assert ids(checkup.keys(tmp_path / "none")) == ["keys-missing"]
    (tmp_path / "bad.pem").write_text("no key")
    assert ids(checkup.keys(tmp_path)) == ["keys-missing"]


def test_secrets_and_files(tmp_path: Path) -> None:
    path = tmp_path / "bascule.toml"
    path.touch()
    path.chmod(0o644)
    found = list(checkup.secret(path, "a password"))
    assert ids(found) == ["secret-readable"]
    mend(found)
    assert ids(checkup.secret(path, "a password")) == []
    assert ids(checkup.secret(tmp_path / "none", "x")) == []
    assert ids(checkup.readable(tmp_path / "none", "The keyring", "trust.x")) == ["file-unreadable"]


def test_the_clock(tmp_path: Path) -> None:
    built = tmp_path / "os-release"
    built.touch()
    os.utime(built, (1000, 1000))
    places = [built, tmp_path / "none"]
    assert ids(checkup.clock(1001, places, 0)) == []
    assert ids(checkup.clock(999, places, 0)) == ["clock-before-build"]
    assert ids(checkup.clock(2000, places, 2000 + 86401)) == ["clock-went-back"]


def test_a_check_that_fails_hides_no_other() -> None:
    def broken() -> Iterable[Finding]:
        raise LedgerError("gone")

    def denied() -> Iterable[Finding]:
        raise PermissionError(13, "Permission denied", "/x")

    found = checkup.gather([broken, denied, lambda: [Finding("x", "note", "s", "r")]])
    assert ids(found) == ["state", "not-examined", "x"]


# ── units


def systemd(root: Path) -> Path:
    (root / "run/systemd/system").mkdir(parents=True)
    folder = root / "usr/lib/systemd/system"
    folder.mkdir(parents=True)
    for name in UNITS:
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    return folder


def enable(root: Path) -> None:
    """As `systemctl --root enable` would."""
    for name in UNITS:
        for line in (SHIPPED / name).read_text().splitlines():
            key, _, value = line.partition("=")
            if key in ("WantedBy", "RequiredBy"):
                kind = "wants" if key == "WantedBy" else "requires"
                place = root / f"etc/systemd/system/{value}.{kind}"
                place.mkdir(parents=True, exist_ok=True)
                (place / name).symlink_to(f"/usr/lib/systemd/system/{name}")


def test_shipped_units_when_enabled_are_in_order(tmp_path: Path) -> None:
    assert ids(units(tmp_path)) == ["systemd-absent"]
    systemd(tmp_path)
    assert set(ids(units(tmp_path))) == {"unit-not-enabled"}
    enable(tmp_path)
    assert ids(units(tmp_path)) == []


def test_missing_and_masked_units(tmp_path: Path) -> None:
    folder = systemd(tmp_path)
    enable(tmp_path)
    (folder / "bascule-deadman.timer").unlink()
    (tmp_path / "etc/systemd/system/bascule-bless.service").symlink_to("/dev/null")
    (folder / "bascule-health.service").write_text("")
    found = {finding.sentence.split()[0]: finding.id for finding in units(tmp_path)}
    assert found == {
        "bascule-deadman.timer": "unit-missing",
        "bascule-bless.service": "unit-masked",
        "bascule-health.service": "unit-masked",
    }
