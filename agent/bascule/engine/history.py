"""History: what happened on this host, as JSON lines that vouch for each other.

Every line carries its sequence number and the SHA-256 of the line before it, so that a gap or an
edit shows; ``history.head`` names the last line, so that a cut shows too. Append-only: nothing but
a torn last line (a power cut) is ever taken away, and that is recorded in its place.

``history.jsonl`` is the file in use; older ones are ``history-<first sequence>.jsonl``; the oldest
are dropped whole, and ``history.head`` says up to where.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bascule.engine.ledger import write_durably
from bascule.errors import LedgerError

BEGINNING = "0" * 64
_RECORD_LIMIT = 16 << 10
_LINE_LIMIT = 64 << 10
_OLD = re.compile(r"history-([0-9]{1,15})\.jsonl", re.ASCII)


@dataclass(frozen=True, slots=True)
class Flaw:
    """The first place where the chain does not hold.

    Attributes:
        sequence: number of the first record that is wrong or missing.
        file, line: where, counted from 1; line 0 for what is missing at the end.
        why: in one sentence.
    """

    sequence: int
    file: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `History.verify` found.

    Attributes:
        records: good records before the first flaw.
        first: sequence of the oldest record that is kept, 0 for none; more than 1 after rotation.
        torn: bytes of a last line that a power cut left unfinished; not a flaw.
        digest: SHA-256 of the last good line, for whoever keeps an anchor elsewhere.
    """

    records: int
    first: int
    flaw: Flaw | None
    torn: int
    digest: str


