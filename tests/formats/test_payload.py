"""The push parser: any chunking, every cut, where it may resume."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import (
    BadMagic,
    BasculeError,
    MetadataSizeError,
    PayloadSizeMismatch,
    UnsupportedMajor,
)
from bascule.formats.manifest import Limits
from bascule.formats.payload import Blob, End, Metadata, PayloadParser, SignatureBlob
from bascule.formats.signature import load_keys
from payload_builder import draft_v1, draft_v2, public_pem
from payload_reading import PAYLOADS, needs_vectors, prove, read

SMALL = {
    "v1": draft_v1().build(),
    "v2": draft_v2().build(),
    "v2 delta": draft_v2(delta=True).build(),
}


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for start, end in pairwise([0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]):
        yield data[start:end]


@pytest.mark.parametrize("name", SMALL)
def test_byte_by_byte_gives_what_one_piece_gives(name: str) -> None:
    data = SMALL[name]
    whole = read([data])
    assert read(data[i : i + 1] for i in range(len(data))).events == whole.events
    assert [type(e) for e in whole.events[:1] + whole.events[-2:]] == [Metadata, SignatureBlob, End]
    assert whole.ended == len(data)


@settings(max_examples=60)
@given(st.sampled_from(sorted(SMALL)), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_any_chunking_gives_what_one_piece_gives(name: str, cuts: list[int]) -> None:
    data = SMALL[name]
    assert read(pieces(data, cuts)).events == read([data]).events


@needs_vectors
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda p: p.name)
def test_vectors_in_ragged_pieces(path: Path) -> None:
    data = path.read_bytes()
    rng = random.Random(path.name)
    cuts = [rng.randrange(len(data)) for _ in range(200)] + list(range(3000))
    reading = read(pieces(data, cuts), size=len(data))
    assert reading.events == read([data], size=len(data)).events
    assert reading.ended == len(data)
    assert reading.manifest is not None
    assert reading.manifest.size == len(data)
    blobs = [e for e in reading.events if isinstance(e, Blob)]
    assert [b.operation.index for b in blobs] == list(range(len(blobs)))


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_is_a_size_mismatch(name: str) -> None:
    data = SMALL[name]
    for cut in [*range(400), *range(400, len(data), 97), len(data) - 1]:
        with pytest.raises(PayloadSizeMismatch):
            read([data[:cut]])
        with pytest.raises((PayloadSizeMismatch, MetadataSizeError)):
            read([data[:cut]], size=cut)


@pytest.mark.parametrize("name", SMALL)
def test_no_flipped_bit_is_ever_proven(name: str) -> None:
    data = SMALL[name]
    keys = load_keys(public_pem(), "update")
    manifest = prove(data, keys).manifest
    signatures = [
        range(manifest.metadata_size, manifest.blobs_offset),
        range(manifest.blobs_offset + manifest.blobs_size, manifest.size),
    ]
    rng = random.Random(7)
    places = [*range(manifest.blobs_offset), *(rng.randrange(len(data)) for _ in range(400))]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        try:
            proven = prove(bytes(broken), keys)
        except BasculeError as error:
            assert error.number
            continue
        # The envelope of a signature is not signed: the length of its padding may be lost.
        assert any(place in area for area in signatures)
        assert proven.manifest == manifest


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"<", BadMagic),
        (b"Cra", BadMagic),
        (b"CrAu", BadMagic),
        (b"CrAU" + bytes(8), UnsupportedMajor),
        (b"CrAU" + bytes(7) + b"\x03", UnsupportedMajor),
        (b"CrAU" + b"\xff" * 8, UnsupportedMajor),
        (b"CrAU" + b"\x01" + bytes(6) + b"\x02", UnsupportedMajor),
    ],
)
def test_head_is_refused_at_the_first_wrong_byte(head: bytes, error: type[BasculeError]) -> None:
    for step in (1, len(head)):
        parser = PayloadParser()
        with pytest.raises(error):
            for at in range(0, len(head), step):
                parser.feed(head[at : at + step])


def header(major: int, manifest: int, signature: int = 0) -> bytes:
    head = b"CrAU" + major.to_bytes(8, "big") + manifest.to_bytes(8, "big")
    return head if major == 1 else head + signature.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (header(1, (64 << 20) + 1), PayloadSizeMismatch),
        (header(1, 2**63), PayloadSizeMismatch),
        (header(1, 2**64 - 1), MetadataSizeError),
        (header(2, (64 << 20) + 1), MetadataSizeError),
        (header(2, 2**64 - 1), MetadataSizeError),
        (header(2, 2**64 - 24, 0), MetadataSizeError),
        (header(2, 2**64 - 25, 2**32 - 1), MetadataSizeError),
        (header(2, 100, 65537), MetadataSizeError),
    ],
)
def test_impossible_lengths_are_refused_before_memory_is_taken(
    head: bytes, error: type[BasculeError]
) -> None:
    tracemalloc.start()
    with pytest.raises(error):
        PayloadParser().feed(head)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_length_that_is_believed_takes_no_memory_until_bytes_come() -> None:
    parser = PayloadParser(limits=Limits(manifest=1 << 40))
    tracemalloc.start()
    parser.feed(header(1, 1 << 40) + b"x" * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_metadata_longer_than_the_announced_payload() -> None:
    with pytest.raises(PayloadSizeMismatch):
        PayloadParser(size=100).feed(header(1, 81))
    with pytest.raises(MetadataSizeError):
        PayloadParser(size=100).feed(header(2, 70, 7))
    PayloadParser(size=100).feed(header(1, 80))


def test_announced_metadata_size_must_be_the_headers() -> None:
    with pytest.raises(MetadataSizeError):
        PayloadParser(metadata_size=101).feed(header(1, 80))
    PayloadParser(metadata_size=100).feed(header(1, 80))
    PayloadParser(metadata_size=104).feed(header(2, 80, 50))


def test_announced_size_must_be_what_the_manifest_adds_up_to() -> None:
    data = SMALL["v1"]
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(PayloadSizeMismatch):
            read([data], size=size)


def test_bytes_behind_the_end() -> None:
    for piece in (b"\0", b"\0" * 100_000):
        with pytest.raises(PayloadSizeMismatch, match="follow the end"):
            read([SMALL["v1"], piece])
        with pytest.raises(PayloadSizeMismatch, match="follow the end"):
            read([SMALL["v1"] + piece])


def test_what_came_before_the_excess_is_handed_out_but_no_end() -> None:
    data = SMALL["v1"]
    manifest = read([data]).manifest
    assert manifest is not None
    whole = PayloadParser.resume(manifest, 0).feed(data[manifest.blobs_offset :])
    for again in (lambda p: p.feed(b""), lambda p: p.feed(b"x"), lambda p: p.finish()):
        parser = PayloadParser.resume(manifest, 0)
        assert parser.feed(data[manifest.blobs_offset :] + b"\0") == whole[:-1]
        assert not parser.ended
        with pytest.raises(PayloadSizeMismatch, match="follow the end"):
            again(parser)


def test_unsigned_payload_ends_behind_its_last_blob() -> None:
    draft = draft_v1()
    draft.signatures = b""
    data = draft.build()
    reading = read([data], size=len(data))
    assert reading.ended == len(data)
    assert not any(isinstance(e, SignatureBlob) for e in reading.events)


@pytest.mark.parametrize("name", SMALL)
def test_resume_at_every_operation_gives_the_same_rest(name: str) -> None:
    data = SMALL[name]
    whole = read([data])
    assert whole.manifest is not None
    blobs = [e for e in whole.events if not isinstance(e, Metadata)]
    for first in range(len(whole.manifest.operations) + 1):
        offset = whole.manifest.offset_of(first)
        parser = PayloadParser.resume(whole.manifest, first, size=len(data))
        assert parser.received == parser.consumed == offset
        assert parser.feed(data[offset:]) == blobs[first:]
        parser.finish()

        again = PayloadParser()
        (metadata,) = again.feed(data[: whole.manifest.blobs_offset])
        assert isinstance(metadata, Metadata)
        assert again.begin(metadata.parse(), first) + again.feed(data[offset:]) == blobs[first:]
        again.finish()


def test_received_is_where_a_broken_transfer_goes_on() -> None:
    data = SMALL["v2 delta"]
    whole = read([data])
    for cut in (0, 3, 22, 24, 100, len(data) // 2, len(data) - 3, len(data)):
        parser = PayloadParser()
        events = []
        for end, piece in ((cut, data[:cut]), (len(data), data[cut:])):
            for event in parser.feed(piece):
                events.append(event)
                if isinstance(event, Metadata):
                    events += parser.begin(event.parse())
            assert parser.received == end
            assert parser.consumed <= end
        assert events == whole.events


def test_operations_without_data_come_before_the_next_bytes() -> None:
    """A delta that begins with copies starts to work before the first blob is there."""
    data = SMALL["v2 delta"]
    parser = PayloadParser()
    (metadata,) = parser.feed(data[: read([data]).manifest.blobs_offset])  # type: ignore[union-attr]
    assert isinstance(metadata, Metadata)
    (first,) = parser.begin(metadata.parse())
    assert isinstance(first, Blob)
    assert first.data == b""


def test_use_out_of_order_is_a_mistake_of_ours() -> None:
    data = SMALL["v1"]
    parser = PayloadParser()
    with pytest.raises(RuntimeError):
        parser.begin(read([data]).manifest)  # type: ignore[arg-type]
    parser.feed(data)
    with pytest.raises(RuntimeError):
        parser.feed(b"x")
    with pytest.raises(RuntimeError):
        parser.begin(read([data]).manifest, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="operation 99"):
        PayloadParser.resume(read([data]).manifest, 99)  # type: ignore[arg-type]


def _before_its_blobs(first: bytes) -> tuple[PayloadParser, bytes, int]:
    """A parser of a payload whose first blob is `first`, the payload, and where its blobs begin."""
    draft = draft_v1()
    draft.blobs[0] = first
    draft.operations[0].dst_extents[0].num_blocks = 128
    draft.settle()
    data = draft.build()
    manifest = read([data]).manifest
    assert manifest is not None
    return PayloadParser.resume(manifest, 0), data, manifest.blobs_offset


def test_feeding_bytes_one_by_one_copies_no_more_than_they_are() -> None:
    """Joined anew at each byte, a blob of this size would cost gigabytes of copying."""
    parser, data, start = _before_its_blobs(bytes(300_000))
    resized = 0
    last = 0
    for at in range(start, start + 299_999):
        assert parser.feed(data[at : at + 1]) == []
        (held,) = parser._held._pieces
        assert isinstance(held, bytearray)
        allocated = held.__alloc__()
        resized += allocated if allocated != last else 0
        last = allocated
    assert resized < 10 * 300_000


def test_larger_pieces_are_joined_once() -> None:
    """What comes in pieces of a decent size is not copied into a growing buffer first."""
    blob = bytes(range(256)) * 1200
    parser, data, at = _before_its_blobs(blob)
    sizes = [100_000, 10, 20, 100_000, 5000, 50, 200_000]
    events: list[object] = []
    for size in sizes:
        events += parser.feed(data[at : at + size])
        at += size
        if not events:
            assert sum(map(len, parser._held._pieces)) == parser._held.size
            assert parser.received == at
    assert len(blob) < sum(sizes)
    assert isinstance(events[0], Blob)
    assert events[0].data == blob
