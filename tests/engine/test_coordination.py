"""The registry, the coordinators that ask nobody, the operator's executable, and neighbours."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bascule.engine.coordination import Grant, Refused, coordinator, retry_delay
from bascule.engine.coordination.command import Command, code_words
from bascule.engine.coordination.neighbours import (
    Coordinator,
    CoordinatorFile,
)
from bascule.engine.coordination.registry import STRATEGIES, Credentials
from bascule.errors import SettingsError, StorageError

A = "a" * 32


def clock() -> float:
    return 1000.0


async def test_every_strategy_has_its_coordinator() -> None:
    for strategy in STRATEGIES:
        found = coordinator(
            strategy,
            machine_id=A,
            endpoints=["http://127.0.0.1:1"],
            command=["/bin/true"],
            clock=clock,
        )
        assert found.name == strategy
        await found.close()


async def test_off_never_reboots_and_reboot_always_may() -> None:
    off = coordinator("off", machine_id=A, clock=clock)
    refused = await off.acquire()
    assert isinstance(refused, Refused) and refused.final
    assert (await off.view()).held is False and await off.release() == ""
    free = coordinator("reboot", machine_id=A, clock=clock)
    assert isinstance(await free.acquire(), Grant)
    assert (await free.view()).trouble == "" and await free.release() == ""


@pytest.mark.parametrize(
    ("strategy", "more", "why"),
    [
        ("always", {}, "always"),
        ("fleetlock", {}, "one FleetLock server"),
        ("fleetlock", {"endpoints": ["http://a", "http://b"]}, "one FleetLock server"),
        ("fleetlock", {"endpoints": ["ftp://a"]}, "http or https"),
        ("etcd-lock", {}, "endpoints"),
        ("etcd-lock", {"endpoints": ["not a url"]}, "http or https"),
        ("etcd-lock", {"endpoints": ["http://a"], "machine_id": ""}, "machine id"),
        ("command", {}, "command"),
    ],
)
def test_what_a_strategy_lacks_is_named(strategy: str, more: dict[str, object], why: str) -> None:
    values = {"machine_id": A, "clock": clock, **more}
    with pytest.raises(SettingsError, match=why):
        coordinator(strategy, **values)  # type: ignore[arg-type]


def test_tls_files_that_cannot_be_used_are_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("no PEM")
    for wrong in (
        Credentials(ca_file=str(tmp_path / "none")),
        Credentials(ca_file=str(tmp_path / "ca")),
        Credentials(certificate=str(tmp_path / "ca")),
    ):
        with pytest.raises(SettingsError, match="TLS"):
            wrong.tls()


def test_retries_wait_longer_each_time_up_to_five_minutes() -> None:
    assert [retry_delay(n) for n in (0, 1, 2, 6, 7, 10_000)] == [5, 10, 20, 300, 300, 300]


def test_a_host_without_a_lock_loads_no_http_client() -> None:
    code = """
        import sys
        from bascule.engine.coordination import coordinator
        from bascule.updater import explain
        coordinator("reboot", machine_id="a", clock=lambda: 0.0)
        heavy = {"aiohttp", "yaml", "zoneinfo", "cryptography", "google.protobuf", "ssl"}
        print(sorted(heavy & set(sys.modules)))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() in ("[]", "['ssl']")


# ── the operator's executable


def script(folder: Path, body: str) -> Path:
    path = folder / "lock"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


async def test_exit_codes_decide(tmp_path: Path) -> None:
    command = Command(
        [
            str(
                script(
                    tmp_path,
                    'echo "$1 $2 $BASCULE_MACHINE_ID $BASCULE_GROUP"\necho more\n'
                    "test -e $1 && exit 0\n[ $2 = view ] && exit 75\nexit 75\n",
                )
            ),
            str(tmp_path / "flag"),
        ],
        A,
        group="web",
    )
    refused = await command.acquire()
    assert isinstance(refused, Refused)
    assert refused.evidence == f"{tmp_path}/flag acquire {A} web"
    assert not (await command.view()).held and not (await command.view()).trouble
    (tmp_path / "flag").write_text("")
    assert isinstance(await command.acquire(), Grant)
    assert (await command.view()).held
    assert await command.release() == ""


@pytest.mark.parametrize(
    ("body", "evidence"),
    [
        ("exit 75", "The reboot command says: not now."),
        ("echo no; exit 1", "The reboot command failed (exit code 1): no"),
        ("echo gone; exit 69", "The reboot command failed (nobody could be asked): gone"),
        ("kill -9 $$", "The reboot command failed (signal 9): -"),
        ("yes | head -c 9999999; exit 1", "The reboot command failed (exit code 1): y"),
        (r"printf '\033[31mred\007'; exit 75", "[31mred"),
    ],
)
async def test_refusals_of_a_command(tmp_path: Path, body: str, evidence: str) -> None:
    refused = await Command([str(script(tmp_path, body + "\n"))], A).acquire()
    assert isinstance(refused, Refused)
    assert refused.evidence == evidence


async def test_a_command_that_cannot_run_is_a_refusal(tmp_path: Path) -> None:
    command = Command([str(tmp_path / "none")], A)
    refused = await command.acquire()
    assert isinstance(refused, Refused) and "no exit code" in refused.evidence
    assert "No such file" in await command.release()
    assert "No such file" in (await command.view()).trouble


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    body = f"sleep 600 &\necho $! > {tmp_path}/child\nsleep 600\n"
    refused = await Command([str(script(tmp_path, body))], A, timeout=1.0).acquire()
    assert isinstance(refused, Refused) and "did not end within 1 s" in refused.evidence
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or " Z " in state.read_text():
            return
        await asyncio.sleep(0.05)
    pytest.fail("its child still runs")


def test_exit_codes_in_words() -> None:
    assert code_words(None) == "no exit code" and code_words(3) == "exit code 3"


# ── locksmithd's file


def test_our_lines_are_locksmiths(tmp_path: Path) -> None:
    ours = CoordinatorFile(tmp_path / "run" / "coordinator.conf")
    assert not ours.ours and ours.other() is None
    assert ours.claim("etcd-lock") is None
    assert ours.ours and ours.claim("etcd-lock") is None
    assert ours.path.read_bytes() == b"NAME=bascule\nSTRATEGY=etcd-lock\nSTATE=starting"
    ours.tell("etcd-lock", "reboot-planned")
    ours.tell("etcd-lock", "running")
    assert ours.path.read_bytes() == b"NAME=bascule\nSTRATEGY=etcd-lock\nSTATE=running"
    ours.release()
    ours.release()
    ours.tell("etcd-lock", "running")
    assert ours.path.read_bytes() == b""


def test_locksmithd_and_we_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.conf"
    # As locksmithd holds it: an exclusive flock, its lines in any order.
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(handle, b"STATE=running\nNAME=locksmithd\nSTRATEGY=etcd-lock")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ours = CoordinatorFile(path)
    locksmithd = Coordinator("locksmithd", "etcd-lock", "running")
    assert ours.other() == locksmithd
    assert ours.claim("reboot") == locksmithd
    assert not ours.ours
    os.close(handle)
    assert ours.other() is None, "a file that nobody holds was left behind"
    assert ours.claim("reboot") is None
    theirs = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(theirs)
    ours.release()


def test_a_garbled_file_still_names_somebody(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.conf"
    path.write_bytes(b"\xff\x00NAME\n===\n")
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert CoordinatorFile(path).other() == Coordinator("somebody", "unknown", "unknown")
    os.close(handle)


def test_a_file_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        CoordinatorFile(tmp_path / "file" / "x").claim("reboot")


# ── kured's sentinel
