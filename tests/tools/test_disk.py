"""``bascule disk``: an interface for operators and scripts, on real images."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

import firmware
from bascule.errors import Exit
from bascule.formats.slots import Slot
from bascule.tools import disk
from gpt_images import CHROMEOS_KERNEL, Part, attributes, flatcar_disk, image, verdicts


def bascule(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="bascule")
    disk.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["disk", *map(str, arguments)])
    code = args.run(args)
    assert isinstance(code, int)
    return code


class Asked:
    """Runs a command with ``--json`` and keeps its answer."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        code = bascule(*arguments, "--json")
        out = self._capsys.readouterr()
        assert out.err == ""
        answer = json.loads(out.out)
        assert answer["schema"] == 1
        assert answer["ok"] == (code == 0)
        return code, answer


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Asked:
    return Asked(capsys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return flatcar_disk(tmp_path / "disk.img")


def test_show_is_for_people(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bascule("stage", path, "--slot", "B", "--tries", "2") == 0
    capsys.readouterr()
    assert bascule("show", path) == 0
    assert capsys.readouterr().out.splitlines() == [
        "primary  copy at sector 1: good",
        "backup   copy at sector 65535: good",
        "",
        "slot  partition  label  priority  state",
        "A     3          USR-A  1         good",
        "B     4          USR-B  2         on trial: 2 tries left  <- boots next",
        "",
        "slot B (partition 4) boots next",
    ]


def test_a_whole_update(path: Path, ask: Asked) -> None:
    assert ask("clear", path, "--slot", "B", "--booted", "A")[1]["changed"] is False
    assert ask("stage", path, "--slot", "B")[1]["changed"] is True
    assert ask("next", path)[1]["next"] == {"partition": 4, "slot": "B"}
    assert ask("next", path)[1]["next"] == {"partition": 4, "slot": "B"}, "no try is spent"
    assert firmware.choose(path) == 4
    assert ask("next", path)[1]["next"] == {"partition": 3, "slot": "A"}
    assert ask("bless", path, "--slot", "B")[1]["slots"][1]["words"] == "good"
    assert ask("prefer", path, "--slot", "A")[1]["next"]["slot"] == "A"
    answer = ask("cancel", path, "--slot", "A")[1]
    assert answer["next"]["slot"] == "B"
    assert answer["slots"][0]["bootable"]
    assert verdicts(path) == []


def test_what_show_tells_machines(path: Path, ask: Asked) -> None:
    code, answer = ask("show", path)
    assert code == 0
    assert answer["copies"]["backup"] == {"ok": True, "sector": 65535, "fault": None}
    assert answer["repair"] is None
    assert answer["slots"][0].pop("guid")
    assert answer["slots"][0] == {
        "slot": "A",
        "partition": 3,
        "label": "USR-A",
        "priority": 1,
        "tries": 0,
        "successful": True,
        "bootable": True,
        "words": "good",
        "next": True,
    }


def test_repair(path: Path, ask: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))
    code, answer = ask("show", path)
    assert code == 0
    assert answer["copies"]["primary"]["ok"] is False
    assert answer["repair"].startswith("the primary copy is damaged: there is no partition")
    assert ask("repair", path)[1]["repaired"] == answer["repair"]
    assert bascule("repair", path) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert verdicts(path) == []


def test_a_change_repairs_first(path: Path, ask: Asked) -> None:
    with path.open("r+b") as file:
        file.truncate(40 << 20)
    _, answer = ask("stage", path, "--slot", "B")
    assert answer["repaired"] == "the backup copy is not at the end of the disk"
    assert answer["repair"] is None
    assert verdicts(path) == []


# ── refusals ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (("clear", "--slot", "A", "--booted", "A"), "booted-slot", Exit.BOOT),
        (("stage", "--slot", "A", "--booted", "A"), "booted-slot", Exit.BOOT),
        (("cancel", "--slot", "A", "--booted", "A"), "booted-slot", Exit.BOOT),
        (("clear", "--slot", "A", "--booted", "B"), "booted-not-blessed", Exit.BOOT),
        (("prefer", "--slot", "B"), "slot-not-bootable", Exit.BOOT),
        (("cancel", "--slot", "A"), "slot-not-bootable", Exit.BOOT),
        (("stage", "--slot", "B", "--tries", "16"), "usage", Exit.USAGE),
        (("show", "--type-guid", CHROMEOS_KERNEL), "slots-not-found", Exit.STORAGE),
        (("show", "--type-guid", "x"), "settings", Exit.SETTINGS),
        (("stage", "--slot", "B", "--slots", "A=3,B=7"), "partition-table", Exit.STORAGE),
    ],
)
def test_refusals(
    path: Path, ask: Asked, arguments: tuple[str, ...], error: str, code: Exit
) -> None:
    before = path.read_bytes()
    verb, *options = arguments
    got, answer = ask(verb, path, *options)
    assert (got, answer["error"]["id"]) == (code, error)
    assert answer["error"]["remedy"]
    assert path.read_bytes() == before


