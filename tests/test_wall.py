"""Who is logged in is told, and a reboot never fails or hangs for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bascule import wall as walls


def _program(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "wall"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


async def test_the_sentence_reaches_wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, f'printf "%s|" "$@" > {tmp_path}/said', monkeypatch)
    await walls.wall("A $(touch x) sentence.")
    assert (tmp_path / "said").read_text() == "Bascule: A $(touch x) sentence.|"


@pytest.mark.parametrize("how", ["missing", "not executable", "failing"])
async def test_a_host_without_it_is_told_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        _program(tmp_path, "exit 3", monkeypatch)
    if how == "not executable":
        (tmp_path / "wall").chmod(0o644)
        monkeypatch.setenv("PATH", str(tmp_path))
    await walls.wall("Nobody hears it.")


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_wall_that_hangs_is_ended(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600", monkeypatch)
    if how == "timeout":
        monkeypatch.setattr(walls, "TIMEOUT", 0.5)
    task = asyncio.create_task(walls.wall("Hello?"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        await asyncio.sleep(0.01)
    pid = (tmp_path / "pid").read_text().strip()
    if how == "cancelled":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
    assert not Path(f"/proc/{pid}").exists()
