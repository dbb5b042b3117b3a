"""Applies bsdiff patches in a stream: neither old nor new bytes are ever held whole.

Formats: BSDIFF40 (Colin Percival's bsdiff 4) and BSDF2 (Android's bsdiff, one compressor byte for
each stream), reference payload_v2.md 2.1. Integers are 64-bit little-endian *sign and magnitude*.
Three compressed streams follow the 32-byte header: control triples, differences, extra bytes.

A triple (x, y, z) says: add x bytes of the differences to x bytes of the old file, copy y bytes of
the extra stream, then move the place in the old file by z. That place may lie outside the old
file, where every byte counts as zero.
"""

from __future__ import annotations

import bz2
from collections.abc import Callable, Iterator
from typing import Protocol

from bascule.errors import OperationFailed

__all__ = ["CHUNK", "apply_patch"]

CHUNK = 256 << 10
"""Bytes that are worked on at a time, and the most that `apply_patch` yields at once."""

_FEED = 64 << 10
_HEADER = 32
_BZ2, _BROTLI = 1, 2
_LOW = int.from_bytes(b"\x7f" * CHUNK, "little")
_HIGH = int.from_bytes(b"\x80" * CHUNK, "little")

Read = Callable[[int, int], bytes]
"""``read(offset, length)`` of the old bytes: exactly `length` of them."""


class _Decoder(Protocol):
    def more(self, data: bytes) -> bytes: ...

    @property
    def hungry(self) -> bool: ...

    @property
    def done(self) -> bool: ...


class _Bz2:
    def __init__(self) -> None:
        self._codec = bz2.BZ2Decompressor()

    def more(self, data: bytes) -> bytes:
        return self._codec.decompress(data, max_length=_FEED)

    @property
    def hungry(self) -> bool:
        return self._codec.needs_input

    @property
    def done(self) -> bool:
        return self._codec.eof


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._codec = brotli.Decompressor()
        self._fault: type[Exception] = brotli.error

    def more(self, data: bytes) -> bytes:
        try:
            return bytes(self._codec.process(data, output_buffer_limit=_FEED))
        except self._fault as error:
            raise OSError(str(error)) from None

    @property
    def hungry(self) -> bool:
        return bool(self._codec.can_accept_more_data())

    @property
    def done(self) -> bool:
        return bool(self._codec.is_finished())


