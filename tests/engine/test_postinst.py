"""The new image's own step: real file systems, mounted for real where this machine lets us."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bascule.engine.postinst import NotThere, Ran, environment_of, recognise, run_postinst
from bascule.engine.region import Region
from bascule.errors import PostinstallFailed

SIZE = 16 << 20


def can_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("mke2fs") or not Path("/dev/loop-control").exists():
        return False
    return subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


needs_root = pytest.mark.skipif(not can_mount(), reason="needs root, loop devices and mke2fs")
pytestmark = pytest.mark.root


def ext4(path: Path, tree: Path, size: int = SIZE) -> None:
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-F", str(path), f"{size >> 10}k"],
        check=True,
    )


MAKERS = {
    "ext2": ["mke2fs", "-q", "-t", "ext2", "-d", "{tree}", "-F", "{image}", "16384k"],
    "ext4": ["mke2fs", "-q", "-t", "ext4", "-d", "{tree}", "-F", "{image}", "16384k"],
    "btrfs": ["mkfs.btrfs", "-q", "-r", "{tree}", "{image}"],
    "squashfs": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress"],
    "erofs": ["mkfs.erofs", "{image}", "{tree}"],
}
KERNEL_NAMES = {"ext2": "ext4", "ext4": "ext4"}


class Hook:
    """An image under construction."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.tree.mkdir()
        self.image = folder / "image"
        self.lines: list[str] = []

    def write(self, body: str, mode: int = 0o755, name: str = "postinst") -> None:
        file = self.tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body)
        file.chmod(mode)

    async def run(self, region: Region | None = None, **more: object) -> Ran | NotThere:
        options: dict[str, object] = {
            "environ": os.environ,
            "timeout": 120,
            "on_line": self.lines.append,
        }
        options.update(more)
        return await run_postinst(region or Region(self.image), **options)  # type: ignore[arg-type]


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


@needs_root
@pytest.mark.parametrize("kind", MAKERS)
async def test_every_file_system(hook: Hook, kind: str) -> None:
    maker = MAKERS[kind]
    if not shutil.which(maker[0]):
        pytest.skip(f"{maker[0]} is not installed")
    known = Path("/proc/filesystems").read_text().split()
    if KERNEL_NAMES.get(kind, kind) not in known:
        pytest.skip(f"this kernel has no {kind}")
    hook.write('#!/bin/sh\necho "at $0"\ntouch "${0%/*}/x" 2>/dev/null && exit 9\nexit 0\n')
    if kind == "btrfs":
        hook.image.touch()
        os.truncate(hook.image, 128 << 20)
    words = [w.format(tree=hook.tree, image=hook.image) for w in maker]
    subprocess.run(words, check=True, capture_output=True)
    before = hook.image.read_bytes()
    done = await hook.run()
    assert isinstance(done, Ran)
    assert hook.lines[0].startswith("at /")
    assert hook.image.read_bytes() == before


@needs_root
async def test_contract(hook: Hook) -> None:
    hook.write('#!/bin/sh\nfor a in "$@"; do echo "arg $a"; done\nenv\n')
    ext4(hook.image, hook.tree)
    environ = {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": "/x",
        "HOME": "/root",
        "SECRET": "1",
        "NOTIFY_SOCKET": "/run/x",
        "https_proxy": "http://p:1",
        "NO_PROXY": "a b",
        "HTTP_PROXY": "http://q",
    }
    await hook.run(device="/dev/vda4", kernel="/boot/flatcar/vmlinuz-b", environ=environ)
    assert hook.lines[:2] == ["arg /dev/vda4", "arg KERNEL=/boot/flatcar/vmlinuz-b"]
    seen = {line.partition("=")[0] for line in hook.lines[2:]}
    assert seen - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "LD_LIBRARY_PATH",
        "https_proxy",
        "NO_PROXY",
        "HTTP_PROXY",
    }


def test_environment() -> None:
    assert environment_of({"HOME": "/", "ALL_PROXY": "x", "no_proxy": "y"}).keys() == {
        "PATH",
        "ALL_PROXY",
        "no_proxy",
    }


@needs_root
async def test_failure_tells_status_and_last_words(hook: Hook) -> None:
    hook.write(
        "#!/bin/sh\nfor i in $(seq 100); do echo line $i; done\nprintf 'no newline'\nexit 3\n"
    )
    ext4(hook.image, hook.tree)
    with pytest.raises(PostinstallFailed, match=r"exit status 3.*no newline") as caught:
        await hook.run()
    assert caught.value.number == 5
    assert caught.value.context["status"] == 3
    assert caught.value.context["lines"][-1] == "no newline"
    assert len(caught.value.context["lines"]) == 20
    assert len(hook.lines) == 101


