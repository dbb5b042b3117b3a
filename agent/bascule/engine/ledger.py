"""The ledger: what must survive a power cut, in one file.

Written temp → fsync → rename → fsync directory, under a lock that daemon, errand and `bascule bless`
share. A torn file or an unknown version means start afresh, never a crash; the old bytes are kept
beside it for whoever has to find out why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bascule.errors import LedgerError

SCHEMA = 1
_LIMIT = 4 << 20
OUTBOX_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Record:
    """The ledger's contents. JSON values only, so that an older or newer agent can read them.

    Attributes:
        aleph_version: release at the first run.
        previous_version: Flatcar's pref of that name (reference 2.3): None if it never was set.
        intent: what is meant to happen, as written by `updater.intent`.
        outbox: events that the server does not have yet, oldest first.
        quarantine: payload digest (hex) → {version, reason, kind, at, until}.
        floor: the version below which no offer is taken, or "".
        payload_state: URL failover and back-off (reference 3.5).
        releases: slot name → release it holds.
        last_checked, last_updated: unix seconds, 0 for never.
        poll_interval: seconds that the server asked for last, 0 for none.
        last_answer: the server's last word, in its own terms.
        answer: the same with everything that gates look at, as written by `updater.gather`.
        verdict: the last verdict with its sentence, kept for `status` after the intent is gone.
        blessed: {slot, boot_id, attempt, at} of the last blessing.
        baseline: health results recorded before the reboot.
        health: what the checks of the last judged boot said.
        hold, pin: operator's hold and pin, or empty.
        stay: what was staged is not rebooted into by itself, for it was asked for in that way; or "".
        reboot: what is known of a reboot under way.
        budget: data used in the present period.
        begun: unix seconds of the first run, 0 where that is not known.
        repositories: static repository → {serial, at} of the newest trusted index seen there.
        prepared: a release that lies proven in its slot, as written by `updater.prepared`.
        once: a boot of the other slot for one time, as written by `updater.once`.
        late: a return to the old slot after the blessing, as written by `updater.late`.
    """

    aleph_version: str = ""
    previous_version: str | None = None
    intent: Mapping[str, Any] | None = None
    outbox: tuple[Mapping[str, Any], ...] = ()
    quarantine: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    floor: str = ""
    payload_state: Mapping[str, Any] = field(default_factory=dict)
    releases: Mapping[str, str] = field(default_factory=dict)
    last_checked: int = 0
    last_updated: int = 0
    poll_interval: int = 0
    last_answer: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    blessed: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    hold: Mapping[str, Any] = field(default_factory=dict)
    pin: str = ""
    stay: str = ""
    reboot: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    begun: int = 0
    repositories: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)
    once: Mapping[str, Any] = field(default_factory=dict)
    late: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["outbox"] = list(self.outbox)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Take what has the right type and leave the rest at its default: state is not input."""
        fresh = cls()
        known: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            if name not in data:
                continue
            value = data[name]
            default = getattr(fresh, name)
            if name == "outbox":
                if isinstance(value, list):
                    known[name] = tuple(v for v in value if isinstance(v, dict))[-OUTBOX_LIMIT:]
            elif name == "previous_version":
                if value is None or isinstance(value, str):
                    known[name] = value
            elif name == "intent":
                if value is None or isinstance(value, dict):
                    known[name] = value
            elif name == "quarantine":
                if isinstance(value, dict):
                    known[name] = {k: v for k, v in value.items() if isinstance(v, dict)}
            elif name == "releases":
                if isinstance(value, dict):
                    known[name] = {k: v for k, v in value.items() if isinstance(v, str)}
            elif isinstance(default, int):
                if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53:
                    known[name] = value
            elif isinstance(default, str):
                if isinstance(value, str):
                    known[name] = value
            elif isinstance(value, dict):
                known[name] = value
        return cls(**known)


class Ledger:
    """The ledger file in `directory`. Methods block: call them in a thread from a loop.

    Raises (all methods):
        LedgerError: the directory cannot be read or written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "ledger.json"
        self.damage = ""

    def read(self) -> Record:
        """The present contents; a fresh record if there are none or they are damaged."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror}") from error
        try:
            if len(raw) > _LIMIT:
                raise ValueError("too large")
            data = json.loads(raw)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise ValueError("unknown version")
        except (ValueError, RecursionError) as error:
            self.damage = f"{self.path.name} was not usable ({error}) and is begun afresh"
            return Record()
        return Record.from_dict(data)

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Apply `change` to the newest contents and make the result durable before returning."""
        with self._locked():
            self.damage = ""
            before = self.read()
            after = change(before)
            if self.damage:
                with contextlib.suppress(OSError):
                    self.path.replace(self.path.with_suffix(".damaged"))
            elif after == before and self.path.exists():
                return after
            body = json.dumps({"schema": SCHEMA, **after.as_dict()}, sort_keys=True).encode()
            write_durably(self.path, body)
            return after

    def set(self, **fields: Any) -> Record:
        """Replace fields."""
        return self.update(lambda record: replace(record, **fields))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(
                self.directory / "ledger.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise LedgerError(f"{self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def write_durably(path: Path, body: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `body` so that a power cut leaves the old or the new contents, whole.

    Raises:
        LedgerError: the file system refuses.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(body)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise LedgerError(f"{path}: {error.strerror}") from error
