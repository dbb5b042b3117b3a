"""A static repository's ``index.json``: releases on any web server, in any folder, on any stick.

Format source: decisions/0007-static-repository.md. The index only announces, as an Omaha answer
does; whether it may be believed is `engine.static_repo`'s question, and whether the payload may be
installed is the payload signature's.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bascule.errors import IndexInvalid
from bascule.formats.addresses import clipped, package_name
from bascule.formats.omaha_offer import Package
from bascule.formats.version import key, older

FORMAT = "bascule-repository"
VERSION = 1
MAX_INDEX = 4 << 20
MAX_RELEASES = 4096
MAX_PAYLOADS = 256
MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Payload:
    """One payload of a release.

    Attributes:
        path: relative to the index.
        size: bytes of the whole file.
        sha256: of the whole file, 32 bytes.
        delta_from: the release that it needs as its source; "" for a full payload.
        metadata_size, metadata_signature: as in `omaha_offer.Offer`; both or neither.
    """

    path: str
    size: int
    sha256: bytes
    delta_from: str = ""
    metadata_size: int | None = None
    metadata_signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """One release.

    Attributes:
        version: of the grammar in `formats.version`.
        groups, boards: whom it is for; empty for everybody.
        minimum: the oldest release that may go to it directly (a stepping stone), or "".
        payloads: at least one.
        packages: further files for the postinstall hook, relative to the payload's folder.
        notes: address of the release notes, or "".
    """

    version: str
    groups: frozenset[str]
    boards: frozenset[str]
    minimum: str
    payloads: tuple[Payload, ...]
    packages: tuple[Package, ...]
    notes: str


@dataclass(frozen=True, slots=True)
class Index:
    """A repository's contents.

    Attributes:
        serial: rises with every change; an older index than the last one seen is refused.
        expires: unix seconds after which the index is not believed any more, or None.
        releases: in the order of the file.
    """

    serial: int
    expires: int | None
    releases: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What this host would take."""

    release: Release
    payload: Payload


def parse_index(data: bytes) -> Index:
    """Read ``index.json``. Members that are not known are passed over.

    Raises:
        IndexInvalid: not an index, of another version, or any member is not what it must be.
    """
    document = _table(_load(data), "the document")
    if document.get("format") != FORMAT:
        raise IndexInvalid(f'its "format" is not "{FORMAT}"')
    if document.get("version") != VERSION:
        raise IndexInvalid(f"its version is not {VERSION}; the agent may be too old for it")
    releases = _list(document, "releases", MAX_RELEASES)
    return Index(
        serial=_count(document, "serial", 0),
        expires=_moment(document, "expires"),
        releases=tuple(_release(entry, f"releases[{i}]") for i, entry in enumerate(releases)),
    )


def choose(
    index: Index,
    *,
    running: str,
    group: str,
    board: str,
    wanted: str = "",
    deltas: bool = True,
) -> Choice | None:
    """The newest release that this host can go to in one step, or None.

    A delta that starts from the running release is preferred to a full payload; a release whose
    payloads all start from elsewhere is passed over.

    Args:
        running: the running release; one that is not of the grammar takes any release.
        wanted: this version and no other, older ones too.
        deltas: False to take full payloads only.
    """
    best: Choice | None = None
    for release in index.releases:
        if (release.groups and group not in release.groups) or (
            release.boards and board not in release.boards
        ):
            continue
        if wanted:
            if release.version != wanted:
                continue
        elif key(running) is not None and not older(running, release.version):
            continue
        if release.minimum and older(running, release.minimum):
            continue
        payload = payload_for(release, running, deltas)
        if payload is not None and (best is None or older(best.release.version, release.version)):
            best = Choice(release, payload)
    return best


def payload_for(release: Release, running: str, deltas: bool) -> Payload | None:
    """The payload of `release` that a host takes: a delta from what runs, else a full one."""
    fitting = [p for p in release.payloads if deltas and p.delta_from and p.delta_from == running]
    full = [p for p in release.payloads if not p.delta_from]
    return next(iter(fitting + full), None)


