"""What is on offer, to whom: the state that one can edit while the server runs, and its rules.

The state file ``releases.toml`` has four kinds of table::

    [server]                  # poll_interval, deltas, urls, appid
    [group.stable]            # target, rollout, noupdate, status
    [[release]]               # one payload: version, file, groups, …; with `from`, a delta
    [[fault]]                 # something to do wrong on purpose (see faults.py)
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from omaha_mock.errors import UsageError
from omaha_mock.faults import Fault
from omaha_mock.versions import is_version, newer, order

__all__ = [
    "APPID",
    "Answer",
    "Directory",
    "Group",
    "Release",
    "Rules",
    "State",
    "answer",
    "describe",
    "parse_state",
    "rollout_place",
]

APPID = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"
"""Flatcar's application id."""

_PIECE = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Rules:
    """Table ``[server]``.

    Attributes:
        poll_interval: seconds, sent as ``PollInterval`` if not 0.
        deltas: ``asked`` offers them to clients that send ``delta_okay="true"``, ``always`` to
            all whose version matches, ``never`` to none.
        urls: where payloads are to be had, in order; a path is on this server.
        appid: the application served; empty serves any.
    """

    poll_interval: int = 0
    deltas: str = "asked"
    urls: tuple[str, ...] = ("/payload/",)
    appid: str = APPID


@dataclass(frozen=True, slots=True)
class Group:
    """Table ``[group.NAME]``.

    Attributes:
        target: offer this version instead of the newest, also where it is older.
        rollout: percentage of machines that are offered anything newer.
        noupdate: offer nothing.
        status: refuse with this application status, as Nebraska does (``error-…``).
    """

    target: str = ""
    rollout: int = 100
    noupdate: bool = False
    status: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Table ``[[release]]``: one payload file.

    Attributes:
        version: what the host has after it; informational for the client.
        file: the payload's name; it lies in ``payloads/``.
        size: bytes of the whole file. sha256, sha1: base64 of the raw digests.
        origin: (``from``) for a delta, the version it starts from; empty for a full payload.
        groups: who gets it. board: only these hosts, if not empty.
        rollout: percentage of machines that get it.
        forced: offer it even to hosts that have a newer version.
        metadata_size, metadata_signature: sent if given (base64 of one raw signature).
        disable_backoff, max_failures: ``DisablePayloadBackoff``, ``MaxFailureCountPerUrl``.
        extra: further attributes of the action, as they are.
    """

    version: str
    file: str
    size: int
    sha256: str
    sha1: str = ""
    origin: str = ""
    groups: tuple[str, ...] = ("stable",)
    board: str = ""
    rollout: int = 100
    forced: bool = False
    metadata_size: int = 0
    metadata_signature: str = ""
    disable_backoff: bool = False
    max_failures: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """Everything the server goes by at one moment."""

    rules: Rules = field(default_factory=Rules)
    groups: Mapping[str, Group] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one update check gets: a release, nothing, or a refusal with an ``error-…`` status."""

    release: Release | None = None
    error: str = ""


def rollout_place(machine: str, version: str) -> int:
    """Where a machine stands in the rollout of a version: 0 to 99, another order each time."""
    digest = hashlib.sha256(f"{machine}\0{version}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100


def answer(state: State, client: Mapping[str, str]) -> Answer:
    """Decide one update check.

    Args:
        client: the attributes of the request's ``app`` element.
    """
    if state.rules.appid and client.get("appid", "").lower() != state.rules.appid.lower():
        return Answer(error="error-unknownApplication")
    track = client.get("track", "")
    known = set(state.groups) | {name for r in state.releases for name in r.groups}
    if track not in known:
        return Answer(error="error-unknownApplicationOrGroup")
    group = state.groups.get(track, Group())
    if group.status:
        return Answer(error=group.status)
    if group.noupdate:
        return Answer()
    version = client.get("version", "")
    board = client.get("board", "")
    usable = [
        release
        for release in state.releases
        if track in release.groups
        and release.board in ("", board)
        and release.version != version
        and (not release.origin or _delta_suits(state, release, client))
        and (not group.target or release.version == group.target)
        and (group.target or release.forced or newer(release.version, version))
    ]
    machine = client.get("machineid", "")
    usable = [
        release
        for release in usable
        if rollout_place(machine, release.version) < min(group.rollout, release.rollout)
    ]
    if not usable:
        return Answer()
    # The newest version; among its payloads a delta before the full one, the latest entry first.
    best = max(
        enumerate(usable), key=lambda item: (order(item[1].version), bool(item[1].origin), item[0])
    )
    return Answer(release=best[1])


def _delta_suits(state: State, release: Release, client: Mapping[str, str]) -> bool:
    if release.origin != client.get("version", "") or state.rules.deltas == "never":
        return False
    return state.rules.deltas == "always" or client.get("delta_okay") == "true"


def describe(path: Path) -> dict[str, Any]:
    """Size and digests of a payload file, as ``Release`` wants them. Raises UsageError."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    size = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                sha256.update(data)
                sha1.update(data)
                size += len(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error
    return {
        "size": size,
        "sha256": base64.b64encode(sha256.digest()).decode(),
        "sha1": base64.b64encode(sha1.digest()).decode(),
    }


_TOML_NAMES = {"origin": "from"}
_EMPTY_STATE = """\
# What omaha-mock serves. Edit it while the server runs: it is read again at each request.

[server]
# poll_interval = 300           # seconds; how often clients should ask
# deltas = "asked"              # or "always", "never"
# urls = ["/payload/"]          # where payloads are; a path is on this server, in order

[group.stable]
# rollout = 100                 # percent of machines that are offered something newer
# noupdate = true               # offer nothing
# target = "1.2.3"              # offer this version, also where it is older
# status = "error-updatesDisabled"   # refuse, as Nebraska does

# [[fault]]                     # do something wrong on purpose
# kind = "drop"
# at = 100000
# times = 1
"""


def _record(kind: type[_T], table: Any, where: str) -> _T:
    """A frozen record from a TOML table; unknown keys and wrong types are refused by name."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table.")
    known = {_TOML_NAMES.get(item.name, item.name): item for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{where} has no key {key!r}; it has {', '.join(known)}.")
        item = known[key]
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        expected: type = str if default is MISSING and item.name != "size" else type(default)
        if item.name == "size":
            expected = int
        if expected is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if expected is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise UsageError(f"{where}: {key} should be a {expected.__name__}.")
        values[item.name] = value
    missing = [
        name
        for name, item in known.items()
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values
    ]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}.")
    return kind(**values)


