"""Where a payload's signed digest list is looked for, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bascule.engine.listing import LIST_LIMIT, fetch_list
from bascule.engine.local_file import file_url
from bascule.errors import OpenPgpError, TransferError, TransferHttpError
from bascule.formats.digest_list import list_address, listed_name

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"


@pytest.mark.parametrize(
    ("payload", "listed"),
    [
        ("http://h/a/update.gz", "http://h/a/update.gz.DIGESTS.asc"),
        (
            "https://h/update.gz?sig=a%2Fb&x=/y?z",
            "https://h/update.gz.DIGESTS.asc?sig=a%2Fb&x=/y?z",
        ),
        ("https://h/update.gz?", "https://h/update.gz.DIGESTS.asc?"),
        ("file:///media/stick/up%3Fdate.gz", "file:///media/stick/up%3Fdate.gz.DIGESTS.asc"),
    ],
)
def test_the_suffix_belongs_to_the_path(payload: str, listed: str) -> None:
    assert list_address(payload) == listed


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("update.gz", "update.gz"),
        ("update.gz?sig=a/b", "update.gz"),
        ("3602.1.5/update.gz", "update.gz"),
        ("a/b/update.gz?x", "update.gz"),
    ],
)
def test_a_list_names_the_file_and_nothing_else(name: str, listed: str) -> None:
    assert listed_name(name) == listed


@asynccontextmanager
async def server(body: bytes, heard: list[str], status: bytes = b"") -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head.split(b"\r\n")[0].decode())
        writer.write(status or ANSWER % (len(body), body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    serving = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with serving:
        yield f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"


async def test_over_http_with_a_query() -> None:
    heard: list[str] = []
    async with server(b"the list", heard) as base:
        assert await fetch_list([f"{base}/r/update.gz?token=t"]) == b"the list"
    assert heard == ["GET /r/update.gz.DIGESTS.asc?token=t HTTP/1.1"]


async def test_beside_a_file_of_any_name(tmp_path: Path) -> None:
    payload = tmp_path / "up date?#%41.gz"
    (tmp_path / f"{payload.name}.DIGESTS.asc").write_bytes(b"the list")
    assert await fetch_list([file_url(payload)]) == b"the list"


async def test_none_is_a_transfer_error(tmp_path: Path) -> None:
    with pytest.raises(TransferError):
        await fetch_list([file_url(tmp_path / "update.gz")])
    gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    heard: list[str] = []
    async with server(b"", heard, gone) as base:
        with pytest.raises(TransferHttpError):
            await fetch_list([f"{base}/update.gz"])
    assert len(heard) == 1


async def test_a_list_without_end_is_cut_off(tmp_path: Path) -> None:
    payload = tmp_path / "update.gz"
    (tmp_path / "update.gz.DIGESTS.asc").write_bytes(bytes(LIST_LIMIT + 1))
    with pytest.raises(OpenPgpError, match="longer"):
        await fetch_list([file_url(payload)])
    heard: list[str] = []
    async with server(bytes(LIST_LIMIT + 1), heard) as base:
        with pytest.raises(OpenPgpError, match="longer"):
            await fetch_list([f"{base}/update.gz"])
