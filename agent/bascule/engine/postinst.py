"""Run the new image's own ``/postinst`` from the slot that was just proven.

Flatcar's contract (reference 6.4): the partition is mounted read-only and
``<mount>/postinst <device> [KERNEL=<path>] [PCR_POLICY=<path>]`` is run with nothing in its environment
but ``PATH``, ``LD_LIBRARY_PATH`` and the proxy variables. Exit status 0 is success. Unlike the
original, all proxy variables are handed on, in both spellings, and there is a timeout.

The mount lives in a mount namespace of its own, so that it is gone with the last process of the
hook, however that one ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bascule.engine.command import run_command
from bascule.engine.region import Region
from bascule.errors import PostinstallFailed, StorageError

LINE_LIMIT = 4096
LAST_LINES = 20
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_HANDED_ON = ("PATH", "LD_LIBRARY_PATH", *_PROXIES, *(name.upper() for name in _PROXIES))
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# One word in a file for what happened before the hook took over; its own exit status is its own.
_SCRIPT = r"""
report=$1 types=$2 options=$3 source=$4 mount=$5 program=$6; shift 6
for type in $types; do
    said=$(mount -t "$type" -o "$options" -- "$source" "$mount" 2>&1) && { said=; break; }
done
if [ -n "$said" ]; then printf '%s\n' "$said"; echo "unmounted $said" >"$report"; exit 1; fi
if [ ! -e "$mount/$program" ]; then echo absent >"$report"; exit 1; fi
if [ ! -x "$mount/$program" ]; then echo noexec >"$report"; exit 1; fi
echo ready >"$report"
exec "$mount/$program" "$@"
"""


@dataclass(frozen=True, slots=True)
class NotThere:
    """The image has no post-installation step; `reason` says why we think so, in a clause."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ran:
    """The step ran and ended well; `lines` are its last ones."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _FileSystem:
    name: str
    types: tuple[str, ...]
    options: str
    offset: int
    magic: bytes


_FILE_SYSTEMS = (
    # Read-only alone still replays a journal, which would write to a slot that is already proven.
    _FileSystem("ext2/3/4", ("ext4",), "ro,noload", 1080, b"\x53\xef"),
    _FileSystem("btrfs", ("btrfs",), "ro,rescue=nologreplay", 0x10040, b"_BHRfS_M"),
    _FileSystem("squashfs", ("squashfs",), "ro", 0, b"hsqs"),
    _FileSystem("erofs", ("erofs",), "ro", 1024, b"\xe2\xe1\xf5\xe0"),
)


def environment_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` a postinst gets to see."""
    chosen = {name: environ[name] for name in _HANDED_ON if name in environ}
    chosen.setdefault("PATH", _DEFAULT_PATH)
    return chosen


@dataclass(slots=True)
class _Lines:
    """Bytes in any pieces → whole lines, each bounded, to a listener; the last ones are kept."""

    listener: Callable[[str], None]
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    _open: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._open += line[: LINE_LIMIT - len(self._open)]
            self.flush()
        self._open += rest[: LINE_LIMIT - len(self._open)]

    def flush(self) -> None:
        if self._open:
            text = _CONTROL.sub("?", self._open.decode("utf-8", "replace").rstrip("\r"))
            self._open.clear()
            self.last.append(text)
            self.listener(text)


