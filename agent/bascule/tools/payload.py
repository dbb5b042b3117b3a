"""``bascule payload verify`` and ``bascule payload apply``: payloads with no daemon around."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import errno
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bascule.engine.boot.files import clear_files
from bascule.engine.claim import place
from bascule.engine.device import flush_folder
from bascule.engine.region import Region
from bascule.engine.rehearse import rehearse
from bascule.engine.sources import check_source, reads_source
from bascule.engine.stream import Announced, Installed, Progress, install
from bascule.engine.trust import read_keyring
from bascule.engine.verify import read_back, skippable
from bascule.errors import (
    BasculeError,
    DeviceOpenError,
    Exit,
    KernelMismatch,
    NoKeys,
    NotEnoughSpace,
    PartsMissing,
    SlotMismatch,
    Stopped,
    StorageError,
    UsageError,
)
from bascule.formats.manifest import KERNEL, Manifest, Part
from bascule.formats.signature import PublicKey
from bascule.tools.payload_proof import PayloadFile, Proven, prove

__all__ = ["add_parser", "apply", "verify"]

SCHEMA = 1


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``verify`` and ``apply`` below ``bascule payload``."""
    sentence = "Prove a payload: signature, every operation's data, and what they make."
    parser = subparsers.add_parser("verify", help=sentence, description=sentence)
    _common(parser)
    parser.set_defaults(run=verify)
    sentence = "Write a proven payload into files or devices, and read them back."
    parser = subparsers.add_parser(
        "apply",
        help=sentence,
        description=f"{sentence} The exit code is 0 only if everything was proven. A new file "
        "appears under its name only then; a device or an existing file is written in place.",
    )
    _common(parser)
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        required=True,
        metavar="PART=PATH",
        help="where a part goes: usr and kernel, or a partition's name (major 2); once for each",
    )
    parser.set_defaults(run=apply)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the payload")
    parser.add_argument(
        "--keys", required=True, type=Path, metavar="DIR", help="trusted public keys (PEM)"
    )
    parser.add_argument(
        "--from",
        dest="old",
        action="append",
        default=[],
        metavar="PART=PATH",
        help="the old part that a delta starts from; once for each",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help=argparse.SUPPRESS
    )


def verify(args: argparse.Namespace) -> int:
    """``bascule payload verify``; its exit code."""
    return _report(args, lambda answer, progress: _verify(args, answer, progress))


def apply(args: argparse.Namespace) -> int:
    """``bascule payload apply``; its exit code."""
    return _report(args, lambda answer, progress: _apply(args, answer, progress))


def _report(
    args: argparse.Namespace, work: Callable[[dict[str, Any], _Progress], list[str]]
) -> int:
    answer: dict[str, Any] = {"schema": SCHEMA, "ok": True, "file": str(args.file)}
    progress = _Progress(quiet=args.json)
    code, lines = int(Exit.DONE), []
    try:
        lines = work(answer, progress)
    except BasculeError as error:
        code = int(error.exit)
        answer.update({"ok": False, "error": error.as_dict()})
        progress.end()
        if not args.json:
            sys.stderr.write(f"bascule: {error} (error {error.number})\n{error.remedy}\n")
            for line in answer.get("left", ()):
                sys.stderr.write(f"{line}\n")
    progress.end()
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return code


# ── verify ───────────────────────────────────────────────────────────────────────────────────


def _verify(args: argparse.Namespace, answer: dict[str, Any], progress: _Progress) -> list[str]:
    sources = _regions(args.old, "--from")
    file = PayloadFile(args.file)
    try:
        proven = _prove(args, file, answer, progress)
        manifest = proven.signed.manifest
        _refuse_unknown(sources, manifest, "--from")
        lines = _proof_lines(answer)
        parts: list[dict[str, Any]] = []
        answer["parts"] = parts
        unchecked: list[str] = []
        answer["unchecked"] = unchecked
        for part in manifest.parts:
            if not part.known or part.new is None:
                unchecked.append(f"{part.name} is of a kind that Bascule does not know")
                continue
            facts = {"name": part.name, "size": part.new.size, "sha256": part.new.sha256.hex()}
            parts.append(facts)
            if reads_source(part) and part.name not in sources:
                facts["result"] = "unchecked"
                unchecked.append(
                    f"{part.name} is a delta: what it makes can be checked with "
                    f"--from {part.name}=PATH"
                )
                continue
            _rehearse(args, file, manifest, part, sources.get(part.name), progress)
            facts["result"] = "proven"
            lines.append(f"Makes        {part.name}, {part.new.size:,} bytes, as the manifest says")
        answer["complete"] = not unchecked
        return lines + [f"Not checked  {line}" for line in unchecked]
    finally:
        file.close()


