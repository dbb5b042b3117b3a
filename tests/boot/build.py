"""Build an A/B machine from Debian packages, with Bascule installed from this checkout.

Everything is kept in a cache outside the checkout under a name made from its contents, so that a
second run starts booting at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import firmware

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp") / "bascule-boot"

PACKAGES = (HERE / "guest/packages").read_text().split()
"""The cloud kernel has NVMe, ext4 and GPT built in: a slot boots without modules."""

MODULES = (HERE / "guest/modules").read_text().split()

HOST_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "sgdisk": "gdisk",
    "cgpt": "cgpt",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "make": "make",
    "cc": "gcc",
}
FIRMWARE = (
    (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    (Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
)

MIB = 1 << 20
ESP_MIB, SLOT_MIB, STATE_MIB = 128, 384, 512
IMAGE_MIB = 352
START = {
    "esp": 1,
    "a": 1 + ESP_MIB,
    "b": 1 + ESP_MIB + SLOT_MIB,
    "state": 1 + ESP_MIB + 2 * SLOT_MIB,
}
DISK_MIB = START["state"] + STATE_MIB + 1
INDEX = {"A": 3, "B": 4}

SLOT_IS_USR = ("flatcar", "usr", "usr-dracut")
"""Machines whose slots hold /usr; the rest of the root is on the state partition, and stays."""

SAME_IMAGE = {"dracut": "gpt", "usr-dracut": "usr"}
"""Machines that differ from another one in their initrd only."""
TYPE_GUID = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
GUIDS = {
    "A": "7130c94a-213a-4e5a-8e26-6cce9662f132",
    "B": "e03dd35c-7c2d-4a47-b3fe-27f15780a57c",
}
KERNEL_WORDS = (
    "console=ttyS0,115200 panic=5 no_timer_check quiet loglevel=4 systemd.show_status=yes "
    "systemd.log_target=kmsg ro nvme_core.io_timeout=40 nvme_core.admin_timeout=250"
)
"""Of every guest. QEMU's NVMe loses a request now and then (one in some hundred boots, 7.2): the guest
asks after it when the time is up, in seconds, and resets the controller a second time later. The other
timeout is for hosts that stop a machine for a while, which that reset would not survive."""


class CannotBuild(Exception):
    """Something that the boot tests need is not to be had here; the message says what."""


def run(words: Sequence[str | Path], **options: object) -> str:
    """Run a tool; its output, or CannotBuild with its last words."""
    done = subprocess.run(
        [str(w) for w in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise CannotBuild(f"{words[0]} failed ({done.returncode}): {done.stdout[-2000:]}")
    return str(done.stdout)


def prepare_host() -> None:
    """Install what is missing, as `make setup` does. Raises CannotBuild."""
    if os.geteuid() != 0:
        raise CannotBuild("building a Debian tree needs root")
    missing = {package for tool, package in HOST_TOOLS.items() if not shutil.which(tool)}
    if not any(code.exists() for code, _ in FIRMWARE):
        missing.add("ovmf")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise CannotBuild(f"these packages are missing: {' '.join(sorted(missing))}")
    print(f"test-boot: installing {' '.join(sorted(missing))}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=environment)
    run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(missing)],
        env=environment,
    )


def digest(*parts: str | bytes | Path) -> str:
    """A name for what these strings, files and trees hold."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                if "__pycache__" not in file.parts:
                    sha.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
        else:
            sha.update(part if isinstance(part, bytes) else part.encode())
        sha.update(b"\1")
    return sha.hexdigest()[:16]


def suite() -> str:
    """This host's Debian suite, or stable."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return "stable"


def base_tree() -> Path:
    """The Debian tree, made once."""
    key = digest(suite(), *PACKAGES, "recipe 1")
    tree = CACHE / f"debian-{key}"
    if tree.exists():
        return tree
    print(f"test-boot: building a Debian {suite()} tree (half a minute)", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = CACHE / f"debian-{key}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    excluded = ("doc", "man", "locale", "info", "lintian", "bash-completion", "zoneinfo")
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
            '--aptopt=Acquire::Languages "none"',
            suite(),
            fresh,
        ]
    )
    fresh.rename(tree)
    return tree


def kernel_version(tree: Path) -> str:
    """The kernel of a tree."""
    return max(p.name for p in (tree / "usr/lib/modules").iterdir())


MASKED = (HERE / "guest/masked").read_text().split()

SETTINGS = """\
[server]
group = "stable"

