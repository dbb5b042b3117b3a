"""Plan a delta between two images without knowing what file system they hold.

Blocks of the new image are of three kinds: all zero, found somewhere in the old image, changed.
The changed ones are gathered into groups, and for each group the old blocks that share content
with it are looked up by short fingerprints at content-defined places (so an insertion that shifts
a file by a few bytes does not hide it). A patch against those blocks competes with plain
compression; the smaller wins.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omaha_mock.codecs import smallest
from omaha_mock.layout import BLOCK, Planned, extents_of
from omaha_mock.patching import make_patch

__all__ = ["plan_in_place", "plan_source"]

Job = Callable[[], Planned]

_ZERO = bytes(BLOCK)
_GROUP = 512
_GROUP_V1 = 256
_COPY_GROUP = 512
_ZERO_GROUP = 16384
# A source of up to four times the group keeps the client's memory in bounds.
_SOURCE_FACTOR = 4

_FINGERPRINT = 28
_SAMPLE = 3
_PLACES_PER_FINGERPRINT = 8
# One place in 128 of random bytes, more of text; which ones depends on the content alone.
_ANCHOR = re.compile(
    b"[" + b"".join(re.escape(bytes([byte])) for byte in range(5, 256, 16)) + b"]"
    b"[" + b"".join(re.escape(bytes([byte])) for byte in range(4, 256, 8)) + b"]"
)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view


def _read_blocks(path: Path, blocks: Sequence[int]) -> bytes:
    """The blocks in the order given; the file's last block may be short."""
    pieces = []
    with path.open("rb") as file:
        for extent in extents_of(blocks):
            file.seek(extent.start * BLOCK)
            pieces.append(file.read(extent.blocks * BLOCK))
    return b"".join(pieces)


def _digests(view: mmap.mmap | bytes) -> list[bytes]:
    """A short digest per whole block, empty for a block of zeros."""
    digests = []
    for at in range(0, len(view) - BLOCK + 1, BLOCK):
        block = view[at : at + BLOCK]
        digests.append(b"" if block == _ZERO else hashlib.blake2b(block, digest_size=16).digest())
    return digests


@dataclass(slots=True)
class _Sorted:
    """The new image's blocks by what has to be done for them."""

    zero: list[int]
    same: list[int]
    moved: list[tuple[int, int]]
    changed: list[int]
    old_zero: list[bool]


def _sort(old: Path, new: Path) -> _Sorted:
    with _mapped(old) as view:
        before = _digests(view)
    with _mapped(new) as view:
        after = _digests(view)
        short = bool(len(view) % BLOCK)
    first: dict[bytes, int] = {}
    for block, digest in enumerate(before):
        first.setdefault(digest, block)
    result = _Sorted([], [], [], [], [not digest for digest in before])
    following = -1
    for block, digest in enumerate(after):
        if not digest:
            result.zero.append(block)
            continue
        if block < len(before) and before[block] == digest:
            result.same.append(block)
            following = block + 1
        elif 0 <= following < len(before) and before[following] == digest:
            result.moved.append((block, following))
            following += 1
        elif digest in first:
            result.moved.append((block, first[digest]))
            following = first[digest] + 1
        else:
            result.changed.append(block)
            following = -1
    if short:
        # The end of a file that is no whole number of blocks can be neither copied nor zeroed.
        result.changed.append(len(after))
    return result


def _groups(blocks: Sequence[int], size: int) -> list[list[int]]:
    return [list(blocks[at : at + size]) for at in range(0, len(blocks), size)]


def _fingerprints(view: mmap.mmap | bytes) -> Iterator[tuple[int, int]]:
    """(place, fingerprint) at content-defined places, a quarter of the anchors."""
    for match in _ANCHOR.finditer(view):
        place = match.end()
        piece = view[place : place + _FINGERPRINT]
        value = zlib.crc32(piece)
        if not value & _SAMPLE and len(piece) == _FINGERPRINT and piece.count(piece[0]) < 20:
            yield place, value


