"""Digests that are put down and taken up again."""

from __future__ import annotations

import ctypes
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine import digest

needs_libcrypto = pytest.mark.skipif(
    not digest.resumable(), reason="this Python has no libcrypto mapped"
)
KINDS = ["sha256", "sha512"]


@needs_libcrypto
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=1000), cuts=st.lists(st.integers(0, 1000), max_size=6))
def test_put_down_anywhere_it_gives_the_same_digest(
    kind: str, text: bytes, cuts: list[int]
) -> None:
    running = digest.fresh(kind)
    at = 0
    for cut in sorted(min(c, len(text)) for c in cuts):
        running.update(text[at:cut])
        at = cut
        taken = digest.resume(running.state(), kind)
        assert taken is not None
        assert taken.length == running.length
        assert taken.digest() == hashlib.new(kind, text[:cut]).digest()
        running = taken
    running.update(text[at:])
    copy = running.copy()
    assert running.digest() == running.digest() == hashlib.new(kind, text).digest()
    copy.update(b"more")
    assert copy.digest() == hashlib.new(kind, text + b"more").digest()
    assert running.digest() == hashlib.new(kind, text).digest()


@needs_libcrypto
@pytest.mark.parametrize("kind", KINDS)
def test_large_pieces_in_other_threads_are_hashed_alike(kind: str) -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.randrange(300_000)) for _ in range(8)]
    running = digest.fresh(kind)
    for piece in pieces:
        running.update(piece)
    assert running.digest() == hashlib.new(kind, b"".join(pieces)).digest()


@needs_libcrypto
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_contradicts_itself_is_not_taken(kind: str) -> None:
    running = digest.fresh(kind)
    running.update(bytes(100))
    state = running.state()
    assert state is not None
    other = "sha512" if kind == "sha256" else "sha256"
    assert digest.resume(state, other) is None
    assert digest.resume(None, kind) is None
    assert digest.resume(b"", kind) is None
    assert digest.resume(state[:-1], kind) is None
    assert digest.resume(state + b"\0", kind) is None
    header = len(state) - {"sha256": 112, "sha512": 216}[kind]
    for at in range(header):
        wrong = bytearray(state)
        wrong[at] ^= 1
        # Padding of the header is the only thing that may differ.
        assert 5 <= at < 8 or digest.resume(bytes(wrong), kind) is None, at
    for at in (len(state) - 1, len(state) - 5, len(state) - 4, len(state) - 8):
        wrong = bytearray(state)
        wrong[at] ^= 1
        assert digest.resume(bytes(wrong), kind) is None


def test_another_machines_state_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    state = digest.fresh().state()
    monkeypatch.setattr(digest.platform, "machine", lambda: "vax")
    assert digest.resume(state) is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_libcrypto_there_is_a_digest_but_no_state(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_library", lambda: None)
    running = digest.fresh(kind)
    running.update(b"abc")
    assert running.digest() == hashlib.new(kind, b"abc").digest()
    copy = running.copy()
    copy.update(b"d")
    assert copy.length == 4
    assert running.length == 3
    assert running.state() is None
    assert digest.resume(b"x" * 200, kind) is None
    assert not digest.resumable()


@needs_libcrypto
@pytest.mark.parametrize("fault", ["missing", "wrong", "gone"])
def test_a_library_that_fails_its_self_test_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "gone":
        monkeypatch.setattr(digest, "_mapped_libcrypto", lambda: None)
    else:
        real = ctypes.CDLL

        class Broken:
            def __init__(self, path: str) -> None:
                self._real = real(path)

            def __getattr__(self, name: str) -> object:
                if fault == "missing" and name == "SHA512_Final":
                    raise AttributeError(name)
                if fault == "wrong" and name == "SHA256_Update":
                    return self._real.SHA224_Final
                return getattr(self._real, name)

        if fault == "wrong":
            monkeypatch.setattr(digest, "_known_answers", lambda kind, library: False)
        monkeypatch.setattr(digest.ctypes, "CDLL", Broken)
    assert digest._library.__wrapped__() is None
