"""The initrd's selector: one small C program that must choose and spend as the firmware does."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firmware
from gpt_images import CHROMEOS_KERNEL, Part, attributes, image, seal

SOURCE = Path(__file__).resolve().parents[2] / "systemd" / "initrd"
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

SLOTS = [Part(3, 40, 60, attributes(1, 0, 1)), Part(4, 61, 80, attributes(2, 2, 0))]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly, and so that it stops at the first byte out of bounds."""
    built = tmp_path_factory.mktemp("select") / "bascule-select"
    base = ["cc", "-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1", "-g"]
    guard = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = str(SOURCE / "bascule-select.c")
    if subprocess.run([*base, *guard, source, "-o", str(built)], capture_output=True).returncode:
        subprocess.run([*base, source, "-o", str(built)], check=True)
    return built


def select(
    program: Path, *arguments: str | Path, user: int | None = None
) -> tuple[int, dict[str, str]]:
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, user=user,
    )  # fmt: skip
    assert "runtime error" not in done.stderr and "Sanitizer" not in done.stderr, done.stderr
    fields = [line.partition("=") for line in done.stdout.splitlines()]
    return done.returncode, {name: value for name, _, value in fields}


FLAGS = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 1))


@given(
    table=st.dictionaries(st.integers(1, 40), FLAGS, max_size=6),
    sector_size=st.sampled_from([512, 4096]),
    entry_size=st.sampled_from([128, 256, 1024]),
    rest=st.integers(0, 2**48 - 1),
)
@settings(max_examples=50, deadline=None)
def test_chooses_and_spends_as_the_firmware(
    program: Path,
    tmp_path_factory: pytest.TempPathFactory,
    table: dict[int, tuple[int, int, int]],
    sector_size: int,
    entry_size: int,
    rest: int,
) -> None:
    parts = [Part(n, 600 + n, 600 + n, attributes(*f, rest)) for n, f in table.items()]
    disk = image(parts, sectors=1024, sector_size=sector_size, entry_size=entry_size, fill=0x5A)
    folder = tmp_path_factory.getbasetemp()
    ours, theirs = folder / "ours.img", folder / "theirs.img"
    for path in (ours, theirs):
        path.write_bytes(disk)
    looked: tuple[int, dict[str, str]] | None = select(program, "--look", ours)
    assert ours.read_bytes() == disk
    for _ in range(2):
        expected = firmware.choose(theirs)
        code, answer = select(program, ours)
        assert code == (0 if expected else 1)
        assert answer.get("BASCULE_PARTITION") == (str(expected) if expected else None)
        assert ours.read_bytes() == theirs.read_bytes()
        if looked:
            assert looked == (code, answer)
            looked = None


