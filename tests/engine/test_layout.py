"""Finding the slots: fake /proc, /sys and /dev trees around real partition tables."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from bascule.engine.booted import Kernel
from bascule.engine.layout import Layout, choose_slots, find, mounted_slot
from bascule.engine.region import Region
from bascule.engine.table import DiskTable
from bascule.errors import SettingsError, SlotsNotFound, TableError
from bascule.formats.slots import Slot
from gpt_images import LINUX, Part, flatcar_disk, image

CHROMEOS_ROOT = "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec"
USR_A, USR_B = (str(uuid.uuid5(uuid.NAMESPACE_OID, f"part {n}")) for n in (3, 4))
PARTS = [
    Part(1, 40, 49, type_guid=LINUX, name="EFI-SYSTEM"),
    Part(3, 50, 60, name="USR-A"),
    Part(4, 61, 71, name="USR-B"),
    Part(9, 72, 90, type_guid=LINUX, name="ROOT"),
]


@dataclass
class Host:
    """A host's /proc, /sys, /dev and /boot in a folder."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("proc/self", "sys/class/block", "sys/dev/block", "dev/mapper", "boot"):
            (self.root / name).mkdir(parents=True)
        self.mounts()
        self.command_line("")

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.root / "proc", self.root / "sys", self.root / "dev")

    def device(self, home: Path, name: str, number: str, sectors: int) -> Path:
        home.mkdir(parents=True)
        (home / "dev").write_text(f"{number}\n")
        (home / "size").write_text(f"{sectors}\n")
        (self.root / "sys/class/block" / name.replace("/", "!")).symlink_to(home)
        (self.root / "sys/dev/block" / number).symlink_to(home)
        return home

    def disk(
        self, name: str, major: int, parts: list[Part], *, separator: str = "", seen: bool = True
    ) -> Path:
        node = self.root / "dev" / name
        node.write_bytes(image(parts))
        home = self.root / "sys/devices/pci0/block" / name
        self.device(home, name, f"{major}:0", 256)
        for part in parts if seen else []:
            child = f"{name}{separator}{part.index}"
            (self.root / "dev" / child).touch()
            size = part.last - part.first + 1
            sub = self.device(home / child, child, f"{major}:{part.index}", size)
            (sub / "partition").write_text(f"{part.index}\n")
            (sub / "start").write_text(f"{part.first}\n")
        return node

    def verity(self, name: str, number: str, *slaves: str) -> None:
        home = self.device(self.root / "sys/devices/virtual/block" / name, name, number, 8)
        (home / "slaves").mkdir()
        for slave in slaves:
            target = (self.root / "sys/class/block" / slave).resolve()
            (home / "slaves" / slave).symlink_to(target)

    def mounts(self, *rows: tuple[str, str, str, str]) -> None:
        """(major:minor, mount point, type, source)"""
        lines = [
            f"{n} 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n"
            for n, (number, point, kind, source) in enumerate(rows, start=20)
        ]
        (self.root / "proc/self/mountinfo").write_text("".join(lines))

    def command_line(self, text: str) -> None:
        (self.root / "proc/cmdline").write_text(f"console=ttyS0 {text} quiet\n")

    def find(self, **options: object) -> Layout:
        roots = {name: self.root / name for name in ("proc", "sys", "dev", "boot")}
        return find(**roots, **options)  # type: ignore[arg-type]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_flatcar_with_usr_mounted(host: Host) -> None:
    disk = host.disk("sda", 8, PARTS)
    host.mounts(("8:9", "/", "ext4", "/dev/sda9"), ("8:4", "/usr", "ext4", "/dev/sda4"))
    layout = host.find()
    assert (layout.disk, layout.booted, layout.sector_size) == (disk, Slot.B, 512)
    assert layout.index == {Slot.A: 3, Slot.B: 4}
    assert layout.parts[Slot.A] == {
        "usr": Region(host.root / "dev/sda3", 0, 11 * 512),
        "kernel": Region(host.root / "boot/flatcar/vmlinuz-a", file=True),
    }


@pytest.mark.parametrize(("name", "separator"), [("nvme0n1", "p"), ("mmcblk0", "p"), ("vdb", "")])
def test_device_names(host: Host, name: str, separator: str) -> None:
    host.disk(name, 259, PARTS, separator=separator)
    host.mounts(("259:3", "/usr", "ext4", "/dev/root"))
    layout = host.find()
    assert layout.booted is Slot.A
    assert layout.parts[Slot.B]["usr"].path == host.root / f"dev/{name}{separator}4"


