"""``updatectl`` where nothing is as it should be: no sentence is a traceback, every end has a code."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import Exit
from bascule.faces import bus_client
from private_bus import PrivateBus

UPDATECTL = [sys.executable, "-m", "bascule.faces.cli"]
CLIENT = [sys.executable, "-c", "from bascule.faces.legacy_client import main; raise SystemExit(main())"]  # fmt: skip


def run(
    *words: str,
    address: str = "unix:path=/nowhere/bus",
    shell: str = "",
    command: Sequence[str] = UPDATECTL,
) -> Any:
    """One command, in a shell if `shell` (redirections) is given."""
    environment = {"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": address}
    command = [*command, *words]
    if shell:
        quoted = " ".join(f"'{word}'" for word in command)
        command = ["bash", "-c", f"{quoted} {shell}"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in ran.stderr, ran.stderr
    assert "Exception ignored" not in ran.stderr, ran.stderr
    return ran


# ── addresses ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "address", ["nonsense", ";", "unix:", "unix:path", "tcp:host=127.0.0.1,port=1", "unix:dir=/tmp"]
)
def test_what_is_no_address_is_a_wrong_command_line(address: str) -> None:
    ran = run("status", address=address)
    assert ran.returncode == Exit.USAGE, ran.stderr
    assert repr(address) in ran.stderr
    assert run("--bus", address, "status").returncode == Exit.USAGE


@pytest.mark.parametrize(
    "address",
    ["unix:path=/nowhere/bus", "unix:path=/etc/hostname", "unix:abstract=bascule-nobody", "unix:path=/" + "x" * 300],
)  # fmt: skip
def test_where_nobody_listens(address: str) -> None:
    ran = run("status", address=address)
    assert ran.returncode == Exit.NO_DAEMON, ran.stderr
    assert "cannot be reached" in ran.stderr
    assert "systemctl start bascule" in ran.stderr


# ── what listens there is not what it should be ──────────────────────────────────────────────


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A unix socket whose every visitor gets `answer`."""
    with tempfile.TemporaryDirectory(prefix="bus-") as folder:
        server = socket.socket(socket.AF_UNIX)
        path = Path(folder) / "bus"
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                with visitor:
                    try:
                        answer(visitor)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"unix:path={path}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(10)


def greeted(visitor: socket.socket) -> None:
    """The authentication, as a bus does it."""
    visitor.recv(4096)
    visitor.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
    visitor.recv(4096)


def says(raw: bytes, *, after_greeting: bool) -> Callable[[socket.socket], None]:
    def answer(visitor: socket.socket) -> None:
        if after_greeting:
            greeted(visitor)
        else:
            heard = b""
            while not heard.endswith(b"\r\n"):
                heard += visitor.recv(4096)
        visitor.sendall(raw)
        visitor.recv(65536)

    return answer


HEADER = struct.pack("<cBBBIII", b"l", 2, 0, 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("raw", "after_greeting", "code"),
    [
        (b"", False, Exit.NO_DAEMON),
        (b"", True, Exit.NO_DAEMON),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, Exit.NO_DAEMON),
        (b"x" * 9000, False, Exit.NO_DAEMON),
        (b"REJECTED EXTERNAL\r\n", False, Exit.NOT_PERMITTED),
        (b"ERROR\r\n", False, Exit.NO_DAEMON),
        (b"\xff\xfe\r\n", False, Exit.NO_DAEMON),
        (b"garbage garbage garbage garbage", True, Exit.NO_DAEMON),
        (b"\0" * 64, True, Exit.NO_DAEMON),
        (b"l\x09\x00\x01" + b"\xff" * 60, True, Exit.NO_DAEMON),
        (b"l\x02\x00\x01" + struct.pack("<III", 1 << 31, 1, 1 << 31), True, Exit.NO_DAEMON),
        (HEADER, True, Exit.NO_DAEMON),
    ],
)
def test_what_is_no_message_bus(raw: bytes, after_greeting: bool, code: Exit) -> None:
    with listening(says(raw, after_greeting=after_greeting)) as address:
        for words in (["status"], ["--json", "update"]):
            ran = run(*words, address=address)
            assert ran.returncode == code, (ran.stdout, ran.stderr)
        assert json.loads(ran.stdout)["error"]["exit"] == code


def test_a_bus_that_never_greets_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from bascule.errors import DaemonNotRunning
    from bascule.faces.bus_client import BusClient

    monkeypatch.setattr(bus_client, "GREETING_TIMEOUT", 0.2)
    end = threading.Event()

    def silent(visitor: socket.socket) -> None:
        end.wait(30)

    def greets_only(visitor: socket.socket) -> None:
        greeted(visitor)
        end.wait(30)

    for answer in (silent, greets_only):
        end.clear()
        with listening(answer) as address:
            with pytest.raises(DaemonNotRunning):
                BusClient(address, "org.bascule.Update1")
            end.set()


@pytest.fixture
def impostor(bus: PrivateBus) -> Iterator[PrivateBus]:
    """A service of our name that answers every call with the string ``{``."""
    program = (
        "import sys\n"
        "from jeepney import new_method_return, MessageType\n"
        "from jeepney.bus_messages import message_bus\n"
        "from jeepney.io.blocking import open_dbus_connection\n"
        "c = open_dbus_connection(sys.argv[1])\n"
        "for n in ('org.bascule.Update1', 'com.coreos.update1'):\n"
        "    c.send_and_get_reply(message_bus.RequestName(n, 0))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    m = c.receive()\n"
        "    if m.header.message_type is MessageType.method_call:\n"
        "        c.send(new_method_return(m, 's', ('{',)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, bus.address], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield bus
    process.kill()
    process.wait(10)
    process.stdout.close()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("slots",),
        ("explain",),
        ("history",),
        ("config", "check"),
        ("check",),
        ("update",),
        ("update", "--no-wait"),
        ("watch",),
        ("plan",),
    ],
)
def test_a_service_that_answers_nonsense(impostor: PrivateBus, words: tuple[str, ...]) -> None:
    ran = run(*words, address=impostor.address)
    assert ran.returncode == Exit.NO_DAEMON, (words, ran.stdout, ran.stderr)
    assert "The answer that came over the bus is not understood" in ran.stderr
    asked = json.loads(run("--json", *words, address=impostor.address).stdout)
    assert asked["error"]["id"] == "bus-answer"


