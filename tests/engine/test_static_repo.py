"""Static repositories in folders and on web servers, with real keys and real signatures."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from bascule.engine.fetch import HttpSource
from bascule.engine.local_file import FileSource, file_url, measure, url_file
from bascule.engine.static_repo import Asked, Found, ask_repository, offer_file
from bascule.errors import (
    IndexInvalid,
    IndexUntrusted,
    NoKeys,
    PayloadSizeMismatch,
    ServerHttpError,
    ServerUnreachable,
    TransferError,
)
from bascule.formats.signature import PublicKey, load_keys
from raw_http import RawServer, Request, Wire

NOW = 1_800_000_000.0
PAYLOAD = b"CrAU" + bytes(range(256)) * 9000
ASKED = Asked(running="1.0.0", group="stable", board="amd64-usr")

SIGNER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public(key: Any, name: str) -> tuple[PublicKey, ...]:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return load_keys(key.public_key().public_bytes(serialization.Encoding.PEM, spki), name)


KEYS = public(SIGNER, "ours.pem") + public(CURVE, "curve.pem")


def keys() -> Sequence[PublicKey]:
    return KEYS


def sign(key: Any, data: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    signature: bytes = key.sign(data, ec.ECDSA(hashes.SHA256()))
    return signature


def write(folder: Path, *, signer: Any = SIGNER, version: str = "2.0.0", **members: Any) -> Path:
    """A repository with one release."""
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / version / "u.gz").write_bytes(PAYLOAD)
    entry = {
        "path": f"{version}/u.gz",
        "size": len(PAYLOAD),
        "sha256": hashlib.sha256(PAYLOAD).hexdigest(),
    }
    package = {"name": "oem.gz", "size": 1, "sha256": "00" * 32}
    document = {
        "format": "bascule-repository",
        "version": 1,
        "serial": 5,
        "releases": [{"version": version, "payloads": [entry], "packages": [package]}],
        **members,
    }
    body = json.dumps(document).encode()
    (folder / "index.json").write_bytes(body)
    if signer is not None:
        (folder / "index.json.sig").write_bytes(sign(signer, body))
    return folder


async def ask(where: object, asked: Asked = ASKED, **options: Any) -> Found:
    return await ask_repository(
        str(where), asked, **{"keys": keys, "now": NOW, "environ": {}, **options}
    )


async def read(source: FileSource | HttpSource, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in source.stream(offset)])


# ── in a folder ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["", "/", "/index.json"])
async def test_a_folder(tmp_path: Path, suffix: str) -> None:
    write(tmp_path)
    found = await ask(f"{tmp_path}{suffix}")
    assert (found.serial, found.signer) == (5, "ours.pem")
    offer = found.offer
    assert offer is not None
    assert offer.version == "2.0.0" and offer.size == len(PAYLOAD)
    assert offer.sha256 == hashlib.sha256(PAYLOAD).digest()
    assert [p.name for p in offer.packages] == ["2.0.0/oem.gz"]
    assert offer.attributes["signer"] == "ours.pem"
    source = FileSource(url_file(offer.urls[0]), size=offer.size)
    assert await read(source) == PAYLOAD
    assert await read(source, 777) == PAYLOAD[777:]
    assert await read(source, len(PAYLOAD)) == b""


async def test_a_file_address(tmp_path: Path) -> None:
    write(tmp_path / "my stick")
    assert (await ask(file_url(tmp_path / "my stick"))).offer is not None


async def test_nothing_newer(tmp_path: Path) -> None:
    write(tmp_path)
    found = await ask(tmp_path, Asked("2.0.0", "stable", "amd64-usr"))
    assert found.offer is None and found.serial == 5
    assert [r.version for r in found.releases] == ["2.0.0"]


async def test_any_kind_of_trusted_key_signs(tmp_path: Path) -> None:
    write(tmp_path, signer=CURVE)
    assert (await ask(tmp_path)).signer == "curve.pem"


async def test_no_signature(tmp_path: Path) -> None:
    write(tmp_path, signer=None)
    with pytest.raises(IndexUntrusted, match=r"no index\.json\.sig"):
        await ask(tmp_path)
    found = await ask(tmp_path, Asked("1.0.0", "stable", "", signed=False))
    assert found.offer is not None and found.signer == ""


@pytest.mark.parametrize("signed", [True, False])
async def test_a_wrong_signature_is_never_overlooked(tmp_path: Path, signed: bool) -> None:
    asked = Asked("1.0.0", "stable", "", signed=signed)
    write(tmp_path, signer=STRANGER)
    with pytest.raises(IndexUntrusted, match="no trusted key"):
        await ask(tmp_path, asked)
    write(tmp_path)
    body = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").write_bytes(body.replace(b"2.0.0", b"9.0.0"))
    with pytest.raises(IndexUntrusted):
        await ask(tmp_path, asked)
    (tmp_path / "index.json.sig").write_bytes(b"")
    with pytest.raises(IndexUntrusted):
        await ask(tmp_path, asked)


async def test_an_untrusted_index_is_not_even_parsed(tmp_path: Path) -> None:
    write(tmp_path, signer=STRANGER)
    (tmp_path / "index.json").write_bytes(b"{")
    with pytest.raises(IndexUntrusted):
        await ask(tmp_path)


async def test_without_keys_nothing_is_proven(tmp_path: Path) -> None:
    def none() -> Sequence[PublicKey]:
        raise NoKeys("no file")

    write(tmp_path)
    with pytest.raises(NoKeys):
        await ask(tmp_path, keys=none)


async def test_an_older_index_than_before(tmp_path: Path) -> None:
    write(tmp_path)
    seen = Asked("1.0.0", "stable", "", serial=5)
    assert (await ask(tmp_path, seen)).serial == 5
    with pytest.raises(IndexUntrusted, match="serial 5, but 6"):
        await ask(tmp_path, Asked("1.0.0", "stable", "", serial=6))


async def test_an_expired_index(tmp_path: Path) -> None:
    write(tmp_path, expires="2027-01-15T08:00:00Z")
    assert (await ask(tmp_path, now=NOW - 1)).offer is not None
    with pytest.raises(IndexInvalid, match="clock is right") as caught:
        await ask(tmp_path)
    assert caught.value.context == {"expires": 1800000000}


async def test_a_link_out_of_the_repository(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo")
    (repo / "2.0.0" / "u.gz").unlink()
    (repo / "2.0.0" / "u.gz").symlink_to("/etc/hostname")
    with pytest.raises(IndexInvalid, match="leads out"):
        await ask(repo)
    (repo / "2.0.0" / "u.gz").unlink()
    (repo / "blob").write_bytes(PAYLOAD)
    (repo / "2.0.0" / "u.gz").symlink_to("../blob")
    assert (await ask(repo)).offer is not None


@pytest.mark.parametrize("where", ["relative/path", "ftp://a/", "file://elsewhere/x", ""])
async def test_places_that_are_none(where: str) -> None:
    with pytest.raises(IndexInvalid):
        await ask(where)


async def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexInvalid, match="there is no"):
        await ask(tmp_path)
    (tmp_path / "index.json").mkdir()
    with pytest.raises(TransferError, match="regular"):
        await ask(tmp_path)
    (tmp_path / "index.json").rmdir()
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(TransferError, match="regular"):
        await ask(tmp_path)


async def test_an_endless_index(tmp_path: Path) -> None:
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(IndexInvalid, match="longer"):
        await ask(tmp_path)


# ── sticks ───────────────────────────────────────────────────────────────────────────────────


async def test_the_newest_of_several_sticks(tmp_path: Path) -> None:
    for stick, version in (("a", "2.0.0"), ("b", "3.0.0"), ("c", "2.5.0")):
        write(tmp_path / stick / "bascule", version=version)
    (tmp_path / "photos").mkdir()
    found = await ask(tmp_path / "*" / "bascule")
    assert found.offer is not None and found.offer.version == "3.0.0"
    assert found.where == str(tmp_path / "b" / "bascule")


async def test_a_bad_stick_does_not_hide_a_good_one(tmp_path: Path) -> None:
    write(tmp_path / "a", signer=STRANGER, version="9.0.0")
    write(tmp_path / "b")
    found = await ask(tmp_path / "*")
    assert found.offer is not None and found.offer.version == "2.0.0"


async def test_only_a_bad_stick_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", signer=STRANGER, version="9.0.0")
    write(tmp_path / "b", version="1.0.0")
    with pytest.raises(IndexUntrusted):
        await ask(tmp_path / "*")


async def test_no_stick(tmp_path: Path) -> None:
    with pytest.raises(IndexInvalid, match="no folder that matches"):
        await ask(tmp_path / "*")


# ── on a web server ──────────────────────────────────────────────────────────────────────────


async def test_any_web_server(tmp_path: Path) -> None:
    write(tmp_path)
    app = web.Application()
    app.router.add_static("/os", tmp_path)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/os"
        for where in (base, base + "/", base + "/index.json"):
            found = await ask(where)
            assert found.signer == "ours.pem" and found.offer is not None
            assert found.offer.urls == (f"{base}/2.0.0/u.gz",)
        assert found.offer is not None
        source = HttpSource(found.offer.urls, size=found.offer.size, environ={})
        assert await read(source, 99) == PAYLOAD[99:]
        (tmp_path / "index.json.sig").unlink()
        with pytest.raises(IndexUntrusted):
            await ask(base)
        (tmp_path / "index.json").unlink()
        with pytest.raises(IndexInvalid, match="there is no"):
            await ask(base)
    finally:
        await runner.cleanup()


async def test_a_web_server_in_trouble() -> None:
    async def broken(request: Request, wire: Wire) -> None:
        await wire.answer("500 Oops")

    async with RawServer(broken) as server:
        with pytest.raises(ServerHttpError) as caught:
            await ask(server.url)
        url = server.url
    assert caught.value.number == 2500
    with pytest.raises(ServerUnreachable):
        await ask(url)


async def test_a_missing_signature_must_be_missing_for_certain(tmp_path: Path) -> None:
    """A server that fails on the signature only must not turn a signed index into an unsigned one."""
    body = write(tmp_path).joinpath("index.json").read_bytes()

    async def answering(request: Request, wire: Wire) -> None:
        if request.path.endswith(".sig"):
            await wire.answer("503 Later")
        else:
            await wire.answer("200 OK", body)

    async with RawServer(answering) as server:
        with pytest.raises(ServerHttpError):
            await ask(server.url, Asked("1.0.0", "stable", "", signed=False))


async def test_an_endless_index_on_a_server() -> None:
    async def endless(request: Request, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await wire.send(b" " * 65536)

    async with RawServer(endless) as server:
        with pytest.raises(IndexInvalid, match="longer"):
            await ask(server.url)


# ── one file ─────────────────────────────────────────────────────────────────────────────────


async def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "größe 100%.gz"
    path.write_bytes(PAYLOAD)
    offer = offer_file(path, version="7.0.0")
    assert (offer.version, offer.size) == ("7.0.0", len(PAYLOAD))
    assert offer.sha256 == hashlib.sha256(PAYLOAD).digest() and offer.disable_backoff
    assert url_file(offer.urls[0]) == path
    assert await read(FileSource(url_file(offer.urls[0]), size=offer.size)) == PAYLOAD


def test_any_bytes_in_a_name_survive_the_address() -> None:
    path = Path(os.fsdecode(b"/a\xff\xfe b#c?d%20"))
    assert url_file(file_url(path)) == path


@pytest.mark.parametrize("url", ["http://a/b", "file://host/b", "file:relative", "file:///a%00b"])
def test_addresses_of_no_file(url: str) -> None:
    with pytest.raises(ValueError, match="file"):
        url_file(url)


async def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="No such file"):
        offer_file(tmp_path / "missing")
    with pytest.raises(TransferError, match="regular"):
        offer_file(tmp_path)
    with pytest.raises(TransferError, match="regular"):
        measure(Path("/dev/zero"))
    path = tmp_path / "u"
    path.write_bytes(PAYLOAD)
    with pytest.raises(PayloadSizeMismatch):
        await read(FileSource(path, size=5))
    with pytest.raises(ValueError, match="offset"):
        await read(FileSource(path, size=None), len(PAYLOAD) + 1)


async def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "u"
    path.write_bytes(PAYLOAD)
    stream = FileSource(path, size=len(PAYLOAD)).stream(0)
    await anext(stream)
    os.truncate(path, 10)
    with pytest.raises(TransferError, match="shorter"):
        async for _ in stream:
            pass


async def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "u"
    path.write_bytes(PAYLOAD)
    before = set(os.listdir("/proc/self/fd"))
    stream = FileSource(path, size=None).stream(0)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0)
    assert set(os.listdir("/proc/self/fd")) <= before