def parse_state(text: str) -> State:
    """The state that a ``releases.toml`` describes. Raises UsageError, naming table and key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"releases.toml is not TOML: {error}.") from error
    unknown = set(document) - {"server", "group", "release", "fault"}
    if unknown:
        raise UsageError(f"releases.toml has no table {', '.join(sorted(unknown))}.")
    groups = document.get("group", {})
    if not isinstance(groups, dict):
        raise UsageError("Write groups as [group.NAME].")
    rules = _record(Rules, document.get("server", {}), "[server]")
    if rules.deltas not in ("asked", "always", "never"):
        raise UsageError('[server]: deltas is "asked", "always" or "never".')
    state = State(
        rules=rules,
        groups={name: _record(Group, table, f"[group.{name}]") for name, table in groups.items()},
        releases=tuple(
            _record(Release, table, f"[[release]] number {number}")
            for number, table in enumerate(_tables(document, "release"), 1)
        ),
        faults=tuple(
            _record(Fault, table, f"[[fault]] number {number}")
            for number, table in enumerate(_tables(document, "fault"), 1)
        ),
    )
    for fault in state.faults:
        fault.check()
    for release in state.releases:
        if not is_version(release.version):
            raise UsageError(f"{release.version!r} is not a version.")
        if release.file in ("", ".", "..") or "/" in release.file:
            raise UsageError(f"{release.file!r} is not a file name.")
    return state


def _tables(document: Mapping[str, Any], name: str) -> Iterable[Any]:
    tables = document.get(name, [])
    if not isinstance(tables, list):
        raise UsageError(f"Write [[{name}]], not [{name}].")
    return tables


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    # A JSON string is a TOML basic string: the escapes are the same.
    return json.dumps(value)


class Directory:
    """A directory that is served: ``releases.toml`` and ``payloads/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "releases.toml"
        self.payloads = path / "payloads"
        self._seen: tuple[int, int, int] | None = None
        self._state = State()

    def state(self) -> State:
        """The state as it is now; parsed again only if the file changed. Raises UsageError."""
        try:
            found = self.file.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._state = parse_state(self.file.read_text(encoding="utf-8"))
                self._seen = seen
        except FileNotFoundError:
            self._state, self._seen = State(), None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"Cannot read {self.file}: {error}.") from error
        return self._state

    @property
    def last_good(self) -> State:
        """The state as last read without a mistake in it."""
        return self._state

    def payload(self, name: str) -> Path:
        return self.payloads / name

    def publish(self, payload: Path, release: Release) -> None:
        """Copy the payload in and append a ``[[release]]`` table; the rest stays as it was."""
        known = self.state()
        for other in known.releases:
            if other.file == release.file and other.sha256 != release.sha256:
                raise UsageError(f"{release.file} is there already with other bytes; rename yours.")
            same = (other.version, other.origin, other.board) == (
                release.version,
                release.origin,
                release.board,
            )
            if same and set(other.groups) & set(release.groups):
                raise UsageError(
                    f"{release.version} is published already; take it out of {self.file} first."
                )
        self.payloads.mkdir(parents=True, exist_ok=True)
        for source in (payload, payload.with_name(payload.name + ".DIGESTS.asc")):
            if source.exists():
                suffix = source.name[len(payload.name) :]
                self._place(source, self.payloads / (release.file + suffix))
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else _EMPTY_STATE
        lines = ["", "[[release]]"]
        for item in fields(Release):
            value = getattr(release, item.name)
            default = (
                item.default_factory() if item.default_factory is not MISSING else item.default
            )
            if value != default or item.name == "groups":
                lines.append(f"{_TOML_NAMES.get(item.name, item.name)} = {_toml(value)}")
        text = text.rstrip("\n") + "\n" + "\n".join(lines) + "\n"
        parse_state(text)
        temporary = self.file.with_name(".releases.toml.part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.file)

    @staticmethod
    def _place(source: Path, target: Path) -> None:
        if target.exists() and source.samefile(target):
            return
        temporary = target.with_name(f".{target.name}.part")
        temporary.unlink(missing_ok=True)
        shutil.copyfile(source, temporary)
        temporary.replace(target)
