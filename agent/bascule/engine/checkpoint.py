"""How far an installation has come, in a form that survives a power cut.

Three files in one folder. ``metadata`` holds the payload's metadata as first received; ``record``
says which operations have reached the medium; ``journal`` holds the source bytes of the one
operation that overwrites what it reads. Each is written temp → fsync → rename → fsync folder.
A record may lag the disk, never lead it: callers flush the devices first.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bascule.engine.device import flush_folder
from bascule.errors import LedgerError, ManifestError, NotEnoughSpace

VERSION = 1
MAX_RESUMES = 10
"""Resumes in a row that got no further; one more starts over (reference flatcar.md 3.6)."""

_RECORD_LIMIT = 64 << 10
_METADATA_LIMIT = 128 << 20
_JOURNAL = struct.Struct("<4sB3xQQ32s")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One resume record.

    Attributes:
        identity: what it belongs to (payload and targets), see `identity_of`.
        metadata: header and manifest as first received.
        metadata_signature: the serialised signatures that followed them (major 2), or empty.
        next_operation: index of the first operation that may not be on the medium.
        digests: states of running digests at that point, by name; empty if not resumable.
        resumes: resumes since it last got further.
    """

    identity: str
    metadata: bytes
    metadata_signature: bytes
    next_operation: int
    digests: Mapping[str, bytes]
    resumes: int = 0


