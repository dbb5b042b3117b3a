"""Payloads that are wrong in one place each, and the number that each must be refused with.

The numbers are update_engine 0.4.10's where it refuses (reference flatcar.md 1.5–1.6,
flatcar_observed.md §4) and ours where it crashes or accepts. Everything but the named fault is right:
the payload is signed after the change, so no other check can stand in for the one that is meant.
"""

from __future__ import annotations

import bz2
import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from payload_builder import BLOCK, IMAGE, Draft, draft_v1, draft_v2, noise

HOLE = 2**64 - 1


class Stage(enum.Enum):
    """Where a reader can know at the earliest."""

    METADATA = "before the first write"
    DATA = "when the bytes are there"
    DECODE = "when the operation is carried out"
    TRUST = "when the signature is checked"
    READ_BACK = "when the slot is read back"
    NEVER = "nothing is wrong"


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        number: the error's number; None if the payload must be accepted.
        tight: the number where the target has no room behind the image, if that is another.
        original: what update_engine does, where that is not simply the number.
    """

    name: str
    number: int | None
    stage: Stage
    edit: Callable[[Draft], None]
    draft: Callable[[], Draft] = draft_v1
    original: str = ""
    tight: int | None = None

    def build(self) -> bytes:
        """The whole payload."""
        draft = self.draft()
        self.edit(draft)
        return draft.build()

    def __str__(self) -> str:
        return self.name


MUTATIONS: list[Mutation] = []


def _mutation(
    name: str,
    number: int | None,
    stage: Stage = Stage.METADATA,
    *,
    draft: Callable[[], Draft] = draft_v1,
    original: str = "",
    tight: int | None = None,
) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
    def note(edit: Callable[[Draft], None]) -> Callable[[Draft], None]:
        MUTATIONS.append(Mutation(name, number, stage, edit, draft, original, tight))
        return edit

    return note


def _set(draft: Draft, **values: object) -> None:
    for name, value in values.items():
        setattr(draft, name, value)


def _quick(
    name: str,
    number: int | None,
    stage: Stage = Stage.METADATA,
    *,
    draft: Callable[[], Draft] = draft_v1,
    original: str = "",
    **values: object,
) -> None:
    """A mutation that only sets members of the draft."""
    edit = lambda d: _set(d, **values)  # noqa: E731
    MUTATIONS.append(Mutation(name, number, stage, edit, draft, original))


# ── the header ───────────────────────────────────────────────────────────────────────────────

_quick("bad magic", 21, magic=b"CrAV")
_quick("magic of a web page", 21, magic=b"<!DO")
_quick("version 0", 23, version=0, original="accepts")
_quick("version 3", 23, version=3, original="accepts")
_quick("version 2**64-1", 23, version=2**64 - 1, original="accepts")
_quick("version 2 over a v1 manifest", 32, version=2, original="accepts")
_quick("manifest length 0", 11, manifest_size=0)
_quick("manifest length 2**31", 11, manifest_size=2**31)
_quick("manifest length 2**32-1", 11, manifest_size=2**32 - 1)
_quick("manifest length 2**63", 11, manifest_size=2**63)
_quick("manifest length 2**64-1", 32, manifest_size=2**64 - 1, original="crashes")


@_mutation("manifest length one short", 23)
def _(draft: Draft) -> None:
    draft.manifest_size = len(_final(draft)) - 1


@_mutation("manifest length one long", 23)
def _(draft: Draft) -> None:
    draft.manifest_size = len(_final(draft)) + 1


def _final(draft: Draft) -> bytes:
    """The manifest with the signature's place filled in."""
    draft.build()
    return bytes(draft.manifest.SerializeToString())


# ── what the manifest says of the image ──────────────────────────────────────────────────────


for size, seen in ((0, "crashes"), (1, ""), (511, ""), (4095, ""), (2**31, ""), (2**32 - 1, "")):

    @_mutation(f"block size {size}", 28, original=seen)
    def _(draft: Draft, size: int = size) -> None:
        draft.manifest.block_size = size