class _Stream:
    """One compressed stream, decoded no further than was asked for."""

    def __init__(self, data: memoryview, compressor: int, name: str) -> None:
        self._data = data
        self._at = 0
        self._name = name
        # A stream of no bytes is an empty one: its decoder is never asked.
        self._decoder: _Decoder = _Brotli() if compressor == _BROTLI else _Bz2()
        self._ready = b""
        self._taken = 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes, exactly."""
        end = self._taken + length
        if end <= len(self._ready):
            piece = self._ready[self._taken : end]
            self._taken = end
            return piece
        pieces = [self._ready[self._taken :]]
        have = len(pieces[0])
        while have < length:
            self._ready = self._more()
            pieces.append(self._ready)
            have += len(self._ready)
        self._taken = len(self._ready) - (have - length)
        pieces[-1] = self._ready[: self._taken]
        return b"".join(pieces)

    def _more(self) -> bytes:
        decoder = self._decoder
        while not decoder.done:
            data, starved = b"", False
            if decoder.hungry:
                data = bytes(self._data[self._at : self._at + _FEED])
                self._at += len(data)
                # A brotli decoder that would take more input may hold back output all the same.
                starved = not data
            try:
                out = decoder.more(data)
            except OSError as error:
                raise OperationFailed(f"the patch's {self._name} stream: {error}") from None
            if out:
                return out
            if starved:
                break
        raise OperationFailed(f"the patch's {self._name} stream ends too early")


def _integer(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    return value if value < 1 << 63 else (1 << 63) - value


def _streams(patch: bytes, target_size: int) -> tuple[_Stream, _Stream, _Stream]:
    if len(patch) < _HEADER:
        raise OperationFailed(f"a patch of {len(patch)} bytes")
    magic = patch[:8]
    if magic == b"BSDIFF40":
        compressors = bytes((_BZ2, _BZ2, _BZ2))
    elif magic[:5] == b"BSDF2":
        compressors = magic[5:]
    else:
        raise OperationFailed(f"a patch that begins with {magic!r}")
    if not set(compressors) <= {_BZ2, _BROTLI}:
        raise OperationFailed(f"a patch with the compressors {list(compressors)}")
    control, differences, size = (_integer(patch[i : i + 8]) for i in (8, 16, 24))
    if control < 0 or differences < 0 or control + differences > len(patch) - _HEADER:
        raise OperationFailed(
            f"a patch of {len(patch)} bytes with streams of {control} and {differences}"
        )
    if size != target_size:
        raise OperationFailed(f"a patch that makes {size} bytes for {target_size}")
    view = memoryview(patch)[_HEADER:]
    return (
        _Stream(view[:control], compressors[0], "control"),
        _Stream(view[control : control + differences], compressors[1], "difference"),
        _Stream(view[control + differences :], compressors[2], "extra"),
    )


def _add(a: bytes, b: bytes) -> bytes:
    """Byte by byte modulo 256, all bytes at once: no carry leaves the low seven bits of a lane."""
    x, y = int.from_bytes(a, "little"), int.from_bytes(b, "little")
    return (((x & _LOW) + (y & _LOW)) ^ ((x ^ y) & _HIGH)).to_bytes(len(a), "little")


def _old(read: Read, size: int, at: int, length: int) -> bytes:
    start, end = max(at, 0), min(at + length, size)
    if start >= end:
        return bytes(length)
    found = read(start, end - start)
    if len(found) != end - start:
        raise OperationFailed(f"{len(found)} bytes of the source where {end - start} were wanted")
    if end - start == length:
        return found
    return bytes(start - at) + found + bytes(at + length - end)


def apply_patch(patch: bytes, *, read: Read, source_size: int, target_size: int) -> Iterator[bytes]:
    """New bytes, in order and exactly `target_size` of them, in pieces of at most `CHUNK`.

    Args:
        patch: the whole patch.
        read: see `Read`; only asked for what lies inside the source, `CHUNK` bytes at most.
        source_size: bytes of the old file.
        target_size: bytes that must come out.

    Raises:
        OperationFailed: at once if the header is wrong, and from the iterator if a stream is.
    """
    return _apply(*_streams(patch, target_size), read, source_size, target_size)


def _apply(
    control: _Stream,
    differences: _Stream,
    extra: _Stream,
    read: Read,
    source_size: int,
    target_size: int,
) -> Iterator[bytes]:
    out = bytearray()
    at = made = idle = 0
    while made < target_size:
        triple = control.take(24)
        add, copy, seek = (_integer(triple[i : i + 8]) for i in (0, 8, 16))
        if add < 0 or copy < 0 or made + add + copy > target_size:
            raise OperationFailed(
                f"a patch step of {add} and {copy} bytes at {made} of {target_size}"
            )
        if not add and not copy:
            # Generators do emit steps that only move; a stream of nothing else would not end.
            idle += 1
            if idle > target_size + 4096:
                raise OperationFailed("a patch that does not get on")
        made += add + copy
        while add:
            length = min(add, CHUNK - len(out))
            piece = differences.take(length)
            old = _old(read, source_size, at, length)
            out += old if piece.count(0) == length else _add(piece, old)
            at += length
            add -= length
            if len(out) >= CHUNK:
                yield bytes(out)
                out.clear()
        while copy:
            length = min(copy, CHUNK - len(out))
            out += extra.take(length)
            copy -= length
            if len(out) >= CHUNK:
                yield bytes(out)
                out.clear()
        at += seek
    if out:
        yield bytes(out)
