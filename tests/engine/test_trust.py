"""Keys on disk: read late, fail closed, faults named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bascule.engine.trust import read_keyring, read_keys
from bascule.errors import NoKeys
from payload_builder import public_pem


def test_a_directory_of_keys_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.pem").write_bytes(public_pem("update"))
    (tmp_path / "a.pub").write_bytes(public_pem("other"))
    (tmp_path / "again.pem").write_bytes(public_pem("update"))
    (tmp_path / "README").write_text("keys of the publisher")
    (tmp_path / ".hidden.pem").write_bytes(public_pem("third"))
    assert [key.name for key in read_keys(tmp_path)] == ["a.pub", "again.pem"]


def test_a_single_file_may_have_any_name_and_several_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(public_pem("update") + public_pem("ec"))
    assert [key.kind for key in read_keys(file)] == ["RSA-2048", "EC-256"]


def test_a_bad_file_is_named_and_hides_no_good_one(tmp_path: Path) -> None:
    (tmp_path / "good.pem").write_bytes(public_pem("update"))
    (tmp_path / "noise.pem").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.pem").write_bytes(b"")
    (tmp_path / "huge.pem").write_bytes(b"x" * (300 << 10))
    (tmp_path / "open.pem").write_bytes(public_pem("other"))
    (tmp_path / "open.pem").chmod(0o666)
    (tmp_path / "dangling.pem").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.pem").mkdir()
    ring = read_keyring(tmp_path)
    assert [key.name for key in ring.keys] == ["good.pem"]
    faults = " ".join(ring.faults)
    for name in ("noise", "empty", "huge", "open", "dangling", "folder"):
        assert f"{name}.pem" in faults


@pytest.mark.parametrize("what", ["missing", "empty", "bad"])
def test_no_usable_key_is_an_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if what != "missing":
        path.mkdir()
    if what == "bad":
        (path / "x.pem").write_text("no key")
    with pytest.raises(NoKeys) as caught:
        read_keys(path)
    assert "keys" in str(caught.value) or "x.pem" in str(caught.value)


def test_nothing_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem("update"))
    first = read_keys(tmp_path)
    file.write_bytes(public_pem("other"))
    assert read_keys(tmp_path) != first
    file.unlink()
    with pytest.raises(NoKeys):
        read_keys(tmp_path)
