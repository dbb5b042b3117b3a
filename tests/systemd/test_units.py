"""The units as `make install` lays them out: systemd's own opinion, orderings, sandbox."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bascule.settings import load

sys.path.insert(0, str(Path(__file__).resolve().parent))

import figures
from figures import README

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "systemd" / "system"
NAMES = sorted(p.name for p in UNITS.iterdir() if p.is_file())
HOST_UNITS = Path("/usr/lib/systemd/system")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not HOST_UNITS.is_dir(),
    reason="systemd-analyze or systemd's own units are missing",
)


def make(target: str, destination: Path, *words: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(
        ["make", "--no-print-directory", target, f"DESTDIR={destination}", *words],
        cwd=PROJECT,
        env=environment,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image tree with systemd's own units, ours, and a stand-in for the program."""
    root = tmp_path_factory.mktemp("tree")
    if HOST_UNITS.is_dir():
        shutil.copytree(
            HOST_UNITS, root / "usr/lib/systemd/system", symlinks=True, dirs_exist_ok=True
        )
    make("install-parts", root)
    program = root / "usr/bin/bascule"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return root


@needs_analyze
def test_verify_has_nothing_to_say(tree: Path) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            f"--root={tree}",
            "--man=no",
            "--recursive-errors=no",
            *NAMES,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "bascule" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@needs_analyze
def test_enabled_units_make_no_cycle(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(tree, root, symlinks=True)
    subprocess.run(
        ["systemctl", "--quiet", f"--root={root}", "preset", *enableable()],
        check=True,
        capture_output=True,
    )
    wanted = root / "etc/systemd/system"
    assert (wanted / "update-engine.service").is_symlink()
    assert (wanted / "boot-complete.target.requires/bascule-health.service").is_symlink()
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "multi-user.target"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cycle" not in done.stderr, done.stderr


def enableable() -> list[str]:
    return [n for n in NAMES if "[Install]" in (UNITS / n).read_text()]


def test_preset_enables_what_can_be_enabled() -> None:
    preset = (PROJECT / "systemd/system-preset/80-bascule.preset").read_text()
    assert sorted(re.findall(r"^enable (\S+)$", preset, re.M)) == enableable()


@needs_analyze
def test_exposure_of_the_daemon_does_not_grow() -> None:
    unit = str(UNITS / "bascule.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=34", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@needs_analyze
def test_every_exception_of_the_sandbox_has_its_reason() -> None:
    """Whatever systemd misses in the daemon's unit is named in a comment of that unit."""
    unit = UNITS / "bascule.service"
    comments = " ".join(re.findall(r"^#(.*)$", unit.read_text(), re.M))
    unexplained = []
    for row in figures.exposure(unit)[2]:
        words = re.findall(r"[A-Za-z]{3,}", row["name"].partition("=~")[2] or row["name"])
        told = [w for w in words if w not in ("CAP", "SYS", "AF") and w in comments]
        if not told:
            unexplained.append(row["name"])
    assert unexplained == []


@needs_analyze
def test_the_readme_has_the_figures() -> None:
    text = README.read_text()
    region = figures.REGION.search(text)
    assert region
    measured = re.search(r"\(systemd (\d+)\)", region[0])
    assert measured
    for name in figures.REASONS:
        assert name in region[0]
    assert sorted(figures.REASONS) == [n for n in NAMES if n.endswith(".service")]
    if measured[1] != figures.version():
        pytest.skip(f"the figures are systemd {measured[1]}'s")
    assert figures.table() in region[0], "run tests/systemd/figures.py --write"


def test_every_service_names_the_program_of_its_prefix(tmp_path: Path) -> None:
    make("install-parts", tmp_path, "PREFIX=/opt/b")
    for unit in (tmp_path / "opt/b/lib/systemd/system").glob("*.service"):
        starts = re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.M)
        assert starts == ["/opt/b/bin/bascule"], unit
    entry = tmp_path / "opt/b/sbin/flatcar-setgoodroot"
    assert os.access(entry, os.X_OK)
    assert "exec /opt/b/bin/bascule bless" in entry.read_text()


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    make("install-parts", tmp_path)
    make("uninstall", tmp_path)
    assert [str(p) for p in tmp_path.rglob("*") if p.is_file()] == []


def test_late_key_mounts_are_seen() -> None:
    text = (UNITS / "bascule.service").read_text()
    assert re.search(r"^MountFlags=slave$", text, re.M)
    assert not re.search(r"^(InaccessiblePaths|TemporaryFileSystem|RootDirectory)=", text, re.M)


def test_blessing_does_not_need_the_daemon() -> None:
    for name in ("bascule-bless.service", "bascule-health.service", "bascule-deadman.service"):
        text = (UNITS / name).read_text()
        assert not re.search(r"^(Requires|BindsTo|After|Wants)=.*bascule\.service", text, re.M)
    bless = (UNITS / "bascule-bless.service").read_text()
    assert "RefuseManualStart=yes" in bless
    assert "Requires=boot-complete.target" in bless


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "systemd/examples").glob("*.toml")), ids=lambda p: p.name
)
def test_examples_are_valid_settings(path: Path, tmp_path: Path) -> None:
    assert load(tmp_path, [path]).origins


def test_systemds_own_blessing_waits_for_ours() -> None:
    """Else systemd-boot's entry is good before the soak is over, and where we refuse."""
    drop_in = UNITS / "systemd-bless-boot.service.d/10-bascule.conf"
    lines = drop_in.read_text().splitlines()
    assert {"Requires=bascule-bless.service", "After=bascule-bless.service"} <= set(lines)
