"""Proves a payload file: signatures, and the hash of every operation's data. Writes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bascule.engine.carry import check_blob
from bascule.engine.thread import in_thread
from bascule.errors import NoKeys, SignatureMissing, StorageError
from bascule.formats.manifest import Manifest, Operation
from bascule.formats.payload import Blob, Metadata, PayloadEvent, PayloadParser, SignatureBlob
from bascule.formats.signature import (
    Evidence,
    PublicKey,
    SignedManifest,
    check,
    check_metadata,
)

__all__ = ["PayloadFile", "Proven", "prove"]

_PIECE = 1 << 20


class PayloadFile:
    """A payload on disk, as a source for `engine.stream.install` and for reading blobs.

    Raises:
        StorageError: it cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", path=str(path)) from error

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer only at the end."""
        try:
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}", path=str(self.path)) from error

    def pieces(self) -> Iterator[bytes]:
        """All of it, in order."""
        offset = 0
        while piece := self.read(offset, _PIECE):
            offset += len(piece)
            yield piece

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        """As `engine.stream.ByteSource`."""
        while True:
            at = offset
            piece = await in_thread(lambda at=at: self.read(at, _PIECE))  # type: ignore[misc]
            if not piece:
                return
            offset += len(piece)
            yield piece

    def blob(self, manifest: Manifest, operation: Operation) -> bytes:
        """One operation's data."""
        return self.read(manifest.blobs_offset + operation.data_offset, operation.data_length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Proven:
    """What is known of a proven payload file.

    Attributes:
        signed: its manifest.
        sha256: of the whole file.
        size: bytes.
    """

    signed: SignedManifest
    sha256: bytes
    size: int


def prove(
    file: PayloadFile, keys: Sequence[PublicKey], moved: Callable[[int], None] = lambda _: None
) -> Proven:
    """Check signatures and every operation's data. Blocking.

    Args:
        moved: told of each piece's bytes.

    Raises:
        PayloadError: what `engine.stream.install` would refuse it with.
    """
    if not keys:
        raise NoKeys
    whole, covered = hashlib.sha256(), hashlib.sha256()
    parser = PayloadParser(size=file.size)
    metadata: Metadata | None = None
    signatures = b""
    known: frozenset[str] = frozenset()
    for piece in file.pieces():
        whole.update(piece)
        pending: list[PayloadEvent] = parser.feed(piece)
        while pending:
            match event := pending.pop(0):
                case Metadata():
                    metadata = event
                    covered.update(event.raw)
                    check_metadata(event.raw, keys=keys, in_payload=event.signature)
                    manifest = event.parse()
                    if manifest.signatures_offset is None:
                        raise SignatureMissing
                    known = frozenset(part.name for part in manifest.parts if part.known)
                    pending.extend(parser.begin(manifest))
                case Blob(operation, data):
                    covered.update(data)
                    if operation.part in known:
                        check_blob(operation, data)
                case SignatureBlob(data):
                    signatures = data
                case _:
                    pass
        moved(len(piece))
    parser.finish()
    assert metadata is not None and parser.manifest is not None
    evidence = Evidence(
        metadata_signatures=metadata.signature,
        payload_signatures=signatures,
        signed_sha256=covered.digest(),
        file_sha256=whole.digest(),
    )
    return Proven(check(parser.manifest, evidence, keys=keys), whole.digest(), file.size)
