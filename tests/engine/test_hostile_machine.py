"""A publisher who means us harm, step by step, against the whole engine: parser, trust, applier.

Whatever the payload says, an installation ends in exactly the image that its manifest promises, or
in a typed error with nothing proven; the booted slot and the bytes around the target stay as they
were; memory in flight stays within its budget.
"""

from __future__ import annotations

import asyncio
import bz2
import hashlib
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import Any

import bsdiff4
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bascule.engine.boot.files import clear_files
from bascule.engine.region import Region
from bascule.engine.stream import Announced, install
from bascule.engine.verify import read_back
from bascule.errors import BasculeError
from bascule.formats.manifest import HOLE, Limits, OperationType
from bascule.formats.signature import load_keys
from payload_builder import BLOCK, IMAGE, OLD_IMAGE, Draft, draft_v1, draft_v2, public_pem
from payload_vectors import Bytes

ROOM = 16 * BLOCK
"""Bytes of each target; the images have ten blocks."""

BUDGET = 1 << 20
LIMITS = Limits(manifest=1 << 18, blob=1 << 20, operations=200, extents=2000)

BLOCKS = st.one_of(
    st.integers(0, 20), st.sampled_from([HOLE, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 51, 1 << 63])
)
COUNTS = st.one_of(st.integers(0, 20), st.sampled_from([256, 1 << 20, 1 << 31, 1 << 32, 1 << 52]))
LENGTHS = st.one_of(
    st.integers(0, 9000),
    st.sampled_from([(1 << n) + d for n in (31, 32, 63) for d in (-1, 0, 1)]),
)
BLOBS = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 20 * BLOCK).map(bytes),
    st.integers(0, 20 * BLOCK).map(lambda n: bz2.compress(bytes(n))),
    st.integers(0, 20 * BLOCK).map(lambda n: lzma.compress(b"x" * n)),
    st.sampled_from([bz2.compress(bytes(8 << 20)), lzma.compress(bytes(8 << 20))]),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(
        lambda n: bytes(bsdiff4.diff(OLD_IMAGE[: n[0] * BLOCK], IMAGE[: n[1] * BLOCK]))
    ),
)


