"""The beginning of a payload by ranges: from servers that keep to them and servers that do not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from bascule.engine.local_file import file_url
from bascule.engine.peek import FIRST, peek
from bascule.errors import BadMagic, TransferError, TransferHttpError
from bascule.formats.manifest import OperationType
from bascule.formats.proto import message_class
from payload_builder import BLOCK, Draft, noise


def payload(operations: int) -> tuple[bytes, int]:
    """A payload of major 2 with so many operations, and the size of its metadata."""
    image = noise(operations * BLOCK, 1)
    draft = Draft(2, message_class("crau_v2", "DeltaArchiveManifest")(), [], [])
    draft.signers = ((None, "update"),)
    draft.metadata_signers = ("update",)
    part = draft.manifest.partitions.add(partition_name=b"system")
    part.new_partition_info.size = len(image)
    part.new_partition_info.hash = hashlib.sha256(image).digest()
    for n in range(operations):
        operation = part.operations.add(type=OperationType.REPLACE)
        operation.dst_extents.add(start_block=n, num_blocks=1)
        draft.operations.append(operation)
        draft.blobs.append(image[n * BLOCK : (n + 1) * BLOCK])
    draft.settle()
    return draft.build(), 24 + len(draft.manifest.SerializeToString())


@pytest.fixture
async def served() -> AsyncIterator[dict[str, object]]:
    """A payload at three addresses: with ranges, without, and with wrong ones."""
    state: dict[str, object] = {"body": b"", "asked": []}

    async def give(request: web.Request) -> web.StreamResponse:
        body, asked = state["body"], state["asked"]
        assert isinstance(body, bytes) and isinstance(asked, list)
        kind, text = request.match_info["kind"], request.headers.get("Range", "")
        asked.append((kind, text))
        if kind == "gone":
            return web.Response(status=404)
        if kind == "plain":
            return web.Response(body=body)
        first, last = (int(n) for n in text.removeprefix("bytes=").split("-"))
        if first >= len(body):
            return web.Response(status=416)
        told = first + 1 if kind == "wrong" else first
        return web.Response(
            status=206,
            body=body[first : last + 1],
            headers={"Content-Range": f"bytes {told}-{last}/{len(body)}"},
        )

    app = web.Application()
    app.router.add_get("/{kind}", give)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    state["base"] = f"http://127.0.0.1:{port}/"
    yield state
    await runner.cleanup()


@pytest.mark.parametrize("operations", [3, 1500])
@pytest.mark.parametrize("kind", ["ranges", "plain"])
async def test_no_more_than_the_metadata(
    served: dict[str, object], operations: int, kind: str
) -> None:
    body, metadata_size = payload(operations)
    served["body"] = body
    found = await peek([f"{served['base']}{kind}"], size=len(body), environ={})
    assert len(found.metadata.raw) == metadata_size
    assert len(found.metadata.parse().operations) == operations
    end = metadata_size + len(found.metadata.signature)
    assert found.read == max(min(FIRST, len(body)), end)
    assert operations < 100 or end > FIRST


async def test_the_next_address_and_what_is_no_payload(served: dict[str, object]) -> None:
    base = served["base"]
    body, _ = payload(3)
    served["body"] = body
    found = await peek([f"{base}gone", f"{base}wrong", f"{base}ranges"], size=None, environ={})
    assert found.metadata.header.major == 2
    with pytest.raises(TransferHttpError):
        await peek([f"{base}gone"], size=None, environ={})
    with pytest.raises(TransferError, match="another range"):
        await peek([f"{base}wrong"], size=None, environ={})
    served["body"] = b"<html>" * 20_000
    with pytest.raises(BadMagic):
        await peek([f"{base}ranges"], size=None, environ={})
    served["body"] = body[:40]
    with pytest.raises(TransferError, match="ends before"):
        await peek([f"{base}ranges"], size=None, environ={})


async def test_from_a_file(tmp_path: Path) -> None:
    body, metadata_size = payload(1500)
    path = tmp_path / "a payload.bin"
    path.write_bytes(body)
    found = await peek([file_url(path)], size=len(body))
    assert len(found.metadata.raw) == metadata_size
    path.write_bytes(body[:100])
    with pytest.raises(TransferError, match="ends before"):
        await peek([file_url(path)], size=None)
    with pytest.raises(TransferError):
        await peek(["file:relative"], size=None)