def test_the_legacy_client_meets_nonsense_too(impostor: PrivateBus) -> None:
    ran = run("-status", address=impostor.address, command=CLIENT)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "not understood" in ran.stderr


# ── where the answer goes ────────────────────────────────────────────────────────────────────


async def test_closed_and_full_streams(served: Any) -> None:
    import asyncio

    def ask(*words: str, shell: str) -> Any:
        return run(*words, shell=shell, address=served.address)

    full = await asyncio.to_thread(ask, "status", shell="> /dev/full")
    assert full.returncode == Exit.FAILED
    assert "could not be written" in full.stderr
    assert "No space left on device" in full.stderr
    for shell in ("--json > /dev/full", "> /dev/full 2> /dev/full", "> /dev/full 2>&-"):
        ran = await asyncio.to_thread(ask, "status", shell=shell)
        assert ran.returncode == Exit.FAILED, (shell, ran)
    for shell in (">&-", ">&- 2>&-", ">&- <&-", "<&- >/dev/null 2>&-"):
        ran = await asyncio.to_thread(ask, "hold", "--for", "1h", shell=shell)
        assert ran.returncode == 0, (shell, ran)
    assert [verb for verb, *_ in served.steering.asked].count("act hold") == 4


async def test_the_legacy_client_on_closed_and_full_streams(served: Any) -> None:
    import asyncio

    for shell, code in (
        (">&-", 0),
        ("> /dev/full", 1),
        ("2>&- <&-", 0),
        ("2> /dev/full", 0),
        ("| head -c 1", 0),
    ):
        ran = await asyncio.to_thread(
            run, "-status", shell=shell, address=served.address, command=CLIENT
        )
        assert ran.returncode == code, (shell, ran)
    for words in (("--help",), ("--bogus",)):
        for shell in (">&-", "2>&-", "> /dev/full"):
            ran = await asyncio.to_thread(run, *words, shell=shell, command=CLIENT)
            assert ran.returncode == 1


def test_closed_streams_without_a_daemon() -> None:
    for shell in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full"):
        assert run("status", shell=shell).returncode == Exit.NO_DAEMON, shell
    for words in (("--help",), ("update", "--help"), ("--version",)):
        assert run(*words, shell=">&-").returncode == 0
        assert run(*words, shell="> /dev/full").returncode == Exit.FAILED
        assert run(*words, shell="| head -c 1").stderr == ""
    assert run("fly", shell="2>&-").returncode == Exit.USAGE


async def test_a_reader_that_leaves_an_update_detaches(served: Any) -> None:
    """The update goes on, and the command does not claim that it has ended."""
    import asyncio

    from fake_daemon import Daemon

    Daemon(served.steering, "good", 0.01)
    ran = await asyncio.to_thread(
        run, "update", shell="| head -n 1; echo ${PIPESTATUS[0]}", address=served.address
    )
    assert ran.stdout.splitlines()[-1] == str(int(Exit.STOPPED)), ran
    assert ran.stderr == ""
    assert not served.steering.jobs[-1].error


def test_bytes_that_are_no_text(bus: PrivateBus) -> None:
    odd = os.fsdecode(b"/tmp/a\xffb")
    for words in (("update", "--file", odd), ("hold", "--indefinite", "--reason", odd)):
        ran = run(*words, address=bus.address)
        assert ran.returncode == Exit.USAGE, ran.stderr
        assert "UTF-8" in ran.stderr


def test_the_directory_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = subprocess.run(
        ["bash", "-c", f"cd '{gone}' && rmdir '{gone}' && exec {UPDATECTL[0]} -m bascule.faces.cli update --file x"],
        capture_output=True, text=True, env={"PATH": os.environ["PATH"], "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert ran.returncode == Exit.USAGE, ran.stderr
    assert "the present directory is gone" in ran.stderr


TOOL = [sys.executable, "-m", "bascule"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("disk", "show", "/nonexistent"), Exit.STORAGE),
        (("payload", "inspect", "/nonexistent"), Exit.STORAGE),
        (("disk",), Exit.USAGE),
    ],
)
def test_the_tools_on_closed_and_full_streams(words: tuple[str, ...], code: Exit) -> None:
    for shell in (
        ">&-",
        "> /dev/full",
        "2>&-",
        ">&- 2>&-",
        "<&-",
        "| head -c 0; exit ${PIPESTATUS[0]}",
    ):
        ran = run(*words, shell=shell, command=TOOL)
        assert ran.returncode == code, (shell, ran)
    ran = run("--version", shell="> /dev/full", command=TOOL)
    assert ran.returncode == Exit.FAILED
    assert "could not be written" in ran.stderr


def test_an_unforeseen_fault_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from bascule.faces import cli
    from bascule.faces.cli import show

    def broken(*_: object) -> int:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(show, "status", broken)
    assert cli.main(["status"]) == Exit.FAILED
    monkeypatch.setenv("BASCULE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["status"])


def test_what_the_commands_need_is_told_on_the_bus() -> None:
    from bascule.faces.bus_shown import SHOWN
    from bascule.faces.cli.session import NEEDED

    assert set(NEEDED) <= {entry.name for entry in SHOWN}