def test_says_what_a_script_needs(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(image(SLOTS))
    assert select(program, path) == (
        0,
        {
            "BASCULE_DISK": str(path),
            "BASCULE_PARTITION": "4",
            "BASCULE_SLOT": "B",
            "BASCULE_PARTUUID": str(SLOTS[1].guid),
        },
    )
    awkward = tmp_path / "disk; reboot"
    awkward.write_bytes(image(SLOTS))
    assert "BASCULE_DISK" not in select(program, awkward)[1], "nothing a shell would run"


def test_other_type(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    other = Part(1, 81, 90, attributes(1, 1, 0), CHROMEOS_KERNEL)
    path.write_bytes(image([*SLOTS, other]))
    assert select(program, "--type", CHROMEOS_KERNEL.upper(), path)[1]["BASCULE_PARTITION"] == "1"
    assert select(program, "--type", CHROMEOS_KERNEL, path)[0] == 1
    assert firmware.choose(path) == 4


@pytest.mark.parametrize("damage", ["primary header", "primary entries", "backup", "grown", "both"])
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_damaged_tables(program: Path, tmp_path: Path, damage: str, sector_size: int) -> None:
    ss = sector_size
    disk = image(SLOTS, sector_size=ss)
    last = len(disk) // ss - 1
    for lba in {
        "primary header": [1],
        "primary entries": [2],
        "backup": [last],
        "both": [1, last],
    }.get(damage, []):
        disk[lba * ss + 40] ^= 0xFF
    if damage == "grown":
        disk += bytes(50 * ss)
    path = tmp_path / "disk.img"
    path.write_bytes(disk)
    code, answer = select(program, path)
    if damage == "both":
        assert (code, answer) == (3, {})
        return
    assert answer["BASCULE_PARTITION"] == "4"
    assert firmware.flags(path, 4) == (2, 1, 0)
    after = path.read_bytes()
    linux = firmware.linux(after, ss)
    assert linux is not None and firmware.pick(linux) == 4
    # One good copy was enough, and now there are two.
    spoiled = bytearray(after)
    spoiled[ss : 2 * ss] = bytes(ss)
    if damage != "grown":
        assert firmware.grub(spoiled, ss) is not None


def test_a_try_that_cannot_be_written_is_not_taken(program: Path) -> None:
    # Root writes to read-only files; nobody does not, and must be able to reach them.
    user = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="select-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        mine = Path(shutil.copy(program, folder))
        path = folder / "disk.img"
        path.write_bytes(image(SLOTS))
        path.chmod(0o444)
        assert select(mine, path, user=user)[1]["BASCULE_PARTITION"] == "3"


@pytest.mark.parametrize(
    "arguments",
    [("--type", "x"), ("--type",), ("--wait", "-1"), ("--sector-size", "520"), ("a", "b")],
)
def test_usage(program: Path, arguments: tuple[str, ...]) -> None:
    assert select(program, *arguments)[0] == 2


def test_no_disk(program: Path, tmp_path: Path) -> None:
    assert select(program, tmp_path / "missing")[0] == 3
    (tmp_path / "text").write_text("hello\n" * 1000)
    assert select(program, tmp_path / "text") == (3, {})
    assert select(program, tmp_path) == (3, {})


EDGES = st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 512, 2**64 - 1])
FIELDS = [(8, "<I"), (12, "<I"), (20, "<I"), (24, "<Q"), (32, "<Q"), (40, "<Q"), (48, "<Q")]
FIELDS += [(72, "<Q"), (80, "<I"), (84, "<I"), (88, "<I")]


@given(
    edits=st.lists(
        st.tuples(st.sampled_from([1, 255]), st.sampled_from(FIELDS), EDGES | st.integers(0, 300)),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_hostile_tables(
    program: Path,
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[int, tuple[int, str], int]],
    cut: int,
) -> None:
    disk = image(SLOTS)
    for lba, (offset, width), value in edits:
        header = disk[lba * 512 : (lba + 1) * 512]
        struct.pack_into(width, header, offset, value % (1 << 8 * struct.calcsize(width)))
        size = struct.unpack_from("<I", header, 12)[0]
        if 20 <= size <= 512:
            seal(header)
        disk[lba * 512 : (lba + 1) * 512] = header
    path = tmp_path_factory.getbasetemp() / "hostile.img"
    path.write_bytes(disk[: len(disk) - cut * 512])
    code, answer = select(program, path)
    assert code in (0, 1, 3)
    assert bool(answer) == (code == 0)


# ── power cuts ───────────────────────────────────────────────────────────────────────────────

RECORDER = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void record(uint64_t offset, uint64_t size, const void *data)
{
	FILE *log = fopen(getenv("WRITE_LOG"), "ab");
	fwrite(&offset, 8, 1, log);
	fwrite(&size, 8, 1, log);
	if (size)
		fwrite(data, 1, size, log);
	fclose(log);
}
ssize_t recorded_write(int fd, const void *data, size_t size, off_t offset)
{
	record((uint64_t)offset, size, data);
	return pwrite(fd, data, size, offset);
}
int recorded_flush(int fd)
{
	record(0, 0, NULL);
	return fsync(fd);
}
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "recorder.c").write_text(RECORDER)
    objects = []
    for name, source, defines in (
        (
            "select.o",
            SOURCE / "bascule-select.c",
            ["-Dpwrite=recorded_write", "-Dfsync=recorded_flush"],
        ),
        ("recorder.o", folder / "recorder.c", []),
    ):
        declare = folder / "declare.h"
        declare.write_text(
            "#define _GNU_SOURCE\n#include <unistd.h>\n"
            "ssize_t recorded_write(int, const void *, size_t, off_t);\nint recorded_flush(int);\n"
        )
        include = ["-include", str(declare)] if defines else []
        subprocess.run(
            ["cc", "-std=c11", *include, *defines, "-c", str(source), "-o", str(folder / name)],
            check=True,
        )
        objects.append(str(folder / name))
    subprocess.run(["cc", *objects, "-o", str(folder / "bascule-select")], check=True)
    return folder / "bascule-select"