def _rehearse(
    args: argparse.Namespace,
    file: PayloadFile,
    manifest: Manifest,
    part: Part,
    source: Region | None,
    progress: _Progress,
) -> None:
    assert part.new is not None
    check_source(part, source, manifest.block_size, workers=args.workers)
    total, done = part.new.size, 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        progress.show(f"decoding {part.name}", done, total)

    found = rehearse(
        manifest,
        part,
        lambda operation: file.blob(manifest, operation),
        source=source,
        workers=args.workers,
        moved=moved,
    )
    if found != part.new.sha256:
        kind = KernelMismatch if part.name == KERNEL else SlotMismatch
        raise kind(f"{part.name} becomes {found.hex()[:16]}…, not {part.new.sha256.hex()[:16]}…")


def _prove(
    args: argparse.Namespace, file: PayloadFile, answer: dict[str, Any], progress: _Progress
) -> Proven:
    keys = _keys(args.keys, answer)
    done = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        progress.show("proving", done, file.size)

    proven = prove(file, keys, moved)
    signed = proven.signed
    answer.update(
        {
            "size": proven.size,
            "sha256": proven.sha256.hex(),
            "sha256_base64": base64.b64encode(proven.sha256).decode(),
            "major": signed.manifest.major,
            "delta": signed.manifest.delta,
            "proofs": sorted(signed.proofs),
            "key": None
            if signed.key is None
            else {"name": signed.key.name, "fingerprint": signed.key.fingerprint},
        }
    )
    return proven


def _keys(path: Path, answer: dict[str, Any]) -> tuple[PublicKey, ...]:
    ring = read_keyring(path)
    if ring.faults:
        answer["faults"] = list(ring.faults)
    if not ring.keys:
        raise NoKeys("; ".join(ring.faults) or f"no *.pem or *.pub file in {path}", path=str(path))
    return ring.keys


def _proof_lines(answer: Mapping[str, Any]) -> list[str]:
    key = answer["key"]
    signer = f"{key['name']} ({key['fingerprint'][:16]}…)" if key else "nobody"
    lines = [
        f"Payload      {answer['file']}, {answer['size']:,} bytes",
        f"SHA-256      {answer['sha256']}",
        f"Signed by    {signer}: {', '.join(answer['proofs'])}",
    ]
    return lines + [f"Key fault    {fault}" for fault in answer.get("faults", ())]


# ── apply ────────────────────────────────────────────────────────────────────────────────────


def _apply(args: argparse.Namespace, answer: dict[str, Any], progress: _Progress) -> list[str]:
    targets = _regions(args.to, "--to")
    sources = _regions(args.old, "--from")
    file = PayloadFile(args.file)
    try:
        # The file is at hand, so all of it is proven before the first byte is written.
        proven = _prove(args, file, answer, progress)
        manifest = proven.signed.manifest
        _refuse_unknown(targets, manifest, "--to")
        _refuse_unknown(sources, manifest, "--from")
        _refuse_missing(targets, manifest)
        _refuse_same(targets, sources)
        places = _Places(manifest, targets)
        # From the first file on, and not only while a loop runs: SIGTERM alone would leave it behind.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        try:
            places.prepare()
            installed = asyncio.run(
                _install(args, file, proven, places.regions, sources, progress, places)
            )
            places.keep()
        except BaseException:
            answer["left"] = places.undo()
            raise
    finally:
        file.close()
    return _apply_lines(answer, manifest, targets, installed)


async def _install(
    args: argparse.Namespace,
    file: PayloadFile,
    proven: Proven,
    targets: Mapping[str, Region],
    sources: Mapping[str, Region],
    progress: _Progress,
    places: _Places,
) -> Installed:
    cleared = clear_files(targets, booted=sources.values())

    def observe(now: Progress) -> None:
        if now.phase == "download":
            places.begun = True
        progress.show(_PHASES[now.phase], now.bytes_done, now.bytes_total)

    try:
        installed = await install(
            file,
            announced=Announced(proven.size, proven.sha256),
            keys=lambda: read_keyring(args.keys).keys,
            cleared=cleared,
            targets=targets,
            sources=sources,
            observer=observe,
            workers=max(1, args.workers),
        )
        await read_back(
            installed.signed,
            targets,
            cleared=cleared,
            begun=installed.begun,
            observer=lambda done, total: progress.show("reading back", done, total),
        )
    except asyncio.CancelledError:
        raise Stopped(f"{args.file} is not applied") from None
    return installed


_PHASES = {"source": "hashing the old part", "download": "applying", "verify": "reading back"}