def test_through_verity_and_below_an_overlay(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    host.verity("dm-0", "253:0", "sda4")
    host.verity("dm-1", "253:1", "dm-0")
    host.mounts(
        ("8:9", "/", "ext4", "/dev/sda9"),
        ("253:1", "/usr", "ext4", "/dev/mapper/usr"),
        ("0:55", "/usr", "overlay", "sysext"),
    )
    assert host.find().booted is Slot.B


def test_btrfs_mounts_have_no_device_number(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    (host.root / "dev/mapper/usr").symlink_to("../sda4")
    host.mounts(("0:31", "/usr", "btrfs", "/dev/mapper/usr"))
    assert host.find().booted is Slot.B


def test_root_as_slot(host: Host) -> None:
    parts = [Part(2, 40, 60, type_guid=CHROMEOS_ROOT), Part(5, 61, 80, type_guid=CHROMEOS_ROOT)]
    host.disk("sda", 8, parts)
    host.mounts(("8:5", "/", "ext4", "/dev/sda5"))
    layout = host.find(type_guid=CHROMEOS_ROOT.upper())
    assert (layout.booted, layout.index) == (Slot.B, {Slot.A: 2, Slot.B: 5})


@pytest.mark.parametrize(
    "text",
    [
        f"mount.usr=PARTUUID={USR_B}",
        f"verity.usr=PARTUUID={USR_B.upper()}",
        f"mount.usr=/dev/mapper/usr verity.usr=PARTUUID={USR_B}",
        f"root=LABEL=ROOT usr=/dev/disk/by-partuuid/{USR_B}",
        "usr=PARTLABEL=USR-B",
        "mount.usr=/dev/sda4",
        f"mount.usr=PARTUUID={USR_A} mount.usr=PARTUUID={USR_B}",
        f'systemd.verity_usr_data="PARTUUID={USR_B}"',
    ],
)
def test_command_line(host: Host, text: str) -> None:
    host.disk("sda", 8, PARTS)
    host.mounts(("0:20", "/", "tmpfs", "rootfs"))
    host.command_line(text)
    assert host.find().booted is Slot.B


def test_mounts_outrank_the_command_line_and_the_setting(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    host.mounts(("8:3", "/usr", "ext4", "/dev/sda3"))
    host.command_line(f"mount.usr=PARTUUID={USR_B}")
    assert host.find(booted=Slot.B).booted is Slot.A


def test_setting_where_the_kernel_does_not_tell(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    with pytest.raises(SlotsNotFound, match=r"slots\.booted"):
        host.find()
    assert host.find(booted=Slot.B).booted is Slot.B
    (host.root / "booted").write_text("A\n")
    assert host.find(booted_file=host.root / "booted").booted is Slot.A
    (host.root / "booted").write_text("C\n")
    with pytest.raises(SlotsNotFound, match="not A or B"):
        host.find(booted_file=host.root / "booted")
    with pytest.raises(SlotsNotFound, match="No such file"):
        host.find(booted_file=host.root / "missing")


# ── which disk ───────────────────────────────────────────────────────────────────────────────


def test_a_clone_is_told_from_the_running_disk(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    second = host.disk("sdb", 65, PARTS)
    host.mounts(("65:3", "/usr", "ext4", "/dev/sdb3"))
    assert host.find().disk == second
    host.mounts(("0:20", "/", "tmpfs", "rootfs"))
    host.command_line(f"mount.usr=PARTUUID={USR_A}")
    with pytest.raises(SlotsNotFound, match=r"several disks: .*sda, .*sdb; `slots\.disk`"):
        host.find()
    assert host.find(disk=second).disk == second
    host.command_line("mount.usr=/dev/sdb4")
    layout = host.find()
    assert (layout.disk, layout.booted) == (second, Slot.B)


def test_no_disk_has_slots(host: Host) -> None:
    host.disk("sda", 8, [Part(1, 40, 60, type_guid=LINUX)])
    with pytest.raises(SlotsNotFound, match=r"partitions of type 5dfbf5f4-.*: none"):
        host.find()


def test_other_disks_may_be_anything(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    empty = host.disk("sdc", 66, [])
    empty.write_bytes(b"no table here" * 1000)
    assert host.find(booted=Slot.A).disk == host.root / "dev/sda"


def test_a_link_to_the_disk(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    link = host.root / "dev/by-id"
    link.symlink_to("sda")
    host.mounts(("8:4", "/usr", "ext4", "/dev/sda4"))
    layout = host.find(disk=link)
    assert layout.booted is Slot.B
    assert layout.parts[Slot.A]["usr"].path == host.root / "dev/sda3"


def test_partitions_that_the_kernel_does_not_know(host: Host) -> None:
    disk = host.disk("sda", 8, PARTS, seen=False)
    layout = host.find(disk=disk, booted=Slot.A)
    assert layout.parts[Slot.B]["usr"] == Region(disk, 61 * 512, 11 * 512)


def test_partitions_that_the_kernel_knows_otherwise(host: Host) -> None:
    disk = host.disk("sda", 8, PARTS)
    (host.root / "sys/class/block/sda4/start").write_text("62\n")
    with pytest.raises(TableError, match=r"sda4 is 5632 bytes at 31744 .* reboot before"):
        host.find(disk=disk, booted=Slot.A)


# ── which partitions ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("numbers", [(), (3,), (3, 4, 5)])
def test_not_two_partitions_of_the_type(host: Host, numbers: tuple[int, ...]) -> None:
    disk = host.disk("sda", 8, [Part(n, 30 + 10 * n, 39 + 10 * n) for n in numbers])
    with pytest.raises(SlotsNotFound, match=f"there are {len(numbers)} partitions of type"):
        host.find(disk=disk, booted=Slot.A)


def test_labels_tell_among_more_than_two(host: Host) -> None:
    third = Part(5, 91, 99, name="USR-RECOVERY")
    disk = host.disk("sda", 8, [*PARTS, third])
    assert host.find(disk=disk, booted=Slot.A).index == {Slot.A: 3, Slot.B: 4}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"usr": "partition:4"}, {"usr": "partition:3"}),
        ({"usr": "label:USR-B"}, {"usr": "label:USR-A"}),
        ({"usr": "{dev}/sda4"}, {"usr": "{dev}/sda3"}),
        ({"kernel": "/k", "usr": "partition:4"}, {"usr": "{dev}/sda3"}),
    ],
)
def test_named_parts(host: Host, a: dict[str, str], b: dict[str, str]) -> None:
    disk = host.disk("sda", 8, PARTS)
    named = {
        slot: {part: value.format(dev=host.root / "dev") for part, value in parts.items()}
        for slot, parts in ((Slot.A, a), (Slot.B, b))
    }
    layout = host.find(disk=disk, parts=named, booted=Slot.A)
    assert layout.index == {Slot.A: 4, Slot.B: 3}
    assert layout.parts[Slot.A]["usr"].path == host.root / "dev/sda4"
    if "kernel" in a:
        assert layout.parts[Slot.A]["kernel"] == Region(Path("/k"), file=True)
    assert layout.parts[Slot.B]["kernel"].path == host.root / "boot/flatcar/vmlinuz-b"


def test_the_disk_of_named_devices_is_found(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    host.disk("sdb", 65, PARTS)
    dev = host.root / "dev"
    layout = host.find(
        parts={Slot.A: {"usr": f"{dev}/sdb3"}, Slot.B: {"usr": f"{dev}/sdb4"}}, booted=Slot.A
    )
    assert layout.disk == dev / "sdb"
    with pytest.raises(SlotsNotFound, match="several disks"):
        host.find(
            parts={Slot.A: {"usr": f"{dev}/sda3"}, Slot.B: {"usr": f"{dev}/sdb4"}}, booted=Slot.A
        )


def test_a_slot_of_several_partitions_has_its_flags_in_the_one_of_the_type(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    parts = {
        Slot.A: {"boot": "partition:1", "usr": "partition:3"},
        Slot.B: {"boot": "partition:9", "usr": "partition:4"},
    }
    assert host.find(parts=parts, booted=Slot.A).index == {Slot.A: 3, Slot.B: 4}


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({Slot.A: {"usr": "partition:x"}}, SettingsError, "not partition:N"),
        ({Slot.A: {"usr": "partition:7"}}, TableError, "no partition 7"),
        ({Slot.A: {"usr": "label:NONE"}}, SlotsNotFound, "0 partitions .* label 'NONE'"),
        ({Slot.A: {"usr": "partition:3"}}, SettingsError, r"slots\.b does not name"),
        (
            {Slot.A: {"usr": "partition:3"}, Slot.B: {"usr": "partition:3"}},
            SettingsError,
            "both slots are partition 3",
        ),
    ],
)
def test_malformed_parts(
    host: Host, parts: dict[Slot, dict[str, str]], error: type[Exception], words: str
) -> None:
    disk = host.disk("sda", 8, PARTS)
    with pytest.raises(error, match=words):
        host.find(disk=disk, parts=parts, booted=Slot.A)


def test_type_guid_that_is_none(host: Host) -> None:
    disk = host.disk("sda", 8, PARTS)
    with pytest.raises(SettingsError, match="is not a GUID"):
        host.find(disk=disk, type_guid="usr", booted=Slot.A)


def test_slots_that_are_files(host: Host, tmp_path: Path) -> None:
    parts = {slot: {"root": str(tmp_path / f"{slot.value}.img")} for slot in Slot}
    layout = host.find(parts=parts, booted=Slot.A)
    assert layout.disk is None
    assert layout.index == {}
    assert layout.parts[Slot.B] == {"root": Region(tmp_path / "B.img", file=True)}


# ── images, kernels ──────────────────────────────────────────────────────────────────────────


def test_an_image_is_cut_into_regions(host: Host, tmp_path: Path) -> None:
    path = flatcar_disk(tmp_path / "disk.img")
    host.mounts(("8:3", "/usr", "ext4", "/dev/sda3"))
    layout = host.find(disk=path, booted=Slot.B)
    assert layout.booted is Slot.B
    table = DiskTable(path).examine().sound
    assert layout.parts[Slot.A] == {"usr": Region(path, table.entry(3).first_lba * 512, 4 << 20)}, (
        "an image is not the host's: no kernel of the host belongs to it"
    )


def test_an_image_of_4096_byte_sectors(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(image(PARTS, sector_size=4096))
    for given in (None, 4096):
        layout = host.find(disk=path, booted=Slot.A, sector_size=given)
        assert layout.sector_size == 4096
        assert layout.parts[Slot.A]["usr"] == Region(path, 50 * 4096, 11 * 4096)


def test_old_kernel_folder(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    (host.root / "boot/coreos").mkdir()
    layout = host.find(booted=Slot.A)
    assert layout.parts[Slot.A]["kernel"].path == host.root / "boot/flatcar/vmlinuz-a"
    (host.root / "boot/coreos/vmlinuz-b").touch()
    layout = host.find(booted=Slot.A)
    assert layout.parts[Slot.A]["kernel"].path == host.root / "boot/coreos/vmlinuz-a"
    assert "kernel" not in host.find(booted=Slot.A, kernel_files=False).parts[Slot.A]


# ── what `bascule disk` asks ─────────────────────────────────────────────────────────────────


def test_mounted_slot(host: Host, tmp_path: Path) -> None:
    disk = host.disk("sda", 8, PARTS)
    index = choose_slots(DiskTable(disk).examine().sound)
    assert mounted_slot(disk, index, host.kernel) is None
    host.mounts(("8:9", "/", "ext4", "/dev/sda9"), ("8:4", "/usr", "ext4", "/dev/sda4"))
    assert mounted_slot(disk, index, host.kernel) is Slot.B
    assert mounted_slot(host.disk("sdb", 65, PARTS), index, host.kernel) is None
    assert mounted_slot(flatcar_disk(tmp_path / "x.img"), index, host.kernel) is None


def test_trees_of_nonsense(host: Host) -> None:
    host.disk("sda", 8, PARTS)
    (host.root / "proc/self/mountinfo").write_bytes(b"\xff\n1 2 3\n20 1 8:x / /usr rw - \n")
    (host.root / "proc/cmdline").write_bytes(b"\xfe usr= root=/dev/ usr=PARTUUID= usr=/dev/none")
    (host.root / "sys/class/block/sda3/partition").write_text("three\n")
    with pytest.raises(SlotsNotFound):
        host.find()
    for name in ("proc", "sys", "dev"):
        (host.root / name).rename(host.root / f"no-{name}")
    with pytest.raises(SlotsNotFound):
        host.find()
