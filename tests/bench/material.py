"""Images and payloads to measure with: made once, kept in a folder, the same on every machine."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in ("agent", "omaha-mock", "tests"):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))

MIB = 1 << 20
UNIQUE = 128 * MIB
"""Bytes of an image that are packed; a larger one repeats them, so that xz -6 and zstd -19 do not
take minutes. A decoder has forgotten a megabyte long before it comes round again."""

CODECS = {"bz2": 1, "xz": 2, "zstd": 2, "raw": 1}
"""Codec → payload major: that of Flatcar's own generator where it knows the codec."""


@dataclass(frozen=True)
class Payload:
    """One payload and what a server would announce of it."""

    name: str
    path: str
    size: int
    sha256: str
    metadata_size: int
    metadata_signature: str
    major: int
    image: str
    image_size: int
    old: str = ""
    operations: dict[str, int] = field(default_factory=dict)


class Material:
    """A folder with images, payloads and a key.

    Args:
        folder: where they are kept; what is there already is taken.
        size: bytes of the image that most rows use.
    """

    def __init__(
        self, folder: Path, size: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folder = folder.resolve()
        self.size = size
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)
        self.public = folder / "public"

    @functools.cached_property
    def key(self) -> Any:
        from omaha_mock.signing import keygen, load_signing_key

        private = self.folder / "update.key.pem"
        if not private.exists():
            private, public = keygen(self.folder)
            self.public.mkdir(exist_ok=True)
            (self.public / "update.pub.pem").write_bytes(public.read_bytes())
        return load_signing_key(private)

    def image(self, size: int | None = None) -> Path:
        """An image that compresses like a system."""
        size = size or self.size
        unique = min(size, UNIQUE)
        base = self._once(f"image-{unique // MIB}.img", lambda path: _big(path, unique, seed=3))
        if size == unique:
            return base
        return self._once(f"image-{size // MIB}.img", lambda path: _repeat(base, path, size))

    def stale(self, size: int | None = None) -> Path:
        """What the slot holds before: as long as the image, and different in every block."""
        size = size or self.size
        image = self.image(size)
        return self._once(f"stale-{size // MIB}.img", lambda path: _inverted(image, path))

    def pair(self, size: int | None = None) -> tuple[Path, Path]:
        """Two images without repetition, 5 % of the second (in 64 KiB pieces) changed."""
        size = size or self.size
        mib = size // MIB
        old = self._once(f"old-{mib}.img", lambda path: _big(path, size, seed=11))
        new = self._once(f"new-{mib}.img", lambda path: _big(path, size, seed=12, of=old))
        return old, new

    def full(self, codec: str, size: int | None = None) -> Payload:
        """A full payload of one codec."""
        size = size or self.size
        return self._pack(
            f"full-{codec}-v{CODECS[codec]}-{size // MIB}",
            CODECS[codec],
            self.image(size),
            None,
            [codec],
        )

    def delta(self, major: int, size: int | None = None) -> Payload:
        """A delta payload."""
        old, new = self.pair(size)
        return self._pack(f"delta-v{major}-{(size or self.size) // MIB}", major, new, old, None)

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            self._say(f"making {name}")
            partial = path.with_name(name + ".partial")
            make(partial)
            partial.rename(path)
        return path

    def _pack(
        self, name: str, major: int, new: Path, old: Path | None, codecs: Sequence[str] | None
    ) -> Payload:
        from omaha_mock import pack as packer

        described = self.folder / f"{name}.json"
        if not described.exists():
            self._say(f"packing {name}")
            plain = packer.smallest
            known: dict[bytes, tuple[str, bytes]] = {}

            def smallest(data: bytes, wanted: Sequence[str]) -> tuple[str, bytes]:
                digest = hashlib.sha256(data).digest()
                if digest not in known:
                    known[digest] = plain(data, wanted)
                return known[digest]

            out = self.folder / f"{name}.bin"
            packer.smallest = smallest  # the image repeats itself: pack each megabyte once
            try:
                made = packer.pack(
                    [packer.Image("usr", new, old)],
                    out,
                    major=major,
                    keys=[self.key],
                    codecs=codecs,
                )
            finally:
                packer.smallest = plain
            payload = Payload(
                name,
                str(out),
                made.size,
                made.sha256.hex(),
                made.metadata_size,
                (made.metadata_signature or b"").hex(),
                major,
                str(new),
                new.stat().st_size,
                str(old or ""),
                made.operations,
            )
            described.write_text(json.dumps(asdict(payload)))
        return Payload(**json.loads(described.read_text()))


def _big(path: Path, size: int, *, seed: int, of: Path | None = None) -> None:
    from mock_fixture import fixture_build

    fixture_build().big(path, size, seed=seed, of=of)


def _repeat(base: Path, path: Path, size: int) -> None:
    data = base.read_bytes()
    with path.open("wb") as file:
        for at in range(0, size, len(data)):
            file.write(data[: size - at])


def _inverted(image: Path, path: Path) -> None:
    table = bytes(255 - number for number in range(256))
    with image.open("rb") as source, path.open("wb") as file:
        while piece := source.read(MIB):
            file.write(piece.translate(table))
