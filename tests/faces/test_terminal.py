"""``updatectl`` on a real terminal: the live line, a resize, Ctrl-C, colours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from bascule.errors import Exit
from bascule.faces.cli.progress import live_line
from private_bus import PrivateBus

TESTS = Path(__file__).resolve().parents[1]
UPDATECTL = [sys.executable, "-m", "bascule.faces.cli"]
PATIENCE = 60


@contextmanager
def daemon(bus: PrivateBus, story: str, pace: float) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "fake_daemon.py"), bus.address, story, str(pace)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def environment(bus: PrivateBus, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "BASCULE_BUS_ADDRESS": bus.address,
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        **more,
    }


def status(bus: PrivateBus) -> Any:
    ran = subprocess.run(
        [*UPDATECTL, "--json", "status"], env=environment(bus), capture_output=True, check=True
    )
    return json.loads(ran.stdout)


def on_terminal(bus: PrivateBus, *words: str, columns: int = 100, **more: str) -> Any:
    return pexpect.spawn(
        UPDATECTL[0],
        [*UPDATECTL[1:], *words],
        env=environment(bus, **more),  # type: ignore[arg-type]
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=PATIENCE,
    )


def ended(child: Any) -> int:
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return int(child.exitstatus)


def test_the_live_line_and_a_resize(bus: PrivateBus) -> None:
    with daemon(bus, "good", 0.03):
        child = on_terminal(bus, "update")
        child.expect(r"Downloading 3602\.1\.5  \[#+-*\] +(\d+)%  [\d.]+ MB/44\.4 MB  2\.1 MB/s")
        child.setwinsize(24, 44)
        # What was drawn before the change was seen may still be in the pipe.
        child.expect(r"\r\x1b\[K(Downloading[^\r]{0,43})(?=\r\x1b\[K)")
        child.expect(r"\r\x1b\[K(Downloading[^\r]{0,43})(?=\r\x1b\[K)")
        child.expect("is installed and boots next")
        drawn = child.before
        assert ended(child) == 0
    lines = [line for line in drawn.split("\r\x1b[K") if line.strip()]
    assert lines
    assert all(len(line) <= 43 for line in lines if line.startswith("Downloading")), lines
    assert any(line.startswith("Downloaded 44.4 MB in") for line in lines)
    assert drawn.endswith("\r\x1b[K3602.1.5 "), "the line is gone before the sentence"


def test_ctrl_c_detaches_and_the_update_goes_on(bus: PrivateBus) -> None:
    with daemon(bus, "stuck", 0.005):
        child = on_terminal(bus, "update")
        child.expect(r" 40%")
        child.sendintr()
        child.expect(r"Detached; it goes on\. `updatectl watch` follows it, `updatectl cancel`")
        assert ended(child) == Exit.STOPPED
        assert status(bus)["state"] == "DOWNLOADING"

        watcher = on_terminal(bus, "watch")
        watcher.expect(r" 40%")
        cancelled = subprocess.run(
            [*UPDATECTL, "cancel"], env=environment(bus), capture_output=True, check=True
        )
        assert b"stopped" in cancelled.stdout
        watcher.expect("Release 3510.2.0 is running")
        watcher.sendintr()
        assert ended(watcher) == 0


def test_colour_on_terminals_only(bus: PrivateBus) -> None:
    with daemon(bus, "good", 0.0):
        for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            child = on_terminal(bus, "status", **more)
            child.expect(pexpect.EOF)
            child.close()
            assert ("\x1b[" in child.before) is coloured, more
            assert "Release 3510.2.0 is running." in child.before


def test_a_narrow_terminal(bus: PrivateBus) -> None:
    """20 columns: the live line stays one line, and what is over is said whole."""
    with daemon(bus, "good", 0.01):
        child = on_terminal(bus, "update", columns=20)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    drawn = [line for line in child.before.split("\r\x1b[K") if "\n" not in line]
    assert any(re.search(r"\d+%", line) for line in drawn), drawn
    assert all(len(line) <= 19 for line in drawn), drawn
    assert "3602.1.5 is installed and boots next." in child.before


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "", "LANG": "POSIX"}, {"PYTHONIOENCODING": "latin-1"}])  # fmt: skip
def test_a_terminal_without_utf_8(bus: PrivateBus, locale: dict[str, str]) -> None:
    with daemon(bus, "good", 0.0):
        child = pexpect.spawn(
            UPDATECTL[0], [*UPDATECTL[1:], "status"], env=environment(bus, NO_COLOR="1", **locale),  # type: ignore[arg-type]
            dimensions=(24, 100), timeout=PATIENCE,
        )  # fmt: skip
        child.expect(pexpect.EOF)
        child.close()
    assert child.exitstatus == 0
    assert child.before.isascii(), child.before
    assert b"* Release 3510.2.0 is running." in child.before
    assert b"<- running, boots next" in child.before


def test_ctrl_c_before_the_answer_and_twice(bus: PrivateBus) -> None:
    """No traceback at any moment, and the terminal is left clean."""
    with daemon(bus, "stuck", 0.005):
        child = on_terminal(bus, "update")
        child.expect(r" 40%")
        child.sendintr()
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        # The second one may find an interpreter that is ending, and end it as the system does.
        assert child.exitstatus in (Exit.STOPPED, 130) or child.signalstatus == signal.SIGINT
        assert "Traceback" not in child.before
        assert status(bus)["state"] == "DOWNLOADING"


def test_a_hang_up_leaves_the_update_running(bus: PrivateBus) -> None:
    with daemon(bus, "stuck", 0.005):
        child = on_terminal(bus, "update")
        child.expect(r" 40%")
        child.close(force=True)
        assert status(bus)["state"] == "DOWNLOADING"


class Tmux:
    """A terminal that draws, so that a test sees what a person sees."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def __call__(self, *words: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *words],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def screen(self) -> list[str]:
        return [line.rstrip() for line in self("capture-pane", "-p").splitlines() if line.strip()]

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        for _ in range(PATIENCE * 20):
            screen = self.screen()
            if seen(screen):
                return screen
            time.sleep(0.05)
        raise AssertionError(screen)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_person_sees_one_line_that_moves(bus: PrivateBus) -> None:
    tmux = Tmux(bus.directory / "tmux")
    with daemon(bus, "good", 0.03):
        command = f"env BASCULE_BUS_ADDRESS={bus.address} LANG=C.UTF-8 {' '.join(UPDATECTL)} update"
        tmux(
            "new-session", "-d", "-x", "120", "-y", "20",
            f"{command}; echo code $?; sleep {PATIENCE}",
        )  # fmt: skip
        try:
            screen = tmux.until(lambda lines: bool(lines) and "% " in lines[-1])
            assert len(screen) == 1, screen
            tmux("resize-window", "-x", "60", "-y", "20")
            screen = tmux.until(lambda lines: any(line.startswith("Downloaded") for line in lines))
            screen = tmux.until(lambda lines: lines[-1] == "code 0")
        finally:
            tmux("kill-server")
    assert any(re.fullmatch(r"Downloaded 44\.4 MB in \d+ m?i?n?s?.*", line) for line in screen)
    assert not any(line.startswith("Downloading") for line in screen), "the live line is gone"
    assert screen[-3:] == [
        "3602.1.5 is installed and boots next. `updatectl reboot` sta",
        "rts it.",
        "code 0",
    ]


@pytest.mark.parametrize("width", range(1, 130))
def test_the_live_line_fits_every_width(width: int) -> None:
    properties = {
        "State": "DOWNLOADING",
        "Phase": "download",
        "NewVersion": "3602.1.5",
        "BytesDone": 20_000_000,
        "BytesTotal": 44_404_529,
        "Rate": 2_100_000.0,
        "Eta": 11,
    }
    line = live_line(properties, width)
    assert len(line) <= width
    assert "45%" in line or width < 3
    assert len(live_line({"State": "CHECKING_FOR_UPDATE"}, width)) <= width


def test_the_live_line_survives_odd_figures() -> None:
    odd = {"State": "DOWNLOADING", "Phase": "x", "NewVersion": "v\x1b[2J", "BytesDone": 50}
    for total in (0, 1, 50):
        line = live_line({**odd, "BytesTotal": total, "Rate": 0.0, "Eta": -1}, 80)
        assert "\x1b" not in line
        assert len(line) <= 80