def _release(entry: object, where: str) -> Release:
    table = _table(entry, where)
    version = _text(table, "version", where)
    if key(version) is None:
        raise IndexInvalid(f"{where}: {clipped(version)!r} is not a version")
    minimum = _text(table, "minimum", where, "")
    if minimum and key(minimum) is None:
        raise IndexInvalid(f"{where}: {clipped(minimum)!r} is not a version")
    payloads = _list(table, "payloads", MAX_PAYLOADS, where)
    if not payloads:
        raise IndexInvalid(f"{where} has no payload")
    packages = _list(table, "packages", MAX_PAYLOADS, where) if "packages" in table else []
    return Release(
        version=version,
        groups=_words(table, "groups", where),
        boards=_words(table, "boards", where),
        minimum=minimum,
        payloads=tuple(_payload(p, f"{where}.payloads[{i}]") for i, p in enumerate(payloads)),
        packages=tuple(_package(p, f"{where}.packages[{i}]") for i, p in enumerate(packages)),
        notes=_text(table, "notes", where, ""),
    )


def _payload(entry: object, where: str) -> Payload:
    table = _table(entry, where)
    delta_from = _text(table, "delta_from", where, "")
    metadata_size: int | None = None
    signature: bytes | None = None
    if "metadata_size" in table or "metadata_signature" in table:
        metadata_size = _count(table, "metadata_size", 1, where)
        signature = _base64(_text(table, "metadata_signature", where), where)
    return Payload(
        path=_name(_text(table, "path", where), where),
        size=_count(table, "size", 1, where),
        sha256=_digest(_text(table, "sha256", where), where),
        delta_from=delta_from,
        metadata_size=metadata_size,
        metadata_signature=signature,
    )


def _package(entry: object, where: str) -> Package:
    table = _table(entry, where)
    required = table.get("required", False)
    if not isinstance(required, bool):
        raise IndexInvalid(f'{where}: "required" is neither true nor false')
    return Package(
        name=_name(_text(table, "name", where), where),
        size=_count(table, "size", 0, where),
        sha256=_digest(_text(table, "sha256", where), where),
        required=required,
    )


def _load(data: bytes) -> object:
    if len(data) > MAX_INDEX:
        raise IndexInvalid(f"it is longer than {MAX_INDEX} bytes")
    try:
        return json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_no_constant,
        )
    except RecursionError:
        raise IndexInvalid("it is nested too deep") from None
    except ValueError as e:
        raise IndexInvalid(f"it is not JSON: {clipped(str(e))}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a member appears twice in one object")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{clipped(text, 20)} is not a whole number")


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise IndexInvalid(f"{where} is not an object")
    return value


def _list(table: Mapping[str, Any], name: str, most: int, where: str = "the document") -> list[Any]:
    value = table.get(name)
    if not isinstance(value, list):
        raise IndexInvalid(f'{where}: "{name}" is not a list')
    if len(value) > most:
        raise IndexInvalid(f'{where}: "{name}" has more than {most} entries')
    return value


def _text(table: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = table.get(name, default)
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise IndexInvalid(f'{where}: "{name}" is missing or not one line of text')
    return value


def _words(table: Mapping[str, Any], name: str, where: str) -> frozenset[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise IndexInvalid(f'{where}: "{name}" is not a list of words')
    return frozenset(value)


def _count(table: Mapping[str, Any], name: str, least: int, where: str = "the document") -> int:
    value = table.get(name, 0 if least == 0 else None)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_SIZE:
        raise IndexInvalid(f'{where}: "{name}" is missing or not a whole number from {least} on')
    return value


def _moment(table: Mapping[str, Any], name: str) -> int | None:
    if name not in table:
        return None
    try:
        when = datetime.datetime.fromisoformat(_text(table, name, "the document"))
        if when.tzinfo is None:
            raise ValueError("no zone")
        return int(when.timestamp())
    except (ValueError, OverflowError):
        raise IndexInvalid(f'"{name}" is not a moment such as 2027-01-31T00:00:00Z') from None


def _name(name: str, where: str) -> str:
    """A path that means the same to a web server and to a file system."""
    if set("?%") & set(name):
        raise IndexInvalid(f"{where}: {clipped(name)!r} is not a plain path")
    try:
        return package_name(name)
    except ValueError as e:
        raise IndexInvalid(f"{where}: {e}") from None


def _digest(text: str, where: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise IndexInvalid(f'{where}: "sha256" is not 64 hexadecimal digits')
    return bytes.fromhex(text)


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise IndexInvalid(f'{where}: "metadata_signature" is not base64') from None
