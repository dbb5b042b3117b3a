"""Reads a payload with nothing but `bascule.formats`: what the engine does, without the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bascule.errors import OperationHashMismatch
from bascule.formats.manifest import Limits, Manifest
from bascule.formats.payload import (
    Blob,
    End,
    Metadata,
    PayloadEvent,
    PayloadParser,
    SignatureBlob,
)
from bascule.formats.signature import (
    Evidence,
    PublicKey,
    SignedManifest,
    check,
    check_metadata,
)

VECTORS = Path(__file__).resolve().parents[1].parent / "shared" / "vectors"
V1, V2 = VECTORS / "flatcar_v1", VECTORS / "aosp_v2"
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="the shared vectors are not here")
PAYLOADS = sorted(VECTORS.glob("*/payloads/*.bin"))


@dataclass
class Reading:
    """What was handed out."""

    events: list[PayloadEvent] = field(default_factory=list)
    metadata: Metadata | None = None
    manifest: Manifest | None = None
    signatures: bytes = b""
    signed_sha256: bytes = b""
    file_sha256: bytes = b""
    ended: int | None = None

    @property
    def evidence(self) -> Evidence:
        assert self.metadata is not None
        return Evidence(
            metadata_signatures=self.metadata.signature,
            payload_signatures=self.signatures,
            signed_sha256=self.signed_sha256,
            file_sha256=self.file_sha256,
        )


def read(
    pieces: Iterable[bytes],
    *,
    size: int | None = None,
    keys: Sequence[PublicKey] = (),
    limits: Limits | None = None,
) -> Reading:
    """Feed the pieces, check every operation's hash, finish."""
    parser = PayloadParser(size=size, limits=limits)
    reading = Reading()
    signed, whole = hashlib.sha256(), hashlib.sha256()

    def take(events: list[PayloadEvent]) -> None:
        for event in events:
            reading.events.append(event)
            if isinstance(event, Metadata):
                if keys:
                    check_metadata(event.raw, keys=keys, in_payload=event.signature)
                reading.metadata = event
                signed.update(event.raw)
                whole.update(event.raw + event.signature)
                reading.manifest = event.parse(limits)
                take(parser.begin(reading.manifest))
            elif isinstance(event, Blob):
                wanted = event.operation.data_sha256
                assert len(event.data) == event.operation.data_length
                if wanted is not None and hashlib.sha256(event.data).digest() != wanted:
                    raise OperationHashMismatch(str(event.operation.index))
                signed.update(event.data)
                whole.update(event.data)
            elif isinstance(event, SignatureBlob):
                reading.signatures = event.data
                whole.update(event.data)
            elif isinstance(event, End):
                reading.ended = event.consumed

    for piece in pieces:
        take(parser.feed(piece))
    parser.finish()
    reading.signed_sha256, reading.file_sha256 = signed.digest(), whole.digest()
    return reading


def prove(data: bytes, keys: Sequence[PublicKey]) -> SignedManifest:
    """Read and check a whole payload whose size was announced."""
    reading = read([data], size=len(data), keys=keys)
    assert reading.manifest is not None
    return check(reading.manifest, reading.evidence, keys=keys)
