"""``bascule lock``, and the lock that a blessing without a daemon gives back."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from bascule.__main__ import main
from bascule.assembly import Assembly
from bascule.reboot_lock import let_go
from bascule.settings import load

SCRIPT = """#!{python}
import pathlib, sys
log = pathlib.Path({log!r})
log.write_text((log.read_text() if log.exists() else "") + sys.argv[1] + "\\n")
away = pathlib.Path({away!r})
if away.exists():
    left = int(away.read_text()) - 1
    away.write_text(str(left)) if left else away.unlink()
    print("the lock server is away")
    sys.exit(69)
"""


def assembly(folder: Path, strategy: str) -> Assembly:
    script = folder / "lock"
    script.write_text(
        SCRIPT.format(python=sys.executable, log=str(folder / "log"), away=str(folder / "away"))
    )
    script.chmod(0o755)
    (folder / "etc").mkdir()
    (folder / "etc/machine-id").write_text("a" * 32 + "\n")
    config = folder / "bascule.toml"
    config.write_text(
        f'[reboot]\nstrategy = "{strategy}"\ncommand = ["{script}"]\n[state]\nroot = "{folder}"\n'
    )
    return Assembly(load(folder, [config]))


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().split() if path.exists() else []


async def test_without_a_daemon_the_lock_is_given_back(tmp_path: Path) -> None:
    assert await let_go(assembly(tmp_path, "command")) == ""
    assert log(tmp_path) == ["release"]


async def test_a_server_that_comes_up_late_is_asked_again(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    built = assembly(tmp_path, "command")
    (tmp_path / "away").write_text("2")
    assert await let_go(built, sleep=sleep) == ""
    assert log(tmp_path) == ["release"] * 3
    (tmp_path / "away").write_text("99")
    assert "the lock server is away" in await let_go(built, tries=3, sleep=sleep)
    assert pauses == [2, 4, 2, 4]


async def test_no_lock_is_asked_where_there_is_none(tmp_path: Path) -> None:
    assert await let_go(assembly(tmp_path, "reboot")) == ""
    assert log(tmp_path) == []


async def test_settings_that_name_no_lock_are_said(tmp_path: Path) -> None:
    assert "`reboot.endpoints`" in await let_go(assembly(tmp_path, "fleetlock"))


def test_places_of_a_command_are_freed_by_whoever_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assembly(tmp_path, "command")
    arguments = shlex.split(f"--root {tmp_path} --config {tmp_path}/bascule.toml")
    assert main(["lock", "show", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["strategy"] == "command" and told["held"] is True
    assert main(["lock", "release", *arguments, "b" * 32]) != 0
    assert "freed at the lock's own server" in capsys.readouterr().err
