"""From settings to parts: what an operator writes reaches the part that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bascule.assembly import Assembly
from bascule.errors import SettingsError, SlotsNotFound
from bascule.formats.slots import BootFlags, Slot
from bascule.settings import load


def assembled(tmp_path: Path, boot: str) -> Assembly:
    config = tmp_path / "bascule.toml"
    config.write_text(f"""
[slots]
booted = "B"
a = {{ root = "{tmp_path / "a.img"}" }}
b = {{ root = "{tmp_path / "b.img"}" }}
[boot]
backend = "systemd-boot"
{boot}
""")
    return Assembly(load(tmp_path, [config]))


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    """Entries whose names do not end as the backend would guess."""
    entries = tmp_path / "esp/loader/entries"
    entries.mkdir(parents=True)
    for name in ("red.conf", "blue+2-1.conf", "rescue-a.conf", "rescue-b.conf"):
        (entries / name).write_text(f"title {name}\n")
    (tmp_path / "variables").mkdir()
    return tmp_path / "esp"


def test_every_option_of_systemd_boot_is_a_setting(tmp_path: Path, esp: Path) -> None:
    backend = assembled(
        tmp_path,
        f'esp = "{esp}"\nentry_a = "red.conf"\nentry_b = "blue.conf"\n'
        f'efivars = "{tmp_path / "variables"}"\n',
    ).boot()
    assert backend.flags() == {Slot.A: BootFlags(2, 0, True), Slot.B: BootFlags(1, 2, False)}
    backend.bless(Slot.B)
    assert (esp / "loader/entries/blue.conf").exists()
    (default,) = (tmp_path / "variables").iterdir()
    assert default.name.startswith("LoaderEntryDefault-")
    assert default.read_bytes()[4:].decode("utf-16-le") == "blue.conf\0"


def test_one_entry_named_is_one_too_few(tmp_path: Path, esp: Path) -> None:
    with pytest.raises(SettingsError, match="both slots' entries"):
        assembled(tmp_path, f'esp = "{esp}"\nentry_a = "red.conf"\n').boot()


def test_an_entry_that_is_not_there_is_named(tmp_path: Path, esp: Path) -> None:
    backend = assembled(
        tmp_path,
        f'esp = "{esp}"\nentry_a = "red.conf"\nentry_b = "green.conf"\n'
        f'efivars = "{tmp_path / "variables"}"\n',
    ).boot()
    with pytest.raises(SlotsNotFound, match=r"no entry green\.conf"):
        backend.flags()
