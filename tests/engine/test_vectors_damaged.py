"""Every recorded payload, cut, turned, spliced and lied about: a typed error, and nothing proven."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bascule.engine.stream import Announced
from bascule.errors import BasculeError
from payload_vectors import V1_NAMES, V2_NAMES, Bytes, Case, case, key, needs_vectors
from slot_files import SlotFiles

NAMES = [*V1_NAMES, *V2_NAMES]

LENGTHS = [(1 << n) + d for n in (31, 32) for d in (-1, 0, 1)]
"""Where 32-bit integers turn over, signed and unsigned."""


def head(data: bytes) -> tuple[int, int]:
    """Bytes of the metadata, and of what stands before the first blob."""
    major = int.from_bytes(data[4:12], "big")
    start = 20 if major == 1 else 24
    end = start + int.from_bytes(data[12:20], "big")
    return end, end + (int.from_bytes(data[20:24], "big") if major == 2 else 0)


async def refused(place: SlotFiles, data: bytes, what: Case, announced: Announced | None) -> str:
    """Install; the error's name. Nothing may be left that a boot or a resume could use."""
    source = Bytes(data, chunk=64 << 10)
    try:
        with pytest.raises(BasculeError) as caught:
            installed = await place.install(source, [key(what.key)], announced=announced)
            await place.verify(installed)
        assert 0 < caught.value.number < 100
        assert len(str(caught.value)) < 1000
    finally:
        assert place.untouched()
    assert not list(place.folder.glob("*.partial"))
    assert not list((place.folder / "state").glob("*"))
    return type(caught.value).__name__


@needs_vectors
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [True, False])
async def test_damaged(name: str, told: bool, tmp_path: Path) -> None:
    what = case(name)
    rng = random.Random(name)
    good, size = what.data, len(what.data)
    metadata, blobs = head(good)
    announced = Announced(size, what.sha256) if told else None
    place = SlotFiles(tmp_path, old=what.old, new=what.new, files=what.files)

    cuts = [0, 3, 19, metadata - 1, metadata, blobs, size - 1]
    cuts += [rng.randrange(blobs, size) for _ in range(3)]
    for cut in cuts:
        await refused(place, good[:cut], what, announced)

    # Not in the last bytes: of two signatures the original looks at one (reference 1.6).
    turns = [rng.randrange(metadata) for _ in range(3)]
    turns += [rng.randrange(blobs, size - 1024) for _ in range(4)]
    for at in turns:
        data = bytearray(good)
        data[at] ^= 1 << rng.randrange(8)
        await refused(place, bytes(data), what, announced)

    others = [case(n).data for n in NAMES if n != name]
    for other in rng.sample(others, 3):
        _, theirs = head(other)
        await refused(place, good[:blobs] + other[theirs:], what, announced)
        await refused(place, good[: (blobs + size) // 2] + other[theirs:], what, announced)

    for length in LENGTHS:
        lied = good[:12] + struct.pack(">Q", length) + good[20:]
        await refused(place, lied, what, announced)
        if good[4:12] == (2).to_bytes(8, "big") and length < 1 << 32:
            lied = good[:20] + struct.pack(">I", length) + good[24:]
            await refused(place, lied, what, announced)
        # And what the server says of it.
        await refused(place, good, what, Announced(length, what.sha256 if told else None))
        lies = Announced(size, what.sha256, metadata_size=length)
        await refused(place, good, what, lies)