class _Places:
    """The files and devices that are written, and what becomes of them.

    Attributes:
        regions: part name → what is written: a new file has another name until it is proven.
        begun: something may have been written.
    """

    def __init__(self, manifest: Manifest, targets: Mapping[str, Region]) -> None:
        self.regions: dict[str, Region] = {}
        self.begun = False
        self._targets = targets
        self._parts = {part.name: part for part in manifest.parts if part.name in targets}
        self._new: dict[str, Path] = {}
        self._grown: dict[Path, int] = {}

    def prepare(self) -> None:
        """Make new files, and let existing ones grow to the size that is needed.

        Raises:
            NotEnoughSpace, DeviceOpenError: it cannot be done; nothing is left behind.
        """
        for name, part in self._parts.items():
            path = self._targets[name].path
            assert part.new is not None
            try:
                info = path.stat()
            except FileNotFoundError:
                aside = path.with_name(path.name + ".partial")
                self._new[name] = aside
                self._make(aside, part.new.size)
                self.regions[name] = Region(aside)
                continue
            if stat.S_ISREG(info.st_mode) and info.st_size < part.new.size:
                self._grown[path] = info.st_size
                self._grow(path, part.new.size)
            self.regions[name] = Region(path)

    def keep(self) -> None:
        """Everything is proven: new files get their names, and files of their own their size."""
        for name, part in self._parts.items():
            path = self._targets[name].path
            assert part.new is not None
            try:
                if name in self._new:
                    self._new[name].rename(path)
                elif part.file and path.is_file():
                    os.truncate(path, part.new.size)
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror}", path=str(path)) from error
            flush_folder(path.parent)

    def undo(self) -> list[str]:
        """New files vanish; of what was written in place, say so."""
        for aside in self._new.values():
            with contextlib.suppress(OSError):
                aside.unlink()
        left = []
        for name in self._parts:
            path = self._targets[name].path
            if name in self._new:
                continue
            if self.begun:
                left.append(f"{path} was being written and is not a whole, proven {name}.")
            elif path in self._grown:
                with contextlib.suppress(OSError):
                    os.truncate(path, self._grown[path])
        return left

    def _make(self, path: Path, size: int) -> None:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o644)
            try:
                if size:
                    os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise _error(path, size, error) from error

    def _grow(self, path: Path, size: int) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise _error(path, size, error) from error


def _error(path: Path, size: int, error: OSError) -> StorageError:
    kind = NotEnoughSpace if error.errno in (errno.ENOSPC, errno.EFBIG) else DeviceOpenError
    return kind(f"{size} bytes for {path}: {error.strerror}", path=str(path))


def _apply_lines(
    answer: dict[str, Any],
    manifest: Manifest,
    targets: Mapping[str, Region],
    installed: Installed,
) -> list[str]:
    lines = _proof_lines(answer)
    answer["parts"] = [
        {
            "name": part.name,
            "path": str(targets[part.name].path),
            "size": part.new.size,
            "sha256": part.new.sha256.hex(),
        }
        for part in manifest.parts
        if part.new is not None and part.name in targets
    ]
    stats = installed.stats
    answer["written"], answer["skipped"] = stats.written, stats.skipped
    for part in answer["parts"]:
        lines.append(f"Proven       {part['name']} at {part['path']}, {part['size']:,} bytes")
    lines.append(f"Wrote        {stats.written:,} bytes; {stats.skipped:,} were there already")
    return lines


# ── arguments ────────────────────────────────────────────────────────────────────────────────


def _regions(arguments: list[str], option: str) -> dict[str, Region]:
    found: dict[str, Region] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UsageError(f"{option} {argument!r} is not PART=PATH")
        if name in found:
            raise UsageError(f"{option} names {name} twice")
        found[name] = Region(Path(path))
    if len({region.path.absolute() for region in found.values()}) < len(found):
        raise UsageError(f"{option} names one path for two parts")
    return found


def _refuse_unknown(regions: Mapping[str, Region], manifest: Manifest, option: str) -> None:
    known = [part.name for part in manifest.parts if part.known]
    unknown = sorted(set(regions) - set(known))
    if unknown:
        raise PartsMissing(
            f"{option} names {', '.join(unknown)}; this payload has {', '.join(known)}"
        )


def _refuse_missing(targets: Mapping[str, Region], manifest: Manifest) -> None:
    missing = [p.name for p in manifest.parts if p.name not in targets and not skippable(p)]
    if missing:
        raise PartsMissing(
            f"the payload fills {', '.join(missing)} too: "
            + " ".join(f"--to {name}=PATH" for name in missing)
        )


def _refuse_same(targets: Mapping[str, Region], sources: Mapping[str, Region]) -> None:
    """A delta's source is read until the end, so it cannot be written."""
    for name, target in targets.items():
        for old, source in sources.items():
            if (
                target.path.exists()
                and source.path.exists()
                and place(target).touches(place(source))
            ):
                raise UsageError(f"--to {name}={target.path} is what --from {old}= reads")


class _Progress:
    """One line on a terminal, rewritten; nothing anywhere else."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = 0
        self._last = 0.0
        self._on = not quiet and sys.stderr.isatty()

    def show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._on or (now - self._last < 0.1 and done < total):
            return
        self._last = now
        share = 100 * done // total if total else 100
        line = f"{what}: {share:3d} % of {total / (1 << 20):,.1f} MiB"
        sys.stderr.write("\r" + line.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(line)

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0