@_mutation("no new_partition_info", 12)
def _(draft: Draft) -> None:
    draft.manifest.ClearField("new_partition_info")


@_mutation("wrong image hash", 15, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.manifest.new_partition_info.hash = bytes(32)


@_mutation("image one block shorter than said", 15, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.manifest.new_partition_info.size = len(IMAGE) + BLOCK


@_mutation("image one block longer than said", 15, Stage.READ_BACK, tight=28)
def _(draft: Draft) -> None:
    draft.manifest.new_partition_info.size = len(IMAGE) - BLOCK


@_mutation("kernel without new_info", 23)
def _(draft: Draft) -> None:
    draft.manifest.procedures[0].ClearField("new_info")


@_mutation("wrong kernel hash", 16, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.manifest.procedures[0].new_info.hash = bytes(32)


@_mutation("procedure of an unknown type", None, Stage.NEVER, original="skips its data")
def _(draft: Draft) -> None:
    procedure = draft.manifest.procedures.add(type=7)
    operation = procedure.operations.add(type=0)
    operation.dst_extents.add(start_block=0, num_blocks=1)
    draft.operations.append(operation)
    draft.blobs.append(noise(100, 9))
    draft.settle()
    # What is not carried out is not hashed either (reference 1.5 d).
    operation.data_sha256_hash = bytes(32)


@_mutation("procedure of no type at all", None, Stage.NEVER, original="skips its data")
def _(draft: Draft) -> None:
    operation = draft.manifest.procedures.add().operations.add(type=1)
    draft.operations.append(operation)
    draft.blobs.append(noise(100, 9))
    draft.settle()


@_mutation("two kernels", 23, original="carries out both")
def _(draft: Draft) -> None:
    draft.manifest.procedures.add().CopyFrom(draft.manifest.procedures[0])
    draft.operations.append(draft.manifest.procedures[1].operations[0])
    draft.blobs.append(draft.blobs[3])
    draft.settle()


# ── operations ───────────────────────────────────────────────────────────────────────────────


@_mutation("gap before an operation's data", 28)
def _(draft: Draft) -> None:
    draft.operations[1].data_offset += 1


@_mutation("overlapping data", 28)
def _(draft: Draft) -> None:
    draft.operations[1].data_offset -= 1


@_mutation("first data not at 0", 28)
def _(draft: Draft) -> None:
    draft.operations[0].data_offset = 1


@_mutation("data offset 2**32", 28)
def _(draft: Draft) -> None:
    # As a 32-bit number it would be 0, which is right.
    draft.operations[0].data_offset = 2**32


@_mutation("data length 2**32-1", 11)
def _(draft: Draft) -> None:
    draft.operations[3].data_length = 2**32 - 1


@_mutation("data length 2**63", 11)
def _(draft: Draft) -> None:
    draft.operations[3].data_length = 2**63


@_mutation("data length one long", 28)
def _(draft: Draft) -> None:
    draft.operations[0].data_length += 1


@_mutation("no data length", 28)
def _(draft: Draft) -> None:
    draft.operations[0].ClearField("data_length")


@_mutation("no hash", 38)
def _(draft: Draft) -> None:
    draft.operations[1].ClearField("data_sha256_hash")


@_mutation("hash of no bytes", 38)
def _(draft: Draft) -> None:
    draft.operations[1].data_sha256_hash = b""


@_mutation("hash of 31 bytes", 29)
def _(draft: Draft) -> None:
    draft.operations[1].data_sha256_hash = draft.operations[1].data_sha256_hash[:31]


@_mutation("wrong hash", 29, Stage.DATA)
def _(draft: Draft) -> None:
    draft.operations[1].data_sha256_hash = bytes(32)


@_mutation("one bit of the data turned", 29, Stage.DATA)
def _(draft: Draft) -> None:
    draft.flips = [len(_final(draft)) + 20 + 100]


for number in (4, 14, 15, 2**31, 2**32, 2**64 - 1):

    @_mutation(f"operation type {number}", 23)
    def _(draft: Draft, number: int = number) -> None:
        draft.operations[1].type = number


@_mutation("no operation type", 23)
def _(draft: Draft) -> None:
    draft.operations[1].ClearField("type")


@_mutation("MOVE with data", 28)
def _(draft: Draft) -> None:
    draft.operations[1].type = 2
    draft.operations[1].src_extents.add(start_block=0, num_blocks=4)


@_mutation("MOVE of five blocks onto four", 28)
def _(draft: Draft) -> None:
    draft.operations[1].type = 2
    draft.operations[1].src_extents.add(start_block=0, num_blocks=5)
    draft.blobs[1] = b""
    draft.settle()


@_mutation("MOVE from behind the image", 28)
def _(draft: Draft) -> None:
    draft.operations[1].type = 2
    draft.operations[1].src_extents.add(start_block=2**40, num_blocks=4)
    draft.blobs[1] = b""
    draft.settle()


@_mutation("BSDIFF with no patch", 28)
def _(draft: Draft) -> None:
    draft.operations[1].type = 3
    draft.operations[1].src_extents.add(start_block=0, num_blocks=4)
    draft.blobs[1] = b""
    draft.settle()


@_mutation("no target", 28)
def _(draft: Draft) -> None:
    draft.operations[0].ClearField("dst_extents")


@_mutation("target of no blocks", 28)
def _(draft: Draft) -> None:
    draft.operations[0].dst_extents[0].num_blocks = 0


for start, blocks in ((2**63, 4), (2**64 - 2, 4), (0, 2**63), (0, 2**64 - 1), (HOLE, 2**64 - 1)):

    @_mutation(f"target {start}+{blocks}", 28)
    def _(draft: Draft, start: int = start, blocks: int = blocks) -> None:
        draft.operations[0].dst_extents[0].start_block = start
        draft.operations[0].dst_extents[0].num_blocks = blocks


@_mutation("target behind any device", 28, Stage.DECODE)
def _(draft: Draft) -> None:
    draft.operations[0].dst_extents[0].start_block = 2**50


@_mutation("target a hole", 15, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.operations[0].dst_extents[0].start_block = HOLE


@_mutation("target one block off", 15, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.operations[0].dst_extents[0].start_block = 1


@_mutation("more data than target", 28)
def _(draft: Draft) -> None:
    draft.operations[0].dst_extents[0].num_blocks = 3


@_mutation("more decompressed data than target", 28, Stage.DECODE)
def _(draft: Draft) -> None:
    draft.operations[1].dst_extents[0].num_blocks = 3


@_mutation("bzip2 bomb", 28, Stage.DECODE)
def _(draft: Draft) -> None:
    draft.blobs[1] = bz2.compress(bytes(64 << 20))
    draft.settle()


@_mutation("bzip2 cut short", 28, Stage.DECODE)
def _(draft: Draft) -> None:
    draft.blobs[1] = draft.blobs[1][:-5]
    draft.settle()


@_mutation("bytes behind the bzip2 stream", 28, Stage.DECODE, original="crashes")
def _(draft: Draft) -> None:
    draft.blobs[1] += b"1234"
    draft.settle()


@_mutation("raw data called REPLACE_BZ", 28, Stage.DECODE)
def _(draft: Draft) -> None:
    draft.operations[0].type = 1


@_mutation("bzip2 data called REPLACE", 15, Stage.READ_BACK)
def _(draft: Draft) -> None:
    draft.operations[1].type = 0


# ── the signature and the end ────────────────────────────────────────────────────────────────


@_mutation("signature offset one long", 28)
def _(draft: Draft) -> None:
    draft.place = {"signatures_offset": sum(map(len, draft.blobs)) + 1}


_quick("signature offset 0", 28, place={"signatures_offset": 0})
_quick("signature offset 2**63", 28, place={"signatures_offset": 2**63})
_quick("no signature offset", 11, place={"signatures_offset": None})
_quick("signature size 0", 11, place={"signatures_size": 0})
_quick("no signature size", 11, place={"signatures_size": None})
_quick("signature size one long", 11, place={"signatures_size": 265})
_quick("signature size one short", 11, place={"signatures_size": 263})
_quick("signature size 2**32", 11, place={"signatures_size": 2**32})
_quick("signature size 2**64-1", 11, place={"signatures_size": 2**64 - 1})
_quick("unsigned", 17, Stage.TRUST, signatures=b"")
_quick("signature of version 1 only", 18, Stage.TRUST, signers=((1, "update"),))
_quick("signature of no version", 18, Stage.TRUST, signers=((None, "update"),))
_quick("signature of version 2**32+2", 18, Stage.TRUST, signers=((2**32 + 2, "update"),))
_quick("wrong key", 18, Stage.TRUST, signers=((2, "other"),))
_quick("second of version 2", 18, Stage.TRUST, signers=((2, "other"), (2, "update")))
_quick("version 1 by another key first", None, Stage.NEVER, signers=((1, "other"), (2, "update")))
_quick("signature is no message", 18, Stage.TRUST, signatures=b"\xff" * 264)
_quick("signature message without entries", 18, Stage.TRUST, signatures=b"\x10\x01")
_quick(
    "signature of 255 bytes",
    18,
    Stage.TRUST,
    signatures=b"\x0a\x84\x02\x08\x02\x12\xff\x01" + b"x" * 255,
)
_quick("bytes behind the end", 11, trailer=b"\0")
_quick("a megabyte behind the end", 11, trailer=bytes(1 << 20))


@_mutation("one bit of the signature turned", 18, Stage.TRUST)
def _(draft: Draft) -> None:
    draft.flips = [len(draft.build()) - 1]


@_mutation("field turned that only the signature covers", 18, Stage.TRUST)
def _(draft: Draft) -> None:
    draft.manifest.old_partition_info.ClearField("size")
    draft.manifest.ClearField("old_partition_info")
    # noop_operations (field 2), which no reader looks at, with a hash in it
    noop = b"\x12\x24\x08\x00\x42\x20" + hashlib.sha256(b"noop").digest()
    draft.manifest.MergeFromString(noop)
    draft.flips = [20 + _final(draft).index(noop) + 20]


for name, cut in (("the magic", 3), ("the header", 15), ("the manifest", 60)):
    _quick(f"cut in {name}", 11, Stage.METADATA, cut=cut)


@_mutation("cut in the data", 11, Stage.DATA)
def _(draft: Draft) -> None:
    draft.cut = len(_final(draft)) + 20 + 5000


@_mutation("cut in the signature", 11, Stage.DATA)
def _(draft: Draft) -> None:
    draft.cut = len(draft.build()) - 1


@_mutation("cut before the signature", 11, Stage.DATA)
def _(draft: Draft) -> None:
    draft.cut = len(draft.build()) - 264


_quick("nothing at all", 11, Stage.METADATA, cut=0)


# ── major 2 ──────────────────────────────────────────────────────────────────────────────────


def _delta() -> Draft:
    return draft_v2(delta=True)


_quick("v2: manifest length 2**63", 32, draft=draft_v2, manifest_size=2**63)
_quick("v2: manifest length 2**64-1", 32, draft=draft_v2, manifest_size=2**64 - 1)
_quick("v2: metadata signature 2**32-1", 32, draft=draft_v2, metadata_signature_size=2**32 - 1)
_quick(
    "v2: metadata signed by another", 26, Stage.TRUST, draft=draft_v2, metadata_signers=("other",)
)
_quick("v2: payload signed by another", 18, Stage.TRUST, draft=draft_v2, signers=((None, "other"),))
_quick("v2: unsigned", 17, Stage.TRUST, draft=draft_v2, signatures=b"", metadata_signers=())
_quick(
    "v2: several signatures",
    None,
    Stage.NEVER,
    draft=draft_v2,
    signers=((None, "other"), (None, "update")),
    metadata_signers=("other", "update"),
)

for number in (2, 3, 9, 11, 12, 13, 15, 2**32, 2**64 - 1):

    @_mutation(f"v2: operation type {number}", 23, draft=_delta)
    def _(draft: Draft, number: int = number) -> None:
        draft.operations[1].type = number


for minor in (1, 11, 2**31, 2**32 + 4):

    @_mutation(f"v2: delta of minor version {minor}", 45, draft=_delta)
    def _(draft: Draft, minor: int = minor) -> None:
        draft.manifest.minor_version = minor


@_mutation("v2: full payload of minor version 4", 45, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.manifest.minor_version = 4


@_mutation("v2: no new_partition_info", 13, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.manifest.partitions[0].ClearField("new_partition_info")


@_mutation("v2: no partitions", 23, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.manifest.ClearField("partitions")


for bad in (b"", b"../../dev/sda", b"a\x1b[2Jb", b"\xff", b"x" * 65, b".."):

    @_mutation(f"v2: partition named {bad!r}", 23, draft=draft_v2)
    def _(draft: Draft, bad: bytes = bad) -> None:
        draft.manifest.partitions[0].partition_name = bad


@_mutation("v2: two partitions of one name", 23, draft=draft_v2)
def _(draft: Draft) -> None:
    part = draft.manifest.partitions.add()
    part.CopyFrom(draft.manifest.partitions[0])
    draft.operations += list(part.operations)
    draft.blobs += draft.blobs
    draft.settle()


@_mutation("v2: a block written twice", 23, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.operations[1].dst_extents[0].start_block = 3


@_mutation("v2: a block written by nothing", 23, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].src_extents[0].num_blocks = 3
    draft.operations[0].dst_extents[0].num_blocks = 3


@_mutation("v2: blocks left to a verity tree", 23, draft=draft_v2)
def _(draft: Draft) -> None:
    part = draft.manifest.partitions[0]
    part.new_partition_info.size += BLOCK
    part.hash_tree_extent.start_block = 10
    part.hash_tree_extent.num_blocks = 1


@_mutation("v2: target behind the image", 28, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.operations[2].dst_extents[0].num_blocks = 256


@_mutation("v2: source behind the old image", 28, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].src_extents[0].start_block = 7


@_mutation("v2: source a hole", 28, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].src_extents[0].start_block = HOLE


@_mutation("v2: SOURCE_COPY of unequal lengths", 28, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].src_extents[0].num_blocks = 3


@_mutation("v2: SOURCE_COPY with data", 28, draft=_delta)
def _(draft: Draft) -> None:
    draft.blobs[0] = b"data"
    draft.settle()


@_mutation("v2: ZERO with an offset", 28, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].type = 6
    draft.operations[0].data_offset = 0


@_mutation("v2: SOURCE_COPY without an old partition", 23, draft=_delta)
def _(draft: Draft) -> None:
    draft.manifest.partitions[0].ClearField("old_partition_info")
    draft.manifest.minor_version = 0


@_mutation("v2: REPLACE shorter than its target", 28, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.blobs[0] = draft.blobs[0][:-1]
    draft.settle()


@_mutation("v2: postinstall outside the partition", 23, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.manifest.partitions[0].run_postinstall = True
    draft.manifest.partitions[0].postinstall_path = b"../../bin/sh"


@_mutation("v2: wrong source hash", 20, Stage.DECODE, draft=_delta)
def _(draft: Draft) -> None:
    draft.operations[0].src_sha256_hash = bytes(32)


@_mutation("v2: patch for another length", 28, Stage.DECODE, draft=_delta)
def _(draft: Draft) -> None:
    patch = bytearray(draft.blobs[1])
    patch[24:32] = (4 * BLOCK + 1).to_bytes(8, "little")
    draft.blobs[1] = bytes(patch)
    draft.settle()


@_mutation("v2: xz data cut short", 28, Stage.DECODE, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.blobs[2] = draft.blobs[2][:-9]
    draft.settle()


@_mutation("v2: decompressed data shorter than the target", 28, Stage.DECODE, draft=draft_v2)
def _(draft: Draft) -> None:
    draft.blobs[1] = bz2.compress(IMAGE[4 * BLOCK : 8 * BLOCK - 1])
    draft.settle()
