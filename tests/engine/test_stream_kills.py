"""The power fails at every event of an installation; the next attempt ends in the right image.

In place of most kills the power is cut inside this process (`power_cut`), which loses unflushed
blocks as well; some are real SIGKILLs of a child.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bsdiff4
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bascule.engine.stream import Announced
from bascule.errors import TransferError
from bascule.formats.manifest import OperationType
from bascule.formats.proto import message_class
from bascule.formats.signature import load_keys
from payload_builder import BLOCK, Draft, public_pem
from payload_vectors import Bytes, Case, case, key, needs_vectors
from power_cut import PowerCut, grid
from slot_files import SlotFiles

INTERVAL = 256 << 10
BUDGET = 512 << 10
CHUNK = 16 << 10

CUTS = {
    "full_v2_kernel_two_signatures.bin": 50,
    "delta_v1_v2_kernel.bin": 75,
    "delta_minor4.bin": 75,
}
"""Payload → power cuts inside this process. With the SIGKILLs below and in `test_kills_over_http` they are
about 260."""


def slot(folder: Path, what: Case) -> SlotFiles:
    shutil.rmtree(folder, ignore_errors=True)
    return SlotFiles(folder, old=what.old, new=what.new, files=what.files)


def fuses(events: int, log: list[str], count: int, rng: random.Random) -> list[int]:
    """Where to cut: at the end of every operation, around records and flushes, and anywhere."""
    chosen = {i for i, what in enumerate(log) if what == "operation"}
    marked = [i for i, what in enumerate(log) if what not in ("write", "operation")]
    chosen |= set(rng.sample(marked, min(len(marked), (count - len(chosen)) // 2)))
    while len(chosen) < min(count, events):
        chosen.add(rng.randrange(events))
    return sorted(chosen)


@needs_vectors
@pytest.mark.parametrize("name", CUTS)
def test_after_a_power_cut_anywhere_the_next_attempt_ends_well(name: str, tmp_path: Path) -> None:
    what = case(name)
    keys = [key(what.key)]
    told = Announced(len(what.data), what.sha256)
    options = {"announced": told, "interval": INTERVAL, "budget": BUDGET}
    rng = random.Random(name)

    with grid(rng) as whole:
        done = slot(tmp_path / "rehearsal", what).run(
            Bytes(what.data, chunk=CHUNK), keys, **options
        )
    assert whole.log.count("operation") == len(done.signed.manifest.operations)
    resumed = refetched = 0
    for fuse in fuses(whole.events, whole.log, CUTS[name], rng):
        place = slot(tmp_path / "slot", what)
        first = Bytes(what.data, chunk=CHUNK)
        with grid(rng, fuse) as power:
            try:
                place.run(first, keys, **options)
            except PowerCut:
                power.settle()
        assert place.untouched()
        second = Bytes(what.data, chunk=CHUNK)
        installed = place.run(second, keys, **options)
        assert place.matches(), f"cut at {fuse} ({whole.log[fuse]})"
        assert place.untouched()
        assert not list(place.folder.glob("*.partial"))
        resumed += installed.resumed
        refetched = max(refetched, first.fetched + second.fetched - len(what.data))
    assert resumed > 0
    # What is fetched twice lies between the last record and the cut: one interval of target
    # (at most as many bytes of payload, for nothing here is larger packed), and what was in flight.
    assert refetched <= 2 * INTERVAL + BUDGET + (1 << 20) + CHUNK


@needs_vectors
def test_power_that_fails_again_and_again_does_not_matter(tmp_path: Path) -> None:
    what = case("delta_v1_v2_kernel.bin")
    keys = [key(what.key)]
    told = Announced(len(what.data), what.sha256)
    rng = random.Random(5)
    place = slot(tmp_path / "slot", what)
    done = 0
    for _ in range(25):
        with grid(rng, rng.randrange(5, 60)) as power:
            try:
                place.run(Bytes(what.data, chunk=2048), keys, announced=told, interval=INTERVAL)
                done += 1
                break
            except PowerCut:
                power.settle()
    place.run(Bytes(what.data), keys, announced=told)
    assert place.matches()
    assert place.untouched()


# ── real kills ───────────────────────────────────────────────────────────────────────────────

CHILD = Path(__file__).parents[1] / "killed_child.py"


@needs_vectors
@pytest.mark.parametrize("name", CUTS)
def test_sigkill_at_any_moment(name: str, tmp_path: Path) -> None:
    what = case(name)
    rng = random.Random(name)
    place = slot(tmp_path / "slot", what)
    payload = tmp_path / "payload"
    payload.write_bytes(what.data)

    def child(fuse: int) -> int:
        command = [sys.executable, str(CHILD), name, str(place.folder), str(fuse)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    kills = 0
    for _ in range(3):
        place = slot(tmp_path / "slot", what)
        fuse = rng.randrange(1, 20)
        while child(fuse) != 0:
            kills += 1
            fuse = fuse + rng.randrange(20, 200)
        assert place.matches()
        assert place.untouched()
    assert kills


# ── in-place deltas of any shape ─────────────────────────────────────────────────────────────

BLOCKS = 12


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, list[int], list[int], int]]:
    """Operations on a small image: (kind, source blocks, target blocks, seed)."""
    found = []
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from(["move", "bsdiff", "replace", "replace_bz"]))
        count = draw(st.integers(1, 4))
        block = st.integers(0, BLOCKS - 1)
        target = draw(st.lists(block, min_size=count, max_size=count, unique=True))
        source: list[int] = []
        if kind in ("move", "bsdiff"):
            source = draw(st.lists(block, min_size=count, max_size=count))
        found.append((kind, source, target, draw(st.integers(0, 1 << 16))))
    return found


def in_place_payload(
    old: bytes, plan: list[tuple[str, list[int], list[int], int]]
) -> tuple[bytes, bytes]:
    """A signed v1 delta, and the image it makes when carried out in place on a copy of `old`."""
    draft = Draft(1, message_class("crau_v1", "DeltaArchiveManifest")(), [], [])
    image = bytearray(old)

    def get(blocks: list[int]) -> bytes:
        return b"".join(bytes(image[b * BLOCK : (b + 1) * BLOCK]) for b in blocks)

    for kind, source, target, seed in plan:
        rng = random.Random(seed)
        operation = draft.manifest.partition_operations.add()
        blob = b""
        if kind == "move":
            operation.type = OperationType.MOVE
            data = get(source)
        elif kind == "bsdiff":
            operation.type = OperationType.BSDIFF
            before = get(source)
            data = bytearray(before)
            for _ in range(20):
                data[rng.randrange(len(data))] = rng.randrange(256)
            data = bytes(data)
            blob = bsdiff4.diff(before, data)
        else:
            short = rng.randrange(len(target) * BLOCK) if seed % 3 == 0 else 0
            data = rng.randbytes(len(target) * BLOCK - short)
            operation.type = OperationType.REPLACE
            blob = data
            if kind == "replace_bz":
                import bz2

                operation.type = OperationType.REPLACE_BZ
                blob = bz2.compress(data)
        for block in source:
            operation.src_extents.add(start_block=block, num_blocks=1)
        for block in target:
            operation.dst_extents.add(start_block=block, num_blocks=1)
        data = data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
        for number, block in enumerate(target[: len(data) // BLOCK]):
            image[block * BLOCK : (block + 1) * BLOCK] = data[number * BLOCK : (number + 1) * BLOCK]
        draft.operations.append(operation)
        draft.blobs.append(blob)
    draft.settle()
    draft.manifest.old_partition_info.size = len(old)
    draft.manifest.old_partition_info.hash = hashlib.sha256(old).digest()
    draft.manifest.new_partition_info.size = len(image)
    draft.manifest.new_partition_info.hash = hashlib.sha256(image).digest()
    return draft.build(), bytes(image)


OLD = random.Random(0).randbytes(BLOCKS * BLOCK)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=steps(), seed=st.integers(0, 1 << 16), workers=st.integers(1, 3))
def test_any_in_place_delta_survives_any_power_cut(
    plan: list[tuple[str, list[int], list[int], int]],
    seed: int,
    workers: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data, image = in_place_payload(OLD, plan)
    keys = load_keys(public_pem(), "update")
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("in-place")
    place = SlotFiles(folder, old={"usr": OLD}, new={"usr": image})
    told = Announced(len(data), hashlib.sha256(data).digest())
    options = {"announced": told, "interval": 1 << (12 + seed % 6), "workers": workers}
    for _ in range(4):
        with grid(rng, rng.randrange(1, 60)) as power:
            try:
                place.run(Bytes(data, chunk=512), keys, **options)
                break
            except PowerCut:
                power.settle()
    place.run(Bytes(data, chunk=512), keys, **options)
    assert place.matches()
    assert place.untouched()
    # Without a state directory it needs no journal there, and must come out the same.
    fresh = SlotFiles(folder / "again", old={"usr": OLD}, new={"usr": image})
    fresh.run(data, keys, announced=told, resumable=False, workers=workers)
    assert fresh.matches()
    shutil.rmtree(folder)


def test_an_operation_that_overwrites_its_own_source_needs_its_journal(tmp_path: Path) -> None:
    """A shift by one block through blocks written before: nothing else shows the hazard so well."""
    plan = [
        ("replace", [], [0, 1, 2, 3], 1),
        ("move", [0, 1, 2, 3], [1, 2, 3, 4], 0),
        ("move", [1, 2, 3, 4], [0, 1, 2, 3], 0),
        ("bsdiff", [0, 1, 2, 3], [3, 2, 1, 0], 7),
    ]
    data, image = in_place_payload(OLD, plan)
    keys = load_keys(public_pem(), "update")
    told = Announced(len(data), hashlib.sha256(data).digest())
    rng = random.Random(3)
    with grid(rng) as whole:
        SlotFiles(tmp_path / "r", old={"usr": OLD}, new={"usr": image}).run(
            data, keys, announced=told
        )
    assert whole.log.count("saved journal") == 3
    for fuse in range(whole.events):
        place = SlotFiles(tmp_path / str(fuse), old={"usr": OLD}, new={"usr": image})
        with grid(rng, fuse) as power:
            try:
                place.run(data, keys, announced=told)
            except PowerCut:
                power.settle()
        place.run(data, keys, announced=told)
        assert place.matches(), f"cut at {fuse} ({whole.log[fuse]})"


def test_what_an_operation_read_is_not_overwritten_before_it_is_recorded(tmp_path: Path) -> None:
    """A record between writer and reader, and a later writer already at work: only the barrier
    keeps the reader's source alive."""
    plan: list[tuple[str, list[int], list[int], int]] = [("replace", [], [0, 1], 1)]
    for block in (4, 6, 8):
        plan += [("move", [0, 1], [block, block + 1], 0), ("replace", [], [1, 0], block)]
    data, image = in_place_payload(OLD, plan)
    keys = load_keys(public_pem(), "update")
    told = Announced(len(data), hashlib.sha256(data).digest())
    rng = random.Random(3)

    def source() -> Bytes:
        return Bytes(data, chunk=2 * BLOCK, pause=0.002)

    options = {"announced": told, "interval": 1}
    with grid(rng) as whole:
        SlotFiles(tmp_path / "r", old={"usr": OLD}, new={"usr": image}).run(
            source(), keys, **options
        )
    for fuse in range(whole.events):
        place = SlotFiles(tmp_path / str(fuse), old={"usr": OLD}, new={"usr": image})
        with grid(rng, fuse, keep=True) as power:
            try:
                place.run(source(), keys, **options)
            except PowerCut:
                power.settle()
        place.run(data, keys, announced=told)
        assert place.matches(), f"cut at {fuse} ({whole.log[fuse]})"


async def test_a_transfer_that_breaks_in_every_place_is_never_fetched_twice(
    tmp_path: Path,
) -> None:
    data, image = in_place_payload(OLD, [("replace", [], [b], b) for b in range(BLOCKS)])
    keys = load_keys(public_pem(), "update")
    place = SlotFiles(tmp_path, old={"usr": OLD}, new={"usr": image})
    told = Announced(len(data), hashlib.sha256(data).digest())
    fetched, at = 0, 0
    while at < len(data):
        at += 5000
        source = Bytes(data, chunk=1000, cut=min(at, len(data)), error=TransferError("gone"))
        try:
            installed = await place.install(source, keys, announced=told)
        except TransferError:
            fetched += source.fetched
            continue
        fetched += source.fetched
        await place.verify(installed)
        break
    else:
        await place.verify(await place.install(data, keys, announced=told))
    assert place.matches()
    # Each break loses less than one blob of one block.
    assert fetched <= len(data) + (len(data) // 5000 + 2) * (BLOCK + 1000)
    await asyncio.sleep(0)
