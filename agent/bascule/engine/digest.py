"""SHA-256 that can be put down in one process and taken up in another.

``hashlib`` cannot export its state. OpenSSL's low-level ``SHA256_*`` calls keep it in a plain
struct of 112 bytes (openssl ``include/openssl/sha.h``: h[8], Nl, Nh, data[16], num, md_len), so
they are called by ctypes on the libcrypto that ``hashlib`` has mapped. The API is deprecated:
where it is missing or fails its self-test, `sha256()` hands out ``hashlib`` with no exportable
state, and whoever resumes has to start over (decisions/0005).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import struct
import sys
from typing import Protocol

from bascule.errors import PayloadError

_WORDS = 28
_STATE = _WORDS * 4
_HEADER = struct.Struct("<4sB3x16s8sQ")
_MAGIC = b"BSHA"
_VERSION = 1


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


class _PlainSha256:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.length = 0

    def update(self, data: bytes) -> None:
        self._hash.update(data)
        self.length += len(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def copy(self) -> Digest:
        other = _PlainSha256()
        other._hash = self._hash.copy()
        other.length = self.length
        return other

    def state(self) -> bytes | None:
        return None


class _Context(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * _WORDS),)


class _ResumableSha256:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._context = _Context()
        self.length = 0
        if library.SHA256_Init(ctypes.byref(self._context)) != 1:
            raise OSError("SHA256_Init failed")

    def update(self, data: bytes) -> None:
        if self._library.SHA256_Update(ctypes.byref(self._context), data, len(data)) != 1:
            raise PayloadError("libcrypto refused to hash")
        self.length += len(data)

    def digest(self) -> bytes:
        last = _Context.from_buffer_copy(self._context)
        out = ctypes.create_string_buffer(32)
        if self._library.SHA256_Final(out, ctypes.byref(last)) != 1:
            raise PayloadError("libcrypto refused to finish a hash")
        return out.raw

    def copy(self) -> Digest:
        other = _ResumableSha256(self._library)
        other._context = _Context.from_buffer_copy(self._context)
        other.length = self.length
        return other

    def state(self) -> bytes | None:
        return _HEADER.pack(_MAGIC, _VERSION, *_platform(), self.length) + bytes(self._context)

    def load(self, state: bytes) -> bool:
        """Take up a state; False if it is not one of this machine's or contradicts itself."""
        if len(state) != _HEADER.size + _STATE:
            return False
        magic, version, machine, order, length = _HEADER.unpack_from(state)
        if (magic, version, (machine, order)) != (_MAGIC, _VERSION, _platform()):
            return False
        context = _Context.from_buffer_copy(state[_HEADER.size :])
        bits = context.words[9] << 32 | context.words[8]
        if bits != 8 * length or context.words[26] != length % 64 or context.words[27] != 32:
            return False
        self._context, self.length = context, length
        return True


def _platform() -> tuple[bytes, bytes]:
    machine = platform.machine().encode()[:16].ljust(16, b"\0")
    return machine, sys.byteorder.encode().ljust(8, b"\0")


def sha256() -> Digest:
    """A fresh digest, resumable where this Python allows it."""
    library = _library()
    return _PlainSha256() if library is None else _ResumableSha256(library)


def resume(state: bytes | None) -> Digest | None:
    """Take up a digest from its `state`; None if that is not possible: then start over."""
    library = _library()
    if library is None or state is None:
        return None
    digest = _ResumableSha256(library)
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
        for name, arguments in (
            ("SHA256_Init", [ctypes.c_void_p]),
            ("SHA256_Update", [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
            ("SHA256_Final", [ctypes.c_char_p, ctypes.c_void_p]),
        ):
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        return library if _known_answers(library) else None
    except (OSError, AttributeError, PayloadError):
        return None


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


def _known_answers(library: ctypes.CDLL) -> bool:
    """FIPS 180-4's "abc", and a longer text cut at odd places through export and import."""
    digest = _ResumableSha256(library)
    digest.update(b"abc")
    if digest.digest().hex() != (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ):
        return False
    text = bytes(range(256)) * 3
    for cut in (0, 1, 55, 63, 64, 65, 300, 767):
        first, second = _ResumableSha256(library), _ResumableSha256(library)
        first.update(text[:cut])
        state = first.state()
        if state is None or not second.load(state):
            return False
        second.update(text[cut:])
        if second.digest() != hashlib.sha256(text).digest():
            return False
    return True
