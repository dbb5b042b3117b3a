"""SHA-256 and SHA-512 that can be put down in one process and taken up in another.

``hashlib`` cannot export its state. OpenSSL's low-level calls keep it in a plain struct (openssl
``include/openssl/sha.h``: h[8], Nl, Nh, data, num, md_len), so they are called by ctypes on the
libcrypto that ``hashlib`` has mapped. The API is deprecated: where it is missing or fails its
self-test, `fresh` hands out ``hashlib`` with no exportable state, and whoever resumes has to start
over (decisions/0005).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import struct
import sys
from dataclasses import dataclass
from typing import Protocol

from bascule.errors import PayloadError

_HEADER = struct.Struct("<4sB3x8s16s8sQ")
_MAGIC = b"BSHA"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Kind:
    """One hash function's struct and entry points.

    Attributes:
        word: bytes of h[i], Nl and Nh.
        size: bytes of the digest.
        abc: digest of "abc" (FIPS 180-4 examples), hexadecimal.
    """

    name: str
    word: int
    size: int
    abc: str

    @property
    def block(self) -> int:
        return 16 * self.word

    @property
    def state(self) -> int:
        return 8 * self.word + 2 * self.word + self.block + 8

    @property
    def functions(self) -> tuple[str, str, str]:
        prefix = self.name.upper()
        return f"{prefix}_Init", f"{prefix}_Update", f"{prefix}_Final"

    def consistent(self, context: bytes, length: int) -> bool:
        """Whether a struct agrees with the bytes that it is said to have hashed."""
        at, word = 8 * self.word, self.word
        low = int.from_bytes(context[at : at + word], sys.byteorder)
        high = int.from_bytes(context[at + word : at + 2 * word], sys.byteorder)
        num = int.from_bytes(context[-8:-4], sys.byteorder)
        md_len = int.from_bytes(context[-4:], sys.byteorder)
        bits = high << (8 * word) | low
        return bits == 8 * length and num == length % self.block and md_len == self.size


_KINDS = {
    "sha256": _Kind(
        "sha256", 4, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ),
    "sha512": _Kind(
        "sha512",
        8,
        64,
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ),
}


class Digest(Protocol):
    """A running SHA-256.

    Attributes:
        length: bytes hashed so far.
    """

    length: int

    def update(self, data: bytes) -> None:
        """Hash more bytes."""

    def digest(self) -> bytes:
        """32 bytes; the digest can go on afterwards."""

    def copy(self) -> Digest:
        """A second digest of the same bytes that goes its own way."""

    def state(self) -> bytes | None:
        """What `resume` needs, or None where this digest cannot be put down."""


class _Plain:
    def __init__(self, kind: _Kind) -> None:
        self._kind = kind
        self._hash = hashlib.new(kind.name)
        self.length = 0

    def update(self, data: bytes) -> None:
        self._hash.update(data)
        self.length += len(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def copy(self) -> Digest:
        other = _Plain(self._kind)
        other._hash = self._hash.copy()
        other.length = self.length
        return other

    def state(self) -> bytes | None:
        return None


class _Resumable:
    def __init__(self, kind: _Kind, library: ctypes.CDLL) -> None:
        self._kind = kind
        self._library = library
        self._init, self._update, self._final = (getattr(library, n) for n in kind.functions)
        # Words, not bytes, so that the struct is aligned as C wants it.
        self._context = (ctypes.c_uint64 * (kind.state // 8))()
        self.length = 0
        if self._init(self._context) != 1:
            raise PayloadError(f"libcrypto refused to start {kind.name}")

    def update(self, data: bytes) -> None:
        if self._update(self._context, data, len(data)) != 1:
            raise PayloadError("libcrypto refused to hash")
        self.length += len(data)

    def digest(self) -> bytes:
        last = type(self._context).from_buffer_copy(self._context)
        out = ctypes.create_string_buffer(self._kind.size)
        if self._final(out, last) != 1:
            raise PayloadError("libcrypto refused to finish a hash")
        return out.raw

    def copy(self) -> Digest:
        other = _Resumable(self._kind, self._library)
        other._context = type(self._context).from_buffer_copy(self._context)
        other.length = self.length
        return other

    def state(self) -> bytes | None:
        head = _HEADER.pack(_MAGIC, _VERSION, self._kind.name.encode(), *_platform(), self.length)
        return head + bytes(self._context)

    def load(self, state: bytes) -> bool:
        """Take up a state; False if it is not one of this machine's or contradicts itself."""
        if len(state) != _HEADER.size + self._kind.state:
            return False
        magic, version, name, machine, order, length = _HEADER.unpack_from(state)
        if (magic, version, (machine, order)) != (_MAGIC, _VERSION, _platform()):
            return False
        context = state[_HEADER.size :]
        if name.rstrip(b"\0") != self._kind.name.encode():
            return False
        if not self._kind.consistent(context, length):
            return False
        self._context = type(self._context).from_buffer_copy(context)
        self.length = length
        return True


def _platform() -> tuple[bytes, bytes]:
    machine = platform.machine().encode()[:16].ljust(16, b"\0")
    return machine, sys.byteorder.encode().ljust(8, b"\0")


def fresh(kind: str = "sha256") -> Digest:
    """A digest of nothing yet, resumable where this Python allows it.

    Args:
        kind: "sha256" or "sha512".
    """
    library = _library()
    return _Plain(_KINDS[kind]) if library is None else _Resumable(_KINDS[kind], library)


def resume(state: bytes | None, kind: str = "sha256") -> Digest | None:
    """Take up a digest from its `state`; None if that is not possible: then start over."""
    library = _library()
    if library is None or state is None:
        return None
    digest = _Resumable(_KINDS[kind], library)
    return digest if digest.load(state) else None


def resumable() -> bool:
    """Whether digests of this process can be put down at all."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = _mapped_libcrypto()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(path)
        for kind in _KINDS.values():
            init, update, final = (getattr(library, name) for name in kind.functions)
            init.argtypes = [ctypes.c_void_p]
            update.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
            final.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        right = all(_known_answers(kind, library) for kind in _KINDS.values())
    except (OSError, AttributeError, PayloadError):
        return None
    return library if right else None


def _mapped_libcrypto() -> str | None:
    """The libcrypto that hashlib uses. A Python with OpenSSL linked in statically has none."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
            for line in maps:
                path = line.rstrip("\n").partition("/")[2]
                if path.rsplit("/", 1)[-1].startswith("libcrypto.so") and " (deleted)" not in path:
                    return "/" + path
    except OSError:
        pass
    return None


def _known_answers(kind: _Kind, library: ctypes.CDLL) -> bool:
    """FIPS 180-4's "abc", and a longer text cut at odd places through export and import."""
    digest = _Resumable(kind, library)
    digest.update(b"abc")
    if digest.digest().hex() != kind.abc:
        return False
    text = bytes(range(256)) * 3
    for cut in (0, 1, 55, 63, 64, 65, 127, 128, 300, 767):
        first, second = _Resumable(kind, library), _Resumable(kind, library)
        first.update(text[:cut])
        state = first.state()
        if state is None or not second.load(state):
            return False
        second.update(text[cut:])
        if second.digest() != hashlib.new(kind.name, text).digest():
            return False
    return True
