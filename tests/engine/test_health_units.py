"""Asking systemd, with a stand-in for systemctl that is a real program."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bascule.engine.health import CheckResult, Host, NoFailedUnits, Outcome, Pace, UnitActive, run
from bascule.engine.health.check import Check

ONCE = Pace(timeout=20)


def stand_in(tmp_path: Path, body: str) -> Host:
    path = tmp_path / "systemctl"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Host(systemctl=str(path), environment={"PATH": "/usr/bin:/bin"})


async def asked(check: Check, host: Host) -> CheckResult:
    (result,) = await run([check], host=host, clock=asyncio.get_running_loop().time)
    return result


def show(load: str, active: str, sub: str, result: str = "success", restarts: int = 0) -> str:
    return (
        f"echo LoadState={load}; echo ActiveState={active}; echo SubState={sub}; "
        f"echo Result={result}; echo NRestarts={restarts}"
    )


@pytest.mark.parametrize(
    ("state", "outcome", "reason"),
    [
        (show("loaded", "active", "running"), Outcome.PASS, ""),
        (show("loaded", "active", "exited"), Outcome.PASS, ""),
        (show("loaded", "reloading", "reload"), Outcome.PASS, ""),
        (show("loaded", "failed", "failed", "exit-code"), Outcome.FAIL, "myapp.service failed"),
        (
            show("loaded", "failed", "failed", "watchdog"),
            Outcome.FAIL,
            "myapp.service failed (watchdog)",
        ),
        (
            show("loaded", "inactive", "dead"),
            Outcome.FAIL,
            "myapp.service is not running (inactive)",
        ),
        (
            show("loaded", "activating", "start"),
            Outcome.INCONCLUSIVE,
            "myapp.service is still starting",
        ),
        (
            show("loaded", "activating", "auto-restart", "exit-code", 4),
            Outcome.FAIL,
            "myapp.service keeps failing (4 restarts)",
        ),
        (
            show("not-found", "inactive", "dead"),
            Outcome.FAIL,
            "myapp.service cannot be loaded (not-found)",
        ),
        ("exit 1", Outcome.INCONCLUSIVE, "systemd could not be asked"),
        ("true", Outcome.INCONCLUSIVE, "systemd could not be asked"),
    ],
)
async def test_unit_states(tmp_path: Path, state: str, outcome: Outcome, reason: str) -> None:
    result = await asked(UnitActive("myapp.service", pace=ONCE), stand_in(tmp_path, state))
    assert (result.outcome, result.reason) == (outcome, reason)


async def test_restarts_may_be_limited(tmp_path: Path) -> None:
    host = stand_in(tmp_path, show("loaded", "active", "running", restarts=3))
    strict = UnitActive("a.service", pace=ONCE, max_restarts=2)
    assert (await asked(strict, host)).outcome is Outcome.FAIL
    assert (await asked(UnitActive("a.service", pace=ONCE), host)).outcome is Outcome.PASS


async def test_unit_name_is_never_an_option(tmp_path: Path) -> None:
    host = stand_in(tmp_path, f'for a in "$@"; do echo "$a"; done > {tmp_path}/argv; echo')
    await asked(UnitActive("--force", pace=ONCE), host)
    argv = (tmp_path / "argv").read_text().split("\n")
    assert argv.index("--") < argv.index("--force")


async def test_systemctl_missing(tmp_path: Path) -> None:
    host = Host(systemctl=str(tmp_path / "no"), environment={})
    assert (await asked(NoFailedUnits(pace=ONCE), host)).outcome is Outcome.INCONCLUSIVE


async def test_failed_units_are_named(tmp_path: Path) -> None:
    lines = "\n".join(
        f"echo '{unit} loaded failed failed Something'"
        for unit in ("b.service", "a.service", "bascule-health.service", "tmp-x.mount")
    )
    host = stand_in(tmp_path, lines)
    result = await asked(NoFailedUnits(ignore=("tmp-*",), pace=ONCE), host)
    assert result.outcome is Outcome.FAIL
    assert result.subjects == ("a.service", "b.service")
    assert result.reason == "a.service, b.service failed"


async def test_no_failed_units(tmp_path: Path) -> None:
    host = stand_in(tmp_path, "true")
    assert (await asked(NoFailedUnits(pace=ONCE), host)).outcome is Outcome.PASS