class History:
    """The history in `directory`. Methods block: call them in a thread from a loop.

    Several processes may append: a lock orders them.

    Args:
        clock: unix seconds.
        max_size: bytes of a file at which a new one is begun.
        keep: files that are kept, the one in use included.

    Raises (all methods):
        LedgerError: the directory cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float],
        max_size: int = 1 << 20,
        keep: int = 8,
    ) -> None:
        self.directory = directory
        self.path = directory / "history.jsonl"
        self._head = directory / "history.head"
        self._clock = clock
        self._max_size = max_size
        self._keep = max(1, keep)

    def append(
        self,
        kind: str,
        *,
        attempt: str = "",
        actor: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one record durably, and return it."""
        with self._locked():
            sequence, previous, torn = self._end()
            if torn:
                sequence, previous, _ = self._write(
                    sequence, previous, "history-torn", "", None, {"bytes": torn}
                )
            return self._write(sequence, previous, kind, attempt, actor, facts or {})[2]

    def read(self, limit: int | None = None, *, kind: str = "") -> list[dict[str, Any]]:
        """The newest `limit` records (of one kind), oldest first. Lines that are no record are left out."""
        found: list[dict[str, Any]] = []
        for file in reversed(self._files()):
            records = [r for _, line, whole in _lines(file) if whole and (r := _record(line))]
            found[:0] = [r for r in records if not kind or r.get("kind") == kind]
            if limit is not None and len(found) >= limit:
                return found[-limit:] if limit else []
        return found

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever something was appended: size, time and number of files."""
        files = self._files()
        if not files or files[-1] != self.path:
            return (0, 0, len(files))
        try:
            found = self.path.stat()
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror}") from error
        return (found.st_size, found.st_mtime_ns, len(files))

    def verify(self) -> Verification:
        """Follow the chain from the oldest record that is kept to the end."""
        with self._locked():
            head = self._read_head()
            files = self._files()
            last, digest, first, count = 0, BEGINNING, 0, 0
            anchored = head is None

            def result(flaw: Flaw | None, torn: int = 0) -> Verification:
                return Verification(count, first, flaw, torn, digest)

            torn = 0
            for file in files:
                for number, line, whole in _lines(file):
                    where = (file.name, number)
                    if not whole and file == self.path:
                        torn = len(line)
                        break
                    record = _record(line)
                    if record is None:
                        return result(Flaw(last + 1, *where, "this line is not a record"))
                    sequence = record["sequence"]
                    if first and sequence != last + 1:
                        return result(
                            Flaw(
                                last + 1, *where, f"record {last + 1} is missing before {sequence}"
                            )
                        )
                    if (first or sequence == 1) and record["previous"] != digest:
                        return result(
                            Flaw(
                                max(1, last),
                                *where,
                                f"record {sequence} does not follow from what stands before it",
                            )
                        )
                    if not first and sequence > (head[2] if head is not None else sequence):
                        return result(
                            Flaw(sequence - 1, *where, f"the records before {sequence} are missing")
                        )
                    first = first or sequence
                    last, digest, count = sequence, _digest(line), count + 1
                    if head is not None and sequence == head[0]:
                        anchored = True
                        if digest != head[1]:
                            return result(Flaw(sequence, *where, f"record {sequence} was changed"))
            if head is not None and not anchored and head[0] > last:
                return result(
                    Flaw(last + 1, self.path.name, 0, f"records up to {head[0]} were cut off"), torn
                )
            return result(None, torn)

    def _write(
        self,
        sequence: int,
        previous: str,
        kind: str,
        attempt: str,
        actor: Mapping[str, Any] | None,
        facts: Mapping[str, Any],
    ) -> tuple[int, str, dict[str, Any]]:
        record: dict[str, Any] = {
            "sequence": sequence + 1,
            "previous": previous,
            "time": round(self._clock(), 3),
            "kind": kind[:64],
            "attempt": attempt[:128],
            "actor": _plain(actor),
            "facts": _plain(facts),
        }
        line = _encode(record)
        if len(line) > _RECORD_LIMIT:
            record["actor"] = None
            record["facts"] = {"left-out": len(line)}
            line = _encode(record)
        try:
            self._rotate(len(line), sequence, previous)
            new = not self.path.exists()
            handle = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                view = memoryview(line + b"\n")
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            if new:
                _sync_directory(self.directory)
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror}") from error
        digest = _digest(line)
        # After the line, never before it: a head that leads the file would read as a cut.
        self._write_head(sequence + 1, digest)
        return sequence + 1, digest, record

    def _rotate(self, coming: int, sequence: int, previous: str) -> None:
        if not self.path.exists() or self.path.stat().st_size + coming < self._max_size:
            return
        self.path.rename(self.directory / f"history-{_first(self.path) or sequence}.jsonl")
        _sync_directory(self.directory)
        files = self._files()
        dropped = files[: -self._keep + 1 or None]
        if dropped and sequence:
            kept = files[len(dropped) :]
            # Told before they go: records that are missing without that were taken by somebody.
            self._write_head(sequence, previous, _first(kept[0]) if kept else sequence + 1)
        for old in dropped:
            old.unlink()

    def _write_head(self, sequence: int, digest: str, oldest: int = 0) -> None:
        head = self._read_head()
        oldest = oldest or (head[2] if head is not None else 1)
        write_durably(
            self._head, _encode({"sequence": sequence, "digest": digest, "oldest": oldest})
        )

    def _end(self) -> tuple[int, str, int]:
        """(last sequence, digest of the last line, bytes of a torn line that was taken away)."""
        head = self._read_head()
        files = self._files()
        if not files:
            # All files gone, head left: go on counting, so that `verify` shows the gap.
            return (head[0], head[1], 0) if head is not None else (0, BEGINNING, 0)
        sequence, digest, torn, whole_bytes = 0, BEGINNING, 0, 0
        for number, line, whole in _lines(files[-1]):
            if not whole:
                torn = len(line)
                continue
            whole_bytes += len(line) + 1
            record = _record(line)
            sequence = record["sequence"] if record is not None else max(sequence + 1, number)
            digest = _digest(line)
        if torn and files[-1] == self.path:
            try:
                os.truncate(self.path, whole_bytes)
            except OSError as error:
                raise LedgerError(f"{self.path}: {error.strerror}") from error
            if not whole_bytes and len(files) > 1:
                self.path.unlink()
                sequence, digest, _ = self._end()
        if head is not None and head[0] > sequence:
            return head[0], head[1], torn
        return sequence, digest, torn

    def _files(self) -> list[Path]:
        try:
            names = list(self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError(f"{self.directory}: {error.strerror}") from error
        old = sorted((int(m[1]), p) for p in names if (m := _OLD.fullmatch(p.name)))
        return [p for _, p in old] + ([self.path] if self.path in names else [])

    def _read_head(self) -> tuple[int, str, int] | None:
        """(sequence, digest, oldest sequence that is kept) as last written."""
        try:
            with self._head.open("rb") as file:
                data = json.loads(file.read(1024))
            sequence, digest, oldest = data["sequence"], data["digest"], data.get("oldest", 1)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers = isinstance(sequence, int) and isinstance(oldest, int)
        good = numbers and isinstance(digest, str) and sequence > 0
        return (sequence, digest, oldest) if good else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(
                self.directory / "history.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise LedgerError(f"{self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line without its end, whether it had one); an overlong line is cut into pieces."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LINE_LIMIT):
                number += 1
                whole = line.endswith(b"\n")
                yield number, line[:-1] if whole else line, whole or len(line) == _LINE_LIMIT
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error


def _first(path: Path) -> int:
    return next((r["sequence"] for _, line, _ in _lines(path) if (r := _record(line))), 0)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    sequence = data.get("sequence")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 1:
        return None
    return data if isinstance(data.get("previous"), str) else None


def _encode(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _plain(value: object, depth: int = 0) -> Any:
    """`value` as JSON can carry it; what it cannot is told by its text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < 8:
        if isinstance(value, Mapping):
            return {str(k): _plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(v, depth + 1) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
