"""Make binary patches: BSDIFF40, or BSDF2 with the better compressor for each of its streams.

Source: Percival's bsdiff 4; AOSP ``external/bsdiff`` for BSDF2.
"""

from __future__ import annotations

import bz2
import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import brotli

__all__ = ["available", "make_patch"]

_BZ2, _BROTLI = 1, 2


def _core() -> ModuleType | None:
    try:
        return importlib.import_module("bsdiff4.core")
    except ImportError:
        return None


def available() -> bool:
    """Whether patches can be made here: the package bsdiff4, or Debian's bsdiff."""
    return _core() is not None or shutil.which("bsdiff") is not None


def _streams(old: bytes, new: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Control, diff and extra bytes, unpacked; None if no program to make them is here."""
    core = _core()
    if core is not None:
        control, diff, extra = core.diff(old, new)
        return control, diff, extra
    program = shutil.which("bsdiff")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in ("old", "new", "patch")]
        paths[0].write_bytes(old)
        paths[1].write_bytes(new)
        subprocess.run([program, *map(str, paths)], check=True, stdin=subprocess.DEVNULL)
        patch = paths[2].read_bytes()
    middle = 32 + int.from_bytes(patch[8:16], "little")
    last = middle + int.from_bytes(patch[16:24], "little")
    control, diff, extra = map(bz2.decompress, (patch[32:middle], patch[middle:last], patch[last:]))
    return control, diff, extra


def make_patch(old: bytes, new: bytes, *, bsdf2: bool) -> tuple[bool, bytes] | None:
    """The smallest patch from ``old`` to ``new``, and whether it is BSDF2 rather than BSDIFF40.

    None if no patch can be made on this machine.
    """
    streams = _streams(old, new)
    if streams is None:
        return None
    packed = [(_BZ2, bz2.compress(stream, 9)) for stream in streams]
    if bsdf2:
        for index, stream in enumerate(streams):
            blob = brotli.compress(stream, quality=11, lgwin=24)
            if len(blob) < len(packed[index][1]):
                packed[index] = (_BROTLI, blob)
    kinds = bytes(kind for kind, _ in packed)
    magic = b"BSDIFF40" if kinds == bytes([_BZ2] * 3) else b"BSDF2" + kinds
    sizes = (len(packed[0][1]), len(packed[1][1]), len(new))
    header = magic + b"".join(size.to_bytes(8, "little") for size in sizes)
    return magic != b"BSDIFF40", header + b"".join(blob for _, blob in packed)
