"""Facts about this host that its requests carry: release, board, machine, boot, OEM.

Sources: Flatcar's release and configuration files (reference flatcar.md 2.2, 6.1), machine-id(5),
``/proc/sys/kernel/random/boot_id``, os-release(5).
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from bascule.formats.keyvalue import parse_key_value

RELEASE_FILES = (
    "etc/flatcar/update.conf",
    "usr/share/flatcar/update.conf",
    "usr/share/flatcar/release",
)
"""For each key the first file that contains it wins, even with an empty value."""

OEM_FILES = ("etc/oem-release", "usr/share/oem/oem-release")
OS_RELEASE_FILES = ("etc/os-release", "usr/lib/os-release")

_BUILD_ID = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[-.T ]?(\d\d):?(\d\d)Z?)?", re.ASCII)
_LIMIT = 64 << 10
_BOARDS = {"x86_64": "amd64-usr", "aarch64": "arm64-usr"}


@dataclass(frozen=True, slots=True)
class Host:
    """Who this host is. Unknown facts are "".

    Attributes:
        version: the running release.
        board: ``amd64-usr`` or ``arm64-usr``.
        machine: ``uname -m``.
        machine_id: 32 hexadecimal digits.
        boot_id: a UUID, no braces.
        oem, oem_version: as the OEM's release file says.
        built: unix seconds when the running release was built; 0 where it does not say.
    """

    version: str
    board: str
    machine: str
    machine_id: str
    boot_id: str
    oem: str = ""
    oem_version: str = ""
    built: int = 0


def read_host(
    root: Path = Path("/"), *, version: str = "", board: str = "", machine: str = ""
) -> Host:
    """Read the facts under `root`. Blocks on small files; what cannot be read is "".

    Args:
        version, board: settings that win over the files where they are not empty.
        machine: instead of ``uname -m``.

    A host without Flatcar's release file is known by os-release's IMAGE_VERSION or VERSION_ID, and
    its board follows from the machine: without a board Nebraska takes any host for amd64.
    """
    machine = machine or platform.machine()
    return Host(
        version=version or lookup(root, "FLATCAR_RELEASE_VERSION") or _os_version(root),
        board=board or lookup(root, "FLATCAR_RELEASE_BOARD") or _BOARDS.get(machine, ""),
        machine=machine,
        machine_id=_word(root / "etc/machine-id"),
        boot_id=_word(root / "proc/sys/kernel/random/boot_id"),
        oem=lookup(root, "ID", OEM_FILES),
        oem_version=lookup(root, "VERSION_ID", OEM_FILES),
        built=_built(lookup(root, "BUILD_ID", OS_RELEASE_FILES)),
    )


def lookup(root: Path, key: str, names: tuple[str, ...] = RELEASE_FILES) -> str:
    """The value of `key` in the first of the files that contains it, or ""."""
    for name in names:
        value = parse_key_value(_read(root / name)).get(key)
        if value is not None:
            return value
    return ""


def _os_version(root: Path) -> str:
    for key in ("IMAGE_VERSION", "VERSION_ID"):
        found = lookup(root, key, OS_RELEASE_FILES).strip()
        if found:
            return found
    return ""


def _built(build_id: str) -> int:
    """os-release's BUILD_ID, free text in general: a date and time in UTC as Flatcar and others have
    it (``2024-08-12-1740``, ``20240812.1740``), or a date alone; 0 for anything else."""
    match = _BUILD_ID.fullmatch(build_id.strip())
    if match is None:
        return 0
    year, month, day, hour, minute = (int(part or 0) for part in match.groups())
    try:
        moment = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.UTC)
    except ValueError:
        return 0
    return max(0, int(moment.timestamp()))


def _word(path: Path) -> str:
    text = _read(path).decode("ascii", "replace").strip()
    return text if re.fullmatch(r"[0-9A-Za-z-]{1,64}", text) else ""


def _read(path: Path) -> bytes:
    """The file's first bytes; b"" where it cannot be read. Never waits for a fifo's writer."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        with os.fdopen(handle, "rb") as file:
            return file.read(_LIMIT) or b""
    except OSError:
        return b""
