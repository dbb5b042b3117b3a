"""etcd-lock against a real etcd server: locksmith's document, v3 and v2, two contenders."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.coordination import Grant, Refused
from bascule.engine.coordination.etcd import EtcdLock
from bascule.engine.coordination.registry import Credentials
from bascule.engine.coordination.semaphore import Semaphore, parse_semaphore
from etcd_server import free_port, serve

etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd-server is not installed")
A, B, C = "a" * 32, "b" * 32, "c" * 32
KEY = "coreos.com/updateengine/rebootlock/semaphore"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Speaks v2 and v3."""
    yield from serve(tmp_path_factory.mktemp("etcd"), "--enable-v2=true")


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Speaks v3 only, as any server of today does."""
    yield from serve(tmp_path_factory.mktemp("etcd3"))


def call(url: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def put(url: str, key: str, value: str) -> None:
    call(url, "/v3/kv/put", {"key": coded(key), "value": coded(value)})


def keys(url: str) -> dict[str, str]:
    found = call(url, "/v3/kv/range", {"key": coded("\0"), "range_end": coded("\0")})
    return {
        base64.b64decode(p["key"]).decode(): base64.b64decode(p.get("value", "")).decode()
        for p in found.get("kvs", [])
    }


def wipe(url: str) -> None:
    call(url, "/v3/kv/deleterange", {"key": coded("\0"), "range_end": coded("\0")})


def v2(url: str, method: str, path: str, **form: str) -> Any:
    body = urllib.parse.urlencode(form).encode() if form else None
    request = urllib.request.Request(f"{url}/v2/keys/{path}", body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


@pytest.fixture
async def lock(modern: str) -> Any:
    wipe(modern)
    made: list[EtcdLock] = []

    def make(machine: str, clock: Callable[[], float] | None = None, **more: Any) -> EtcdLock:
        found = EtcdLock([modern], machine, clock=clock or Clock(), **more)
        made.append(found)
        return found

    yield make
    for one in made:
        await one.close()


# ── the document


@pytest.mark.parametrize(
    ("raw", "semaphore"),
    [
        ('{"semaphore":1,"max":1,"holders":null}', Semaphore()),
        ('{"semaphore":0,"max":1,"holders":["x"]}', Semaphore(0, 1, ("x",))),
        ('{"semaphore":-1,"max":1,"holders":["x","y"]}', Semaphore(-1, 1, ("x", "y"))),
        ('{"semaphore":2,"max":3,"holders":["\\u003cx\\u003e"]}', Semaphore(2, 3, ("<x>",))),
    ],
)
def test_locksmiths_bytes(raw: str, semaphore: Semaphore) -> None:
    assert parse_semaphore(raw.encode()) == semaphore
    assert semaphore.encode() == raw.encode()


def test_an_empty_list_of_holders_is_none() -> None:
    assert parse_semaphore(b'{"semaphore":1,"max":1,"holders":[]}') == Semaphore()


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"semaphore":1,"max":1,"holders":{}}', b'{"max":1}', b"[" * 100_000,
     b'{"semaphore":true,"max":1}', b'{"semaphore":1,"max":1,"holders":[""]}',
     b'{"semaphore":1,"max":1,"holders":["a","a"]}', b" " * 70_000,
     b'{"semaphore":99999999999,"max":1}'],
)  # fmt: skip
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        parse_semaphore(raw)


@settings(max_examples=150)
@given(
    st.integers(0, 5), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), max_size=20)
)
def test_places_are_never_given_twice(places: int, steps: list[tuple[bool, str]]) -> None:
    semaphore = Semaphore(places, places)
    for take, who in steps:
        after = semaphore.taken_by(who) if take else semaphore.released_by(who)
        if after is None:
            assert len(semaphore.holders) == places and who not in semaphore.holders
            continue
        semaphore = after
        assert semaphore.free + len(semaphore.holders) == places
        assert list(semaphore.holders) == sorted(set(semaphore.holders))
        assert parse_semaphore(semaphore.encode()) == semaphore


# ── v3


@etcd
async def test_two_contenders_and_one_place(modern: str, lock: Any) -> None:
    clock = Clock()
    first, second = lock(A, clock), lock(B, clock)
    assert isinstance(await first.acquire(), Grant)
    assert keys(modern) == {
        KEY: json.dumps({"semaphore": 0, "max": 1, "holders": [A]}, separators=(",", ":")),
        f"coreos.com/updateengine/rebootlock/bascule/{A}": '{"by":"bascule","since":1700000000}',
    }
    assert isinstance(await first.acquire(), Grant), "whoever holds it is granted it again"
    clock.now += 600
    refused = await second.acquire()
    assert isinstance(refused, Refused)
    assert refused.evidence == f"All 1 places of the reboot lock are taken, by {A}."
    assert [(h.id, h.since, h.at_least) for h in refused.holders] == [(A, 1_700_000_000, False)]
    assert await first.release() == ""
    assert isinstance(await second.acquire(), Grant)
    assert await second.release() == ""
    assert keys(modern) == {KEY: '{"semaphore":1,"max":1,"holders":null}'}
    assert await second.release() == "", "releasing what is not held is no error"


@etcd
async def test_a_crowd_at_once_never_shares_a_place(modern: str, lock: Any) -> None:
    put(modern, KEY, '{"semaphore":2,"max":2,"holders":null}')
    locks = [lock(f"{n:032x}") for n in range(6)]
    answers = await asyncio.gather(*(one.acquire() for one in locks))
    assert sum(isinstance(a, Grant) for a in answers) <= 2
    document = parse_semaphore(keys(modern)[KEY].encode())
    assert (document.free, document.places) == (2 - len(document.holders), 2)
    granted = [f"{n:032x}" for n, a in enumerate(answers) if isinstance(a, Grant)]
    assert granted == list(document.holders)


@etcd
async def test_a_killed_holder_is_stale_with_its_age_until_it_is_evicted(
    modern: str, lock: Any
) -> None:
    clock = Clock()
    dead = lock(A, clock)
    await dead.acquire()
    await dead.close()
    clock.now += 9 * 86400
    alive = lock(B, clock)
    view = await alive.view()
    assert (view.held, view.free, view.places) == (False, 0, 1)
    assert [(h.id, h.since) for h in view.holders] == [(A, 1_700_000_000)]
    assert view.release.replace("{id}", A) == f"bascule lock release {A}"
    assert await alive.evict(A) == ""
    assert isinstance(await alive.acquire(), Grant)


@etcd
async def test_a_holder_that_nobody_dated_is_at_least_as_old_as_first_seen(
    modern: str, lock: Any
) -> None:
    put(modern, KEY, '{"semaphore":1,"max":2,"holders":["locksmith-node"]}')
    clock = Clock()
    await lock(A, clock).view()
    clock.now += 7200
    ours = lock(A, clock)
    (holder,) = (await ours.view()).holders
    assert (holder.since, holder.at_least) == (1_700_000_000, True)
    # Somebody changed the document: it may have let go and come back in between.
    put(modern, KEY, '{"semaphore":0,"max":2,"holders":["locksmith-node","other"]}')
    clock.now += 60
    holders = (await ours.view()).holders
    assert {h.since for h in holders} == {1_700_007_260}


@etcd
async def test_groups_are_apart(modern: str, lock: Any) -> None:
    assert isinstance(await lock(A, group="web & db/1").acquire(), Grant)
    assert isinstance(await lock(B).acquire(), Grant)
    assert isinstance(await lock(C, group="web & db/1").acquire(), Refused)
    assert "coreos.com/updateengine/rebootlock/groups/web+%26+db%2F1/semaphore" in keys(modern)


@etcd
async def test_a_closed_lock_and_a_broken_document(modern: str, lock: Any) -> None:
    put(modern, KEY, '{"semaphore":0,"max":0,"holders":null}')
    refused = await lock(A).acquire()
    assert isinstance(refused, Refused) and "no place at all" in refused.evidence
    put(modern, KEY, '{"semaphore":"1"}')
    refused = await lock(A).acquire()
    assert isinstance(refused, Refused) and "is not locksmith's" in refused.evidence
    assert "is not locksmith's" in (await lock(A).view()).trouble
    assert "is not locksmith's" in await lock(A).release()


@etcd
async def test_the_next_endpoint_is_asked_when_one_is_down(modern: str) -> None:
    wipe(modern)
    dead = f"http://127.0.0.1:{free_port()}"
    ours = EtcdLock([dead, modern], A, clock=Clock())
    try:
        assert isinstance(await ours.acquire(), Grant)
    finally:
        await ours.close()


async def test_nobody_there_is_trouble_and_no_exception() -> None:
    ours = EtcdLock([f"http://127.0.0.1:{free_port()}"], A, clock=Clock(), timeout=2)
    refused = await ours.acquire()
    assert isinstance(refused, Refused) and "cannot be asked" in refused.evidence
    assert not refused.final
    assert (await ours.view()).trouble
    assert await ours.release()
    await ours.close()


# ── v2, where unmodified locksmith lives


@etcd
async def test_locksmiths_own_document_is_used_where_it_is(server: str) -> None:
    wipe(server)
    v2(server, "DELETE", "coreos.com?recursive=true")
    v2(server, "PUT", KEY, value='{"semaphore":1,"max":2,"holders":["locksmith-node"]}')
    clock = Clock()
    ours, other = (EtcdLock([server], m, clock=clock) for m in (A, B))
    try:
        assert isinstance(await ours.acquire(), Grant)
        node = v2(server, "GET", KEY)["node"]
        assert node["value"] == f'{{"semaphore":0,"max":2,"holders":["{A}","locksmith-node"]}}'
        assert keys(server) == {}, "nothing is written to v3 then"
        refused = await other.acquire()
        assert isinstance(refused, Refused)
        assert [(h.id, h.at_least) for h in refused.holders] == [
            (A, False),
            ("locksmith-node", True),
        ]
        assert await ours.release() == ""
        node = v2(server, "GET", KEY)["node"]
        assert node["value"] == '{"semaphore":1,"max":2,"holders":["locksmith-node"]}'
        assert "node" not in v2(server, "GET", f"coreos.com/updateengine/rebootlock/bascule/{A}")
    finally:
        await ours.close()
        await other.close()


@etcd
async def test_v2_compare_and_swap_under_contention(server: str) -> None:
    wipe(server)
    v2(server, "DELETE", "coreos.com?recursive=true")
    locks = [EtcdLock([server], f"{n:032x}", clock=Clock(), api="v2") for n in range(5)]
    answers = await asyncio.gather(*(one.acquire() for one in locks))
    assert sum(isinstance(a, Grant) for a in answers) == 1
    assert parse_semaphore(v2(server, "GET", KEY)["node"]["value"].encode()).free == 0
    for one in locks:
        assert await one.release() == ""
        await one.close()
    assert v2(server, "GET", KEY)["node"]["value"] == '{"semaphore":1,"max":1,"holders":null}'


@etcd
async def test_without_a_document_v3_is_used(server: str) -> None:
    wipe(server)
    v2(server, "DELETE", "coreos.com?recursive=true")
    ours = EtcdLock([server], A, clock=Clock())
    assert isinstance(await ours.acquire(), Grant)
    assert KEY in keys(server)
    assert "node" not in v2(server, "GET", KEY)
    # A place in v3 is given back even after locksmith has made its own document in v2.
    v2(server, "PUT", KEY, value='{"semaphore":1,"max":1,"holders":null}')
    assert await ours.release() == ""
    assert parse_semaphore(keys(server)[KEY].encode()).holders == ()
    await ours.close()


# ── who may ask


@etcd
async def test_tls_with_client_certificates_and_a_password(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("etcds")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        leaf = authority.issue_cert("127.0.0.1")
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        leaf.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    options = [
        f"--cert-file={folder}/server.pem", f"--key-file={folder}/server.key",
        f"--trusted-ca-file={folder}/ca.pem",
    ]  # fmt: skip
    for url in serve(folder, *options, scheme="https", ca="yes"):
        files = {
            "ca_file": str(folder / "ca.pem"),
            "certificate": str(folder / "client.pem"),
            "key": str(folder / "client.key"),
        }
        plain = EtcdLock([url], A, clock=Clock(), credentials=Credentials(**files), api="v3")
        for _ in range(100):
            if isinstance(await plain.acquire(), Grant):
                break
            await asyncio.sleep(0.1)
        assert (await plain.view()).held
        # Switch authentication on: from now on a name and a password are needed.
        http = plain._server
        for path, body in (
            ("/v3/auth/user/add", {"name": "root", "password": "geheim"}),
            ("/v3/auth/role/add", {"name": "root"}),
            ("/v3/auth/user/grant", {"user": "root", "role": "root"}),
            ("/v3/auth/enable", {}),
        ):
            assert (await http.ask("POST", path, body=body)).status == 200
        assert "etcd answered" in (await plain.view()).trouble
        await plain.close()
        named = EtcdLock(
            [url], A, clock=Clock(), api="v3",
            credentials=Credentials(**files, user="root", password="geheim"),
        )  # fmt: skip
        assert (await named.view()).held
        named._stores["v3"]._token = "expired.1"  # type: ignore[attr-defined]
        assert (await named.view()).held, "an expired token is fetched anew"
        assert await named.release() == ""
        await named.close()
        wrong = EtcdLock(
            [url], A, clock=Clock(), api="v3",
            credentials=Credentials(**files, user="root", password="falsch"),
        )  # fmt: skip
        trouble = (await wrong.view()).trouble
        assert "etcd answered" in trouble and "falsch" not in trouble
        await wrong.close()
        stranger = EtcdLock([url], A, clock=Clock(), api="v3")
        assert (await stranger.view()).trouble, "an unknown authority is not trusted"
        await stranger.close()


# ── the command


@etcd
async def test_a_stale_holder_is_released_by_the_command_that_explain_names(
    modern: str, lock: Any, tmp_path: Path
) -> None:
    def bascule(*arguments: str, strategy: str = "etcd-lock") -> tuple[int, str]:
        settings = tmp_path / "lock.toml"
        settings.write_text(
            f'[reboot]\nstrategy = "{strategy}"\nendpoints = ["{modern}"]\n'
            f'[state]\nroot = "{tmp_path}"\n'
        )
        result = subprocess.run(
            [sys.executable, "-m", "bascule", "lock", *arguments,
             "--root", str(tmp_path), "--config", str(settings)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout + result.stderr

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(B + "\n")
    await lock(A).acquire()
    code, text = bascule("show")
    assert code == 0 and "0 of 1 places are free" in text and f"{A}  for " in text
    assert json.loads(bascule("show", "--json")[1])["holders"][0]["id"] == A
    code, text = bascule("release", C)
    assert code == 13 and "holds no place" in text
    code, text = bascule("release", A)
    assert (code, text) == (0, f"The place of {A} is free.\n")
    assert keys(modern) == {KEY: '{"semaphore":1,"max":1,"holders":null}'}
    code, text = bascule("release", A, strategy="fleetlock")
    assert code == 2 and "own server" in text
