"""What the running system was started from, as the kernel tells it.

Sources: proc(5) for mountinfo and cmdline; sysfs ``/sys/dev/block``, ``/sys/class/block`` for
device-mapper slaves and partitions. The roots are parameters; tests give trees of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kernel", "Partition"]

_USR_KEYS = ("mount.usr", "verity.usr", "usr", "systemd.verity_usr_data", "root")
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as the kernel knows it. `start` and `size` are in bytes."""

    disk: Path
    number: int
    node: Path
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel's view of mounts and block devices."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")

    def mounted(self) -> Iterator[str]:
        """Kernel names (``sda3``) of what /usr, then / is mounted from, the topmost first.

        Overlays (system extensions) hide the real mount below them; a device-mapper device
        (verity) stands for what it is made of.
        """
        for point in ("/usr", "/"):
            for mount in reversed(self._mounts(point)):
                yield from self._leaves(self._mount_device(mount), _DEPTH)

    def named_on_command_line(self) -> Iterator[tuple[str, str]]:
        """(kind, value) of what the command line names as /usr or root.

        Kinds: ``PARTUUID`` and ``PARTLABEL`` with their value, ``name`` with a kernel name.
        """
        words = _read(self.proc / "cmdline").replace('"', "").split()
        for key in _USR_KEYS:
            for word in reversed(words):
                if word.startswith(f"{key}="):
                    yield from self._named(word[len(key) + 1 :])

    def disks(self) -> Iterator[Path]:
        """Nodes of whole disks that have a size."""
        for device in sorted(_children(self.sys / "class" / "block")):
            whole = not (device / "partition").exists()
            virtual = device.name.startswith(("ram", "zram", "dm-", "sr", "fd"))
            if whole and not virtual and _read(device / "size").strip() not in ("", "0"):
                yield self.node(device.name)

    def knows(self, path: Path) -> bool:
        """Whether `path` is the node of a block device, not an image file."""
        return self._name(path) is not None

    def partition(self, name: str) -> Partition | None:
        """The partition with that kernel name; None if it is no partition."""
        device = self.sys / "class" / "block" / name.replace("/", "!")
        number, start, size = (_number(device / key) for key in ("partition", "start", "size"))
        if number is None or start is None or size is None:
            return None
        disk = self.node(device.resolve().parent.name)
        return Partition(disk, number, self.node(name), start * 512, size * 512)

    def partition_of(self, path: Path) -> Partition | None:
        """The partition that `path` is a node of."""
        name = self._name(path)
        return None if name is None else self.partition(name)

    def partitions(self, disk: Path) -> dict[int, Partition]:
        """The partitions of `disk` that the kernel knows, by number."""
        name = self._name(disk)
        if name is None:
            return {}
        home = (self.sys / "class" / "block" / name).resolve()
        found = (self.partition(child.name) for child in _children(home))
        return {partition.number: partition for partition in found if partition}

    def node(self, name: str) -> Path:
        """The device node of a kernel name."""
        return self.dev / name.replace("!", "/")

    def _mounts(self, point: str) -> list[list[str]]:
        lines = _read(self.proc / "self" / "mountinfo").splitlines()
        fields = [line.split(" ") for line in lines]
        return [f for f in fields if len(f) > 6 and f[4] == point]

    def _mount_device(self, mount: list[str]) -> str | None:
        if re.fullmatch(r"[1-9]\d*:\d+", mount[2]):
            device = self.sys / "dev" / "block" / mount[2]
            return device.resolve().name if device.exists() else None
        # btrfs mounts have a device number of no device; their source is the node's path.
        source = mount[mount.index("-") + 2] if "-" in mount[:-2] else ""
        return self._name(self._rooted(source)) if source.startswith("/dev/") else None

    def _leaves(self, name: str | None, depth: int) -> Iterator[str]:
        if name is None:
            return
        slaves = sorted(_children(self.sys / "class" / "block" / name / "slaves"))
        if not slaves or not depth:
            yield name
        else:
            for slave in slaves:
                yield from self._leaves(slave.name, depth - 1)

    def _named(self, value: str) -> Iterator[tuple[str, str]]:
        by_link = re.fullmatch(r"/dev/disk/by-(partuuid|partlabel)/(.+)", value)
        kind, _, rest = value.partition("=")
        if by_link:
            yield by_link[1].upper(), by_link[2]
        elif kind.upper() in ("PARTUUID", "PARTLABEL") and rest:
            yield kind.upper(), rest
        elif value.startswith("/dev/"):
            for name in self._leaves(self._name(self._rooted(value)), _DEPTH):
                yield "name", name

    def _rooted(self, path: str) -> Path:
        return self.dev / path.removeprefix("/dev/")

    def _name(self, path: Path) -> str | None:
        try:
            inside = path.resolve().relative_to(self.dev.resolve())
        except ValueError:
            return None
        name = str(inside).replace("/", "!")
        return name if (self.sys / "class" / "block" / name).exists() else None


def _children(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None
