"""What an errand finds out about the running release, in a folder that looks like a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from bascule.assembly import Assembly
from bascule.errors import SettingsError
from bascule.hands import RealHands
from bascule.settings import load

BASE = '[health]\ntimeout = 0\nretries = 0\ninterval = 0\nroot = "{root}"\n'


def hands(root: Path, settings: str) -> tuple[RealHands, list[tuple[str, object]]]:
    """For a host with a check that fails; and what they tell the daemon."""
    check = root / "etc/bascule/health.d/10-scanner"
    check.parent.mkdir(parents=True)
    check.write_text(f"#!/bin/sh\necho asked >>{root}/log\nexit 1\n")
    check.chmod(0o755)
    boot_id = root / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("this boot\n")
    places = f'[state]\ndirectory = "{root}/state"\nrun_directory = "{root}/run"\nroot = "{root}"\n'
    (root / "state").mkdir()
    (root / "etc/bascule/bascule.toml").write_text(BASE.format(root=root) + settings + places)
    told: list[tuple[str, object]] = []

    def say(kind: str, **more: object) -> None:
        told.append((kind, more))

    return RealHands(Assembly(load(root)), say, "attempt"), told


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (3, 4)])
async def test_the_baseline_waits_as_long_as_the_most_patient_check_needs(
    tmp_path: Path, retries: int, asked: int
) -> None:
    """With the general pace alone, time is up before anything has answered."""
    name = "health.d:10-scanner"
    table = f'[health.checks."{name}"]\ntimeout = "1m"\nretries = {retries}\n'
    able, told = hands(tmp_path, table)
    assert (await able.baseline())["failed"] == {name: []}
    assert len((tmp_path / "log").read_text().split()) == asked
    assert told == []


async def test_no_release_is_staged_that_could_not_be_judged(tmp_path: Path) -> None:
    able, told = hands(tmp_path, '[health.checks."health.d:10-x"]\nverify = false\n')
    with pytest.raises(SettingsError, match="verify` cannot be set"):
        await able.baseline()
    assert told == []
