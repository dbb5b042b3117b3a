"""Reading back behind the flush: only what nothing writes any more, and the last word is `read_back`'s."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.aligned import PIECE
from bascule.engine.device import Device
from bascule.engine.region import Region
from bascule.engine.stream import Announced, Installed
from bascule.engine.verify import Begun, ReadBehind, read_back
from bascule.errors import SlotMismatch, StorageError
from bascule.formats.manifest import (
    HOLE,
    Extent,
    Manifest,
    Operation,
    OperationType,
    Part,
    PartInfo,
)
from bascule.formats.payload import Metadata, PayloadParser
from bascule.formats.signature import load_keys
from omaha_mock.pack import Image, pack
from omaha_mock.signing import keygen, load_signing_key
from payload_builder import draft_v2
from slot_files import SlotFiles

BLOCK = 4096
PER = PIECE // BLOCK


def _manifest(part: Part) -> Manifest:
    metadata = PayloadParser().feed(draft_v2().build())[0]
    assert isinstance(metadata, Metadata)
    return replace(metadata.parse(), block_size=BLOCK, parts=(part,))


def _part(targets: list[list[Extent]], size: int, sha256: bytes = b"", first: int = 0) -> Part:
    operations = tuple(
        Operation(first + number, "usr", OperationType.ZERO, 0, 0, (), tuple(extents), None)
        for number, extents in enumerate(targets)
    )
    return Part("usr", True, False, None, PartInfo(size, sha256), operations)


async def _read(manifest: Manifest, path: Path, prefix: int) -> Begun | None:
    """What was read once the thread has nothing more to do."""
    behind = ReadBehind(manifest, {"usr": Region(path)})
    behind.advance(prefix)
    while behind._running is not None:
        await asyncio.sleep(0.001)
    return (await behind.stop()).get("usr")


extents = st.builds(Extent, st.integers(0, 3000) | st.just(HOLE), st.integers(1, 600))


@settings(deadline=None)
@given(st.lists(st.lists(extents, min_size=1, max_size=3), max_size=12), st.data())
def test_it_never_reaches_what_is_still_to_be_written(
    targets: list[list[Extent]], data: st.DataObject
) -> None:
    """Whatever the order of the operations, and wherever the part's first one stands."""
    size = 4000 * BLOCK - 100
    first = data.draw(st.integers(0, 5))
    prefix = data.draw(st.integers(0, first + len(targets)))
    manifest = _manifest(_part(targets, size, first=first))
    behind = ReadBehind(manifest, {"usr": Region(Path("/nowhere"))})
    track = behind._tracks["usr"]
    track.advance(prefix)
    to_come = [
        extent.start * BLOCK
        for operation in manifest.operations
        if operation.index >= prefix
        for extent in operation.target
        if not extent.hole
    ]
    lowest = min([size, *to_come])
    assert track.until <= lowest < track.until + PIECE
    assert track.until % PIECE == 0


async def test_what_is_flushed_is_hashed_once(tmp_path: Path) -> None:
    image = random.Random(1).randbytes(4 * PIECE + 5000)
    (tmp_path / "slot").write_bytes(image)
    spans = [[Extent(at * PER, PER)] for at in range(4)] + [[Extent(4 * PER, 2)]]
    manifest = _manifest(_part(spans, len(image)))
    for prefix, pieces in ((0, 0), (1, 1), (3, 3), (5, 4)):
        begun = await _read(manifest, tmp_path / "slot", prefix)
        if not pieces:
            assert begun is None
            continue
        assert begun is not None
        assert begun.length == pieces * PIECE
        assert begun.digest.digest() == hashlib.sha256(image[: begun.length]).digest()


@pytest.mark.parametrize("kind", ["in place", "file", "file here"])
async def test_some_parts_are_left_for_the_end(kind: str, tmp_path: Path) -> None:
    part = _part([[Extent(0, PER)]], PIECE)
    part = replace(part, in_place=kind == "in place", file=kind == "file")
    region = Region(tmp_path / "slot", file=kind == "file here")
    region.path.write_bytes(bytes(PIECE))
    behind = ReadBehind(_manifest(part), {"usr": region})
    behind.advance(1)
    assert behind._running is None
    assert await behind.stop() == {}