def writes_of(log: bytes) -> Iterator[tuple[int, bytes] | None]:
    at = 0
    while at < len(log):
        offset, size = struct.unpack_from("<QQ", log, at)
        yield (offset, log[at + 16 : at + 16 + size]) if size else None
        at += 16 + size


@pytest.mark.parametrize("damage", ["none", "primary", "backup"])
def test_a_cut_while_the_try_is_spent(recorded: Path, tmp_path: Path, damage: str) -> None:
    disk = image(SLOTS)
    if damage != "none":
        disk[512 if damage == "primary" else 255 * 512] ^= 0xFF
    path, log = tmp_path / "disk.img", tmp_path / "log"
    path.write_bytes(disk)
    subprocess.run(
        [str(recorded), str(path)],
        env={**os.environ, "WRITE_LOG": str(log)},
        check=True,
        capture_output=True,
    )
    state = bytearray(disk)
    group: list[tuple[int, bytes]] = []
    states = 0
    for write in writes_of(log.read_bytes()):
        if write is not None:
            group.append(write)
            continue
        atoms: list[tuple[int, bytes]] = []
        for offset, data in group:
            whole = (offset, len(data)) == (0, 4096)
            step = len(data) if whole else 512
            atoms += [(offset + i, data[i : i + step]) for i in range(0, len(data), step)]
        numbers = range(len(atoms) + 1)
        subsets = itertools.chain(
            (atoms[:n] for n in numbers), (atoms[n:] for n in numbers), ([atom] for atom in atoms)
        )
        for subset in subsets:
            after = bytearray(state)
            for offset, data in subset:
                after[offset : offset + len(data)] = data
            states += 1
            table = firmware.grub(after)
            assert table is not None and firmware.pick(table) == 4
            if damage != "primary":
                assert firmware.linux(after) is not None
        for offset, data in group:
            state[offset : offset + len(data)] = data
        group = []
    assert not group, "the last thing is a flush"
    assert states > 6
    assert bytes(state) == path.read_bytes()
    assert firmware.flags(path, 4) == (2, 1, 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_udev_has_no_cause_to_look_at_the_partitions_anew(program: Path, tmp_path: Path) -> None:
    """It has when a node that it watches was open for writing: then all partitions vanish for a moment."""
    path = tmp_path / "disk.img"
    path.write_bytes(image(SLOTS, sectors=4096))
    found = subprocess.run(
        ["losetup", "--show", "-f", str(path)], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no loop device to be had: {found.stderr.strip()}")
    loop = Path(found.stdout.strip())
    libc = ctypes.CDLL(None, use_errno=True)
    close_write = 0x8
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(loop), close_write) >= 0
        code, answer = select(program, loop)
        assert (code, answer["BASCULE_PARTITION"]) == (0, "4")
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        assert not list(Path("/dev").glob(".bascule-select*"))
        with loop.open("r+b"):
            pass
        assert os.read(watch, 4096), "the watch would have noticed"
    finally:
        os.close(watch)
        subprocess.run(["losetup", "-d", str(loop)], check=False)
    assert firmware.flags(path, 4) == (2, 1, 0)


# ── the shell around it ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    """An initrd's folders, with a selector that says what it was asked."""
    (tmp_path / "cmdline").write_text("quiet root=/dev/bascule/slot\n")
    selector = tmp_path / "bascule-select"
    selector.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        "echo BASCULE_NODE=/dev/vda4\necho BASCULE_SLOT=B\necho BASCULE_PARTITION=4\n"
    )
    selector.chmod(0o755)
    (tmp_path / "bin").mkdir()
    for tool in ("cat", "mkdir", "mv", "rm", "ln"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def slot_script(initrd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("sh")), str(SOURCE / "bascule-slot")],
        env={
            "PATH": str(initrd / "bin"),
            "BASCULE_RUN": str(initrd / "run"),
            "BASCULE_DEV": str(initrd / "dev"),
            "BASCULE_CMDLINE": str(initrd / "cmdline"),
            "BASCULE_ETC": str(initrd / "etc"),
            "BASCULE_SELECT": str(initrd / "bascule-select"),
        },
        capture_output=True,
        text=True,
    )


