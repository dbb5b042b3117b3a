"""Real SIGKILLs of a client of the mock: right in the end, and little of it fetched twice.

What each run asked for is in the mock's log; what each had received by its end it noted itself,
since a server cannot know what still lay in a socket's buffers.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import bsdiff4
import pytest

from bascule.formats.manifest import OperationType
from bascule.formats.proto import message_class
from killed_client import BACKLOG, BUDGET, CHUNK, INTERVAL
from omaha_mock.server import MockServer
from payload_builder import BLOCK, Draft, public_pem
from slot_files import SlotFiles

CHILD = Path(__file__).parents[1] / "killed_client.py"

RUNS = {"v1 full": 1, "v1 delta": 2, "v2 delta": 2}
"""Installations of each kind of payload, each killed again and again until it comes to its end:
about 50 kills together."""

STRIPE = 64
"""Blocks an operation."""

LOST = 2 * INTERVAL + BUDGET + BACKLOG + 2 * STRIPE * BLOCK + CHUNK
"""Bytes of payload that a kill may cost (decisions/0005): what was written since the last record
and while it was made, what is in flight and what waits to be hashed, one operation more of each,
and one piece."""

OPERATIONS = 40


@dataclass(frozen=True)
class Release:
    """One payload, what it starts from and ends in."""

    payload: bytes
    old: bytes
    new: bytes
    part: str


def release(kind: str) -> Release:
    """A payload of which half the operations carry data that do not compress."""
    rng = random.Random(kind)
    major = 2 if kind.startswith("v2") else 1
    draft = Draft(major, message_class(f"crau_v{major}", "DeltaArchiveManifest")(), [], [])
    size = OPERATIONS * STRIPE * BLOCK
    old, image = rng.randbytes(size), bytearray()
    if major == 1:
        part, messages = "usr", draft.manifest.partition_operations
    else:
        part, draft.signers, draft.metadata_signers = "system", ((None, "update"),), ("update",)
        found = draft.manifest.partitions.add(partition_name=b"system")
        messages, draft.manifest.minor_version = found.operations, 4
    copy, diff = (
        (OperationType.MOVE, OperationType.BSDIFF)
        if major == 1
        else (OperationType.SOURCE_COPY, OperationType.SOURCE_BSDIFF)
    )
    for number in range(OPERATIONS):
        start = number * STRIPE
        before = old[start * BLOCK : (start + STRIPE) * BLOCK]
        operation = messages.add()
        operation.dst_extents.add(start_block=start, num_blocks=STRIPE)
        blob = b""
        what = "replace" if "full" in kind else ("replace", "copy", "diff", "replace")[number % 4]
        if what == "replace":
            operation.type, blob = OperationType.REPLACE, rng.randbytes(STRIPE * BLOCK)
            after = blob
        else:
            operation.src_extents.add(start_block=start, num_blocks=STRIPE)
            operation.type = copy if what == "copy" else diff
            after = before
            if what == "diff":
                after = rng.randbytes(BLOCK) + before[BLOCK:]
                blob = bsdiff4.diff(before, after)
            if major == 2:
                operation.src_sha256_hash = hashlib.sha256(before).digest()
        image += after
        draft.operations.append(operation)
        draft.blobs.append(blob)
    draft.settle()
    holder = draft.manifest if major == 1 else draft.manifest.partitions[0]
    sides = [("new_partition_info", bytes(image))]
    if "delta" in kind:
        sides.append(("old_partition_info", old))
    for name, data in sides:
        getattr(holder, name).size = len(data)
        getattr(holder, name).hash = hashlib.sha256(data).digest()
    return Release(draft.build(), old, bytes(image), part)


async def child(told: Path, fuse: int) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(told), str(fuse), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode


@pytest.mark.parametrize("kind", RUNS)
async def test_sigkill_at_any_moment(kind: str, omaha: MockServer, tmp_path: Path) -> None:
    what = release(kind)
    rng = random.Random(kind)
    payload, new, key = tmp_path / "payload", tmp_path / "new", tmp_path / "key"
    payload.write_bytes(what.payload)
    new.write_bytes(what.new)
    key.write_bytes(public_pem())
    omaha.offer("2.0.0", payload)
    kills = resumed = worst = 0
    for number in range(RUNS[kind]):
        folder = tmp_path / f"slot{number}"
        old = {what.part: what.old} if "delta" in kind else {}
        place = SlotFiles(folder, old=old, new={what.part: what.new})
        facts = {
            "url": f"{omaha.base}/payload/{payload.name}",
            "size": len(what.payload),
            "sha256": hashlib.sha256(what.payload).hexdigest(),
            "key": str(key),
            "folder": str(folder),
            "old": {name: str(region.path) for name, region in place.sources.items()},
            "new": {what.part: str(new)},
        }
        told = tmp_path / f"{number}.json"
        told.write_text(json.dumps(facts))
        omaha.clear()
        here = 0
        while await child(told, fuse=rng.randrange(20, 140)) != 0:
            here += 1
            assert here < 60
        kills += here
        assert place.matches()
        assert place.untouched()
        assert not list(folder.glob("**/*.partial"))

        lines = (folder / "received").read_text().split("\n")[:-1]
        runs = [(int(line.split()[0]), int(line.split()[1])) for line in lines]
        # Who died before a byte came asked and noted nothing; who found all in place asked nothing.
        # The log's order is that of the answers' ends, and a server may notice a death late.
        noted = Counter(first for first, _ in runs)
        for _ in range(100):
            asked = Counter(record.first for record in omaha.payload_requests)
            if noted <= asked:
                break
            await asyncio.sleep(0.1)
        assert noted <= asked, (noted, asked)
        for (_, before), (after, _) in itertools.pairwise(runs):
            worst = max(worst, before - after)
            resumed += after > 0
        assert runs[-1][1] == len(what.payload)
    seen = f"{kills} kills, {resumed} resumed, {worst} bytes lost at worst of {LOST}"
    print(f"{kind}: {seen}")
    assert kills >= 3 and resumed >= 3 and 0 < worst <= LOST, seen