def identity_of(facts: Mapping[str, Any]) -> str:
    """A name for (payload, targets, sources): equal facts, equal name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class CheckpointStore:
    """The resume record in one folder, which is made if missing.

    Counts `writes` (records made durable) for those who watch the fsync discipline.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writes = 0
        self._metadata_sha256 = ""

    def load(self, identity: str) -> Checkpoint | None:
        """The record of this very payload and slot; None to start over.

        A torn, foreign, unknown or worn-out record (more than `MAX_RESUMES` resumes without
        progress) is as good as none.
        """
        try:
            record = _read_json(self.folder / "record")
            if record is None or record["version"] != VERSION or record["identity"] != identity:
                return None
            blob = _read(self.folder / "metadata", _METADATA_LIMIT)
            if hashlib.sha256(blob).hexdigest() != record["metadata_sha256"]:
                return None
            split = int(record["metadata_size"])
            digests = {k: base64.b64decode(v) for k, v in record["digests"].items()}
            checkpoint = Checkpoint(
                identity,
                blob[:split],
                blob[split:],
                int(record["next_operation"]),
                digests,
                int(record["resumes"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if checkpoint.next_operation < 0 or checkpoint.resumes > MAX_RESUMES:
            return None
        self._metadata_sha256 = str(record["metadata_sha256"])
        return checkpoint

    def begin(self, identity: str, metadata: bytes, metadata_signature: bytes) -> Checkpoint:
        """Keep the metadata and start a record at operation 0.

        Raises:
            ManifestError: an earlier record of the same payload had other metadata. The record
                is dropped, so the next attempt is free.
            LedgerError, NotEnoughSpace: the folder cannot be written.
        """
        blob = metadata + metadata_signature
        digest = hashlib.sha256(blob).hexdigest()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            earlier = _read_json(self.folder / "record")
            if (
                earlier is not None
                and earlier["identity"] == identity
                and earlier["metadata_sha256"] != digest
            ):
                self.clear()
                raise ManifestError("the manifest is not the one this payload had at first")
        self._discard("record")
        self._discard("journal")
        self._write("metadata", [blob])
        self._metadata_sha256 = digest
        checkpoint = Checkpoint(identity, metadata, metadata_signature, 0, {})
        self.save(checkpoint)
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Make a record durable. What it claims must have been flushed before.

        Raises:
            LedgerError, NotEnoughSpace: the folder cannot be written.
        """
        record = {
            "version": VERSION,
            "identity": checkpoint.identity,
            "metadata_sha256": self._metadata_sha256,
            "metadata_size": len(checkpoint.metadata),
            "next_operation": checkpoint.next_operation,
            "digests": {k: base64.b64encode(v).decode() for k, v in checkpoint.digests.items()},
            "resumes": checkpoint.resumes,
        }
        body = json.dumps(record, sort_keys=True)
        check = hashlib.sha256(body.encode()).hexdigest()
        self._write("record", [f"{check}\n{body}\n".encode()])
        self.writes += 1

    def count_resume(self, checkpoint: Checkpoint) -> Checkpoint:
        """Note durably, before anything else is done, that a resume is being tried."""
        counted = replace(checkpoint, resumes=checkpoint.resumes + 1)
        self.save(counted)
        return counted

    def renew(self) -> None:
        """Forget the resumes that led to the present record: what it says was read back as good.

        Raises:
            LedgerError, NotEnoughSpace: the folder cannot be written.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = _read_json(self.folder / "record")
            checkpoint = self.load(str(record["identity"])) if record is not None else None
            if checkpoint is not None and checkpoint.resumes:
                self.save(replace(checkpoint, resumes=0))

    def clear(self) -> None:
        """Forget everything: the next installation starts at the first byte."""
        for name in ("record", "journal", "metadata"):
            self._discard(name)

    # ── the journal of one self-overlapping operation ────────────────────────────────────────

    def write_journal(self, operation: int, pieces: Iterable[bytes], length: int) -> None:
        """Keep the source bytes of `operation` durably before it starts to write."""
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            yield bytes(_JOURNAL.size)
            for piece in pieces:
                digest.update(piece)
                yield piece

        def seal(fd: int) -> None:
            head = _JOURNAL.pack(b"BJNL", VERSION, operation, length, digest.digest())
            os.pwrite(fd, head, 0)

        self._write("journal", hashed(), seal)

    def open_journal(self, operation: int) -> Journal | None:
        """The journal of this very operation, checked whole; None if there is none."""
        try:
            fd = os.open(self.folder / "journal", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            magic, version, index, length, wanted = _JOURNAL.unpack(os.pread(fd, _JOURNAL.size, 0))
            if (magic, version, index) != (b"BJNL", VERSION, operation):
                raise ValueError("another operation's journal")
            digest, at = hashlib.sha256(), 0
            while at < length:
                piece = os.pread(fd, min(1 << 20, length - at), _JOURNAL.size + at)
                if not piece:
                    raise ValueError("torn journal")
                digest.update(piece)
                at += len(piece)
            if digest.digest() != wanted:
                raise ValueError("torn journal")
        except (OSError, ValueError, struct.error):
            os.close(fd)
            return None
        return Journal(fd, length)

    def drop_journal(self) -> None:
        """The operation is on the medium and in the record."""
        self._discard("journal")

    def _write(self, name: str, pieces: Iterable[bytes], seal: Any = None) -> None:
        temp = self.folder / f"{name}.partial"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                for piece in pieces:
                    _write_all(fd, piece)
                if seal is not None:
                    seal(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            temp.rename(self.folder / name)
            flush_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            kind = NotEnoughSpace if error.errno in (28, 122) else LedgerError
            raise kind(f"{temp}: {error.strerror}", path=str(temp)) from error

    def _discard(self, name: str) -> None:
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise LedgerError(f"{self.folder / name}: {error.strerror}") from error
        flush_folder(self.folder)


class Journal:
    """Source bytes kept aside, readable at any offset."""

    def __init__(self, fd: int, length: int) -> None:
        self._fd = fd
        self.length = length

    @classmethod
    def fill(cls, fd: int, pieces: Iterable[bytes], length: int) -> Journal:
        """A journal in an open file that no crash will outlive."""
        os.lseek(fd, _JOURNAL.size, os.SEEK_SET)
        for piece in pieces:
            _write_all(fd, piece)
        return cls(fd, length)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset` of what was kept.

        Raises:
            LedgerError: the state directory's medium fails.
        """
        try:
            return os.pread(self._fd, length, _JOURNAL.size + offset)
        except OSError as error:
            raise LedgerError(f"the journal cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _write_all(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is too large")
    return data


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        check, _, body = _read(path, _RECORD_LIMIT).decode().partition("\n")
    except FileNotFoundError:
        return None
    body = body.rstrip("\n")
    if hashlib.sha256(body.encode()).hexdigest() != check:
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None