def test_the_slot_gets_its_name_once(initrd: Path) -> None:
    done = slot_script(initrd)
    assert (done.returncode, done.stdout) == (0, "bascule: booting slot B (partition 4)\n")
    assert os.readlink(initrd / "dev/bascule/slot") == "/dev/vda4"
    assert (initrd / "asked").read_text() == "--wait 60\n"
    assert slot_script(initrd).returncode == 0
    assert (initrd / "asked").read_text() == "--wait 60\n", "no second try is spent"


def test_udev_is_told(initrd: Path) -> None:
    (initrd / "bin/udevadm").write_text(f'#!/bin/sh\necho "$@" >> {initrd}/udev\n')
    (initrd / "bin/udevadm").chmod(0o755)
    assert slot_script(initrd).returncode == 0
    rule = (initrd / "run/udev/rules.d/61-bascule-slot.rules").read_text()
    assert rule == 'SUBSYSTEM=="block", KERNEL=="vda4", SYMLINK+="bascule/slot"\n'
    assert "trigger --action=change /sys/class/block/vda4" in (initrd / "udev").read_text()


def test_the_command_line_is_obeyed_and_not_run(initrd: Path) -> None:
    guid = CHROMEOS_KERNEL
    (initrd / "cmdline").write_text(
        f"bascule.disk=/dev/vda bascule.type={guid} bascule.wait=5 root=/dev/bascule/slot "
        "x=$(reboot) * ;reboot\n"
    )
    assert slot_script(initrd).returncode == 0
    assert (initrd / "asked").read_text() == f"--wait 5 --type {guid} /dev/vda\n"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("ro root=/dev/sda9 mount.usr=/dev/bascule/slot", True),
        ("root=/dev/bascule/slot rootflags=ro", True),
        ("root=/dev/sda9 mount.usr=PARTUUID=7130c94a-213a-4e5a-8e26-6cce9662f132", False),
        ("x=root=/dev/bascule/slot root=/dev/bascule/slot.old", False),
        # Added by hand in the boot menu: everybody else obeys the last one, too.
        ("root=/dev/bascule/slot root=/dev/sda3", False),
        ("root=/dev/sda9 mount.usr=/dev/bascule/slot mount.usr=/dev/sda3", False),
        ("root=/dev/sda3 root=/dev/bascule/slot", True),
        ("", False),
    ],
)
def test_a_bootloader_that_has_chosen_is_not_asked_again(
    initrd: Path, words: str, asked: bool
) -> None:
    (initrd / "cmdline").write_text(f"{words}\n")
    assert slot_script(initrd).returncode == 0
    assert (initrd / "asked").exists() is asked, "a second try is spent, or none"


@pytest.mark.parametrize("name", ["cmdline", "cmdline.d/10-root.conf"])
def test_dracuts_own_words_count_too_and_before_the_kernels(initrd: Path, name: str) -> None:
    (initrd / "etc/cmdline.d").mkdir(parents=True)
    (initrd / "etc" / name).write_text(" root=/dev/bascule/slot bascule.wait=7\n")
    (initrd / "cmdline").write_text("root=/dev/sda3\n")
    assert slot_script(initrd).returncode == 0
    assert not (initrd / "asked").exists()
    (initrd / "cmdline").write_text("quiet\n")
    assert slot_script(initrd).returncode == 0
    assert (initrd / "asked").read_text() == "--wait 7\n"


def test_nothing_to_boot_is_an_error(initrd: Path) -> None:
    (initrd / "bascule-select").write_text("#!/bin/sh\nexit 1\n")
    done = slot_script(initrd)
    assert (done.returncode, done.stderr) == (1, "bascule: no slot can be booted\n")
    assert not (initrd / "run/bascule/slot").exists()


def test_it_is_laid_out(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(
        ["make", "-s", "-C", str(SOURCE), "install", f"DESTDIR={tmp_path}"],
        env=environment,
        check=True,
    )
    laid = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert laid == {
        "usr/lib/bascule/bascule-select",
        "usr/lib/bascule/bascule-slot",
        "usr/lib/dracut/modules.d/90bascule/bascule-select.service",
        "usr/lib/dracut/modules.d/90bascule/bascule-slot",
        "usr/lib/dracut/modules.d/90bascule/choose-slot.sh",
        "usr/lib/dracut/modules.d/90bascule/module-setup.sh",
        "usr/share/initramfs-tools/hooks/bascule",
        "usr/share/initramfs-tools/scripts/local-top/bascule",
    }
    for name in laid:
        if not name.endswith((".service", "select")):
            subprocess.run(["bash", "-n", str(tmp_path / name)], check=True)
