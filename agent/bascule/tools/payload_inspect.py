"""``bascule payload inspect FILE``: what a payload holds, and where it is damaged.

It proves nothing: ``bascule payload verify`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bascule.errors import BasculeError, Exit
from bascule.tools.payload_report import report

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``inspect`` below ``bascule payload``."""
    parser = subparsers.add_parser(
        "inspect",
        help="print what a payload holds",
        description="Print what a payload holds. Nothing is proven by it: see `payload verify`.",
    )
    parser.add_argument("file", type=Path, help="the payload")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--operations", action="store_true", help="list every operation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report, and what is wrong on stderr.

    Returns:
        0, or the exit code of the first fault: what comes before it is printed all the same.
    """
    try:
        document = report(args.file, operations=args.operations)
    except BasculeError as error:
        document = {"schema": 1, "ok": False, "file": str(args.file), "error": error.as_dict()}
    if args.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(document)))
    sys.stdout.flush()
    if document["ok"]:
        return int(Exit.DONE)
    fault = document["error"]
    if not args.json:
        sys.stderr.write(f"bascule: {fault['message']} (error {fault['number']})\n")
        sys.stderr.write(f"{fault['remedy']}\n")
    return int(fault["exit"])


def _lines(document: dict[str, Any]) -> Iterator[str]:
    if "size" not in document:
        return
    yield f"Payload      {document['file']}, {_bytes(document['size'])}"
    yield f"SHA-256      {document['sha256']}"
    yield f"  as Omaha   {document['sha256_base64']}"
    if header := document.get("header"):
        yield from _header_lines(document, header)
    for part in document.get("parts", ()):
        yield from _part_lines(part)
    if not document["ok"]:
        yield ""
        yield f"Whole        up to byte {document['stopped_at']:,}"


def _header_lines(document: dict[str, Any], header: dict[str, Any]) -> Iterator[str]:
    kind = f", {document['kind']}" if "kind" in document else ""
    minor = f", minor version {document['minor']}" if document.get("minor") else ""
    yield f"Format       major version {header['major']}{minor}{kind}"
    yield f"Metadata     {_bytes(header['metadata_size'])} (manifest {header['manifest_size']:,})"
    if "metadata_sha256" in document:
        yield f"  SHA-256    {document['metadata_sha256']}"
    yield f"  signed     {_signed(document.get('metadata_signatures', []))}"
    if "parts" not in document:
        return
    signed = _signed(document["payload_signatures"])
    if document["signatures_size"] and not document["payload_signatures"]:
        signed = f"{document['signatures_size']:,} bytes that were not reached"
    yield f"Signed       {signed}"
    yield f"Block        {document['block_size']} bytes"
    if document["max_timestamp"] is not None:
        yield f"Built        {_moment(document['max_timestamp'])}"
    if document["partial"]:
        yield "Partial      parts not named here stay as they are in the booted slot"


def _part_lines(part: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"Part         {part['name']}"
    for word, info in (("becomes", part["new"]), ("from", part["old"])):
        if info:
            yield f"  {word:<10} {_bytes(info['size'])}, SHA-256 {info['sha256'] or 'not given'}"
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(part["operations"].items()))
    yield f"  operations {sum(part['operations'].values())}{f': {counts}' if counts else ''}"
    yield f"  data       {_bytes(part['data_size'])}"
    for step in part.get("list", ()):
        runs = f"{_runs(step['source'])} → {_runs(step['target'])}" if step["source"] else ""
        yield (
            f"  {step['index']:>6} {step['type']:<13} {step['data_length']:>10,} at "
            f"{step['data_offset']:<12,} {runs or _runs(step['target'])}"
        )


def _bytes(size: int) -> str:
    mib = f" ({size / (1 << 20):,.1f} MiB)" if size >= 1 << 20 else ""
    return f"{size:,} bytes{mib}"


def _signed(signatures: list[dict[str, Any]]) -> str:
    if not signatures:
        return "no"
    return "; ".join(
        f"{s['size']} bytes" + (f", version {s['version']}" if s["version"] is not None else "")
        for s in signatures
    )


def _moment(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC ({seconds})"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds"


def _runs(extents: list[dict[str, int | None]]) -> str:
    shown = [
        f"hole×{e['blocks']}" if e["start"] is None else f"{e['start']}+{e['blocks']}"
        for e in extents[:8]
    ]
    more = f" … {len(extents) - 8} more" if len(extents) > 8 else ""
    return " ".join(shown) + more
