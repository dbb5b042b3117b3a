"""`make install` from a clean checkout: every file where it belongs, running, and gone again."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

LAYOUT = """
/etc/update-motd.d/60-bascule
/usr/bin/bascule
/usr/bin/update_engine_client
/usr/bin/updatectl
/usr/lib/bascule/bascule-select
/usr/lib/bascule/bascule-slot
/usr/lib/dracut/modules.d/90bascule/bascule-select.service
/usr/lib/dracut/modules.d/90bascule/bascule-slot
/usr/lib/dracut/modules.d/90bascule/choose-slot.sh
/usr/lib/dracut/modules.d/90bascule/module-setup.sh
/usr/lib/systemd/catalog/bascule.catalog
/usr/lib/systemd/system-preset/80-bascule.preset
/usr/lib/systemd/system/bascule-bless.service
/usr/lib/systemd/system/bascule-deadman.service
/usr/lib/systemd/system/bascule-deadman.timer
/usr/lib/systemd/system/bascule-giveup.service
/usr/lib/systemd/system/bascule-health.service
/usr/lib/systemd/system/bascule.service
/usr/lib/systemd/system/systemd-bless-boot.service.d/10-bascule.conf
/usr/lib/tmpfiles.d/bascule.conf
/usr/sbin/flatcar-setgoodroot
/usr/share/bash-completion/completions/updatectl
/usr/share/dbus-1/interfaces/org.bascule.Update1.xml
/usr/share/dbus-1/system.d/com.coreos.update1.conf
/usr/share/dbus-1/system.d/org.bascule.Update1.conf
/usr/share/doc/bascule/examples/ab-gpt.toml
/usr/share/doc/bascule/examples/flatcar.toml
/usr/share/doc/bascule/examples/systemd-boot.toml
/usr/share/fish/vendor_completions.d/updatectl.fish
/usr/share/initramfs-tools/hooks/bascule
/usr/share/initramfs-tools/scripts/local-top/bascule
/usr/share/man/man8/bascule.8
/usr/share/man/man8/update_engine_client.8
/usr/share/man/man8/updatectl.8
/usr/share/polkit-1/actions/org.bascule.Update1.policy
/usr/share/zsh/site-functions/_updatectl
"""
LAID_OUT = LAYOUT.split()
"""Everything but the package itself, as design §2 and §10 and the systems' own conventions want it.

Deliberately a list: what is laid out is a promise to whoever builds an image.
"""

RUN_BY_HAND_OR_BY_OTHERS = {
    "/etc/update-motd.d/60-bascule",
    "/usr/bin/bascule",
    "/usr/bin/update_engine_client",
    "/usr/bin/updatectl",
    "/usr/lib/bascule/bascule-select",
    "/usr/lib/bascule/bascule-slot",
    "/usr/lib/dracut/modules.d/90bascule/bascule-slot",
    "/usr/lib/dracut/modules.d/90bascule/choose-slot.sh",
    "/usr/lib/dracut/modules.d/90bascule/module-setup.sh",
    "/usr/sbin/flatcar-setgoodroot",
    "/usr/share/initramfs-tools/hooks/bascule",
    "/usr/share/initramfs-tools/scripts/local-top/bascule",
}
OPERATORS = {"etc/bascule/bascule.toml.d", "etc/bascule/health.d", "usr/lib/bascule/health.d"}


def make(checkout: Path, target: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", target, *words],
        cwd=checkout, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows of this checkout, and nothing that was made in it."""
    if not (PROJECT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tree = tmp_path_factory.mktemp("image")
    enable = ["ENABLE=yes"] if shutil.which("systemctl") else []
    return [f"DESTDIR={tree}", f"PYTHON={sys.executable}", f"INTERPRETER={sys.executable}",
            "WITH_DEPS=no", "INITRD=yes", *enable]  # fmt: skip


@pytest.fixture(scope="module")
def image(checkout: Path, words: list[str]) -> Path:
    if not shutil.which("cc"):
        pytest.skip("the slot selector needs a C compiler")
    done = make(checkout, "install", *words)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("pip cannot get the build backend here")
    assert done.returncode == 0, done.stderr
    return Path(words[0].partition("=")[2])


def files(image: Path) -> list[str]:
    package = image / "usr/lib/bascule/python"
    return sorted(
        f"/{p.relative_to(image)}"
        for p in image.rglob("*")
        if p.is_file() and not p.is_symlink() and not p.is_relative_to(package)
    )


def test_every_file_is_where_it_belongs(image: Path) -> None:
    assert files(image) == LAID_OUT
    for name in LAID_OUT:
        mode = stat.S_IMODE((image / name[1:]).stat().st_mode)
        assert mode == (0o755 if name in RUN_BY_HAND_OR_BY_OTHERS else 0o644), name
    for name in OPERATORS:
        assert (image / name).is_dir()


def test_the_package_is_whole_and_alone(image: Path, checkout: Path) -> None:
    package = image / "usr/lib/bascule/python"
    assert {p.name.partition("-")[0] for p in package.iterdir()} == {"bascule"}
    source = checkout / "agent/bascule"
    for path in source.rglob("*.py"):
        assert (package / "bascule" / path.relative_to(source)).is_file()


@pytest.mark.parametrize(
    ("program", "says", "code"),
    [
        ("bascule", "usage: bascule", 0),
        ("updatectl", "updatectl", 0),
        # As the original's own, whose help is a failure.
        ("update_engine_client", "-status", 1),
    ],
)
def test_the_programs_run_from_where_they_were_laid(
    image: Path, program: str, says: str, code: int
) -> None:
    """Their path is the one of the image, so it is replaced for a look from outside."""
    text = (image / "usr/bin" / program).read_text()
    assert text.startswith(f"#!{sys.executable} -I\n")
    assert text.count("/usr/lib/bascule/python") == 2
    moved = image.parent / f"{program}.moved"
    moved.write_text(text.replace("/usr/lib/bascule", f"{image}/usr/lib/bascule"))
    done = subprocess.run(
        [sys.executable, "-I", str(moved), "--help"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is missing")
def test_enabled_means_linked(image: Path) -> None:
    links = {
        f"/{p.relative_to(image / 'etc/systemd/system')}"
        for p in image.rglob("*")
        if p.is_symlink()
    }
    assert links == {
        "/boot-complete.target.requires/bascule-health.service",
        "/multi-user.target.wants/bascule-bless.service",
        "/multi-user.target.wants/bascule.service",
        "/sysinit.target.wants/bascule-deadman.timer",
        "/update-engine.service",
    }


def test_uninstall_leaves_the_operators_own(image: Path, checkout: Path, words: list[str]) -> None:
    own = image / "etc/bascule/bascule.toml"
    own.write_text("[server]\n")
    done = make(checkout, "uninstall", *words)
    assert done.returncode == 0, done.stderr
    assert files(image) == ["/etc/bascule/bascule.toml"]
    assert [p for p in image.rglob("*") if p.is_symlink()] == []
    assert not (image / "usr/lib/bascule/python").exists()