def _sources(
    old: Path, new: Path, groups: Sequence[list[int]], old_zero: list[bool]
) -> list[list[int]]:
    """For each group the old blocks, ascending, that its new blocks most likely came from."""
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for number, group in enumerate(groups):
        for _, value in _fingerprints(_read_blocks(new, group)):
            wanted[value].add(number)
    votes: list[Counter[int]] = [Counter() for _ in groups]
    seen: Counter[int] = Counter()
    if wanted:
        with _mapped(old) as view:
            for place, value in _fingerprints(view):
                if value in wanted and seen[value] < _PLACES_PER_FINGERPRINT:
                    seen[value] += 1
                    for number in wanted[value]:
                        votes[number][place // BLOCK] += 1
    chosen = []
    for group, counted in zip(groups, votes, strict=True):
        limit = _SOURCE_FACTOR * len(group)
        candidates: dict[int, None] = {}
        for block, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
            # The neighbours hold what lies before the first and after the last fingerprint.
            candidates.update(dict.fromkeys((block, block + 1, block - 1)))
        candidates.update(dict.fromkeys(group))
        usable = [
            block for block in candidates if 0 <= block < len(old_zero) and not old_zero[block]
        ]
        chosen.append(sorted(usable[:limit]))
    return chosen


def _changed(
    old: Path,
    new: Path,
    group: Sequence[int],
    source: Sequence[int],
    codecs: Sequence[str],
    bsdf2: bool | None,
) -> Planned:
    """The smaller of a patch and a packed copy; ``bsdf2`` None asks for major 1's BSDIFF."""
    data = _read_blocks(new, group)
    if bsdf2 is not None:
        data = data.ljust(len(group) * BLOCK, b"\0")
    target = extents_of(group)
    patch = None
    if source:
        base = _read_blocks(old, source)
        patch = make_patch(base, data, bsdf2=bool(bsdf2))
    if patch is None or len(patch[1]) * 16 > len(data):
        kind, blob = smallest(data, codecs)
        if patch is None or len(blob) <= len(patch[1]):
            return Planned(kind, blob, (), target, None)
    kind = "BSDIFF" if bsdf2 is None else "BROTLI_BSDIFF" if patch[0] else "SOURCE_BSDIFF"
    digest = hashlib.sha256(base).digest()
    return Planned(kind, patch[1], extents_of(source), target, digest, len(data))


def _copy(old: Path, kind: str, pairs: Sequence[tuple[int, int]]) -> Planned:
    source = [block for _, block in pairs]
    digest = hashlib.sha256(_read_blocks(old, source)).digest()
    return Planned(kind, b"", extents_of(source), extents_of(block for block, _ in pairs), digest)


def _zero(blocks: Sequence[int]) -> Planned:
    return Planned("ZERO", b"", (), extents_of(blocks), None)


def plan_source(old: Path, new: Path, codecs: Sequence[str], *, bsdf2: bool) -> Iterable[Job]:
    """The operations of a major 2 delta: they read the old image and cover the new one."""
    kinds = _sort(old, new)
    copies = sorted([(block, block) for block in kinds.same] + kinds.moved)
    for at in range(0, len(copies), _COPY_GROUP):
        yield partial(_copy, old, "SOURCE_COPY", copies[at : at + _COPY_GROUP])
    for group in _groups(kinds.zero, _ZERO_GROUP):
        yield partial(_zero, group)
    groups = _groups(kinds.changed, _GROUP)
    for group, source in zip(groups, _sources(old, new, groups, kinds.old_zero), strict=True):
        yield partial(_changed, old, new, group, source, codecs, bsdf2)


@dataclass(slots=True)
class _Step:
    """One operation of an in-place delta before it has an order; MOVE pairs its two lists."""

    target: list[int]
    source: list[int]
    move: bool


def _ordered(steps: list[_Step]) -> list[_Step]:
    """An order in which nothing is read after it was overwritten.

    Where steps need each other's blocks in a circle, the one goes first that overwrites least of
    what the others read; these do without those blocks.
    """
    readers: defaultdict[int, set[int]] = defaultdict(set)
    for index, step in enumerate(steps):
        for block in step.source:
            readers[block].add(index)
    harm = {
        index: sum(len(readers[block] - {index}) for block in step.target)
        for index, step in enumerate(steps)
    }
    writer = {block: index for index, step in enumerate(steps) for block in step.target}
    ordered: list[_Step] = []
    lost: list[int] = []
    while harm:
        index = min(harm, key=lambda candidate: (harm[candidate], candidate))
        del harm[index]
        step = steps[index]
        ordered.append(step)
        for block in step.source:
            readers[block].discard(index)
            if writer.get(block) in harm:
                harm[writer[block]] -= 1
        for overwritten in step.target:
            for other in sorted(readers.pop(overwritten, ())):
                lost.extend(_forgo(steps[other], overwritten))
    ordered.extend(_Step(group, [], False) for group in _groups(sorted(lost), _GROUP_V1))
    return ordered


def _forgo(step: _Step, block: int) -> list[int]:
    """Take ``block`` out of what ``step`` reads; returns the targets that now need new bytes."""
    if not step.move:
        step.source.remove(block)
        return []
    pairs = list(zip(step.target, step.source, strict=True))
    kept = [pair for pair in pairs if pair[1] != block]
    step.target = [target for target, _ in kept]
    step.source = [source for _, source in kept]
    return [target for target, source in pairs if source == block]


def plan_in_place(old: Path, new: Path, codecs: Sequence[str]) -> Iterable[Job]:
    """The operations of a major 1 delta: they turn a copy of the old image into the new one.

    Blocks that are the same at the same place have no operation.
    """
    kinds = _sort(old, new)
    length = len(kinds.old_zero)
    zero = [block for block in kinds.zero if block >= length or not kinds.old_zero[block]]
    steps = [
        _Step([block for block, _ in pairs], [block for _, block in pairs], True)
        for pairs in (
            kinds.moved[at : at + _GROUP_V1] for at in range(0, len(kinds.moved), _GROUP_V1)
        )
    ]
    groups = _groups(kinds.changed, _GROUP_V1)
    for group, source in zip(groups, _sources(old, new, groups, kinds.old_zero), strict=True):
        steps.append(_Step(group, source, False))
    steps.extend(_Step(group, [], False) for group in _groups(zero, _GROUP_V1))
    for step in _ordered(steps):
        if not step.target:
            continue
        if step.move:
            pairs = list(zip(step.target, step.source, strict=True))
            yield partial(_copy, old, "MOVE", pairs)
        else:
            yield partial(_changed, old, new, step.target, step.source, codecs, None)
