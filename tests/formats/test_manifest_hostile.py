"""Manifests that somebody means us harm with: a typed error, or values that keep every rule."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bascule.errors import BasculeError
from bascule.formats.manifest import HOLE, Limits, Manifest, OperationType, parse_manifest
from bascule.formats.proto import SCHEMAS, message_class
from payload_builder import Draft, draft_v1, draft_v2
from payload_reading import PAYLOADS, needs_vectors, read

LIMITS = Limits(manifest=1 << 16, blob=1 << 24, operations=50, extents=200)
EDGES = sorted(
    {
        max(0, edge + step)
        for edge in (0, 8, 10, 4096, 2**16, 2**31, 2**32, 2**51, 2**52, 2**63, 2**64)
        for step in (-1, 0, 1)
        if edge + step < 2**64
    }
)
numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, 20), st.integers(0, 2**64 - 1))


def judge(raw: bytes, major: int, size: int | None = None) -> Manifest | None:
    """Parse; the manifest if it is accepted, which then must keep every rule."""
    metadata = bytes(20 if major == 1 else 24) + raw
    try:
        manifest = parse_manifest(raw, major=major, metadata=metadata, size=size, limits=LIMITS)
    except BasculeError as error:
        assert 0 < error.number < 100
        assert len(str(error)) < 1000
        return None
    _check(manifest, size)
    return manifest


def _check(manifest: Manifest, size: int | None) -> None:
    assert manifest.block_size in {1 << n for n in range(9, 17)}
    assert len({p.name for p in manifest.parts}) == len(manifest.parts)
    end = 0
    for index, operation in enumerate(manifest.operations):
        assert (operation.index, operation.data_offset) == (index, end)
        assert 0 <= operation.data_length <= LIMITS.blob
        end = operation.data_end
    assert manifest.blobs_size == end
    assert size in (None, manifest.size)
    assert (manifest.signatures_offset is None) == (manifest.signatures_size is None)
    assert manifest.signatures_offset in (None, end)
    for part in manifest.parts:
        if not part.known:
            assert all(not o.source and not o.target for o in part.operations)
            continue
        assert part.new is not None
        blocks = -(-part.new.size // manifest.block_size)
        written: set[int] = set()
        for operation in part.operations:
            assert (operation.data_sha256 is not None) == (operation.data_length > 0)
            assert operation.target
            for extent in (*operation.source, *operation.target):
                assert extent.blocks > 0
                if not extent.hole:
                    assert (extent.start + extent.blocks) * manifest.block_size <= 2**63
            if manifest.major == 1:
                assert operation.type <= OperationType.BSDIFF
                continue
            assert operation.type not in (OperationType.MOVE, OperationType.BSDIFF)
            for extent in operation.target:
                if not extent.hole and blocks < 10_000:
                    run = set(range(extent.start, extent.start + extent.blocks))
                    assert not run & written
                    written |= run
            for extent in operation.source:
                assert part.old is not None
                assert (extent.start + extent.blocks - 1) * manifest.block_size < part.old.size
        if manifest.major == 2 and blocks < 10_000:
            assert written == set(range(blocks))


def anything(package: str, name: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any message of a kind, well-formed as protobuf and as wrong as it likes otherwise."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        message = message_class(package, name)()
        for kind, field in SCHEMAS[package][name].values():
            bare = kind.removeprefix("repeated ")
            count = draw(st.integers(0, 2)) if bare != kind else draw(st.integers(0, 1))
            for _ in range(count):
                if bare in SCHEMAS[package]:
                    inner = draw(anything(package, bare, depth + 1))
                    if bare != kind:
                        getattr(message, field).append(inner)
                    else:
                        getattr(message, field).CopyFrom(inner)
                    continue
                setattr(message, field, draw(_scalar(bare)))
        return message

    return build()


def _scalar(kind: str) -> st.SearchStrategy[Any]:
    if kind == "bytes":
        return st.one_of(st.just(bytes(32)), st.just(b"system"), st.binary(max_size=40))
    if kind == "bool":
        return st.booleans()
    if kind == "fixed32":
        return st.integers(0, 2**32 - 1)
    if kind == "int64":
        return st.integers(-(2**63), 2**63 - 1)
    return numbers


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from([1, 2]))
def test_any_manifest(data: st.DataObject, major: int) -> None:
    message = data.draw(anything(f"crau_v{major}", "DeltaArchiveManifest"))
    judge(message.SerializeToString(), major)


@settings(max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([1, 2]))
def test_any_bytes(raw: bytes, major: int) -> None:
    judge(raw, major)


@needs_vectors
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda p: p.name)
def test_vectors_with_turned_bits_and_spliced(path: Any) -> None:
    reading = read([path.read_bytes()])
    assert reading.metadata is not None
    header = reading.metadata.header
    raw = reading.metadata.raw[header.size :]
    rng = random.Random(path.name)
    accepted = 0
    for _ in range(250):
        broken = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(broken))
            match rng.randrange(4):
                case 0:
                    broken[at] ^= 1 << rng.randrange(8)
                case 1:
                    broken[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
                case 2:
                    del broken[at:]
                    broken += raw[rng.randrange(len(raw)) :]
                case _:
                    broken[at:at] = broken[at : at + rng.randrange(80)]
            broken = broken or bytearray(b"\0")
        accepted += judge(bytes(broken), header.major, path.stat().st_size) is not None
    assert accepted < 250


@pytest.mark.parametrize("side", ["src_extents", "dst_extents"])
@pytest.mark.parametrize("major", [1, 2])
def test_extents_that_name_the_image_over_and_over_are_refused(major: int, side: str) -> None:
    """Each costs ten bytes of manifest and a whole image of work, before anything is proven."""
    draft = draft_v1() if major == 1 else draft_v2(delta=True)
    operation = draft.operations[1]
    operation.type = OperationType.BSDIFF if major == 1 else OperationType.SOURCE_BSDIFF
    if major == 1:
        info = draft.manifest.old_partition_info
        info.size, info.hash = 1 << 30, bytes(32)
        draft.manifest.new_partition_info.size = 1 << 30
    else:
        part = draft.manifest.partitions[0]
        part.old_partition_info.size = part.new_partition_info.size = 1 << 30
    if not operation.src_extents:
        operation.src_extents.add(start_block=0, num_blocks=4)
    for _ in range(5):
        getattr(operation, side).add(start_block=0, num_blocks=1 << 18)
    draft.build()
    raw = draft.manifest.SerializeToString()
    metadata = bytes(20 if major == 1 else 24) + raw
    with pytest.raises(BasculeError, match="too many for images of this size") as refused:
        parse_manifest(raw, major=major, metadata=metadata, size=None, limits=Limits())
    assert refused.value.number == 28


@pytest.mark.parametrize("major", [1, 2])
@pytest.mark.parametrize("side", ["new_partition_info", "old_partition_info"])
def test_images_too_large_to_keep_account_of_are_refused(major: int, side: str) -> None:
    """Four bytes of memory for each block: an image of 32 TiB would be a table of 32 GiB."""
    draft = draft_v1() if major == 1 else draft_v2(delta=True)
    holder = draft.manifest if major == 1 else draft.manifest.partitions[0]
    info = getattr(holder, side)
    info.size, info.hash = 1 << 45, bytes(32)
    draft.build()
    raw = draft.manifest.SerializeToString()
    metadata = bytes(20 if major == 1 else 24) + raw
    with pytest.raises(BasculeError, match="more than can be accounted for"):
        parse_manifest(raw, major=major, metadata=metadata, size=None, limits=Limits())


def test_a_hole_without_end_is_refused() -> None:
    """Writing nothing, for ever: a MOVE from a hole to a hole of 2**50 blocks."""
    draft = draft_v1()
    operation = draft.operations[1]
    operation.type = OperationType.MOVE
    draft.blobs[1] = b""
    del operation.dst_extents[:]
    for run in (operation.src_extents, operation.dst_extents):
        run.add(start_block=HOLE, num_blocks=1 << 50)
    draft.settle()
    draft.build()
    raw = draft.manifest.SerializeToString()
    with pytest.raises(BasculeError, match="too many for images of this size"):
        parse_manifest(raw, major=1, metadata=bytes(20) + raw, size=None, limits=Limits())


class HostileManifest(RuleBasedStateMachine):
    """Starts from a good payload and does to it, step by step, what an attacker would."""

    draft: Draft

    @initialize(kind=st.sampled_from(["v1", "v2", "v2 delta"]))
    def start(self, kind: str) -> None:
        self.draft = draft_v1() if kind == "v1" else draft_v2(delta="delta" in kind)
        assert self.judged() is not None

    def judged(self) -> Manifest | None:
        self.draft.build()
        return judge(self.draft.manifest.SerializeToString(), self.draft.major)

    def operation(self, at: int) -> Any:
        return self.draft.operations[at % len(self.draft.operations)]

    @rule(
        at=st.integers(0, 9),
        field=st.sampled_from(["type", "data_offset", "data_length", "src_length", "dst_length"]),
        value=numbers,
    )
    def set_number(self, at: int, field: str, value: int) -> None:
        setattr(self.operation(at), field, value)

    @rule(at=st.integers(0, 9), start=numbers, blocks=numbers, source=st.booleans())
    def set_extent(self, at: int, start: int, blocks: int, source: bool) -> None:
        operation = self.operation(at)
        run = operation.src_extents if source else operation.dst_extents
        if run:
            run[0].start_block = start
            run[0].num_blocks = blocks

    @rule(at=st.integers(0, 9), start=numbers, blocks=numbers, source=st.booleans())
    def add_extent(self, at: int, start: int, blocks: int, source: bool) -> None:
        operation = self.operation(at)
        run = operation.src_extents if source else operation.dst_extents
        run.add(start_block=start, num_blocks=blocks)

    @rule(
        at=st.integers(0, 9),
        field=st.sampled_from(
            ["type", "data_sha256_hash", "dst_extents", "src_extents", "data_length"]
        ),
    )
    def drop_field(self, at: int, field: str) -> None:
        self.operation(at).ClearField(field)

    @rule(at=st.integers(0, 9), size=st.integers(0, 5000))
    def replace_blob(self, at: int, size: int) -> None:
        self.draft.blobs[at % len(self.draft.blobs)] = bytes(size)
        self.draft.settle()

    @rule(
        field=st.sampled_from(
            ["block_size", "signatures_offset", "signatures_size", "minor_version", "max_timestamp"]
        ),
        value=numbers,
    )
    def set_of_the_whole(self, field: str, value: int) -> None:
        if field in ("minor_version", "max_timestamp") and self.draft.major == 1:
            return
        if field == "max_timestamp":
            value -= 2**63
        self.draft.place[field] = value

    @rule(value=numbers, old=st.booleans())
    def set_image_size(self, value: int, old: bool) -> None:
        holder = self.draft.manifest
        if self.draft.major == 2:
            holder = holder.partitions[0]
        info = holder.old_partition_info if old else holder.new_partition_info
        info.size = value
        info.hash = bytes(32)

    @precondition(lambda self: self.draft.major == 2)
    @rule(name=st.binary(max_size=70))
    def rename(self, name: bytes) -> None:
        self.draft.manifest.partitions[0].partition_name = name

    @precondition(lambda self: self.draft.major == 1)
    @rule(kind=numbers, start=numbers)
    def add_procedure(self, kind: int, start: int) -> None:
        operation = self.draft.manifest.procedures.add(type=kind).operations.add(type=0)
        operation.dst_extents.add(start_block=start, num_blocks=1)
        self.draft.operations.append(operation)
        self.draft.blobs.append(b"data")
        self.draft.settle()

    @rule()
    def heal(self) -> None:
        """Back to a good one, so that long runs do not stay in the same fault."""
        self.draft = draft_v1() if self.draft.major == 1 else draft_v2(delta=True)
        assert self.judged() is not None

    @invariant()
    def every_rule_is_kept_or_it_is_refused(self) -> None:
        if hasattr(self, "draft"):
            self.judged()


TestHostileManifest = HostileManifest.TestCase
TestHostileManifest.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)

assert HOLE in EDGES