[check]
first = "5d"
interval = "5d"

[policy]
mode = "stage"

[slots]
type_guid = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
kernel = "none"

[trust]
keys = "/usr/share/bascule/keys"
require = ["rsa", "signed-metadata"]

[reboot]
strategy = "off"

[health]
units = ["myapp.service"]
timeout = "60s"
retries = 2
interval = "2s"
"""

SYSTEMD_BOOT = """\
soak = "40s"

[boot]
backend = "systemd-boot"
esp = "/efi"
tries = 2
"""
"""What is added to the settings of that machine, whose last section is [health]."""


def first_image(keys: Path, boot: str) -> Path:
    """What the first release has in its slot; beside it, as ``.state``, what no release changes.

    Args:
        keys: directory of public keys that the image trusts.
        boot: ``gpt``, ``usr``, ``flatcar`` or ``systemd-boot``.
    """
    base = base_tree()
    key = digest(
        base.name,
        PROJECT / "agent" / "bascule",
        PROJECT / "systemd",
        PROJECT / "pyproject.toml",
        HERE / "guest",
        Path(__file__),
        boot,
        *(p.read_bytes() for p in sorted(keys.iterdir())),
    )
    image = CACHE / f"first-{boot}-{key}.ext4"
    if image.exists():
        return image
    print(f"test-boot: installing Bascule into the {boot} image", flush=True)
    tree = CACHE / "tree.new"
    shutil.rmtree(tree, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", base, tree])
    _prune(tree)
    _install(tree)
    _configure(tree, keys, boot)
    for old in CACHE.glob(f"first-{boot}-*"):
        old.unlink()
    inner, outer = CACHE / "inner.new", CACHE / "outer.new"
    for path in (inner, outer):
        shutil.rmtree(path, ignore_errors=True)
    # The inner of the two goes first, and leaves an empty directory to mount it on.
    within = tree / ("usr" if boot in SLOT_IS_USR else "var")
    within.rename(inner)
    within.mkdir()
    tree.rename(outer)
    slot, state = (inner, outer) if boot in SLOT_IS_USR else (outer, inner)
    _file_system(state, image.with_suffix(".state"), STATE_MIB - 1, "-L", "STATE")
    fresh = image.with_suffix(".new")
    _file_system(
        slot,
        fresh,
        IMAGE_MIB,
        *("-O", "^has_journal,^metadata_csum", "-m", "0", "-N", "16384"),
        *("-U", "8b2b1a52-9e57-4a1e-8c0c-3b3d8b0f6d11"),
        *("-E", "hash_seed=8b2b1a52-9e57-4a1e-8c0c-3b3d8b0f6d11,lazy_itable_init=0"),
    )
    for path in (inner, outer):
        shutil.rmtree(path)
    fresh.rename(image)
    return image


def _file_system(tree: Path, image: Path, mib: int, *words: str) -> None:
    run(["truncate", "-s", f"{mib}M", image])
    run(["mke2fs", "-q", "-F", "-t", "ext4", *words, "-d", tree, image])


def _prune(tree: Path) -> None:
    version = kernel_version(tree)
    modules = tree / "usr/lib/modules" / version
    wanted = {name.replace("-", "_") for name in MODULES}
    for file in list((modules / "kernel").rglob("*.ko*")):
        if file.name.partition(".")[0].replace("-", "_") not in wanted:
            file.unlink()
    run(["depmod", "-b", tree, version])
    for path in (
        "boot",
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/zoneinfo",
        "usr/share/perl",
    ):
        for entry in (tree / path).glob("*") if (tree / path).is_dir() else []:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.rmtree(tree / "usr/lib/python3.11/test", ignore_errors=True)


def _install(tree: Path) -> None:
    guest = (tree / "usr/bin/python3").readlink().name.removeprefix("python")
    words = [f"DESTDIR={tree}", f"PYTHON={sys.executable}", "ENABLE=yes"]
    if guest != f"{sys.version_info.major}.{sys.version_info.minor}":
        words.append(f"PIP_FLAGS=--python-version {guest} --only-binary=:all:")
    run(["make", "-C", PROJECT, "install", *words], env=environment())
    code = "/usr/lib/bascule/python"
    run(
        [
            "chroot",
            tree,
            "python3",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            code,
        ]
    )


def _configure(tree: Path, keys: Path, boot: str) -> None:
    def put(path: str, text: str, mode: int = 0o644) -> None:
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(mode)

    lasting = "/" if boot in SLOT_IS_USR else "/var"
    mounts = f"/dev/nvme0n1p5 {lasting} ext4 defaults 0 0\ntmpfs /tmp tmpfs mode=1777 0 0\n"
    put("etc/machine-id", "0f0b5c7d3c2a4b1f9e8d7c6b5a493827\n")
    put("etc/hostname", "trial\n")
    put(
        "etc/systemd/network/10-any.network",
        "[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    )
    put(
        "etc/systemd/system.conf.d/10-watchdog.conf",
        "[Manager]\nRuntimeWatchdogSec=90s\nDefaultTimeoutStopSec=20s\n",
    )
    put(
        "etc/systemd/journald.conf.d/10-volatile.conf",
        "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n",
    )
    for name, unit in (("shell", "boot-test-shell"), ("myapp", "myapp")):
        text = (HERE / f"guest/{name}.service").read_text()
        put(f"usr/lib/systemd/system/{unit}.service", text)
    put("usr/lib/boot-test/shell", (HERE / "guest/shell").read_text(), 0o755)
    put("usr/lib/boot-test/myapp", "exec sleep infinity\n", 0o755)
    put("usr/share/flatcar/release", release_file("1.0.0"))
    settings = SETTINGS
    if boot == "systemd-boot":
        settings += SYSTEMD_BOOT
        (tree / "efi").mkdir(exist_ok=True)
        mounts += "/dev/nvme0n1p1 /efi vfat umask=0077 0 0\n"
    elif boot == "flatcar":
        settings = settings.replace('kernel = "none"\n', "")
        mounts += "/dev/nvme0n1p1 /boot vfat umask=0077 0 0\n"
    elif boot == "usr":
        # initramfs-tools takes /usr from the root's own table; dracut from the command line.
        mounts += "/dev/bascule/slot /usr ext4 ro 0 0\n"
    put("etc/fstab", mounts)
    put("etc/bascule/bascule.toml", settings)
    # In the lower layer, where a release may bring its own.
    put("usr/lib/bascule/bascule.toml", '[health]\ndeadline = "5m"\n')
    # What differs from run to run is on the state partition, so that the images do not.
    link = tree / "etc/bascule/bascule.toml.d/90-server.toml"
    link.symlink_to("/var/lib/boot-test/server.toml")
    shutil.copytree(keys, tree / "usr/share/bascule/keys", dirs_exist_ok=True)
    for unit in MASKED:
        link = tree / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    units = ("boot-test-shell.service", "myapp.service", "systemd-networkd.service")
    run(["systemctl", "--quiet", f"--root={tree}", "enable", *units])
    for path in ("etc/.updated", "var/.updated"):
        put(path, "")


def release_file(version: str) -> str:
    """Flatcar's release file, from which the agent knows what it runs."""
    return (
        f"FLATCAR_RELEASE_VERSION={version}\nFLATCAR_RELEASE_BOARD=amd64-usr\n"
        "FLATCAR_RELEASE_APPID={e96281a6-d1af-4bde-9a0a-97b76e56dc57}\n"
    )