@needs_root
async def test_image_without_one(hook: Hook) -> None:
    hook.write("x", name="etc/passwd")
    ext4(hook.image, hook.tree)
    assert await hook.run() == NotThere("the image has none")


@needs_root
async def test_not_executable(hook: Hook) -> None:
    hook.write("#!/bin/sh\n", 0o644)
    ext4(hook.image, hook.tree)
    with pytest.raises(PostinstallFailed, match="not executable"):
        await hook.run()


@needs_root
async def test_other_program_and_hostile_paths(hook: Hook) -> None:
    hook.write("#!/bin/sh\necho other\n", name="usr/lib/hook")
    ext4(hook.image, hook.tree)
    assert await hook.run(program="/usr/lib/hook") == Ran(("other",))
    for path in ("../../bin/true", "", "a/../../b", "a\nb"):
        with pytest.raises(PostinstallFailed, match="no path"):
            await hook.run(program=path)


@needs_root
async def test_region_inside_a_disk_image(hook: Hook, tmp_path: Path) -> None:
    hook.write("#!/bin/sh\necho inside\n")
    ext4(hook.image, hook.tree)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.write(b"\xa5" * (1 << 20))
        file.write(hook.image.read_bytes())
        file.write(b"\xa5" * (1 << 20))
    before = disk.read_bytes()
    done = await hook.run(Region(disk, 1 << 20, SIZE))
    assert done == Ran(("inside",))
    assert disk.read_bytes() == before


def test_unknown_contents(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\0" * 100)
    assert recognise(Region(image)) is None
    image.write_bytes(b"hsqs" + b"\0" * 4096)
    found = recognise(Region(image))
    assert found is not None
    assert found.name == "squashfs"
    assert recognise(Region(image, 0, 2)) is None


async def test_unknown_contents_have_no_step(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(4096))
    done = await run_postinst(Region(image), environ={}, timeout=60, on_line=print)
    assert isinstance(done, NotThere)


@needs_root
async def test_broken_file_system_fails(hook: Hook) -> None:
    hook.image.write_bytes(b"\0" * 1080 + b"\x53\xef" + b"\0" * 65536)
    with pytest.raises(PostinstallFailed, match="cannot be mounted"):
        await hook.run()


def loops(image: Path) -> bool:
    found = subprocess.run(
        ["losetup", "-j", str(image)], capture_output=True, text=True, check=True
    )
    return found.stdout != ""


async def unmounted(hook: Hook, word: str) -> None:
    while loops(hook.image) or any(hook.image.parent.glob("postinst-*")):
        await asyncio.sleep(0.02)


@needs_root
async def test_timeout_kills_and_unmounts(hook: Hook, tmp_path: Path) -> None:
    hook.write("#!/bin/sh\ntrap '' TERM\necho begun\nsleep 1000\n")
    ext4(hook.image, hook.tree)
    with pytest.raises(PostinstallFailed, match="did not end within"):
        await hook.run(timeout=1.0, mount_parent=tmp_path)
    await unmounted(hook, "postinst-")


@needs_root
async def test_cancelling_kills_and_unmounts(hook: Hook, tmp_path: Path) -> None:
    hook.write("#!/bin/sh\necho begun\nsleep 1000 &\nwait\n")
    ext4(hook.image, hook.tree)
    task = asyncio.create_task(hook.run(mount_parent=tmp_path))
    while not hook.lines:
        await asyncio.sleep(0.01)
    assert loops(hook.image)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await unmounted(hook, "postinst-")


@needs_root
async def test_flood_is_bounded(hook: Hook) -> None:
    hook.write("#!/bin/sh\nhead -c 3000000 /dev/zero\necho\nprintf 'a\\033[31mb\\n'\n")
    ext4(hook.image, hook.tree)
    done = await hook.run()
    assert isinstance(done, Ran)
    assert max(len(line) for line in hook.lines) <= 4096
    assert hook.lines[-1] == "a?[31mb"


@needs_root
async def test_unclean_journal_is_not_replayed(hook: Hook) -> None:
    """A slot that is proven stays bit for bit what was proven, even with a journal to replay."""
    hook.write("#!/bin/sh\necho ok\n")
    ext4(hook.image, hook.tree)
    subprocess.run(
        ["debugfs", "-w", "-R", "feature needs_recovery", str(hook.image)],
        check=True,
        capture_output=True,
    )
    before = hook.image.read_bytes()
    assert await hook.run() == Ran(("ok",))
    assert hook.image.read_bytes() == before
