"""Prometheus text: read back by a parser of the tests' own; the socket and the file."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule import __version__
from bascule.errors import StorageError
from bascule.faces.metrics import Figures, figures, render
from bascule.faces.metrics_outlets import SocketServer, write_textfile
from bascule.updater.status import Failure, SlotStatus, State, Status
from exposition import parse

NOW = 1_711_800_000.0
STATUS = Status(
    state=State.UPDATED_NEED_REBOOT,
    since=int(NOW) - 60,
    current_version="4081.1.0",
    new_version="4081.2.0",
    group='st"a\\b\nle',
    last_checked=int(NOW) - 3600,
    last_updated=1000,
    next_check=int(NOW) + 2700,
    bytes_done=5,
    bytes_total=10,
    quarantine=2,
    verdict="WAITING",
    failure=Failure("payload-hash", 10, "m", "r", int(NOW) - 7),
    slots=(
        SlotStatus("A", True, False, 1, 0, True),
        SlotStatus("B", False, True, 2, 1, False),
    ),
    blocked_by=({"name": "window", "blocks": "reboot", "verdict": "block"},),
)


def test_the_page_says_what_status_and_figures_say() -> None:
    told = Figures(
        attempts={"updated": 3, "failed": 1},
        failures={"payload-hash": 1},
        bytes_fetched=482_000_000,
        last={"download": 61.5, "downtime": 42},
        budget_limit=1000,
        budget_used=10,
        held=True,
    )
    found = parse(render(STATUS, told, NOW))
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("build_info", (("version", __version__), ("release", "4081.1.0"), ("group", STATUS.group))): 1,
        ("state", (("state", "updated_need_reboot"),)): 1,
        ("state", (("state", "idle"),)): 0,
        ("state_since_seconds", ()): NOW - 60,
        ("last_check_timestamp_seconds", ()): NOW - 3600,
        ("last_success_age_seconds", ()): 3600,
        ("last_update_timestamp_seconds", ()): 1000,
        ("next_check_timestamp_seconds", ()): NOW + 2700,
        ("stale", ()): 0,
        ("verdict", (("verdict", "waiting"),)): 1,
        ("failed", ()): 1,
        ("last_failure_timestamp_seconds", (("id", "payload-hash"),)): NOW - 7,
        ("attempts_total", (("result", "updated"),)): 3,
        ("attempts_total", (("result", "failed"),)): 1,
        ("failures_total", (("id", "payload-hash"),)): 1,
        ("fetched_bytes_total", ()): 482_000_000,
        ("last_update_duration_seconds", (("phase", "download"),)): 61.5,
        ("download_bytes", ()): 5,
        ("download_size_bytes", ()): 10,
        ("quarantine_releases", ()): 2,
        ("held", ()): 1,
        ("budget_bytes", ()): 1000,
        ("budget_used_bytes", ()): 10,
        ("gate_blocked", (("gate", "window"), ("blocks", "reboot"))): 1,
        ("slot_booted", (("slot", "A"),)): 1,
        ("slot_next", (("slot", "B"),)): 1,
        ("slot_good", (("slot", "B"),)): 0,
        ("slot_tries", (("slot", "B"),)): 1,
    }  # fmt: skip
    for (name, labels), value in expected.items():
        assert found[f"bascule_{name}", labels] == value, name
    assert sum(v for (n, _), v in found.items() if n == "bascule_state") == 1


def test_a_fresh_host_has_no_age_and_no_failure() -> None:
    found = parse(render(Status(), Figures(), NOW))
    names = {name for name, _ in found}
    assert "bascule_last_success_age_seconds" not in names
    assert "bascule_last_failure_timestamp_seconds" not in names
    assert found["bascule_failed", ()] == 0


def test_staleness_is_the_statuses() -> None:
    assert parse(render(replace(STATUS, stale=True), Figures(), NOW))["bascule_stale", ()] == 1


def test_figures_from_history() -> None:
    records: list[dict[str, Any]] = [
        {"kind": "verdict", "facts": {"verdict": "UPDATED", "bytes": 10, "written": 7, "skipped": 3,
                                      "download_s": 1.5, "apply_s": 2, "downtime_s": 40}},
        {"kind": "verdict", "facts": {"verdict": "ROLLED_BACK", "bytes": 5}},
        {"kind": "verdict", "facts": {"verdict": "ON_TRIAL", "bytes": 99}},
        {"kind": "verdict", "facts": {"verdict": "UPDATED", "bytes": -5, "download_s": "x"}},
        {"kind": "attempt-failed", "facts": {"error": {"id": "transfer"}}},
        {"kind": "attempt-failed", "facts": {"error": {"id": "transfer"}}},
        {"kind": "attempt-failed", "facts": None},
        {"kind": "asked"},
    ]  # fmt: skip
    told = figures(records, budget_limit=5)
    assert told.attempts == {"updated": 2, "rolled-back": 1, "withdrawn": 0, "failed": 3}
    assert told.failures == {"transfer": 2, "unknown": 1}
    assert (told.bytes_fetched, told.bytes_written, told.bytes_skipped) == (15, 7, 3)
    assert told.last == {"download": 0.0}
    assert told.budget_limit == 5


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=10), st.integers(0, 10**12), max_size=4),
    st.dictionaries(st.text(max_size=10), st.floats(0, 1e12), max_size=3),
    st.floats(0, 1e12),
)
def test_any_text_and_number_is_escaped(
    version: str, group: str, failures: dict[str, int], last: dict[str, float], now: float
) -> None:
    status = replace(STATUS, current_version=version, group=group)
    found = parse(render(status, Figures(failures=failures, last=last), now))
    labels = (("version", __version__), ("release", version), ("group", group))
    assert found["bascule_build_info", labels] == 1
    for key, value in failures.items():
        assert found["bascule_failures_total", (("id", key),)] == value


# ── the socket


def page(text: str) -> Callable[[], Awaitable[str]]:
    async def make() -> str:
        return text

    return make


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SocketServer]:
    found = SocketServer(tmp_path / "run" / "metrics.sock", page("bascule_held 0\n"))
    await found.start()
    yield found
    await found.close()


async def ask(path: Path, request: bytes | None, *, close: bool = False) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    if request:
        writer.write(request)
    if close:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_who_speaks_http_gets_http(server: SocketServer) -> None:
    answer = await ask(server.path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert b"Content-Length: 15" in head
    assert body == b"bascule_held 0\n"
    head_only = await ask(server.path, b"HEAD / HTTP/1.0\r\n\r\n")
    assert head_only.endswith(b"\r\n\r\n") and b"200 OK" in head_only
    assert b"405" in await ask(server.path, b"POST / HTTP/1.1\r\n\r\n")


async def test_who_says_nothing_gets_plain_text(server: SocketServer) -> None:
    assert await ask(server.path, None) == b"bascule_held 0\n"
    assert await ask(server.path, None, close=True) == b"bascule_held 0\n"
    assert await ask(server.path, b"G", close=True) == b"bascule_held 0\n"
    assert await ask(server.path, b"x" * 20_000, close=True) == b"bascule_held 0\n"


async def test_permissions_and_the_end(server: SocketServer) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o660
    await server.start()
    await server.close()
    assert not server.path.exists()
    await server.close()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(
    server: SocketServer, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="already"):
        await SocketServer(server.path, page("")).start()
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    again = SocketServer(stale, page("x\n"))
    await again.start()
    assert await ask(stale, None, close=True) == b"x\n"
    await again.close()


async def test_a_place_that_cannot_be_used_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        await SocketServer(tmp_path / "file" / "x", page("")).start()


async def test_silent_clients_are_bounded(server: SocketServer) -> None:
    silent = [await asyncio.open_unix_connection(server.path) for _ in range(12)]
    answers = await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
    assert answers.count(b"bascule_held 0\n") == 8
    for _, writer in silent:
        writer.close()
    assert await ask(server.path, None, close=True) == b"bascule_held 0\n"


# ── the file


def test_the_file_is_replaced_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "bascule.prom"
    write_textfile(path, "old\n")
    before = path.stat().st_ino
    write_textfile(path, render(STATUS, Figures(), NOW))
    assert parse(path.read_text())
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["bascule.prom"]


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"bascule\.prom"):
        write_textfile(tmp_path / "none" / "bascule.prom", "x\n")
    (tmp_path / "folder.prom").mkdir()
    with pytest.raises(StorageError):
        write_textfile(tmp_path / "folder.prom", "x\n")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.prom"]
