"""pydbus, through the system's Python and GLib, meets the daemon.

pydbus is one small pure-Python package: it is put below ``build/`` once, with pip; PyGObject is
Debian's ``python3-gi``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fake_daemon import SIZE, Daemon

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "pydbus"
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def pydbus_home() -> Path:
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"{SYSTEM_PYTHON} is missing")
    has_gi = subprocess.run(
        [SYSTEM_PYTHON, "-c", "from gi.repository import Gio"], capture_output=True, check=False
    )
    if has_gi.returncode:
        pytest.skip("the system's Python has no gi (Debian package python3-gi)")
    if not (HOME / "pydbus").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        got = subprocess.run(
            [*pip, "--target", str(HOME), "pydbus==0.6.0"], capture_output=True, check=False
        )
        if got.returncode:
            pytest.skip(f"pydbus could not be installed: {got.stderr.decode()[-200:]}")
    return HOME


async def test_pydbus_drives_and_hears_the_daemon(served: Any, pydbus_home: Path) -> None:
    Daemon(served.steering, "good", 0.01)
    client = await asyncio.create_subprocess_exec(
        SYSTEM_PYTHON, str(ROOT / "tests" / "pydbus_client.py"), served.address,
        env={"PYTHONPATH": str(pydbus_home), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    result = json.loads(out)

    assert result["before"] == [0, 0.0, "UPDATE_STATUS_IDLE", "0.0.0", 0]
    assert result["state"] == "IDLE"
    assert result["slots"][0]["name"] == "A"
    assert result["slots"][0]["booted"] is True
    assert result["document"] == {"schema": 1, "entries": []}
    assert result["job"] == "/org/bascule/Update1/job/1"
    assert "org.bascule.Update1.Error.Busy" in result["busy"]
    assert "updatectl watch" in result["busy"], "the remedy arrives as well"
    assert "org.freedesktop.DBus.GLib.ErrorError" in result["reset"]

    heard = result["heard"]
    assert heard["finished"] == [["done", "", ""]]
    operations = [values[2].removeprefix("UPDATE_STATUS_") for values in heard["status"]]
    assert list(dict.fromkeys(operations)) == [
        "CHECKING_FOR_UPDATE",
        "UPDATE_AVAILABLE",
        "DOWNLOADING",
        "FINALIZING",
        "UPDATED_NEED_REBOOT",
    ]
    assert operations.count("DOWNLOADING") >= 95, "none is lost"
    assert heard["states"][-1] == "UPDATED_NEED_REBOOT"
    assert result["after"][2:] == ["UPDATE_STATUS_UPDATED_NEED_REBOOT", "3602.1.5", SIZE]
    assert result["job_result"] == "done"
