"""What is kept of a payload: its end, whatever the chunks; and nothing that a download would need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.keepsake import TAIL_LIMIT, Keepsake, TailRecorder, TailSource
from bascule.errors import LedgerError, NothingPending


class Chunks:
    def __init__(self, payload: bytes, size: int) -> None:
        self._payload, self._size = payload, size

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        while offset < len(self._payload):
            yield self._payload[offset : offset + self._size]
            offset += self._size


async def drain(recorder: TailRecorder, offset: int) -> bytes:
    return b"".join([chunk async for chunk in recorder.stream(offset)])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 3 * TAIL_LIMIT),
    chunk=st.integers(1, 2 * TAIL_LIMIT),
    tail=st.integers(0, 2000),
    offset=st.integers(0, 3 * TAIL_LIMIT),
)
async def test_the_tail_of_any_stream(size: int, chunk: int, tail: int, offset: int) -> None:
    payload = bytes(i * 7 & 255 for i in range(size))
    chunk = max(chunk, size // 200 + 1)
    tail = min(tail, size)
    offset = min(offset, size - tail)
    recorder = TailRecorder(Chunks(payload, chunk))
    assert await drain(recorder, offset) == payload[offset:]
    kept = recorder.since(size - tail, size)
    assert kept == payload[size - tail :]
    source = TailSource(kept, size=size)
    for at in {size - tail, size}:
        assert b"".join([c async for c in source.stream(at)]) == payload[at:]
    if size > tail:
        with pytest.raises(NothingPending):
            await anext(source.stream(size - tail - 1))


async def test_an_end_that_was_not_seen_is_not_kept() -> None:
    recorder = TailRecorder(Chunks(b"x" * 1000, 100))
    stream = recorder.stream(0)
    await anext(stream)
    await stream.aclose()
    with pytest.raises(LedgerError):
        recorder.since(900, 1000)
    assert recorder.since(1000, 1000) == b""
    with pytest.raises(LedgerError):
        recorder.since(0, TAIL_LIMIT + 1)


def test_the_folder(tmp_path: Path) -> None:
    keepsake = Keepsake(tmp_path / "prepared")
    assert not keepsake.exists
    keepsake.drop()
    for read in (keepsake.tail, keepsake.digest_list):
        with pytest.raises(NothingPending, match="updatectl prepare"):
            read()
    keepsake.keep(b"tail", b"list")
    keepsake.keep(b"tail2", b"")
    assert (keepsake.tail(), keepsake.digest_list()) == (b"tail2", b"")
    (tmp_path / "prepared/tail").write_bytes(bytes(TAIL_LIMIT + 1))
    with pytest.raises(NothingPending, match="damaged"):
        keepsake.tail()
    keepsake.drop()
    assert not keepsake.exists


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("in the way")
    with pytest.raises(LedgerError):
        Keepsake(tmp_path / "prepared").keep(b"", b"")
