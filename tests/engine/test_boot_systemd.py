"""The systemd-boot backend on a folder that plays the ESP, with a loader re-enacted beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bascule.engine.boot import open_backend
from bascule.engine.boot.loader_variables import LoaderVariables
from bascule.engine.boot.systemd_boot import SystemdBootBackend
from bascule.engine.layout import Layout
from bascule.errors import (
    BlessRefused,
    BootedSlotNotBlessed,
    NotPermitted,
    SettingsError,
    SlotNotBootable,
    SlotsNotFound,
    StorageError,
    UsageError,
    WouldTouchBootedSlot,
)
from bascule.formats.slots import BootFlags, Slot

VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def verified(slot: Slot | None) -> Any:
    return SimpleNamespace(slot=slot)


class Firmware:
    """systemd-boot's part, in a few lines of its own: choose, count, clear the one-shot."""

    def __init__(self, esp: Path, variables: Path) -> None:
        self.esp, self.variables = esp, variables

    def variable(self, name: str) -> str | None:
        path = self.variables / f"{name}-{VENDOR}"
        return path.read_bytes()[4:].decode("utf-16-le").rstrip("\0") if path.exists() else None

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.esp / "loader/entries").iterdir())

    def power_on(self) -> str:
        """The id that is booted."""
        names = [n for n in self.files() if n.endswith(".conf") and not n.startswith(".")]
        pattern = re.compile(r"(.+?)(?:\+(\d+)(?:-(\d+))?)?\.conf")
        found = []
        for name in names:
            match = pattern.fullmatch(name)
            assert match
            text = (self.esp / "loader/entries" / name).read_text()
            key = re.search(r"^sort-key (.*)$", text, re.M)
            found.append((f"{match[1]}.conf", match[2], match[3], name, key[1] if key else ""))
        # Later letters first, then sort keys upwards, those without a key last, spent ones last.
        found.sort(key=lambda f: f[0], reverse=True)
        found.sort(key=lambda f: (f[1] == "0", f[4] == "", f[4]))
        wanted = self.variable("LoaderEntryOneShot")
        (self.variables / f"LoaderEntryOneShot-{VENDOR}").unlink(missing_ok=True)
        chosen = found[0]
        for name in (wanted, self.variable("LoaderEntryDefault")):
            named = [f for f in found if f[0] == name]
            if named:
                chosen = named[0]
                break
        entry_id, left, done, file, _ = chosen
        if left is not None and int(left) > 0:
            after = f"{entry_id[:-5]}+{int(left) - 1}-{int(done or 0) + 1}.conf"
            (self.esp / "loader/entries" / file).rename(self.esp / "loader/entries" / after)
        return entry_id


@pytest.fixture
def firmware(tmp_path: Path) -> Firmware:
    entries = tmp_path / "efi/loader/entries"
    entries.mkdir(parents=True)
    for name in ("a", "b"):
        (entries / f"bascule-{name}.conf").write_text(
            f"title Slot {name}\nlinux /bascule/vmlinuz-{name}\noptions quiet\n"
        )
    (entries / "bascule-b.conf").rename(entries / "bascule-b.conf.cleared")
    (tmp_path / "efivars").mkdir()
    return Firmware(tmp_path / "efi", tmp_path / "efivars")


@pytest.fixture(params=["variables", "no variables"])
def host(firmware: Firmware, request: pytest.FixtureRequest) -> Firmware:
    """With a firmware that keeps variables, and with one that does not."""
    if request.param == "no variables":
        firmware.variables.rmdir()
    return firmware


def backend_on(firmware: Firmware, booted: Slot = Slot.A) -> SystemdBootBackend:
    return SystemdBootBackend(firmware.esp, booted, variables=LoaderVariables(firmware.variables))


GOOD, EMPTY = BootFlags(1, 0, True), BootFlags(0, 0, False)


