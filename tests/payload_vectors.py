"""The recorded payloads in ../shared/vectors, and what each starts from and ends in."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import lzma
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bascule.formats.signature import PublicKey, load_keys

VECTORS = Path(__file__).resolve().parents[1].parent / "shared" / "vectors"
V1 = VECTORS / "flatcar_v1"
V2 = VECTORS / "aosp_v2"
PARTITIONS = {"system": "ext", "squash": "sq", "erofs": "er", "boot": "raw"}

needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="../shared/vectors is not there")


@functools.cache
def image(path: Path) -> bytes:
    """An image, unpacked."""
    return lzma.decompress(path.read_bytes())


@functools.cache
def key(path: Path) -> PublicKey:
    """One public key of the vectors."""
    return load_keys(path.read_bytes(), path.name)[0]


@dataclass(frozen=True)
class Case:
    """One payload.

    Attributes:
        data: the file's bytes.
        key: the key file that must fit.
        old, new: part name → image; no `old` for full payloads.
        files: parts that are files of their own.
        signed: whether it is signed with `key`.
    """

    name: str
    data: bytes = field(repr=False)
    key: Path
    old: Mapping[str, bytes] = field(repr=False)
    new: Mapping[str, bytes] = field(repr=False)
    files: frozenset[str] = frozenset()
    signed: bool = True

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    def __str__(self) -> str:
        return self.name


def v1_case(name: str) -> Case:
    """A case of flatcar_v1."""
    entry = json.loads((V1 / "index.json").read_text())["payloads"][name]

    def images(which: str) -> dict[str, bytes]:
        return {
            part: image(V1 / "images" / f"{entry[part][which]}.xz")
            for part in ("usr", "kernel")
            if part in entry and entry[part].get(which)
        }

    data = (V1 / "payloads" / name).read_bytes()
    return Case(
        name,
        data,
        V1 / "keys" / "update.pub.pem",
        images("old"),
        images("new"),
        frozenset({"kernel"}),
        entry.get("signed_by") in ("update", ["other", "update"], "other, update") or "two" in name,
    )


def v2_case(name: str) -> Case:
    """A case of aosp_v2."""
    delta = name.startswith("delta")

    def images(which: str) -> dict[str, bytes]:
        return {p: image(V2 / "images" / f"{n}_{which}.img.xz") for p, n in PARTITIONS.items()}

    stem = "unittest_key_EC" if "EC" in name else "unittest_key"
    return Case(
        name,
        (V2 / "payloads" / name).read_bytes(),
        V2 / "keys" / f"{stem}.pub.pem",
        images("old") if delta else {},
        images("new"),
        signed="unsigned" not in name,
    )


V1_NAMES = (
    "full_v1.bin",
    "full_v2.bin",
    "full_v2_kernel_two_signatures.bin",
    "delta_v1_v2.bin",
    "delta_v1_v2_kernel.bin",
    "delta_v2_v1_kernel.bin",
)
V2_NAMES = (
    "full_signed_unittest_key.bin",
    "full_signed_unittest_key_EC.bin",
    "delta_minor2.bin",
    "delta_minor4.bin",
)


def case(name: str) -> Case:
    """The case of that file name."""
    return v2_case(name) if name in V2_NAMES or name == "full_unsigned.bin" else v1_case(name)


class Bytes:
    """A payload in memory as a source.

    Attributes:
        fetched: bytes handed out.
        asked: offsets asked for.
    """

    def __init__(
        self,
        data: bytes,
        *,
        chunk: int = 1 << 16,
        cut: int | None = None,
        error: Exception | None = None,
        pause: float = 0.0,
    ) -> None:
        """
        Args:
            chunk: bytes a piece.
            cut: file offset where it breaks off with `error`, or just ends.
            pause: seconds before each piece, in which threads and records can catch up.
        """
        self.data = data
        self.fetched = 0
        self.asked: list[int] = []
        self._chunk = chunk
        self._cut = cut
        self._error = error
        self._pause = pause

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        self.asked.append(offset)
        end = len(self.data) if self._cut is None else self._cut
        while offset < end:
            piece = self.data[offset : min(offset + self._chunk, end)]
            offset += len(piece)
            self.fetched += len(piece)
            await asyncio.sleep(self._pause)
            yield piece
        if self._error is not None:
            raise self._error
