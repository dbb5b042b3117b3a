"""The fixture images: the same bytes each time, and what they say about themselves."""

from __future__ import annotations

import bz2
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mock_fixture import fixture_build


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_releases_are_reproducible_and_say_what_they_are(
    release_images: list[Any], tmp_path: Path
) -> None:
    build = fixture_build()
    again = build.releases(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(release_images[0].usr.parent)
    said = [build.describe(release.usr) for release in again]
    assert [(s["version"], s["healthy"]) for s in said] == [
        ("1.0.0", "yes"),
        ("2.0.0", "yes"),
        ("3.0.0", "no"),
    ]
    for release in again:
        assert release.usr.stat().st_size % 4096 == 0 != release.kernel.stat().st_size % 4096
    assert build.describe(again[0].kernel) == {}


@pytest.mark.skipif(not shutil.which("e2fsck"), reason="e2fsprogs is not here")
def test_images_are_sound_file_systems(release_images: list[Any]) -> None:
    for release in release_images:
        done = subprocess.run(["e2fsck", "-fn", release.usr], capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
        shown = subprocess.run(
            ["debugfs", "-R", "cat /lib/os-release", release.usr], capture_output=True, check=True
        )
        assert f"VERSION_ID={release.version}\n".encode() in shown.stdout


def test_big_image_compresses_like_a_system(tmp_path: Path) -> None:
    build = fixture_build()
    first, second = tmp_path / "first", tmp_path / "second"
    build.big(first, 4 << 20)
    ratio = len(bz2.compress(first.read_bytes())) / (4 << 20)
    assert 0.25 < ratio < 0.45
    build.big(second, 4 << 20, seed=4, of=first, changed=0.2)
    a, b = first.read_bytes(), second.read_bytes()
    changed = sum(a[at : at + 65536] != b[at : at + 65536] for at in range(0, len(a), 65536))
    assert 4 <= changed <= 24


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = fixture_build()
    assert build.main(["tree-pair", str(tmp_path), "--size-mib", "4"]) == 0
    old, new = (Path(path) for path in capsys.readouterr().out.split())
    assert old.stat().st_size == new.stat().st_size == 4 << 20
    assert old.read_bytes() != new.read_bytes()