async def run_postinst(
    region: Region,
    *,
    device: str | None = None,
    kernel: str | None = None,
    pcr_policy: str | None = None,
    program: str = "postinst",
    fallback: Path | None = None,
    environ: Mapping[str, str],
    timeout: float,
    on_line: Callable[[str], None],
    mount_parent: Path | None = None,
) -> Ran | NotThere:
    """Mount the new slot's system part and run its post-installation step.

    Args:
        region: where the part is; a block device, or an image that is put on a loop device.
        device: what the hook is told, default the region's path.
        kernel, pcr_policy: paths for ``KERNEL=`` and ``PCR_POLICY=``.
        program: path of the step inside the image.
        fallback: the running release's copy, taken where the kernel refuses to mount a btrfs whose
            identity is mounted already (an update to the identical image).
        environ: the daemon's environment, from which `environment_of` chooses.
        timeout: seconds.
        on_line: called with each line of output, without its newline, at most 4 KiB.
        mount_parent: an existing directory for the mount point; the temporary directory by default.

    Raises:
        PostinstallFailed: it failed, could not be run, or took too long; the last lines are in
            ``context["lines"]``, the exit status in ``context["status"]``.
        StorageError: the part cannot be read.
    """
    system = await asyncio.to_thread(recognise, region)
    if system is None:
        return NotThere("the image holds no file system that is known")
    words = _safe_program(program)
    arguments = [device or str(region.path)]
    arguments += [f"KERNEL={kernel}"] if kernel else []
    arguments += [f"PCR_POLICY={pcr_policy}"] if pcr_policy else []
    environment = environment_of(environ)
    lines = _Lines(on_line)
    folder = await asyncio.to_thread(_workplace, mount_parent)
    try:
        async with asyncio.timeout(timeout):
            report, status = await _in_namespace(
                system, region, folder, words, arguments, environment, lines
            )
            if report.startswith("unmounted") and fallback and "File exists" in report:
                on_line("The new image cannot be mounted beside the identical running one.")
                report = "ready"
                status = await run_command(
                    [str(fallback), *arguments], environment=environment, output=lines.feed
                )
    except TimeoutError:
        lines.flush()
        raise PostinstallFailed(
            f"it did not end within {timeout:g} s", lines=list(lines.last)
        ) from None
    except OSError as error:
        raise PostinstallFailed(f"it could not be started ({error.strerror})") from error
    finally:
        # Nothing is mounted here: the mount is another namespace's.
        shutil.rmtree(folder, ignore_errors=True)
    lines.flush()
    return _judge(report, status, system, lines)


def recognise(region: Region) -> _FileSystem | None:
    """The file system in `region` by its magic number, or None. Raises StorageError."""
    try:
        with region.path.open("rb", buffering=0) as file:
            for system in _FILE_SYSTEMS:
                end = system.offset + len(system.magic)
                if region.size is not None and region.size < end:
                    continue
                if os.pread(file.fileno(), len(system.magic), region.offset + system.offset) == (
                    system.magic
                ):
                    return system
    except OSError as error:
        raise StorageError(f"{region.path}: {error.strerror}") from error
    return None


async def _in_namespace(
    system: _FileSystem,
    region: Region,
    folder: Path,
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    lines: _Lines,
) -> tuple[str, int]:
    options = system.options + await asyncio.to_thread(_loop_options, region)
    report = folder / "report"
    status = await run_command(
        [
            shutil.which("unshare", path=_DEFAULT_PATH) or "unshare",
            "--mount",
            "--propagation",
            "slave",
            "/bin/sh",
            "-c",
            _SCRIPT,
            "postinst",
            str(report),
            " ".join(system.types),
            options,
            str(region.path),
            str(folder / "image"),
            program,
            *arguments,
        ],
        environment=environment,
        output=lines.feed,
    )
    return await asyncio.to_thread(_read, report), status


def _read(report: Path) -> str:
    try:
        return report.read_bytes()[:4096].decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _workplace(parent: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="postinst-", dir=parent))
    (folder / "image").mkdir()
    return folder


def _loop_options(region: Region) -> str:
    if region.offset == 0 and stat.S_ISBLK(region.path.stat().st_mode):
        return ""
    options = f",loop,offset={region.offset}"
    return options + (f",sizelimit={region.size}" if region.size is not None else "")


def _safe_program(program: str) -> str:
    path = program.lstrip("/")
    if not path or ".." in path.split("/") or not path.isprintable():
        raise PostinstallFailed(f"{program!r} is no path inside the image")
    return path


def _judge(report: str, status: int, system: _FileSystem, lines: _Lines) -> Ran | NotThere:
    last = list(lines.last)
    if report == "absent":
        return NotThere("the image has none")
    if report == "noexec":
        raise PostinstallFailed("it is not executable", lines=last, status=status)
    if report != "ready":
        why = last[-1] if last else f"unshare or mount failed with exit status {status}"
        raise PostinstallFailed(f"the {system.name} image cannot be mounted ({why})", lines=last)
    if status == 0:
        return Ran(tuple(last))
    how = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
    tail = f"; its last words: {last[-1]}" if last else ""
    raise PostinstallFailed(f"it {how}{tail}", lines=last, status=status)