def test_a_good_update(host: Firmware) -> None:
    backend = backend_on(host)
    assert backend.flags() == {Slot.A: GOOD, Slot.B: EMPTY}
    assert backend.clear(Slot.B).slot is Slot.B
    assert backend.next() is Slot.A
    backend.stage(verified(Slot.B), tries=3)
    assert host.files() == ["bascule-a.conf", "bascule-b+3.conf"]
    assert backend.flags() == {Slot.A: GOOD, Slot.B: BootFlags(2, 3, False)}
    assert backend.next() is Slot.B
    assert host.power_on() == "bascule-b.conf"
    assert host.files() == ["bascule-a.conf", "bascule-b+2-1.conf"]
    running = backend_on(host, Slot.B)
    assert running.flags()[Slot.B] == BootFlags(2, 2, False)
    with pytest.raises(BootedSlotNotBlessed, match="slot B is on trial: 2 tries left"):
        running.clear(Slot.A)
    running.bless(Slot.B)
    assert host.files() == ["bascule-a.conf", "bascule-b.conf"]
    for _ in range(3):
        assert host.power_on() == "bascule-b.conf"
    assert running.flags() == {Slot.A: GOOD, Slot.B: BootFlags(2, 0, True)}


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_bad_update_spends_its_tries_and_goes_back(host: Firmware, tries: int) -> None:
    backend = backend_on(host)
    backend.clear(Slot.B)
    backend.stage(verified(Slot.B), tries)
    booted = [host.power_on() for _ in range(tries + 2)]
    assert booted == ["bascule-b.conf"] * tries + ["bascule-a.conf"] * 2
    assert backend.flags()[Slot.B].bootable is False
    assert backend.next() is Slot.A
    backend.clear(Slot.B)
    assert host.files() == ["bascule-a.conf", "bascule-b.conf.cleared"]


def test_slots_take_turns_for_years(host: Firmware) -> None:
    booted = Slot.A
    for turn in range(8):
        backend = backend_on(host, booted)
        backend.bless(booted)
        other = booted.other
        backend.clear(other)
        backend.stage(verified(other), tries=2)
        assert host.power_on() == f"bascule-{other.value.lower()}.conf"
        if turn % 3 == 2:
            assert host.power_on() == f"bascule-{other.value.lower()}.conf"
            assert host.power_on() == f"bascule-{booted.value.lower()}.conf"
        else:
            booted = other
            backend_on(host, booted).bless(booted)


def test_the_running_entrys_file_is_not_touched_by_an_update(firmware: Firmware) -> None:
    running = firmware.esp / "loader/entries/bascule-a.conf"
    before = (running.stat().st_ino, running.read_bytes())
    backend = backend_on(firmware)
    backend.clear(Slot.B)
    backend.stage(verified(Slot.B))
    backend.cancel(Slot.B)
    assert (running.stat().st_ino, running.read_bytes()) == before


def test_cancel(host: Firmware) -> None:
    backend = backend_on(host)
    backend.stage(verified(Slot.B), tries=3)
    backend.cancel(Slot.B)
    assert host.files() == ["bascule-a.conf", "bascule-b.conf.cleared"]
    assert host.power_on() == "bascule-a.conf"


def test_rollback_by_hand_and_back(host: Firmware) -> None:
    backend_on(host).stage(verified(Slot.B))
    assert host.power_on() == "bascule-b.conf"
    backend = backend_on(host, Slot.B)
    backend.bless(Slot.B)
    backend.prefer(Slot.A)
    assert backend.next() is Slot.A
    backend.cancel(Slot.A)
    assert backend.flags()[Slot.A].bootable, "it is the last known good"
    assert host.power_on() == "bascule-b.conf"
    backend.prefer(Slot.A)
    assert [host.power_on(), host.power_on()] == ["bascule-a.conf"] * 2


