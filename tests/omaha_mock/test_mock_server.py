"""The server in process: what it answers, records, and does wrong when told to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import aiohttp
import pytest
import pytest_asyncio

from omaha_mock.server import MockServer

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
CHECK = """<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="update_engine-0.4.10" updaterversion="update_engine-0.4.10"
 installsource="ondemandupdate" ismachine="1">
    <os version="Chateau" platform="CoreOS" sp="{version}_x86_64"></os>
    <app appid="{{e96281a6-d1af-4bde-9a0a-97b76e56dc57}}" version="{version}" track="{track}"
 machineid="{machine}" board="amd64-usr" delta_okay="{delta}" >
        <ping active="1"></ping>
        <updatecheck></updatecheck>
        <event eventtype="3" eventresult="2" previousversion="0.0.0.0"></event>
    </app>
</request>
"""


def check(
    version: str = "1.0.0", track: str = "stable", machine: str = "m", delta: str = "false"
) -> bytes:
    return CHECK.format(version=version, track=track, machine=machine, delta=delta).encode()


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "release-2.bin"
    path.write_bytes(hashlib.shake_128(b"payload").digest(1_000_000))
    return path


async def ask(http: aiohttp.ClientSession, omaha: MockServer, body: bytes) -> ElementTree.Element:
    async with http.post(omaha.url, data=body, headers={"Content-Type": "text/xml"}) as answer:
        assert answer.status == 200
        return ElementTree.fromstring(await answer.read())


def found(root: ElementTree.Element, path: str) -> ElementTree.Element:
    element = root.find(path)
    assert element is not None, path
    return element


async def get(
    http: aiohttp.ClientSession, url: str, range_: str = ""
) -> tuple[int, bytes, dict[str, str]]:
    async with http.get(url, headers={"Range": range_} if range_ else {}) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


async def test_offer_and_noupdate(
    omaha: MockServer, http: aiohttp.ClientSession, payload: Path
) -> None:
    root = await ask(http, omaha, check())
    assert found(root, "app/updatecheck").get("status") == "noupdate"

    omaha.offer("2.0.0", payload, disable_backoff=True, metadata_size=77, max_failures=3)
    omaha.rules(poll_interval=120)
    root = await ask(http, omaha, check())
    update = found(root, "app/updatecheck")
    assert (update.get("status"), update.get("PollInterval")) == ("ok", "120")
    package = found(update, "manifest/packages/package")
    action = found(update, "manifest/actions/action")
    digest = base64.b64encode(hashlib.sha256(payload.read_bytes()).digest()).decode()
    assert action.attrib == {
        "event": "postinstall",
        "sha256": digest,
        "DisablePayloadBackoff": "true",
        "MaxFailureCountPerUrl": "3",
        "MetadataSize": "77",
    }
    assert package.get("size") == "1000000"
    url = found(update, "urls/url").attrib["codebase"] + package.attrib["name"]
    status, body, headers = await get(http, url)
    assert (status, body) == (200, payload.read_bytes())
    assert headers["Content-Length"] == "1000000"

    root = await ask(http, omaha, check(version="2.0.0"))
    assert found(root, "app/updatecheck").get("status") == "noupdate"
    omaha.noupdate()
    root = await ask(http, omaha, check())
    assert found(root, "app/updatecheck").get("status") == "noupdate"

    assert omaha.events[0] == (3, 2, None, "0.0.0.0") and len(omaha.checks) == 4
    assert [record.said for record in omaha.requests] == ["noupdate", "ok", "noupdate", "noupdate"]
    assert omaha.requests[1].version == "2.0.0" and omaha.requests[1].ping
    assert omaha.requests[0].app["track"] == "stable"


async def test_delta_only_where_it_starts(
    omaha: MockServer, http: aiohttp.ClientSession, payload: Path, tmp_path: Path
) -> None:
    delta = tmp_path / "delta.bin"
    delta.write_bytes(b"delta")
    omaha.offer("2.0.0", payload)
    omaha.offer("2.0.0", delta, origin="1.0.0")
    omaha.rules(deltas="always")
    for version, name in (("1.0.0", "delta.bin"), ("0.9.0", "release-2.bin")):
        root = await ask(http, omaha, check(version=version))
        assert found(root, ".//package").get("name") == name
        is_delta = found(root, ".//action").get("IsDeltaPayload")
        assert is_delta == ("true" if name == "delta.bin" else None)
    omaha.rules(deltas="asked")
    root = await ask(http, omaha, check(delta="false"))
    assert found(root, ".//package").get("name") == "release-2.bin"
    root = await ask(http, omaha, check(delta="true"))
    assert found(root, ".//package").get("name") == "delta.bin"


async def test_refusals(omaha: MockServer, http: aiohttp.ClientSession, payload: Path) -> None:
    omaha.offer("2.0.0", payload)
    omaha.status("error-maxUpdatesPerPeriodLimitReached")
    root = await ask(http, omaha, check())
    assert found(root, "app").get("status") == "error-maxUpdatesPerPeriodLimitReached"
    assert found(root, "app/updatecheck").get("status") == "error-internal"
    omaha.offer("2.0.0", payload)

    omaha.http_error(503, times=2)
    omaha.answer_with("<html>", times=1)
    statuses = []
    for _ in range(4):
        async with http.post(omaha.url, data=check()) as answer:
            statuses.append((answer.status, (await answer.read())[:6]))
    assert [status for status, _ in statuses] == [503, 503, 200, 200]
    assert statuses[2][1] == b"<html>" and statuses[3][1] == b"<?xml "
    omaha.refuse()
    with pytest.raises(aiohttp.ClientError):
        await http.post(omaha.url, data=check())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<request",
        b'<request protocol="2.0"><app/></request>',
        b'<request protocol="3.0"></request>',
        b'<!DOCTYPE r [<!ENTITY a "b">]><request protocol="3.0"><app appid="&a;"/></request>',
    ],
)
async def test_bad_requests_get_400(
    omaha: MockServer, http: aiohttp.ClientSession, body: bytes
) -> None:
    async with http.post(omaha.url, data=body) as answer:
        assert answer.status == 400
    assert omaha.requests[0].body == body and omaha.events == []


async def test_ranges(omaha: MockServer, http: aiohttp.ClientSession, payload: Path) -> None:
    omaha.offer("2.0.0", payload)
    url = omaha.base + "/payload/release-2.bin"
    whole = payload.read_bytes()
    status, body, headers = await get(http, url, "bytes=999990-")
    assert (status, body) == (206, whole[999_990:])
    assert headers["Content-Range"] == "bytes 999990-999999/1000000"
    assert (await get(http, url, "bytes=10-19"))[1] == whole[10:20]
    assert (await get(http, url, "bytes=-5"))[1] == whole[-5:]
    status, _, headers = await get(http, url, "bytes=1000000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */1000000")
    assert (await get(http, omaha.base + "/payload/other.bin"))[0] == 404
    assert (await get(http, omaha.base + "/payload/..%2Frelease-2.bin"))[0] == 404
    records = [(r.range, r.status, r.first, r.sent) for r in omaha.payload_requests[:2]]
    assert records == [("bytes=999990-", 206, 999_990, 10), ("bytes=10-19", 206, 10, 10)]


async def test_payload_faults(
    omaha: MockServer, http: aiohttp.ClientSession, payload: Path
) -> None:
    omaha.offer("2.0.0", payload)
    url = omaha.base + "/payload/release-2.bin"
    whole = payload.read_bytes()

    omaha.drop(300_000)
    with pytest.raises(aiohttp.ClientPayloadError):
        await get(http, url)
    assert (omaha.payload_requests[-1].sent, omaha.bytes_sent) == (300_000, 300_000)
    assert not omaha.payload_requests[-1].whole
    assert (await get(http, url, "bytes=300000-"))[1] == whole[300_000:]

    omaha.truncate(1234)
    assert (await get(http, url))[1] == whole[:1234]
    omaha.corrupt(500_000)
    body = (await get(http, url))[1]
    assert [at for at in range(len(whole)) if whole[at] != body[at]] == [500_000]
    omaha.wrong_range(100)
    status, body, headers = await get(http, url, "bytes=50-99")
    assert (status, headers["Content-Range"]) == (206, "bytes 150-150/1000000")
    omaha.ignore_range(times=1)
    status, body, _ = await get(http, url, "bytes=50-99")
    assert (status, len(body)) == (200, 1_000_000)
    omaha.content_length(10)
    assert (await get(http, url))[1] == whole[:10]
    omaha.content_length(2_000_000)
    with pytest.raises(aiohttp.ClientPayloadError):
        await get(http, url)
    omaha.redirect("/mirror/release-2.bin", url="/payload/")
    assert (await get(http, url))[1] == whole
    omaha.heal()
    omaha.http_error(404, on="payload", times=1)
    assert (await get(http, url))[0] == 404
    assert (await get(http, url))[1] == whole
    assert omaha.payload_requests[-2].faults == ("status",)


async def test_stalled_slow_and_endless_bodies(
    omaha: MockServer, http: aiohttp.ClientSession, payload: Path
) -> None:
    omaha.offer("2.0.0", payload)
    url = omaha.base + "/payload/release-2.bin"
    omaha.stall(5000)
    async with http.get(url) as answer:
        assert await answer.content.readexactly(5000) == payload.read_bytes()[:5000]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.read(1), 0.05)
        answer.close()
    omaha.endless()
    async with http.get(url) as answer:
        assert "Content-Length" not in answer.headers
        assert len(await answer.content.readexactly(3_000_000)) == 3_000_000
        answer.close()
    omaha.slow(20_000)
    async with http.get(url) as answer:
        assert len(await answer.content.readany()) <= 4000
        answer.close()


async def test_server_that_goes_away_and_comes_back(
    omaha: MockServer, http: aiohttp.ClientSession
) -> None:
    url = omaha.url
    await omaha.pause()
    async with aiohttp.ClientSession() as other:
        with pytest.raises(aiohttp.ClientConnectionError):
            await other.post(url, data=check())
    await omaha.resume()
    root = await ask(http, omaha, check())
    assert root.tag == "response" and omaha.url == url


async def test_tls(omaha_tls: MockServer, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "omaha-ca.pem"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        root = await ask(session, omaha_tls, check())
    assert omaha_tls.url.startswith("https://") and root.tag == "response"


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the shared vectors are not here")
@pytest.mark.parametrize("path", sorted(VECTORS.glob("*/*event*.txt")), ids=lambda p: p.parent.name)
async def test_recorded_conversations_have_the_same_shape(
    path: Path, omaha: MockServer, http: aiohttp.ClientSession, payload: Path
) -> None:
    """The original's recorded requests get answers of the same elements in the same order."""
    text = path.read_text()
    body = text[text.index("<?xml") : text.index("\n\n--- response")].encode()
    recorded = ElementTree.fromstring(
        text.split("--- response 200 ---\n")[1].split("</response>")[0].encode() + b"</response>"
    )
    if recorded.find(".//manifest") is not None:
        omaha.offer("3602.1.5", payload, disable_backoff=True)
    root = await ask(http, omaha, body)

    def shape(element: ElementTree.Element) -> list[tuple[str, list[str]]]:
        return [(item.tag, sorted(set(item.attrib) - {"PollInterval"})) for item in element.iter()]

    assert shape(root) == shape(recorded)
