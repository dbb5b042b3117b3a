"""Every wrong payload of the list through `bascule payload apply`, into files and into devices.

The same number wherever update_engine refuses, and nothing is left that looks like a release.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bascule.__main__ import main
from payload_builder import IMAGE, KERNEL_IMAGE, OLD_IMAGE, public_pem
from payload_mutations import MUTATIONS, Mutation


def apply(
    mutation: Mutation, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, int | None]:
    """Exit code, and the error's number if there is one."""
    (folder / "keys").mkdir()
    (folder / "keys" / "update.pem").write_bytes(public_pem())
    (folder / "old").write_bytes(OLD_IMAGE)
    (folder / "payload").write_bytes(mutation.build())
    words = ["payload", "apply", str(folder / "payload"), "--keys", str(folder / "keys"), "--json"]
    if mutation.draft().major == 1:
        words += ["--to", f"usr={folder / 'usr'}", "--to", f"kernel={folder / 'kernel'}"]
    else:
        words += ["--to", f"system={folder / 'usr'}", "--from", f"system={folder / 'old'}"]
    code = main(words)
    return code, json.loads(capsys.readouterr().out).get("error", {}).get("number")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_into_new_files(
    mutation: Mutation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, number = apply(mutation, tmp_path, capsys)
    assert (code == 0) == (number is None)
    assert number in {mutation.number, mutation.tight or mutation.number}
    if number is None:
        assert (tmp_path / "usr").read_bytes() == IMAGE
        if mutation.draft().major == 1:
            assert (tmp_path / "kernel").read_bytes() == KERNEL_IMAGE
        return
    assert not (tmp_path / "usr").exists()
    assert not (tmp_path / "kernel").exists()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_into_a_device_with_room_behind_the_image(
    mutation: Mutation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "usr").write_bytes(b"\xaa" * (4 << 20))
    code, number = apply(mutation, tmp_path, capsys)
    assert (code == 0) == (number is None)
    assert number == mutation.number
    assert (tmp_path / "usr").stat().st_size == 4 << 20
    if number is None:
        assert (tmp_path / "usr").read_bytes()[: len(IMAGE)] == IMAGE
    assert (tmp_path / "kernel").exists() == (number is None and mutation.draft().major == 1)
