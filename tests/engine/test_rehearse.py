"""What a payload would make, computed without a target."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bascule.engine import rehearse as module
from bascule.engine.region import Region
from bascule.engine.rehearse import rehearse
from bascule.errors import BasculeError, SlotMismatch, SourceMismatch
from bascule.formats.manifest import Manifest
from bascule.formats.payload import Metadata, PayloadParser
from payload_builder import BLOCK, IMAGE, draft_v1, draft_v2
from payload_vectors import V1_NAMES, V2_NAMES, case, needs_vectors


def parsed(data: bytes) -> Manifest:
    events = PayloadParser().feed(data)
    assert isinstance(events[0], Metadata)
    return events[0].parse()


def outcome(data: bytes, part: str, source: Path | None = None, workers: int = 2) -> bytes:
    manifest = parsed(data)
    wanted = next(p for p in manifest.parts if p.name == part)
    return rehearse(
        manifest,
        wanted,
        lambda op: data[manifest.blobs_offset + op.data_offset :][: op.data_length],
        source=Region(source) if source is not None else None,
        workers=workers,
    )


@needs_vectors
@pytest.mark.parametrize("name", [*V1_NAMES, *V2_NAMES])
@pytest.mark.parametrize("workers", [1, 3])
def test_recorded_payloads_make_their_images(name: str, workers: int, tmp_path: Path) -> None:
    what = case(name)
    for part in parsed(what.data).parts:
        source = None
        if part.name in what.old:
            source = tmp_path / part.name
            source.write_bytes(what.old[part.name])
        assert part.new is not None
        assert outcome(what.data, part.name, source, workers) == part.new.sha256
        if source is not None:
            assert source.read_bytes() == what.old[part.name]


def test_a_delta_without_its_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceMismatch):
        outcome(draft_v2(delta=True).build(), "system")


def test_operations_in_any_order_and_in_several_runs(tmp_path: Path) -> None:
    draft = draft_v1(kernel=False)
    first = draft.operations[0]
    first.ClearField("dst_extents")
    # Blocks 3, 0, 2, 1: the data follow.
    for block in (3, 0, 2, 1):
        first.dst_extents.add(start_block=block, num_blocks=1)
    draft.blobs[0] = b"".join(IMAGE[b * BLOCK : (b + 1) * BLOCK] for b in (3, 0, 2, 1))
    draft.settle()
    manifest = parsed(draft.build())
    assert manifest.parts[0].new is not None
    assert outcome(draft.build(), "usr") == manifest.parts[0].new.sha256


def test_operations_larger_than_what_is_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD", 4096)
    data = draft_v1(kernel=False).build()
    new = parsed(data).parts[0].new
    assert new is not None
    assert outcome(data, "usr") == new.sha256


def test_missing_bytes_are_a_mismatch() -> None:
    draft = draft_v1(kernel=False)
    import bz2

    draft.blobs[2] = bz2.compress(IMAGE[8 * BLOCK : 9 * BLOCK])
    draft.settle()
    with pytest.raises(SlotMismatch):
        outcome(draft.build(), "usr")


def test_damage_is_an_error_or_another_digest() -> None:
    good = draft_v1(kernel=False).build()
    manifest = parsed(good)
    rng = random.Random(3)
    assert manifest.parts[0].new is not None
    for _ in range(20):
        data = bytearray(good)
        data[rng.randrange(manifest.blobs_offset, len(good) - 300)] ^= 1
        with pytest.raises(BasculeError):
            outcome(bytes(data), "usr")
