"""``omaha-mock keygen`` and ``omaha-mock pack``: the publisher's command line."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omaha_mock.applying import apply
from omaha_mock.codecs import CODECS, chosen
from omaha_mock.digests import KNOWN, sign_digests
from omaha_mock.errors import UsageError
from omaha_mock.pack import Image, Packed, pack
from omaha_mock.reading import Payload, read_payload, verify
from omaha_mock.signing import keygen, load_signing_key, load_verifying_keys

__all__ = ["add_commands"]

_DEFAULT_PARTS = ("usr", "kernel")


def say(text: str) -> None:
    """One line for the person or program that reads standard output."""
    sys.stdout.write(text + "\n")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _named(entries: Sequence[str], first: str) -> dict[str, Path]:
    """``NAME=PATH`` entries; a PATH alone means the part ``first``."""
    result: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            name, path = first, entry
        if name in result:
            raise UsageError(f"{name} is given twice.")
        result[name] = Path(path)
    return result


def _packed_facts(packed: Packed) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "payload": str(packed.path),
        "size": packed.size,
        "sha256": _b64(packed.sha256),
        "metadata_size": packed.metadata_size,
        "major": packed.major,
        "minor": packed.minor,
        "delta": packed.delta,
        "operations": packed.operations,
    }
    if packed.metadata_signature is not None:
        facts["metadata_signature"] = _b64(packed.metadata_signature)
    return facts


def _payload_facts(payload: Payload) -> dict[str, Any]:
    def info(part_info: Any) -> dict[str, Any] | None:
        if part_info is None:
            return None
        return {"size": part_info.size, "sha256": part_info.sha256.hex()}

    return {
        "payload": str(payload.path),
        "size": payload.size,
        "major": payload.major,
        "minor": payload.minor,
        "delta": payload.delta,
        "metadata_size": payload.metadata_size,
        "block_size": payload.block_size,
        "max_timestamp": payload.max_timestamp,
        "operations": payload.counts(),
        "noop_operations": payload.noop_operations,
        "signatures": [
            {"version": version, "bytes": len(data)} for version, data in payload.signatures
        ],
        "metadata_signatures": [len(data) for _, data in payload.metadata_signatures],
        "parts": [
            {
                "name": part.name,
                "operations": len(part.operations),
                "blob_bytes": sum(operation.length for operation in part.operations),
                "old": info(part.old),
                "new": info(part.new),
            }
            for part in payload.parts
        ],
    }


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines.extend(_lines(item, indent + "    "))
        else:
            lines.append(f"{indent}{key:<20} {value}")
    return lines


def _show(facts: dict[str, Any], as_json: bool) -> None:
    say(json.dumps(facts, indent=1) if as_json else "\n".join(_lines(facts)))


def _keygen(options: argparse.Namespace) -> int:
    key, public = keygen(options.directory, name=options.name, kind=options.kind)
    say(f"{key}\n{public}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    _show(_payload_facts(read_payload(options.inspect)), options.json)
    return 0


def _verify(options: argparse.Namespace) -> int:
    payload = read_payload(options.verify)
    found = verify(payload, load_verifying_keys(options.keys))
    facts = {
        "payload": str(payload.path),
        "sha256": _b64(found.sha256),
        "signed_by": list(found.signed_by),
        "metadata_signed_by": list(found.metadata_signed_by),
        "good": found.good,
        "faults": list(found.faults),
    }
    _show(facts, options.json)
    return 0 if found.good else 1


def _apply(options: argparse.Namespace) -> int:
    payload = read_payload(options.apply)
    if options.keys:
        found = verify(payload, load_verifying_keys(options.keys))
        if not found.good:
            raise UsageError(" ".join(found.faults))
    first = payload.parts[0].name
    out = _named(options.to, first)
    if options.output is not None:
        out.setdefault(first, options.output)
    if not out:
        raise UsageError("Say with -o or --to where the image goes.")
    made = apply(payload, out, _named(options.old, first))
    _show({name: str(out[name]) for name in made}, options.json)
    return 0


def _images(options: argparse.Namespace) -> list[Image]:
    new = _named(options.image, _DEFAULT_PARTS[0])
    old = _named(options.old, _DEFAULT_PARTS[0])
    if options.kernel is not None:
        new["kernel"] = options.kernel
    if options.old_kernel is not None:
        old["kernel"] = options.old_kernel
    if not new:
        raise UsageError("Say with --image which image the payload makes.")
    if set(old) - set(new):
        raise UsageError(
            f"--old names {', '.join(sorted(set(old) - set(new)))}: not an image here."
        )
    return [Image(name, path, old.get(name)) for name, path in new.items()]


def _pack(options: argparse.Namespace) -> int:
    for mode in (_inspect, _verify, _apply):
        if getattr(options, mode.__name__[1:]) is not None:
            return mode(options)
    if options.output is None:
        raise UsageError("Say with -o where the payload goes.")
    paths = [path for path in (options.key, options.key2) if path is not None]
    if options.key2 is not None and options.key is None:
        raise UsageError("--key2 needs --key.")
    if not paths and not options.unsigned:
        raise UsageError("Say with --key who signs the payload, or --unsigned.")
    # The key of --key signs last: clients of major 1 look at that one only (version 2).
    keys = [load_signing_key(path) for path in reversed(paths)]
    packed = pack(
        _images(options),
        options.output,
        major=options.major,
        keys=keys,
        codecs=chosen(options.codecs) if options.codecs else None,
        workers=options.workers,
        max_timestamp=options.max_timestamp,
        bsdf2=not options.bsdiff40,
    )
    facts = _packed_facts(packed)
    if options.gpg_home is not None:
        digests = sign_digests(
            packed.path,
            home=options.gpg_home,
            keys=options.gpg_key,
            hashes=options.digests.split(","),
        )
        facts["digests"] = str(digests)
    _show(facts, options.json)
    return 0


def add_commands(commands: Any) -> None:
    """Add ``keygen`` and ``pack`` to the subcommands of ``omaha-mock``."""
    keys = commands.add_parser(
        "keygen",
        help="make a key pair for signing payloads",
        description="Write NAME.key.pem, which is secret, and NAME.pub.pem, which hosts need.",
    )
    keys.add_argument("directory", type=Path, metavar="DIR", help="where the two files go")
    keys.add_argument("--name", default="update", help="file name stem (default: update)")
    keys.add_argument(
        "--kind",
        default="rsa2048",
        choices=("rsa2048", "rsa4096", "ec"),
        help="default: rsa2048, the only one that Flatcar's clients know",
    )
    keys.set_defaults(run=_keygen)

    parser = commands.add_parser(
        "pack",
        help="build a payload from images, or read one",
        description="Build a payload from images, or read one with --inspect, --verify, --apply.",
    )
    parser.set_defaults(run=_pack)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--inspect", type=Path, metavar="FILE", help="print what FILE holds")
    what.add_argument("--verify", type=Path, metavar="FILE", help="check hashes and signatures")
    what.add_argument("--apply", type=Path, metavar="FILE", help="make the images of FILE")
    parser.add_argument(
        "--keys",
        type=Path,
        nargs="+",
        default=[],
        metavar="PEM",
        help="public keys or directories of them, for --verify and --apply",
    )
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="with --apply: where the part NAME goes",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="[NAME=]IMG",
        help="an image to pack; NAME is usr if not given",
    )
    parser.add_argument(
        "--kernel", type=Path, metavar="FILE", help="the same as --image kernel=FILE"
    )
    parser.add_argument(
        "--old",
        action="append",
        default=[],
        metavar="[NAME=]IMG",
        help="the image that a delta starts from",
    )
    parser.add_argument(
        "--old-kernel", type=Path, metavar="FILE", help="the same as --old kernel=FILE"
    )
    parser.add_argument("--key", type=Path, metavar="PEM", help="sign with this private key")
    parser.add_argument("--key2", type=Path, metavar="PEM", help="sign with this one as well")
    parser.add_argument("--unsigned", action="store_true", help="leave the payload unsigned")
    parser.add_argument(
        "--major",
        type=int,
        default=1,
        choices=(1, 2),
        help="1 for Flatcar's clients (default), 2 for signed metadata",
    )
    parser.add_argument(
        "--codecs", metavar="LIST", help=f"choose per operation from these only: {','.join(CODECS)}"
    )
    parser.add_argument("--bsdiff40", action="store_true", help="make no BSDF2 patches")
    parser.add_argument(
        "--max-timestamp",
        type=int,
        default=0,
        metavar="SECONDS",
        help="major 2: hosts whose release was built later refuse it (unix seconds)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: all cores)")
    parser.add_argument(
        "--gpg-home",
        type=Path,
        metavar="DIR",
        help="also write OUT.DIGESTS.asc, signed from this GnuPG home",
    )
    parser.add_argument(
        "--gpg-key",
        action="append",
        default=[],
        metavar="FINGERPRINT",
        help="the key in that home; may be given again",
    )
    parser.add_argument(
        "--digests",
        default="sha256,sha512",
        metavar="LIST",
        help=f"hashes in the digest list: {','.join(KNOWN)}",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="the payload to write")
    parser.add_argument("--json", action="store_true", help="print JSON")
