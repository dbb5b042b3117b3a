"""What a manifest becomes, and the rules whose breach the list of wrong payloads does not show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import (
    BasculeError,
    ManifestError,
    MetadataSizeError,
    OperationFailed,
    PayloadSizeMismatch,
    UnsupportedMajor,
    UnsupportedOperation,
)
from bascule.formats.manifest import (
    HOLE,
    KERNEL,
    USR,
    Extent,
    Limits,
    Manifest,
    OperationType,
    PartInfo,
    Postinstall,
    parse_manifest,
)
from bascule.formats.operations import Cover
from payload_builder import BLOCK, IMAGE, KERNEL_IMAGE, Draft, draft_v1, draft_v2
from payload_reading import PAYLOADS, V1, needs_vectors, read


def parsed(draft: Draft, **options: Any) -> Manifest:
    """The manifest of a draft, by itself."""
    draft.build()
    raw = bytes(draft.manifest.SerializeToString())
    return parse_manifest(
        raw, major=draft.major, metadata=draft.header(len(raw), 0) + raw, **options
    )


@needs_vectors
@pytest.mark.parametrize(
    "path", [p for p in PAYLOADS if p.parent.parent == V1], ids=lambda p: p.name
)
def test_flatcars_vectors_say_what_the_index_says(path: Path) -> None:
    index = json.loads((V1 / "index.json").read_text())
    facts = index["payloads"][path.name]
    manifest = read([path.read_bytes()]).manifest
    assert manifest is not None
    assert (manifest.major, manifest.minor, manifest.block_size) == (1, 0, 4096)
    assert manifest.metadata_size == manifest.blobs_offset == facts["metadata_size"]
    assert manifest.size == facts["size"]
    assert manifest.delta == (facts["usr"]["old"] is not None)
    assert (manifest.signatures_size is None) == (facts["signed_by"] is None)
    assert [p.name for p in manifest.parts] == [n for n in (USR, KERNEL) if n in facts]
    for part in manifest.parts:
        assert part.known
        assert part.file == (part.name == KERNEL)
        assert part.new is not None
        assert part.new.sha256.hex() == index["images"][facts[part.name]["new"]]["sha256"]
        assert part.in_place == manifest.delta
        if manifest.delta:
            assert part.old is not None
            assert part.old.sha256.hex() == index["images"][facts[part.name]["old"]]["sha256"]
        else:
            assert part.uncovered == 0
    counts: dict[str, int] = {}
    for operation in manifest.parts[0].operations:
        counts[operation.type.name] = counts.get(operation.type.name, 0) + 1
    assert counts == facts["operations"]


@needs_vectors
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda p: p.name)
def test_operations_lie_end_to_end(path: Path) -> None:
    manifest = read([path.read_bytes()]).manifest
    assert manifest is not None
    end = 0
    for index, operation in enumerate(manifest.operations):
        assert operation.index == index
        assert operation.data_offset == end
        assert manifest.offset_of(index) == manifest.blobs_offset + end
        end = operation.data_end
    assert manifest.blobs_size == end
    assert manifest.offset_of(len(manifest.operations)) == manifest.blobs_offset + end
    assert manifest.signatures_offset in (None, end)


def test_major_1_values() -> None:
    manifest = parsed(draft_v1())
    usr, kernel = manifest.parts
    assert usr.new == PartInfo(len(IMAGE), usr.new.sha256 if usr.new else b"")
    assert kernel.new is not None
    assert kernel.new.size == len(KERNEL_IMAGE)
    assert usr.operations[2].target == (Extent(8, 256),)
    assert usr.operations[2].target_length is None
    assert not manifest.delta
    assert manifest.max_timestamp is None


def test_major_2_values() -> None:
    draft = draft_v2(delta=True)
    draft.manifest.max_timestamp = -5
    draft.manifest.partial_update = True
    draft.manifest.dynamic_partition_metadata.groups.add(name=b"qti_dynamic")
    part = draft.manifest.partitions[0]
    part.version = b"1700000000"
    part.run_postinstall = True
    part.postinstall_path = b"bin/postinst"
    part.postinstall_optional = True
    part.filesystem_type = b"ext4"
    manifest = parsed(draft, signature_size=267)
    assert manifest.blobs_offset == manifest.metadata_size + 267
    assert (manifest.minor, manifest.max_timestamp, manifest.partial) == (4, -5, True)
    assert manifest.groups == ("qti_dynamic",)
    (system,) = manifest.parts
    assert system.postinstall == Postinstall("bin/postinst", True, "ext4")
    assert system.version == "1700000000"
    copy, patch, xz = system.operations
    assert copy.source_sha256 is not None
    assert (copy.source_length, copy.target_length) == (4 * BLOCK, 4 * BLOCK)
    assert patch.data_sha256 is not None
    assert xz.source == ()
    assert not system.in_place


@pytest.mark.parametrize("minor", range(2, 11))
def test_deltas_are_judged_by_what_they_contain(minor: int) -> None:
    draft = draft_v2(delta=True)
    draft.manifest.minor_version = minor
    assert parsed(draft).minor == minor


def test_partial_update_alone_makes_a_delta() -> None:
    draft = draft_v2()
    draft.manifest.partial_update = True
    draft.manifest.minor_version = 7
    assert parsed(draft).delta


def test_zstd_in_a_full_payload_of_minor_0() -> None:
    draft = draft_v2()
    draft.operations[0].type = OperationType.REPLACE_ZSTD
    assert parsed(draft).operations[0].type is OperationType.REPLACE_ZSTD


def test_zero_and_discard() -> None:
    draft = draft_v2(delta=True)
    for at, kind in ((0, OperationType.ZERO), (2, OperationType.DISCARD)):
        draft.operations[at].type = kind
        draft.blobs[at] = b""
    draft.settle()
    manifest = parsed(draft)
    assert [o.type.name for o in manifest.operations] == ["ZERO", "SOURCE_BSDIFF", "DISCARD"]
    assert manifest.operations[0].source == ()


def test_target_holes_cover_nothing_and_write_nothing() -> None:
    draft = draft_v2()
    draft.operations[0].dst_extents.add(start_block=HOLE, num_blocks=2)
    draft.blobs[0] += bytes(2 * BLOCK)
    draft.settle()
    (system,) = parsed(draft).parts
    assert system.operations[0].target == (Extent(0, 4), Extent(HOLE, 2))
    assert system.operations[0].target_length == 6 * BLOCK


def move(draft: Draft, source: tuple[int, int], target: tuple[int, int]) -> None:
    operation = draft.manifest.partition_operations.add(type=OperationType.MOVE)
    operation.src_extents.add(start_block=source[0], num_blocks=source[1])
    operation.dst_extents.add(start_block=target[0], num_blocks=target[1])
    draft.operations.insert(3, operation)
    draft.blobs.insert(3, b"")
    draft.settle()


def test_major_1_holes_on_either_side() -> None:
    draft = draft_v1()
    move(draft, (HOLE, 2), (0, 2))
    move(draft, (0, 2), (HOLE, 2))
    manifest = parsed(draft)
    assert manifest.operations[3].source[0].hole
    assert manifest.operations[4].target[0].hole
    assert manifest.parts[0].in_place
    assert manifest.delta


def test_major_1_may_write_a_block_twice() -> None:
    draft = draft_v1()
    move(draft, (0, 2), (4, 2))
    assert len(parsed(draft).parts[0].operations) == 4


@pytest.mark.parametrize("target", [(9, 2), (10, 1), (2**40, 1)])
def test_major_1_move_stays_inside_the_image(target: tuple[int, int]) -> None:
    draft = draft_v1()
    move(draft, (0, target[1]), target)
    with pytest.raises(OperationFailed, match="writes beyond the image of 10 blocks"):
        parsed(draft)


def test_major_1_uncovered_blocks_are_counted() -> None:
    draft = draft_v1()
    draft.operations[0].dst_extents[0].start_block = HOLE
    assert parsed(draft).parts[0].uncovered == 4
    draft = draft_v1()
    draft.manifest.new_partition_info.size += 1000 * BLOCK
    assert parsed(draft).parts[0].uncovered == 1010 - 264


def bsdiff(**lengths: int) -> Draft:
    draft = draft_v1()
    operation = draft.operations[1]
    operation.type = OperationType.BSDIFF
    operation.src_extents.add(start_block=4, num_blocks=4)
    for name, value in lengths.items():
        setattr(operation, name, value)
    return draft


def test_major_1_patch_lengths() -> None:
    plain = parsed(bsdiff()).operations[1]
    assert (plain.source_length, plain.target_length) == (4 * BLOCK, 4 * BLOCK)
    odd = parsed(bsdiff(src_length=3 * BLOCK + 1, dst_length=4 * BLOCK - 1)).operations[1]
    assert (odd.source_length, odd.target_length) == (3 * BLOCK + 1, 4 * BLOCK - 1)
    for name in ("src_length", "dst_length"):
        for length in (0, 3 * BLOCK, 4 * BLOCK + 1, 2**32, 2**64 - 1):
            with pytest.raises(OperationFailed, match=name):
                parsed(bsdiff(**{name: length}))


def test_the_same_number_means_another_thing_in_the_other_major() -> None:
    """A v2 manifest read as v1 has no image, and a v1 manifest read as v2 no partition."""
    for draft, other in ((draft_v1(), 2), (draft_v2(), 1)):
        draft.build()
        raw = draft.manifest.SerializeToString()
        with pytest.raises(BasculeError):
            parse_manifest(raw, major=other, metadata=raw)


def test_majors_that_are_none() -> None:
    for major in (0, 3, 2**64 - 1):
        with pytest.raises(UnsupportedMajor):
            parse_manifest(b"", major=major, metadata=b"")


def test_limits() -> None:
    cases: list[tuple[dict[str, int], type[BasculeError]]] = [
        ({"manifest": 100}, MetadataSizeError),
        ({"operations": 3}, ManifestError),
        ({"extents": 3}, ManifestError),
        ({"blob": 1000}, UnsupportedOperation),
        ({"signatures": 263}, PayloadSizeMismatch),
    ]
    for limit, error in cases:
        with pytest.raises(error):
            parsed(draft_v1(), limits=Limits(**limit))
    enough = Limits(manifest=10_000, operations=4, extents=4, blob=4 * BLOCK, signatures=264)
    assert parsed(draft_v1(), limits=enough)


def test_what_cannot_be_in_a_payload_of_the_announced_size() -> None:
    draft = draft_v1()
    size = len(draft.build())
    assert parsed(draft, size=size)
    for less in (size - 1, size - 300, 1):
        with pytest.raises(PayloadSizeMismatch):
            parsed(draft, size=less)


@pytest.mark.parametrize("hash_size", [0, 31, 33, 64])
@pytest.mark.parametrize("side", ["old_partition_info", "new_partition_info"])
@pytest.mark.parametrize("make", [draft_v1, draft_v2])
def test_image_hashes_have_32_bytes(make: Any, side: str, hash_size: int) -> None:
    draft = make()
    holder = draft.manifest if draft.major == 1 else draft.manifest.partitions[0]
    if draft.major == 2:
        draft.manifest.minor_version = 4 if side.startswith("old") else 0
    info = getattr(holder, side)
    info.size = len(IMAGE)
    info.hash = bytes(hash_size)
    with pytest.raises(ManifestError, match="not 32"):
        parsed(draft)
    info.hash = bytes(32)
    info.ClearField("size")
    with pytest.raises(ManifestError, match="no possible size"):
        parsed(draft)
    info.size = 2**63
    with pytest.raises(ManifestError, match="no possible size"):
        parsed(draft)


@pytest.mark.parametrize(
    "path", [b"", b"/bin/sh", b"a/../../b", b"..", b"a\nb", b"a\xff", b"x" * 1025]
)
def test_postinstall_paths(path: bytes) -> None:
    draft = draft_v2()
    part = draft.manifest.partitions[0]
    part.run_postinstall = True
    part.postinstall_path = path
    if not path:
        (system,) = parsed(draft).parts
        assert system.postinstall == Postinstall("postinst", False, "")
        return
    with pytest.raises(ManifestError, match="postinstall"):
        parsed(draft)


def test_cover() -> None:
    cover = Cover()
    assert cover.measure(0) == (0, None, None)
    assert cover.measure(5) == (5, 0, None)
    cover.add([Extent(1, 2), Extent(HOLE, 9), Extent(6, 100)])
    assert cover.measure(10) == (4, 0, None)
    assert cover.measure(5) == (3, 0, None)
    cover.add([Extent(0, 1), Extent(3, 3)])
    assert cover.measure(10) == (0, None, None)
    cover.add([Extent(2, 1)])
    assert cover.measure(10) == (0, None, 2)