def test_variables_reinforce(firmware: Firmware) -> None:
    backend = backend_on(firmware)
    backend.bless(Slot.A)
    assert firmware.variable("LoaderEntryDefault") == "bascule-a.conf"
    backend.stage(verified(Slot.B))
    assert firmware.variable("LoaderEntryDefault") is None, "it would win over every counter"
    assert firmware.variable("LoaderEntryOneShot") == "bascule-b.conf"
    backend.cancel(Slot.B)
    assert firmware.variable("LoaderEntryOneShot") is None


def test_a_default_in_loader_conf_is_told(firmware: Firmware) -> None:
    (firmware.esp / "loader/loader.conf").write_text("timeout 0\ndefault bascule-a*\n")
    backend = backend_on(firmware)
    backend.stage(verified(Slot.B))
    assert backend.next() is Slot.B, "the one-shot variable wins over loader.conf"
    firmware.power_on()
    assert backend.next() is Slot.A


def test_a_stage_that_loader_conf_defeats_is_undone(firmware: Firmware) -> None:
    (firmware.esp / "loader/loader.conf").write_text("default bascule-a.conf\n")
    firmware.variables.rmdir()
    with pytest.raises(StorageError, match=r"would take slot A; look at .*loader\.conf"):
        backend_on(firmware).stage(verified(Slot.B))
    assert firmware.files() == ["bascule-a.conf", "bascule-b.conf.cleared"]


def test_refusals_change_nothing(firmware: Firmware) -> None:
    backend = backend_on(firmware)
    before = firmware.files()
    with pytest.raises(WouldTouchBootedSlot):
        backend.clear(Slot.A)
    with pytest.raises(WouldTouchBootedSlot):
        backend.stage(verified(Slot.A))
    with pytest.raises(WouldTouchBootedSlot):
        backend.cancel(Slot.A)
    with pytest.raises(SlotNotBootable, match="slot B is empty"):
        backend.prefer(Slot.B)
    with pytest.raises(SlotNotBootable):
        backend.stage(verified(None))
    with pytest.raises(BlessRefused):
        backend.bless(Slot.B)
    with pytest.raises(UsageError):
        backend.stage(verified(Slot.B), 16)
    assert firmware.files() == before


def test_cancel_keeps_the_only_way_to_boot(firmware: Firmware) -> None:
    entries = firmware.esp / "loader/entries"
    (entries / "bascule-a.conf").rename(entries / "bascule-a+0-1.conf")
    (entries / "bascule-b.conf.cleared").rename(entries / "bascule-b.conf")
    with pytest.raises(SlotNotBootable):
        backend_on(firmware).cancel(Slot.B)


# ── blessing through systemd ─────────────────────────────────────────────────────────────────


def test_blessing_through_systemd_bless_boot(firmware: Firmware, tmp_path: Path) -> None:
    entries = firmware.esp / "loader/entries"
    blesser = tmp_path / "systemd-bless-boot"
    blesser.write_text(
        f'#!/bin/sh\nset -e\necho "$1" > {tmp_path}/called\n'
        f"mv {entries}/bascule-b+0-1.conf {entries}/bascule-b.conf\n"
    )
    blesser.chmod(blesser.stat().st_mode | stat.S_IXUSR)
    backend_on(firmware).stage(verified(Slot.B))
    firmware.power_on()
    backend = SystemdBootBackend(
        firmware.esp,
        Slot.B,
        variables=LoaderVariables(firmware.variables),
        blesser=[str(blesser)],
    )
    backend.bless(Slot.B)
    assert (tmp_path / "called").read_text() == "good\n"
    assert firmware.files() == ["bascule-a.conf", "bascule-b.conf"]
    (tmp_path / "called").unlink()
    backend.bless(Slot.B)
    assert not (tmp_path / "called").exists(), "what is good is not blessed again"