def test_a_refusal_for_people(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bascule("prefer", path, "--slot", "B") == Exit.BOOT
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("bascule: The bootloader would not start this slot: ")
    assert len(out.err.splitlines()) == 2


def test_nothing_to_boot(path: Path, ask: Asked) -> None:
    ask("clear", path, "--slot", "A")
    code, answer = ask("next", path)
    assert (code, answer["next"]) == (Exit.BOOT, None)
    assert ask("show", path)[0] == 0


def test_two_bad_copies(path: Path, ask: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    with path.open("r+b") as file:
        file.write(bytes(4096))
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    for verb in ("show", "next", "repair"):
        code, answer = ask(verb, path)
        assert (code, answer["error"]["id"]) == (Exit.STORAGE, "partition-table-broken")
    assert bascule("show", path) == Exit.STORAGE
    out = capsys.readouterr()
    assert "backup   copy at sector 65535: there is no partition table header" in out.out
    assert "Do not reboot." in out.err


def test_what_is_no_disk(tmp_path: Path, ask: Asked) -> None:
    (tmp_path / "text").write_text("hello\n" * 10)
    assert ask("show", tmp_path / "text")[0] == Exit.STORAGE
    code, answer = ask("show", tmp_path / "missing")
    assert (code, answer["error"]["id"]) == (Exit.STORAGE, "device-open")


def test_not_permitted(path: Path, ask: Asked) -> None:
    path.chmod(0)
    before = os.geteuid()
    if before == 0:
        # Root may read anything; nobody may not.
        os.seteuid(65534)
    try:
        code = ask("show", path)[0]
    finally:
        os.seteuid(before)
    assert code == Exit.NOT_PERMITTED


@pytest.mark.parametrize(
    "arguments",
    [
        ("stage",),
        ("stage", "--slot", "C"),
        ("stage", "--slot", "B", "--tries", "many"),
        ("show", "--slots", "A=3"),
        ("show", "--slots", "A=3,B=3"),
        ("show", "--slots", "nonsense"),
        ("show", "--sector-size", "520"),
        ("flash",),
    ],
)
def test_usage(path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    verb, *options = arguments
    with pytest.raises(SystemExit) as raised:
        bascule(verb, path, *options)
    assert raised.value.code == Exit.USAGE
    assert "usage: bascule disk" in capsys.readouterr().err


# ── other disks ──────────────────────────────────────────────────────────────────────────────


def test_named_slots(path: Path, ask: Asked) -> None:
    _, answer = ask("stage", path, "--slot", "A", "--slots", "A=4,B=3")
    assert answer["slots"][0]["partition"] == 4
    assert answer["next"] == {"partition": 4, "slot": "A"}


def test_sectors_of_4096_bytes(tmp_path: Path, ask: Asked) -> None:
    path = tmp_path / "disk.img"
    parts = [Part(3, 40, 60, attributes(1, 0, 1)), Part(4, 61, 80)]
    path.write_bytes(image(parts, sector_size=4096))
    _, answer = ask("stage", path, "--slot", "B")
    assert (answer["sector_size"], answer["next"]["partition"]) == (4096, 4)
    assert firmware.choose(path) == 4
    assert ask("show", path, "--sector-size", "512")[0] == Exit.STORAGE


def test_a_third_partition_of_the_type_may_boot_next(
    tmp_path: Path, ask: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk.img"
    parts = [
        Part(3, 40, 60, attributes(1, 0, 1), name="USR-A"),
        Part(4, 61, 80, name="USR-B"),
        Part(5, 81, 90, attributes(9, 0, 1), name="OTHER"),
    ]
    path.write_bytes(image(parts))
    assert ask("next", path)[1]["next"] == {"partition": 5, "slot": None}
    assert bascule("next", path) == 0
    assert "partition 5, which is neither slot, boots next" in capsys.readouterr().out


def test_the_running_disk_is_seen(path: Path, ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "mounted_slot", lambda *_: Slot.A)
    assert ask("clear", path, "--slot", "A")[1]["error"]["id"] == "booted-slot"
    assert ask("clear", path, "--slot", "B")[0] == 0