class Hostile(RuleBasedStateMachine):
    """Edits a draft, signs it (or does not), and lets it be installed after every step."""

    draft: Draft
    what: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        self.good = 0
        self.refused = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(what=st.sampled_from(["v1", "v1 in place", "v2", "v2 delta"]))
    def start(self, what: str) -> None:
        self.what = what
        self.heal()

    def heal(self) -> None:
        self.draft = draft_v1() if "v1" in self.what else draft_v2(delta="delta" in self.what)
        if self.what == "v1 in place":
            info = self.draft.manifest.old_partition_info
            info.size, info.hash = len(OLD_IMAGE), hashlib.sha256(OLD_IMAGE).digest()

    def operation(self, at: int) -> Any:
        return self.draft.operations[at % len(self.draft.operations)]

    @rule(
        at=st.integers(0, 9), source=st.booleans(), start=BLOCKS, blocks=COUNTS, add=st.booleans()
    )
    def set_extent(self, at: int, source: bool, start: int, blocks: int, add: bool) -> None:
        run = getattr(self.operation(at), "src_extents" if source else "dst_extents")
        if add or not run:
            run.add(start_block=start, num_blocks=blocks)
        else:
            run[0].start_block, run[0].num_blocks = start, blocks

    @rule(at=st.integers(0, 9), kind=st.integers(0, 16))
    def set_type(self, at: int, kind: int) -> None:
        self.operation(at).type = kind

    @rule(
        at=st.integers(0, 9), kind=st.sampled_from(OperationType), blob=BLOBS, settle=st.booleans()
    )
    def set_work(self, at: int, kind: OperationType, blob: bytes, settle: bool) -> None:
        """A believable operation with data of its own."""
        self.operation(at).type = kind
        self.draft.blobs[at % len(self.draft.blobs)] = blob
        if settle:
            self.draft.settle()

    @rule(
        at=st.integers(0, 9),
        field=st.sampled_from(["data_offset", "data_length", "src_length", "dst_length"]),
        value=LENGTHS,
    )
    def set_length(self, at: int, field: str, value: int) -> None:
        setattr(self.operation(at), field, value)

    @rule(at=st.integers(0, 9), field=st.sampled_from(["data_sha256_hash", "src_sha256_hash"]))
    def spoil_hash(self, at: int, field: str) -> None:
        if self.draft.major == 2 or field == "data_sha256_hash":
            setattr(self.operation(at), field, bytes(32))

    @rule(size=LENGTHS, old=st.booleans(), data=st.sampled_from([IMAGE, OLD_IMAGE, b""]))
    def set_image(self, size: int, old: bool, data: bytes) -> None:
        holder = self.draft.manifest
        if self.draft.major == 2:
            holder = holder.partitions[0]
        info = holder.old_partition_info if old else holder.new_partition_info
        info.size = len(data) or size
        info.hash = hashlib.sha256(data).digest()

    @rule(one=st.integers(0, 9), two=st.integers(0, 9))
    def swap_blobs(self, one: int, two: int) -> None:
        blobs = self.draft.blobs
        one, two = one % len(blobs), two % len(blobs)
        blobs[one], blobs[two] = blobs[two], blobs[one]

    @rule(
        field=st.sampled_from(["signatures_offset", "signatures_size", "block_size"]), value=LENGTHS
    )
    def set_of_the_whole(self, field: str, value: int) -> None:
        self.draft.place[field] = value

    @rule(
        field=st.sampled_from(["manifest_size", "metadata_signature_size"]),
        value=st.sampled_from([0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]),
    )
    def set_header(self, field: str, value: int) -> None:
        setattr(self.draft, field, value)

    @rule(who=st.sampled_from(["update", "other"]))
    def sign_by(self, who: str) -> None:
        self.draft.signers = ((2 if self.draft.major == 1 else None, who),)
        if self.draft.major == 2:
            self.draft.metadata_signers = (who,)

    @rule(at=st.integers(0, 60_000))
    def turn_a_bit(self, at: int) -> None:
        self.draft.flips = [at]

    @rule(at=st.integers(0, 60_000))
    def cut(self, at: int) -> None:
        self.draft.cut = at

    @rule()
    def take_it_all_back(self) -> None:
        self.heal()

    @precondition(lambda self: hasattr(self, "draft"))
    @invariant()
    def right_or_refused(self) -> None:
        try:
            data = self.draft.build()
        except (ValueError, IndexError):
            # Not even the publisher can write that down; or the flip lies behind the end.
            self.heal()
            return
        asyncio.run(self.judge(data))

    async def judge(self, data: bytes) -> None:
        """One installation into fresh targets."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        disk = self.folder / "disk"
        around = b"\xaa" * ROOM
        disk.write_bytes(around + b"\xee" * ROOM + around)
        name = "usr" if self.draft.major == 1 else "system"
        targets = {name: Region(disk, offset=ROOM, size=ROOM)}
        sources = {name: Region(self.folder / "old")}
        (self.folder / "old").write_bytes(OLD_IMAGE)
        if self.draft.major == 1:
            targets["kernel"] = Region(self.folder / "vmlinuz-b", file=True)
            sources["kernel"] = Region(self.folder / "vmlinuz-a", file=True)
            (self.folder / "vmlinuz-a").write_bytes(b"the old kernel")
        verified = None
        try:
            cleared = clear_files(targets, booted=sources.values())
            installed = await install(
                Bytes(data, chunk=4096),
                announced=Announced(None, None),
                keys=lambda: load_keys(public_pem(), "update"),
                cleared=cleared,
                targets=targets,
                sources=sources,
                limits=LIMITS,
                budget=BUDGET,
            )
            assert installed.stats.peak <= 2 * BUDGET + LIMITS.blob + (4 << 20)
            verified = await read_back(
                installed.signed, targets, cleared=cleared, carried=installed.carried
            )
        except BasculeError as error:
            assert 0 < error.number < 100
            assert len(str(error)) < 2000
            self.refused += 1
        now = disk.read_bytes()
        assert now[:ROOM] == now[2 * ROOM :] == around
        assert (self.folder / "old").read_bytes() == OLD_IMAGE
        assert not list(self.folder.glob("*.partial")) or verified is None
        if verified is None:
            assert not (self.folder / "vmlinuz-b").exists() or self.proven(data)
            return
        self.good += 1
        for part in verified.signed.manifest.parts:
            if part.new is None or part.name not in targets:
                continue
            region = targets[part.name]
            found = region.path.read_bytes()[region.offset :][: part.new.size]
            assert hashlib.sha256(found).digest() == part.new.sha256
        assert self.draft.signers[0][1] == "update"

    def proven(self, data: bytes) -> bool:
        """A kernel may lie in place before the read-back refuses the slot: nothing boots it."""
        return self.draft.signers[0][1] == "update" and bool(data)


TestHostile = Hostile.TestCase
TestHostile.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