def release(base: Path, version: str, changes: Mapping[str, tuple[str, int] | None]) -> Path:
    """A further release: the first one with its version and `changes`."""
    everything = {"usr/share/flatcar/release": (release_file(version), 0o644), **changes}
    boot = base.stem.removeprefix("first-").rpartition("-")[0]
    if boot in SLOT_IS_USR:
        if outside := [path for path in everything if not path.startswith("usr/")]:
            raise CannotBuild(f"{outside} are not in a slot that holds /usr")
        everything = {path.removeprefix("usr/"): change for path, change in everything.items()}
    key = digest(base.name, repr(sorted(everything.items())))
    image = base.with_name(f"release-{boot}-{version}-{key}.ext4")
    if image.exists():
        return image
    for old in CACHE.glob(f"release-{boot}-{version}-*"):
        old.unlink()
    fresh = image.with_suffix(".new")
    run(["cp", "--sparse=always", "--reflink=auto", base, fresh])
    edit(fresh, 0, everything)
    fresh.rename(image)
    return image


def edit(image: Path, offset: int, changes: Mapping[str, tuple[str, int] | None]) -> None:
    """Write, replace and remove files in an ext file system without mounting it."""
    folder = image.with_suffix(".edit")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    commands: list[str] = []
    for number, (path, change) in enumerate(sorted(changes.items())):
        commands += [
            f"mkdir /{parent}" for parent in reversed(list(map(str, Path(path).parents))[:-1])
        ]
        commands.append(f"rm /{path}")
        if change is not None:
            text, mode = change
            source = folder / str(number)
            source.write_text(text)
            source.chmod(mode)
            commands.append(f"write {source} /{path}")
            commands.append(f"set_inode_field /{path} mode {0o100000 | mode:o}")
    script = folder / "commands"
    # debugfs reads a leading zero as octal.
    script.write_text("\n".join(c.replace(" mode 1", " mode 01") for c in commands) + "\n")
    run(["debugfs", "-w", "-f", script, f"{image}?offset={offset}" if offset else image])
    shutil.rmtree(folder)


