"""A push parser for update payloads of major 1 and 2: bytes go in as they come, events come out.

Formats: reference flatcar.md 1.1 (major 1: 20-byte header) and payload_v2.md 1.1 (major 2: 24-byte
header, metadata signature between manifest and blobs). All header integers are big-endian.

At most one blob is held at a time, and no length is believed before it was compared with its limit.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NoReturn

from bascule.errors import BadMagic, MetadataSizeError, PayloadSizeMismatch, UnsupportedMajor
from bascule.formats.manifest import Limits, Manifest, Operation, parse_manifest

__all__ = [
    "MAGIC",
    "Blob",
    "End",
    "Header",
    "Metadata",
    "PayloadEvent",
    "PayloadParser",
    "SignatureBlob",
]

MAGIC = b"CrAU"


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed head of a payload.

    Attributes:
        major: 1 or 2.
        manifest_size: bytes of the manifest's protobuf.
        signature_size: bytes of the metadata signature behind it; 0 for major 1.
    """

    major: int
    manifest_size: int
    signature_size: int

    @property
    def size(self) -> int:
        """Bytes of the header itself."""
        return 20 if self.major == 1 else 24

    @property
    def metadata_size(self) -> int:
        """Bytes from the file's start to the manifest's end: what Omaha's ``MetadataSize`` counts."""
        return self.size + self.manifest_size


