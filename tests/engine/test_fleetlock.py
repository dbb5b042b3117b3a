"""FleetLock against a small conforming server of the tests' own, error bodies included."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from bascule.engine.coordination import Grant, Refused
from bascule.engine.coordination.fleetlock import FleetLock
from bascule.engine.coordination.registry import Credentials
from bascule.errors import SettingsError

A, B = "a" * 32, "b" * 32


class Server:
    """The protocol as written: groups with places, idempotent requests, typed error bodies."""

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.holders: dict[str, set[str]] = {"default": set(), "workers": set()}
        self.asked: list[tuple[str, str, str]] = []
        self.answer: web.Response | None = None

    async def handle(self, request: web.Request) -> web.Response:
        if self.answer is not None:
            return self.answer
        if request.headers.get("fleet-lock-protocol") != "true":
            return self.error(400, "missing_header", "the fleet-lock-protocol header is missing")
        try:
            body = json.loads(await request.read())
            params = body["client_params"]
            who, group = params["id"], params["group"]
        except (ValueError, KeyError, TypeError):
            return self.error(400, "invalid_body", "the body cannot be read")
        self.asked.append((request.path, who, group))
        if group not in self.holders:
            return self.error(400, "unknown_group", f"there is no group {group}")
        held = self.holders[group]
        if request.path == "/v1/steady-state":
            held.discard(who)
            return web.Response(status=200)
        if who not in held and len(held) >= self.places:
            return self.error(409, "all_semaphore_slots_taken", "all slots are taken")
        held.add(who)
        return web.Response(status=200)

    @staticmethod
    def error(status: int, kind: str, value: str) -> web.Response:
        return web.json_response({"kind": kind, "value": value}, status=status)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    found = Server()
    app = web.Application()
    app.router.add_post("/v1/pre-reboot", found.handle)
    app.router.add_post("/v1/steady-state", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield found, f"http://127.0.0.1:{port}/"
    await runner.cleanup()


async def test_two_hosts_and_one_place(server: tuple[Server, str]) -> None:
    found, url = server
    first, second = FleetLock(url, A), FleetLock(url, B)
    assert isinstance(await first.acquire(), Grant)
    assert isinstance(await first.acquire(), Grant), "idempotent"
    assert (await first.view()).held
    refused = await second.acquire()
    assert isinstance(refused, Refused)
    assert refused.evidence == (
        "The FleetLock server refuses: all slots are taken (all_semaphore_slots_taken)"
    )
    assert not (await second.view()).held
    assert await first.release() == ""
    assert await first.release() == "", "idempotent"
    assert isinstance(await second.acquire(), Grant)
    assert found.asked[0] == ("/v1/pre-reboot", A, "default")
    assert found.asked[3] == ("/v1/steady-state", A, "default")
    await first.close()
    await second.close()


async def test_groups(server: tuple[Server, str]) -> None:
    found, url = server
    workers = FleetLock(url, A, group="workers")
    assert isinstance(await workers.acquire(), Grant)
    assert found.holders == {"default": set(), "workers": {A}}
    unknown = FleetLock(url, A, group="nobody")
    refused = await unknown.acquire()
    assert isinstance(refused, Refused)
    assert "there is no group nobody (unknown_group)" in refused.evidence
    assert "unknown_group" in await unknown.release()
    await workers.close()
    await unknown.close()


@pytest.mark.parametrize("group", ["", "web & db", "ä", "a/b", "x" * 200])
def test_a_group_outside_the_protocol_is_refused(group: str) -> None:
    with pytest.raises(SettingsError, match="group"):
        FleetLock("http://127.0.0.1:1", A, group=group)


@pytest.mark.parametrize(
    ("answer", "evidence"),
    [
        ((500, b""), "which no FleetLock server says"),
        ((404, b"<html>"), "which no FleetLock server says"),
        ((302, b""), "HTTP status 302"),
        ((409, b"{"), "HTTP status 409"),
        ((409, b'{"kind": 5, "value": []}'), "HTTP status 409"),
        ((409, b'{"kind": "k\\u001b[31m", "value": "two\\nlines"}'), "two lines (k [31m)"),
        ((409, b'{"kind": "' + b"k" * 300_000 + b'"}'), "too large"),
        ((500, b'{"kind": "failed_lock", "value": "etcd is down"}'), "etcd is down (failed_lock)"),
    ],
)
async def test_odd_answers_are_a_no(
    server: tuple[Server, str], answer: tuple[int, bytes], evidence: str
) -> None:
    found, url = server
    found.answer = web.Response(
        status=answer[0], body=answer[1], headers={"Location": "http://127.0.0.1:1/"}
    )
    lock = FleetLock(url, A)
    refused = await lock.acquire()
    assert isinstance(refused, Refused)
    assert evidence in refused.evidence
    assert "\x1b" not in refused.evidence
    await lock.close()


async def test_a_server_that_is_away_is_trouble_until_it_is_back(
    server: tuple[Server, str],
) -> None:
    _, url = server
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{probe.getsockname()[1]}"
        lock = FleetLock(away, A, timeout=5)
        refused = await lock.acquire()
        assert isinstance(refused, Refused) and "cannot be asked" in refused.evidence
        assert (await lock.view()).trouble
        assert await lock.release()
        await lock.close()
    lock = FleetLock(url, A)
    assert isinstance(await lock.acquire(), Grant)
    assert (await lock.view()).trouble == ""
    await lock.close()


async def test_a_server_that_says_nothing_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    lock = FleetLock(url, A, timeout=0.2)
    refused = await lock.acquire()
    assert isinstance(refused, Refused) and "cannot be asked" in refused.evidence
    await lock.close()
    server.close()
    await server.wait_closed()


async def test_a_password_is_sent_as_basic_auth() -> None:
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    app = web.Application()
    app.router.add_post("/lock/v1/pre-reboot", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url: Any = f"http://127.0.0.1:{runner.addresses[0][1]}/lock"
    lock = FleetLock(url, A, credentials=Credentials(user="u", password="p"))
    assert isinstance(await lock.acquire(), Grant)
    assert seen == ["Basic dTpw"]
    await lock.close()
    await runner.cleanup()