DRACUT = (
    "bascule base rootfs-block udev-rules systemd systemd-initrd dracut-systemd fs-lib shutdown"
)
"""What a host's own dracut configuration comes to, on the smallest machine."""


def maker_of(boot: str) -> str:
    """Who makes the initrd of a machine; "" for a machine that has none."""
    others = {"dracut": "dracut", "usr-dracut": "dracut", "flatcar": "dracut", "systemd-boot": ""}
    return others.get(boot, "initramfs-tools")


def initrd(maker: str) -> Path:
    """An initrd with the project's own slot selector, made by ``initramfs-tools`` or ``dracut``."""
    base = base_tree()
    pieces = PROJECT / "systemd" / "initrd"
    key = digest(base.name, pieces, HERE / "guest" / "arm-watchdog", DRACUT, "2")
    archive = CACHE / f"initrd-{maker}-{key}.img"
    if archive.exists():
        return archive
    print(f"test-boot: making the initrd with {maker}", flush=True)
    for old in CACHE.glob(f"initrd-{maker}-*.img"):
        old.unlink()
    tree = CACHE / "initrd.new"
    shutil.rmtree(tree, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", base, tree])
    static = "yes" if maker == "initramfs-tools" else "no"
    run(["make", "-C", pieces, "install", f"DESTDIR={tree}", f"STATIC={static}"], env=environment())
    if maker == "dracut":
        # dracut wants /proc and /dev; a mount namespace of its own leaves nothing behind.
        build = (
            f"mount --bind /proc {tree}/proc && mount --bind /dev {tree}/dev && exec chroot {tree} "
            f"dracut --force --no-hostonly --no-early-microcode --gzip --modules '{DRACUT}' "
            f"--kver {kernel_version(tree)} /slot-initrd"
        )
        run(["unshare", "--mount", "--propagation", "private", "sh", "-c", build])
        (tree / "slot-initrd").rename(archive)
        shutil.rmtree(tree)
        return archive
    settings = tree / "etc/initramfs-tools"
    (settings / "initramfs.conf").write_text("MODULES=list\nBUSYBOX=auto\nCOMPRESS=gzip\n")
    (settings / "modules").write_text("softdog\n")
    shutil.copy(HERE / "guest/arm-watchdog", settings / "scripts/init-premount/arm-watchdog")
    (settings / "scripts/init-premount/arm-watchdog").chmod(0o755)
    run(["chroot", tree, "mkinitramfs", "-o", "/slot-initrd", kernel_version(tree)])
    (tree / "slot-initrd").rename(archive)
    shutil.rmtree(tree)
    return archive


def environment() -> dict[str, str]:
    """Ours, without what a make above us left in it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}


GPT_ENTRY = "loader/entries/bascule.conf"


def usr_words(usr: str) -> str:
    """The command line of a machine whose slot is /usr, as Flatcar's GRUB writes it."""
    return (
        "root=/dev/nvme0n1p5 rootfstype=ext4 rootflags=rw "
        f"mount.usr={usr} mount.usrfstype=ext4 mount.usrflags=ro"
    )


def entry(slot: str, root: str = "", more: str = "") -> str:
    """A boot loader entry: of one slot, or the GPT machine's only one where `slot` is empty."""
    if not slot:
        root = root or "root=/dev/bascule/slot rootfstype=ext4"
        return (
            "title Bascule\nlinux /vmlinuz\ninitrd /initrd.img\n"
            f"options {root} fsck.mode=skip {KERNEL_WORDS} {more}\n"
        )
    return (
        f"title Slot {slot}\nsort-key bascule-{slot.lower()}\nlinux /slot-{slot.lower()}/vmlinuz\n"
        f"options root=PARTUUID={root} {KERNEL_WORDS}\n"
    )


def disk(target: Path, first: Path, boot: str) -> None:
    """A whole disk whose slot A holds `first`, blessed, and whose slot B is empty.

    Args:
        boot: ``gpt``: an initrd of initramfs-tools chooses by partition attributes; ``dracut``: one of
            dracut; ``usr``, ``usr-dracut``: the same, and the slot is /usr;
            ``systemd-boot``: the loader chooses by its entries;
            ``flatcar``: whoever powers on chooses slot and kernel, see `choose`; the slot is /usr.
    """
    tree = base_tree()
    target.unlink(missing_ok=True)
    run(["truncate", "-s", f"{DISK_MIB}M", target])
    run(
        [
            *("sgdisk", "-a", "1", "-o"),
            *("-n", f"1:{START['esp']}M:+{ESP_MIB}M", "-t", "1:ef00", "-c", "1:EFI-SYSTEM"),
            *("-n", f"3:{START['a']}M:+{SLOT_MIB}M", "-t", f"3:{TYPE_GUID}", "-c", "3:USR-A"),
            *("-n", f"4:{START['b']}M:+{SLOT_MIB}M", "-t", f"4:{TYPE_GUID}", "-c", "4:USR-B"),
            *("-n", f"5:{START['state']}M:+{STATE_MIB - 1}M", "-t", "5:8300", "-c", "5:STATE"),
            *("-u", f"3:{GUIDS['A']}", "-u", f"4:{GUIDS['B']}"),
            target,
        ]
    )
    run(["cgpt", "add", "-i", "3", "-P", "1", "-T", "0", "-S", "1", target])
    run(["dd", f"if={first}", f"of={target}", "bs=1M", f"seek={START['a']}", "conv=notrunc,sparse"])
    run(
        [
            *("dd", f"if={first.with_suffix('.state')}", f"of={target}", "bs=1M"),
            *(f"seek={START['state']}", "conv=notrunc,sparse"),
        ]
    )
    _esp(target, tree, boot)


def _esp(target: Path, tree: Path, boot: str) -> None:
    esp = target.with_suffix(".esp")
    run(["truncate", "-s", f"{ESP_MIB}M", esp])
    run(["mkfs.vfat", "-F", "32", "-n", "ESP", esp])
    first_kernel = kernel()
    loader = tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    for folder in ("EFI", "EFI/BOOT", "EFI/systemd", "EFI/Linux", "loader", "loader/entries"):
        run(["mmd", "-i", esp, f"::{folder}"])
    copies: list[tuple[Path | str, str]] = [
        (loader, "EFI/BOOT/BOOTX64.EFI"),
        ("timeout 0\neditor no\n", "loader/loader.conf"),
    ]
    maker = maker_of(boot)
    if boot == "flatcar":
        run(["mmd", "-i", esp, "::flatcar"])
        copies += [(first_kernel, "flatcar/vmlinuz-a"), (initrd(maker), "initrd.img")]
    elif boot != "systemd-boot":
        root = usr_words("/dev/bascule/slot") if boot in SLOT_IS_USR else ""
        copies += [
            (first_kernel, "vmlinuz"),
            (initrd(maker), "initrd.img"),
            (entry("", root), GPT_ENTRY),
        ]
    else:
        run(["mmd", "-i", esp, "::slot-a", "::slot-b"])
        copies += [
            (loader, "EFI/systemd/systemd-bootx64.efi"),
            (first_kernel, "slot-a/vmlinuz"),
            (first_kernel, "slot-b/vmlinuz"),
            (entry("A", GUIDS["A"]), "loader/entries/slot-a.conf"),
            (entry("B", GUIDS["B"]), "loader/entries/slot-b.conf.cleared"),
        ]
    scratch = target.with_suffix(".file")
    for source, path in copies:
        if isinstance(source, str):
            scratch.write_text(source)
        run(["mcopy", "-o", "-i", esp, scratch if isinstance(source, str) else source, f"::{path}"])
    scratch.unlink(missing_ok=True)
    run(["dd", f"if={esp}", f"of={target}", "bs=1M", f"seek={START['esp']}", "conv=notrunc,sparse"])
    esp.unlink()


def kernel(version: str = "") -> Path:
    """The kernel of a release: each has its own bytes, for what stands behind a kernel's end is idle."""
    first = next((base_tree() / "boot").glob("vmlinuz-*"))
    if not version:
        return first
    own = CACHE / f"vmlinuz-{version}-{digest(first.name, version)}"
    own.write_bytes(first.read_bytes() + f"release {version}\n".encode())
    return own


def choose(target: Path) -> None:
    """What Flatcar's GRUB does at power-on, re-enacted from outside: choose a slot by the table,
    spend its try, and start the kernel of that slot from /flatcar on the EFI system partition.
    """
    number = firmware.choose(target, type_guid=TYPE_GUID)
    slot = next((slot for slot, index in INDEX.items() if index == number), None)
    if slot is None:
        raise CannotBuild("the table has no slot to boot")
    text = (
        f"title Flatcar {slot}\nlinux /flatcar/vmlinuz-{slot.lower()}\ninitrd /initrd.img\n"
        f"options {usr_words(f'PARTUUID={GUIDS[slot]}')} {KERNEL_WORDS}\n"
    )
    put_on_esp(target, GPT_ENTRY, text)


def read_from_esp(target: Path, path: str) -> bytes:
    """A file on the EFI system partition of a machine that is off."""
    scratch = target.with_suffix(".file")
    run(["mcopy", "-o", "-n", "-i", f"{target}@@{START['esp']}M", f"::{path}", scratch])
    data = scratch.read_bytes()
    scratch.unlink()
    return data


def put_on_esp(target: Path, path: str, text: str) -> None:
    """Replace a file on the EFI system partition of a machine that is off."""
    scratch = target.with_suffix(".file")
    scratch.write_text(text)
    run(["mcopy", "-o", "-i", f"{target}@@{START['esp']}M", scratch, f"::{path}"])
    scratch.unlink()


def attributes(target: Path) -> dict[str, tuple[int, int, int]]:
    """Slot → (priority, tries, successful), as cgpt sees them from outside."""
    return {
        slot: (
            int(run(["cgpt", "show", "-i", str(index), "-P", target])),
            int(run(["cgpt", "show", "-i", str(index), "-T", target])),
            int(run(["cgpt", "show", "-i", str(index), "-S", target])),
        )
        for slot, index in INDEX.items()
    }


def files_on_esp(target: Path) -> Iterable[str]:
    """Names of the boot loader entries."""
    listed = run(["mdir", "-b", "-i", f"{target}@@{START['esp']}M", "::loader/entries"])
    return [line.rpartition("/")[2] for line in listed.split() if line]
