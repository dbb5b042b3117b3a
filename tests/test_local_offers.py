"""Paths as the daemon sees them, and what is remembered of a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from bascule.engine.ledger import Ledger
from bascule.engine.static_repo import Found
from bascule.errors import LocalFileNotSeen, UsageError
from bascule.local_offers import REMEMBERED, is_address, remember, require_seen, serials


def found(where: str, serial: int, signer: str = "key.pem") -> Found:
    return Found(where, None, serial, signer, ())


def test_paths(tmp_path: Path) -> None:
    require_seen(str(tmp_path))
    (tmp_path / "a" / "bascule").mkdir(parents=True)
    require_seen(f"{tmp_path}/*/bascule")
    for missing in (f"{tmp_path}/none", f"{tmp_path}/none/*/bascule", f"{tmp_path}/[x]"):
        with pytest.raises(LocalFileNotSeen):
            require_seen(missing)
    (tmp_path / "file").touch()
    with pytest.raises(LocalFileNotSeen, match="Not a directory"):
        require_seen(f"{tmp_path}/file/below")
    with pytest.raises(UsageError):
        require_seen("releases")


@pytest.mark.parametrize("named", ["http://h/", "https://h/x", "file:///mnt"])
def test_addresses_are_no_paths(named: str) -> None:
    assert is_address(named) and not is_address(f"/{named}")


def test_only_a_signed_and_higher_serial_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for serial, signer, kept in ((5, "k", 5), (9, "", 5), (4, "k", 5), (6, "k", 6)):
        remember(ledger, found("/mnt", serial, signer), 100.0, configured=False)
        assert serials(ledger.read()) == {"/mnt": kept}
    assert ledger.read().last_checked == 0
    assert remember(ledger, found("/mnt", 6), 200.0, configured=True) == "nothing newer"
    assert (ledger.read().last_checked, ledger.read().last_answer) == (200, "nothing newer")


def test_what_is_remembered_is_bounded_and_damage_is_harmless(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for n in range(REMEMBERED + 5):
        remember(ledger, found(f"/mnt/{n}", 1), float(n), configured=False)
    kept = serials(ledger.read())
    assert len(kept) == REMEMBERED and "/mnt/0" not in kept
    ledger.set(repositories={"/a": {"serial": "x"}, "/b": 7, "/c": {"serial": 3}})
    assert serials(ledger.read()) == {"/c": 3}
    # An entry without a time goes first when room is needed; it does not stop the note.
    remember(ledger, found("/d", 1), 1.0, configured=False)
    assert serials(ledger.read())["/d"] == 1