async def test_what_cannot_be_read_is_told_by_the_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slot"
    path.write_bytes(bytes(2 * PIECE))
    read = Device.read_into

    def broken(self: Device, offset: int, view: memoryview) -> None:
        if offset >= PIECE:
            raise StorageError("broken")
        read(self, offset, view)

    monkeypatch.setattr(Device, "read_into", broken)
    part = _part([[Extent(0, PER)], [Extent(PER, PER)]], 2 * PIECE)
    assert await _read(_manifest(part), path, 2) is None


def _packed(folder: Path, image: bytes) -> tuple[Path, Announced, bytes]:
    (folder / "image").write_bytes(image)
    secret, public = keygen(folder / "keys")
    made = pack(
        [Image("usr", folder / "image")],
        folder / "payload",
        major=2,
        keys=[load_signing_key(secret)],
        codecs=["raw"],
    )
    return made.path, Announced(made.size, made.sha256), public.read_bytes()


async def _install(folder: Path, image: bytes) -> tuple[SlotFiles, Installed]:
    payload, announced, public = _packed(folder, image)
    place = SlotFiles(folder / "slots", old={}, new={"usr": image})
    keys = load_keys(public, "update.pub.pem")
    return place, await place.install(
        payload.read_bytes(), keys, announced=announced, interval=2 << 20, budget=4 << 20
    )


async def test_an_installation_hands_on_what_it_has_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random.Random(2).randbytes(24 * PIECE)
    place, done = await _install(tmp_path, image)
    begun = done.begun["usr"]
    assert 0 < begun.length <= len(image)
    reads: list[int] = []
    read = Device.read_into
    monkeypatch.setattr(
        Device, "read_into", lambda self, at, view: reads.append(at) or read(self, at, view)
    )
    told: list[tuple[int, int]] = []
    await read_back(
        done.signed,
        place.targets,
        cleared=place.cleared,
        begun=done.begun,
        observer=lambda at, of: told.append((at, of)),
    )
    assert min(reads, default=len(image)) >= begun.length
    assert told[-1] == (len(image), len(image))
    # The same digest serves again: a second look is not a look at its own end.
    await place.verify(done)


async def test_a_byte_that_was_wrong_when_it_was_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A medium that gives back other bytes than it was given, in what is read behind the flush."""
    read = Device.read_into

    def lying(self: Device, offset: int, view: memoryview) -> None:
        read(self, offset, view)
        if offset == 0 and not self.region.path.name.endswith(".old") and self._claim is None:
            view[7] ^= 1

    monkeypatch.setattr(Device, "read_into", lying)
    place, done = await _install(tmp_path, random.Random(3).randbytes(24 * PIECE))
    assert done.begun["usr"].length > 0
    monkeypatch.undo()
    with pytest.raises(SlotMismatch):
        await place.verify(done)


async def test_a_part_that_another_is_written_over_is_never_final(tmp_path: Path) -> None:
    """Pre-flight refuses such slots; should it ever not, everything is left to `read_back`."""
    whole = Region(tmp_path / "disk")
    whole.path.write_bytes(bytes(4 * PIECE))
    first, second = _part([[Extent(0, PER)]], PIECE), _part([[Extent(0, PER)]], PIECE, first=1)
    manifest = replace(_manifest(first), parts=(first, replace(second, name="other")))
    for regions, tracks in (
        ((whole, whole), 0),
        ((replace(whole, size=2 * PIECE), replace(whole, offset=PIECE, size=PIECE)), 0),
        ((replace(whole, size=PIECE), replace(whole, offset=PIECE, size=PIECE)), 2),
    ):
        behind = ReadBehind(manifest, dict(zip(("usr", "other"), regions, strict=True)))
        assert len(behind._tracks) == tracks
        await behind.stop()


async def test_what_a_thread_cannot_do_is_left_to_the_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def poor(self: Device, offset: int, view: memoryview) -> None:
        raise MemoryError

    monkeypatch.setattr(Device, "read_into", poor)
    (tmp_path / "slot").write_bytes(bytes(PIECE))
    assert await _read(_manifest(_part([[Extent(0, PER)]], PIECE)), tmp_path / "slot", 1) is None
    assert not caplog.records
