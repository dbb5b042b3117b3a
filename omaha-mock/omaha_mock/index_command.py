"""``omaha-mock index``: a published directory as a static repository, for any web server or a stick.

Writes ``index.json`` and its signature ``index.json.sig`` beside ``releases.toml``; the format is
described in the agent's decision 0007. A percentage rollout has no place in it.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from omaha_mock.errors import UsageError
from omaha_mock.releases import Directory, Release
from omaha_mock.signing import load_signing_key
from omaha_mock.versions import newer

__all__ = ["add_commands", "document"]

_INDEX = "index.json"
_SIGNATURE = "index.json.sig"


def document(
    releases: tuple[Release, ...], *, serial: int, expires: str = "", minimum: str = ""
) -> dict[str, Any]:
    """The index as JSON; releases are parted by version, groups and board, newest first.

    Args:
        minimum: the oldest release that may go to each of them directly, or "".
    """
    found: dict[tuple[str, tuple[str, ...], str], list[Release]] = {}
    for release in releases:
        found.setdefault((release.version, release.groups, release.board), []).append(release)
    entries: list[dict[str, Any]] = []
    for (version, groups, board), payloads in found.items():
        entry = {
            "version": version,
            "groups": sorted(groups),
            "boards": [board] if board else [],
            **({"minimum": minimum} if minimum else {}),
            "payloads": [_payload(payload) for payload in payloads],
        }
        at = next((n for n, e in enumerate(entries) if newer(version, e["version"])), len(entries))
        entries.insert(at, entry)
    return {
        "format": "bascule-repository",
        "version": 1,
        "serial": serial,
        **({"expires": expires} if expires else {}),
        "releases": entries,
    }


def _payload(release: Release) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": f"payloads/{release.file}",
        "size": release.size,
        "sha256": base64.b64decode(release.sha256).hex(),
    }
    if release.origin:
        entry["delta_from"] = release.origin
    if release.metadata_signature:
        entry["metadata_size"] = release.metadata_size
        entry["metadata_signature"] = release.metadata_signature
    return entry


def _last_serial(path: Path) -> int:
    try:
        serial = json.loads(path.read_text(encoding="utf-8")).get("serial", 0)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): say its next number with --serial."
        ) from error
    return int(serial)


def _expiry(text: str) -> str:
    if not text:
        return ""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a moment such as 2027-01-31T00:00:00Z.") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.isoformat()


def _index(options: argparse.Namespace) -> int:
    directory = Directory(options.directory)
    state = directory.state()
    if not state.releases:
        raise UsageError(f"Nothing is published in {options.directory} yet.")
    if (options.key is None) != options.unsigned:
        raise UsageError("Name a key with --key, or say --unsigned; agents refuse such an index.")
    path: Path = options.directory / _INDEX
    serial = options.serial if options.serial is not None else _last_serial(path) + 1
    if serial < 0:
        raise UsageError("--serial is 0 or more.")
    body = document(
        state.releases,
        serial=serial,
        expires=_expiry(options.expires),
        minimum=options.minimum,
    )
    data = (json.dumps(body, indent=2) + "\n").encode()
    signature = path.with_name(_SIGNATURE)
    if options.key is not None:
        key = load_signing_key(options.key)
        _replace(signature, key.sign(hashlib.sha256(data).digest()))
    else:
        signature.unlink(missing_ok=True)
    _replace(path, data)
    sys.stdout.write(f"{path}: serial {serial}, {len(body['releases'])} releases\n")
    return 0


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def add_commands(commands: Any) -> None:
    """Add ``index`` to the subcommands of ``omaha-mock``."""
    index = commands.add_parser(
        "index", help="make a published directory a static repository (index.json, signed)"
    )
    index.set_defaults(run=_index)
    index.add_argument("directory", type=Path, metavar="DIR")
    index.add_argument("--key", type=Path, metavar="PEM", help="signs the index")
    index.add_argument("--unsigned", action="store_true", help="leave it unsigned")
    index.add_argument(
        "--serial", type=int, metavar="N", help="default: one more than the last index had"
    )
    index.add_argument(
        "--expires", default="", metavar="TIME", help="refused from then on; UTC without a zone"
    )
    index.add_argument(
        "--minimum", default="", metavar="V", help="hosts below it need another release first"
    )
