"""sd_notify and the journal's lines, against real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from bascule.errors import Busy
from bascule.faces import journal
from bascule.faces.journal import JournalSocket, configure_logging, under_journal
from bascule.faces.systemd import Notifier, keep_watchdog


@pytest.fixture(params=["path", "abstract"])
def notify(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = f"@bascule-test-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(10)
        yield name, sock


def test_ready_status_stopping(notify: tuple[str, socket.socket]) -> None:
    name, sock = notify
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.active
    notifier.ready("Waiting")
    assert sock.recv(1000) == b"READY=1\nSTATUS=Waiting"
    notifier.status("Waiting")
    notifier.status("Two\nlines=\0")
    assert sock.recv(1000) == b"STATUS=Two lines= ", "what is said twice is sent once"
    notifier.stopping()
    assert sock.recv(1000) == b"STOPPING=1\nSTATUS=Stopping"
    notifier.extend_timeout(2.5)
    assert sock.recv(1000) == b"EXTEND_TIMEOUT_USEC=2500000"


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nowhere/n"}],
)
def test_nobody_listens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert not notifier.ready()
    notifier.status("x")


def test_a_full_socket_does_not_block(notify: tuple[str, socket.socket]) -> None:
    name, _ = notify
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for number in range(5000):
        notifier.status(f"{number}" * 50)


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_watchdog_interval(environment: dict[str, str], interval: float | None) -> None:
    assert Notifier(environment).watchdog_interval == interval


async def test_the_watchdog_is_fed_by_the_loop_while_all_is_well(
    notify: tuple[str, socket.socket],
) -> None:
    name, sock = notify
    sock.setblocking(False)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 5:
            raise asyncio.CancelledError

    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000"})
    with pytest.raises(asyncio.CancelledError):
        await keep_watchdog(notifier, healthy=lambda: len(slept) != 2, sleep=sleep)
    assert slept == [2.0] * 5
    assert [sock.recv(100) for _ in range(4)] == [b"WATCHDOG=1"] * 4
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    await keep_watchdog(Notifier({}))


# ── the journal ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def logged(style: str, **options: Any) -> list[str]:
    stream = io.StringIO()
    configure_logging(style=style, stream=stream, environment={}, **options)
    log = structlog.get_logger("x")
    log.debug("Hidden")
    log.info("Started", slot="B", attempt="overridden")
    log.warning("Refused", error=Busy("a\ndownload"))
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("Broken")
    return stream.getvalue().splitlines()


def test_json_lines() -> None:
    first, second, third = map(json.loads, logged("json", attempt="a1"))
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert (first["event"], first["slot"]) == ("Started", "B")
    assert second["attempt"] == "a1"
    assert second["error_id"] == "busy"
    assert second["remedy"] == Busy.remedy
    assert second["MESSAGE_ID"] == Busy.message_id()
    assert "ValueError: boom" in third["exception"]


def test_priority_prefixes_one_line_each() -> None:
    lines = logged("journal")
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>"]
    assert all(json.loads(line[3:]) for line in lines)


def test_readable_on_a_terminal() -> None:
    lines = logged("console")
    assert "Started" in lines[0]
    assert "slot=B" in lines[0]
    assert "\x1b" not in lines[0], "this stream is no terminal"
    assert not any("MESSAGE_ID" in line for line in lines)
    assert lines[-1] == "ValueError: boom"


def test_wrong_words_are_refused() -> None:
    for options in ({"level": "loud"}, {"style": "pretty"}):
        with pytest.raises(ValueError, match="unknown"):
            configure_logging(stream=io.StringIO(), **options)


def test_whether_a_stream_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        stat = os.fstat(stream.fileno())
        mine = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        assert under_journal(stream, mine)
        assert not under_journal(stream, {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino + 1}"})
        assert not under_journal(stream, {"JOURNAL_STREAM": "nonsense"})
        assert not under_journal(stream, {})
    assert not under_journal(io.StringIO(), mine)


def fields_of(datagram: bytes) -> dict[str, str]:
    """As journald reads an entry: KEY=value lines, or KEY, length and raw bytes."""
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        if b"=" in line:
            key, _, value = line.partition(b"=")
        else:
            key = line
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[key.decode()] = value.decode()
        datagram = rest
    return fields


def test_entries_with_a_message_id_become_journal_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "journal")
    monkeypatch.setattr(journal.JournalSocket.__init__, "__defaults__", (path,))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        (tmp_path / "log").open("w") as stream,
    ):
        sock.bind(path)
        sock.settimeout(10)
        stat = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        configure_logging(stream=stream, environment=environment, attempt="a1")
        log = structlog.get_logger("x")
        log.info("Plain")
        log.error("Refused", error=Busy("it\nis"))
        fields = fields_of(sock.recv(100_000))
    assert fields["MESSAGE_ID"] == Busy.message_id()
    assert fields["PRIORITY"] == "3"
    assert fields["SYSLOG_IDENTIFIER"] == "bascule"
    assert fields["BASCULE_ERROR_ID"] == "busy"
    assert fields["BASCULE_ATTEMPT"] == "a1"
    assert fields["BASCULE_ERROR"] == "Something else is under way: it\nis"
    assert json.loads(fields["MESSAGE"])["event"] == "Refused"
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("<6>")
    assert json.loads(line[3:])["event"] == "Plain"


def test_an_entry_that_the_journal_does_not_take_goes_to_stderr(tmp_path: Path) -> None:
    sender = JournalSocket(str(tmp_path / "nobody"))
    assert not sender.send({"MESSAGE": "x"})
    assert not sender.send({"MESSAGE": "x" * 1_000_000})
    sender.close()
