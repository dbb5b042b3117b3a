"""``update_engine_client`` as Flatcar's scripts and kola call it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from bascule.faces import legacy_client
from bascule.updater.status import State
from fake_daemon import CHECKED, SIZE, Daemon

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
MODULE = "bascule.faces.legacy_client"


async def client(address: str, *words: str, **changes: Any) -> tuple[int, str, str]:
    """The command in a thread of this process, so that its waits can be shortened."""
    import contextlib
    import io
    import os

    out, err = io.StringIO(), io.StringIO()

    def command() -> int:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                return legacy_client.main(words)
            except SystemExit as end:
                return int(end.code or 0)

    previous = os.environ.get("BASCULE_BUS_ADDRESS")
    os.environ["BASCULE_BUS_ADDRESS"] = address
    try:
        code = await asyncio.to_thread(command)
    finally:
        os.environ.pop("BASCULE_BUS_ADDRESS")
        if previous is not None:
            os.environ["BASCULE_BUS_ADDRESS"] = previous
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_client, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(legacy_client, "RETRY_SECONDS", 0.05)


def kola_parses(out: str) -> dict[str, str]:
    """As kola does: every line of stdout must have its ``=``."""
    pairs = [line.split("=", 1) for line in out.splitlines()]
    assert all(len(pair) == 2 for pair in pairs), out
    return dict(pairs)


def recorded(name: str) -> str:
    path = VECTORS / "full_kernel" / name
    if not path.exists():
        pytest.skip("the recorded vectors are not here")
    return "\n".join(line for line in path.read_text().splitlines() if re.match(r"[A-Z_]+=", line))


@pytest.mark.parametrize("flag", ["-status", "--status", "--status=true", "-status=1"])
async def test_status_prints_what_the_original_printed(served: Any, flag: str) -> None:
    code, out, err = await client(served.address, flag)
    assert code == 0
    assert out.rstrip("\n") == recorded("client_status0.txt")
    assert said(err) == said((VECTORS / "full_kernel" / "client_status0.txt").read_text())
    served.steering.move(
        State.UPDATED_NEED_REBOOT, last_checked=CHECKED, new_version="3602.1.5", new_size=SIZE
    )
    code, out, err = await client(served.address, flag)
    assert out.rstrip("\n") == recorded("client_status1.txt")
    assert kola_parses(out)["CURRENT_OP"] == "UPDATE_STATUS_UPDATED_NEED_REBOOT"


async def test_progress_has_six_decimals(served: Any) -> None:
    served.steering.move(State.DOWNLOADING, bytes_done=1, bytes_total=3)
    _, out, _ = await client(served.address, "-status")
    assert kola_parses(out)["PROGRESS"] == "0.333333"


async def test_update_waits_for_the_reboot_state(served: Any) -> None:
    Daemon(served.steering, "good", 0.002)
    code, out, err = await client(served.address, "-update")
    assert code == 0
    # flatcar-update greps for this very line.
    assert re.search(r"^CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT$", out, re.MULTILINE)
    assert "Update succeeded -- reboot needed." in err


def said(text: str) -> list[str]:
    """The log lines without what differs from run to run: time, process, source line."""
    glog = re.compile(r"([IWE])\d{8} \d\d:\d\d:\d\d\.\d{6} +\d+ [\w.]+:\d+\] (.*)")
    lines = [glog.fullmatch(line) for line in text.splitlines()]
    return [f"{found[1]} {found[2]}" for found in lines if found]


async def test_update_prints_what_the_original_printed(served: Any) -> None:
    """Polled while it finishes, then when it is installed; log lines in glog's form, word for word."""

    async def story() -> None:
        while not served.steering.jobs:
            await asyncio.sleep(0.01)
        served.steering.move(
            State.FINALIZING, last_checked=CHECKED, new_version="3602.1.5", new_size=SIZE
        )
        # Longer than one poll, so that the client sees it once at least.
        await asyncio.sleep(legacy_client.POLL_SECONDS * 3)
        served.steering.move(State.UPDATED_NEED_REBOOT)

    told = asyncio.create_task(story())
    code, out, err = await client(served.address, "-update")
    await told
    assert code == 0
    blocks = re.findall(r"(?:[A-Z_]+=.*\n){5}", out)
    assert "".join(blocks) == out
    once = list(dict.fromkeys(blocks))
    # Polls that came before the story began, and repeated ones, are the clock's matter.
    assert "".join(once[-2:]).rstrip("\n") == recorded("client_update.txt")
    original = (VECTORS / "full_kernel" / "client_update.txt").read_text()
    assert said(err) == said(original)


@pytest.mark.parametrize("story", ["none", "bad"])
async def test_update_ends_well_even_after_a_failure(served: Any, story: str) -> None:
    Daemon(served.steering, story, 0.0)
    code, out, err = await client(served.address, "-update")
    assert code == 0
    assert "No update available" in err
    kola_parses(out)


async def test_check_for_update_does_not_wait(served: Any) -> None:
    code, out, _ = await client(served.address, "-check_for_update")
    assert (code, out) == (0, "")
    assert served.steering.status.state is State.CHECKING_FOR_UPDATE


async def test_reset_status(served: Any) -> None:
    served.steering.move(State.UPDATED_NEED_REBOOT)
    code, _, _ = await client(served.address, "-reset_status")
    assert code == 0
    assert served.steering.status.state is State.IDLE
    served.steering.move(State.DOWNLOADING)
    code, out, _ = await client(served.address, "-reset_status")
    assert (code, out) == (1, "")


async def test_nobody_there(served: Any) -> None:
    served.connection.close()
    code, out, err = await client(served.address, "-status")
    assert (code, out) == (1, "")
    assert err.count("Retrying") == 3


@pytest.mark.parametrize("word", ["--bogus", "--status=perhaps"])
async def test_flags_that_are_wrong(served: Any, word: str) -> None:
    code, out, err = await client(served.address, word)
    assert (code, out) == (1, "")
    assert "ERROR" in err


async def test_flags_as_gflags_reads_them(served: Any) -> None:
    for words in (("-status", "-nostatus"), ("-status=false",), ("-status", "--status=f"), ()):
        code, out, _ = await client(served.address, *words)
        assert (code, out) == (0, ""), words
    code, out, _ = await client(served.address, "stray", "-status", "--", "-reset_status")
    assert out


async def test_watch_for_updates(served: Any) -> None:
    import os
    import subprocess
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        f"import sys; from {MODULE} import main; sys.exit(main())", "-watch_for_updates",
        env={"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": served.address},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while b"Watching" not in await process.stderr.readline():
        pass
    heard = b""
    async with asyncio.timeout(20):
        while b"NEED_REBOOT" not in heard:
            # It says that it watches a moment before it does.
            served.steering.move(State.IDLE)
            served.steering.move(State.UPDATED_NEED_REBOOT, new_version="3602.1.5")
            try:
                async with asyncio.timeout(0.2):
                    heard = await process.stderr.readline()
            except TimeoutError:
                continue
            if b"NEED_REBOOT" not in heard:
                heard += await process.stderr.readline()
    assert b"new_version: 3602.1.5" in heard
    process.terminate()
    out, _ = await process.communicate()
    assert out == b""