@pytest.mark.parametrize("program", ["/bin/false", "/does/not/exist"])
def test_blessing_without_its_help(firmware: Firmware, program: str) -> None:
    backend_on(firmware).stage(verified(Slot.B))
    firmware.power_on()
    SystemdBootBackend(
        firmware.esp, Slot.B, variables=LoaderVariables(firmware.variables), blesser=[program]
    ).bless(Slot.B)
    assert firmware.files() == ["bascule-a.conf", "bascule-b.conf"]


# ── interruptions ────────────────────────────────────────────────────────────────────────────


class Cut(BaseException):
    """The power goes."""


STEPS: dict[str, tuple[Slot, Callable[[SystemdBootBackend], object]]] = {
    "clear": (Slot.A, lambda b: b.clear(Slot.B)),
    "stage": (Slot.A, lambda b: b.stage(verified(Slot.B), 2)),
    "cancel": (Slot.A, lambda b: b.cancel(Slot.B)),
    "bless": (Slot.B, lambda b: b.bless(Slot.B)),
    "prefer": (Slot.B, lambda b: b.prefer(Slot.A)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", range(8))
def test_a_cut_between_any_two_calls_leaves_something_to_boot(
    firmware: Firmware, step: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = backend_on(firmware)
    before.bless(Slot.A)
    if step in ("cancel", "bless", "prefer"):
        before.stage(verified(Slot.B), 2)
    if step in ("bless", "prefer"):
        assert firmware.power_on() == "bascule-b.conf"
    if step == "prefer":
        backend_on(firmware, Slot.B).bless(Slot.B)
    booted, verb = STEPS[step]
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Cut
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(os, "fsync", counted(os.fsync))
        with contextlib.suppress(Cut):
            verb(backend_on(firmware, booted))
    backend = backend_on(firmware, booted)
    backend.repair()
    assert backend.repair() is None
    expected = backend.next()
    assert expected is not None
    assert firmware.power_on() == f"bascule-{expected.value.lower()}.conf"
    if step in ("clear", "stage", "cancel"):
        assert not (firmware.esp / "loader/entries/bascule-b.conf").exists()
        assert backend.flags()[Slot.A].successful


def test_repair_names_what_it_removed(firmware: Firmware) -> None:
    entries = firmware.esp / "loader/entries"
    (entries / ".bascule-bascule-b.conf.tmp").touch()
    (entries / "bascule-a+0-1.conf").write_text("title old\n")
    before = firmware.files()
    found = backend_on(firmware).damage()
    assert firmware.files() == before
    said = backend_on(firmware).repair()
    assert said is not None and said == found
    assert backend_on(firmware).damage() is None
    assert ".bascule-bascule-b.conf.tmp was left over" in said
    assert "bascule-a+0-1.conf was left over" in said
    assert firmware.files() == ["bascule-a.conf", "bascule-b.conf.cleared"]


# ── odd hosts ────────────────────────────────────────────────────────────────────────────────


def test_entries_that_cannot_be_told(firmware: Firmware) -> None:
    entries = firmware.esp / "loader/entries"
    (entries / "debian-a.conf").write_text("title Debian\n")
    with pytest.raises(SlotsNotFound, match=r"2 boot entries are named like …-a\.conf"):
        backend_on(firmware).flags()
    named = SystemdBootBackend(
        firmware.esp,
        Slot.A,
        ids={Slot.A: "bascule-a.conf", Slot.B: "Bascule-B.conf"},
        variables=LoaderVariables(firmware.variables),
    )
    named.stage(verified(Slot.B))
    assert named.next() is Slot.B
    (entries / "bascule-b+1.conf").unlink()
    with pytest.raises(SlotsNotFound, match=r"has no entry bascule-b\.conf"):
        named.flags()


def test_another_system_boots_next(firmware: Firmware) -> None:
    LoaderVariables(firmware.variables).set("LoaderEntryOneShot", "windows.conf")
    (firmware.esp / "loader/entries/windows.conf").write_text("title W\n")
    backend = backend_on(firmware)
    assert backend.next() is None
    backend.clear(Slot.B)
    assert LoaderVariables(firmware.variables).get("LoaderEntryOneShot") == "windows.conf"


def test_no_folder_of_entries(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        SystemdBootBackend(tmp_path, Slot.A, variables=LoaderVariables(tmp_path)).flags()


def test_hostile_entries(firmware: Firmware) -> None:
    entries = firmware.esp / "loader/entries"
    (entries / "x+999999999999999999999.conf").write_bytes(b"\xff\xfe" * 50_000)
    (entries / "folder.conf").mkdir()
    (entries / "y+1-.conf").symlink_to("nowhere")
    (entries / "bascule-a.conf").write_bytes(b"sort-key \xff\n" + b"z" * 100_000)
    backend = backend_on(firmware)
    assert set(backend.flags()) == set(Slot)


def test_by_name(firmware: Firmware) -> None:
    layout = Layout(None, Slot.A, {}, {}, 512)
    options = {"esp": str(firmware.esp), "efivars": str(firmware.variables)}
    backend = open_backend("systemd-boot", layout, options)
    assert (backend.name, backend.next()) == ("systemd-boot", Slot.A)
    with pytest.raises(SettingsError, match="no loader/entries under /nowhere"):
        open_backend("systemd-boot", layout, {"esp": "/nowhere"})
    with pytest.raises(SettingsError, match="both slots' entries"):
        open_backend("systemd-boot", layout, options | {"entry_a": "x.conf"})


# ── variables ────────────────────────────────────────────────────────────────────────────────


def test_variables_as_the_firmware_wants_them(tmp_path: Path) -> None:
    variables = LoaderVariables(tmp_path)
    variables.set("LoaderEntryDefault", "a-long-name.conf")
    variables.set("LoaderEntryDefault", "b.conf")
    path = tmp_path / f"LoaderEntryDefault-{VENDOR}"
    assert path.read_bytes() == b"\7\0\0\0" + "b.conf\0".encode("utf-16-le")
    assert variables.get("LoaderEntryDefault") == "b.conf"
    variables.set("LoaderEntryDefault", None)
    assert not path.exists()
    path.write_bytes(b"\7\0")
    assert variables.get("LoaderEntryDefault") is None
    assert LoaderVariables(tmp_path / "none").get("LoaderEntryDefault") is None
    LoaderVariables(tmp_path / "none").set("LoaderEntryDefault", "x")


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EACCES, NotPermitted), (errno.ENOSPC, StorageError)]
)
def test_a_firmware_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(error, match="EFI variable LoaderEntryDefault"):
        LoaderVariables(tmp_path).set("LoaderEntryDefault", "x")


def test_once_and_reinstated(host: Firmware) -> None:
    """One boot of the other good slot: by a variable, or by a counted try where there are none."""
    backend = backend_on(host)
    with pytest.raises(SlotNotBootable):
        backend.once(Slot.B)
    backend.clear(Slot.B)
    backend.stage(verified(Slot.B))
    with pytest.raises(SlotNotBootable):
        backend.once(Slot.B)
    assert host.power_on() == "bascule-b.conf"
    running_b = backend_on(host, Slot.B)
    running_b.bless(Slot.B)
    for asked in range(3):
        with pytest.raises(WouldTouchBootedSlot):
            running_b.once(Slot.B)
        running_b.once(Slot.A)
        assert running_b.next() is Slot.A
        if asked:
            booted = [host.power_on() for _ in range(2)]
            assert booted == ["bascule-a.conf", "bascule-b.conf"]
        for _ in range(2):
            backend_on(host, Slot.A).reinstate(Slot.A, Slot.B)
            assert host.files() == ["bascule-a.conf", "bascule-b.conf"]
            assert all(f.successful for f in running_b.flags().values())
            assert running_b.next() is Slot.B
        assert host.power_on() == "bascule-b.conf"