@dataclass(frozen=True, slots=True)
class Metadata:
    """Header and manifest are there. The parser waits for `PayloadParser.begin`.

    Attributes:
        raw: header and manifest as they lie in the file: what a metadata signature covers.
        signature: the v2 metadata signature, a serialized ``Signatures``; b"" if there is none.
        size: bytes of the whole payload, if they were announced.
    """

    header: Header
    raw: bytes
    signature: bytes
    size: int | None = None

    def parse(self, limits: Limits | None = None) -> Manifest:
        """The manifest, checked but not proven. Raises what `parse_manifest` raises."""
        return parse_manifest(
            self.raw[self.header.size :],
            major=self.header.major,
            metadata=self.raw,
            signature_size=len(self.signature),
            size=self.size,
            limits=limits,
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """One operation's data, complete. Operations without data come too, with b""."""

    operation: Operation
    data: bytes


@dataclass(frozen=True, slots=True)
class SignatureBlob:
    """The payload signature, a serialized ``Signatures``."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The payload is complete; `consumed` is its size in bytes."""

    consumed: int


PayloadEvent = Metadata | Blob | SignatureBlob | End


class _At(enum.Enum):
    HEADER = enum.auto()
    METADATA = enum.auto()
    WAITING = enum.auto()
    BLOBS = enum.auto()
    SIGNATURE = enum.auto()
    END = enum.auto()


_SMALL = 4096
"""Bytes below which a piece is copied rather than kept, lest a server that sends single bytes pay
for each with a hundred of ours."""


class _Pieces:
    """Bytes that wait for the rest of what they belong to, and are joined once.

    Attributes:
        size: bytes.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[memoryview | bytearray] = []

    def add(self, piece: memoryview) -> None:
        self.size += len(piece)
        last = self._pieces[-1] if self._pieces else None
        if len(piece) >= _SMALL:
            self._pieces.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def peek(self) -> bytes:
        return b"".join(self._pieces)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return taken


class PayloadParser:
    """Turns a payload's bytes, in pieces of any size, into events.

    Args:
        limits: see `Limits`.
        size: bytes of the whole payload, if it was announced.
        metadata_size: bytes of header and manifest, if they were announced.

    A new parser stands at the file's start. After the `Metadata` event it takes no bytes until
    `begin` has given it the manifest. See `resume` for one that starts further on.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        size: int | None = None,
        metadata_size: int | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._size = size
        self._metadata_size = metadata_size
        self._at = _At.HEADER
        self._consumed = 0
        self._held = _Pieces()
        self._wanted = 20
        self._raw = b""
        self._header: Header | None = None
        self._manifest: Manifest | None = None
        self._operations: tuple[Operation, ...] = ()
        self._next = 0
        self._excess = False

    @classmethod
    def resume(
        cls,
        manifest: Manifest,
        first_operation: int,
        *,
        size: int | None = None,
        limits: Limits | None = None,
    ) -> PayloadParser:
        """A parser for the bytes from ``manifest.offset_of(first_operation)`` on.

        Its first events, which need no bytes, come from the first `feed`, be that of b"".
        """
        parser = cls(limits=limits, size=size)
        parser._at = _At.WAITING
        parser._consumed = manifest.blobs_offset
        parser._position(manifest, first_operation)
        return parser

    @property
    def consumed(self) -> int:
        """File offset up to which everything has been handed out in events."""
        return self._consumed

    @property
    def received(self) -> int:
        """File offset of the next byte to feed: where an interrupted transfer goes on."""
        return self._consumed + len(self._raw) + self._held.size

    @property
    def header(self) -> Header | None:
        """The header as soon as it was read, be its lengths acceptable or not."""
        return self._header

    @property
    def manifest(self) -> Manifest | None:
        """What `begin` was given."""
        return self._manifest

    @property
    def ended(self) -> bool:
        """Whether `End` was handed out."""
        return self._at is _At.END and not self._excess

    def feed(self, data: bytes) -> list[PayloadEvent]:
        """Take bytes; return the events that are complete with them, often none.

        Raises:
            BadMagic: at the first byte that is not of ``CrAU``.
            UnsupportedMajor: the version is neither 1 nor 2.
            MetadataSizeError: the header's lengths overflow or are not the announced ones; those
                of major 2 pass a limit.
            PayloadSizeMismatch: bytes after the end (if events came with them, at the next call, be
                it `finish`, and `End` is withheld); a length of major 1 passes a limit.
            RuntimeError: the parser waits for `begin`.
        """
        if self._at is _At.WAITING:
            raise RuntimeError("feed() before begin()")
        return self._run(memoryview(data))

    def begin(self, manifest: Manifest, first_operation: int = 0) -> list[PayloadEvent]:
        """Go on behind the metadata; return the events that bytes already fed complete.

        Args:
            manifest: the parsed manifest of the metadata that this parser handed out.
            first_operation: if not 0, the next byte fed is that of
                ``manifest.offset_of(first_operation)``; nothing behind the metadata may have been
                fed yet.

        Raises:
            PayloadSizeMismatch: the manifest does not add up to the announced size.
        """
        if self._at is not _At.WAITING:
            raise RuntimeError("begin() without Metadata")
        if self._held.size and first_operation:
            raise RuntimeError("begin() in the middle with bytes already fed")
        self._position(manifest, first_operation)
        return self._run(memoryview(self._held.take()))

    def finish(self) -> None:
        """Say that no more bytes come.

        Raises:
            PayloadSizeMismatch: the payload is not complete.
        """
        if self._excess:
            self._refuse_excess()
        if self._at is _At.END:
            return
        expected = self._manifest.size if self._manifest else self._size
        of = "" if expected is None else f" of {expected}"
        raise PayloadSizeMismatch(f"it ends after {self.received}{of} bytes")

    def _refuse_excess(self) -> NoReturn:
        raise PayloadSizeMismatch(f"bytes follow the end of the payload at {self._consumed}")

    def _position(self, manifest: Manifest, first_operation: int) -> None:
        manifest.check_size(self._size)
        self._manifest = manifest
        self._operations = manifest.operations
        if not 0 <= first_operation <= len(self._operations):
            raise ValueError(f"operation {first_operation} of {len(self._operations)}")
        self._next = first_operation
        self._consumed = manifest.offset_of(first_operation)
        self._want_blob()

    def _run(self, data: memoryview) -> list[PayloadEvent]:
        events: list[PayloadEvent] = []
        at = 0
        while True:
            if self._at is _At.END:
                if at == len(data) and not self._excess:
                    return events
                # What came before is handed out first, without an End, so that a wrong blob is told
                # of as such however the bytes were cut.
                self._excess = True
                if events:
                    return events[:-1]
                self._refuse_excess()
            if self._at is _At.WAITING:
                self._held.add(data[at:])
                return events
            missing = self._wanted - self._held.size
            if len(data) - at < missing:
                self._held.add(data[at:])
                if self._at is _At.HEADER:
                    self._check_head(self._held.peek())
                return events
            if self._held.size:
                self._held.add(data[at : at + missing])
                piece = self._held.take()
            else:
                piece = bytes(data[at : at + missing])
            at += missing
            events.extend(self._complete(piece))

    def _complete(self, piece: bytes) -> list[PayloadEvent]:
        """One piece of the wanted length is there."""
        if self._at is _At.HEADER:
            self._read_header(piece)
            return []
        if self._at is _At.METADATA:
            return [self._read_metadata(piece)]
        self._consumed += len(piece)
        if self._at is _At.SIGNATURE:
            self._at = _At.END
            return [SignatureBlob(piece), End(self._consumed)]
        if self._next == len(self._operations):
            self._at = _At.END
            return [End(self._consumed)]
        operation = self._operations[self._next]
        self._next += 1
        self._want_blob()
        return [Blob(operation, piece)]

    def _want_blob(self) -> None:
        assert self._manifest is not None
        if self._next < len(self._operations):
            self._at = _At.BLOBS
            self._wanted = self._operations[self._next].data_length
        elif self._manifest.signatures_size:
            self._at = _At.SIGNATURE
            self._wanted = self._manifest.signatures_size
        else:
            self._at = _At.BLOBS
            self._wanted = 0

    def _check_head(self, begun: bytes) -> None:
        """Refuse a login page at its first byte, not when 20 of them have come."""
        head = begun[:4]
        if not MAGIC.startswith(head):
            raise BadMagic(f"it begins with {head!r}")
        if len(begun) >= 12:
            major = int.from_bytes(begun[4:12], "big")
            if major not in (1, 2):
                raise UnsupportedMajor(f"major version {major}")

    def _read_header(self, piece: bytes) -> None:
        self._check_head(piece)
        major = int.from_bytes(piece[4:12], "big")
        if major == 2 and len(piece) == 20:
            self._held.add(memoryview(piece))
            self._wanted = 24
            return
        header = Header(
            major=major,
            manifest_size=int.from_bytes(piece[12:20], "big"),
            signature_size=int.from_bytes(piece[20:24], "big"),
        )
        self._header = header
        self._check_lengths(header)
        self._raw = piece
        self._at = _At.METADATA
        self._wanted = header.manifest_size + header.signature_size

    def _check_lengths(self, header: Header) -> None:
        size, whole = header.metadata_size, header.metadata_size + header.signature_size
        # What update_engine 0.4 calls such a v1 file: too short for what it announces.
        error = PayloadSizeMismatch if header.major == 1 else MetadataSizeError
        if whole >= 1 << 64:
            raise MetadataSizeError(f"a manifest of {header.manifest_size} bytes")
        if self._metadata_size is not None and size != self._metadata_size:
            raise MetadataSizeError(
                f"{size} bytes of metadata, {self._metadata_size} were announced"
            )
        if self._size is not None and whole > self._size:
            raise error(f"{whole} bytes of metadata in a payload of {self._size}")
        if header.manifest_size > self._limits.manifest:
            raise error(
                f"a manifest of {header.manifest_size} bytes; at most {self._limits.manifest}"
            )
        if header.signature_size > self._limits.signatures:
            raise error(
                f"a metadata signature of {header.signature_size} bytes; "
                f"at most {self._limits.signatures}"
            )

    def _read_metadata(self, piece: bytes) -> Metadata:
        assert self._header is not None
        cut = self._header.manifest_size
        metadata = Metadata(self._header, self._raw + piece[:cut], piece[cut:], self._size)
        self._raw = b""
        self._consumed = len(metadata.raw) + len(metadata.signature)
        self._at = _At.WAITING
        return metadata
