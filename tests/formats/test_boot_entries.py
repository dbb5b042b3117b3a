"""Boot entries: names, order (against systemd's own comparison), selection."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.formats import boot_entries
from bascule.formats.boot_entries import Entry, in_order, parse_entry, selected, version_order


@pytest.mark.parametrize(
    ("file", "id", "left", "done"),
    [
        ("bascule-a.conf", "bascule-a.conf", None, 0),
        ("Bascule-A.CONF", "bascule-a.conf", None, 0),
        ("bascule-b+3.conf", "bascule-b.conf", 3, 0),
        ("bascule-b+2-1.conf", "bascule-b.conf", 2, 1),
        ("bascule-b+0-3.conf", "bascule-b.conf", 0, 3),
        ("c++.conf", "c++.conf", None, 0),
        ("x+y+1.conf", "x+y.conf", 1, 0),
        ("x+1-.conf", "x+1-.conf", None, 0),
    ],
)
def test_names(file: str, id: str, left: int | None, done: int) -> None:
    entry = parse_entry(file)
    assert entry is not None
    assert (entry.id, entry.left, entry.done) == (id, left, done)


@pytest.mark.parametrize("file", ["readme.txt", ".hidden.conf", "auto-windows.conf", ".conf", ""])
def test_what_is_no_entry(file: str) -> None:
    assert parse_entry(file) is None


def test_fields() -> None:
    text = "# title no\ntitle\tSlot A\n  sort-key   zz  \nversion 1.2\noptions quiet sort-key x\n"
    entry = parse_entry("a.conf", text)
    assert entry is not None
    assert (entry.sort_key, entry.version) == ("zz", "1.2")
    changed = boot_entries.with_sort_key(text, "bascule-1")
    assert changed.count("sort-key bascule-1\n") == 1
    assert "zz" not in changed
    assert "options quiet sort-key x\n" in changed


def test_names_with_tries() -> None:
    entry = parse_entry("Slot-B+0-3.conf")
    assert entry is not None
    assert entry.named(3) == "Slot-B+3.conf"
    assert entry.named(None) == "Slot-B.conf"


VERSIONS = st.text(alphabet="ab09.1~^-_+ ", max_size=8)


@given(a=VERSIONS, b=VERSIONS)
@settings(max_examples=200, deadline=None)
def test_versions_as_systemd_compares_them(a: str, b: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    ran = subprocess.run(
        ["systemd-analyze", "compare-versions", "--", a, b], capture_output=True, text=True
    )
    codes = {0: 0, 11: 1, 12: -1}
    if ran.returncode not in codes:
        pytest.skip(ran.stderr)
    order = version_order(a, b)
    assert (order > 0) - (order < 0) == codes[ran.returncode]


def entries(*files: str, keys: dict[str, str] | None = None) -> list[Entry]:
    made = []
    for file in files:
        key = (keys or {}).get(file, "")
        entry = parse_entry(file, f"sort-key {key}\n" if key else "")
        assert entry is not None
        made.append(entry)
    return made


def order(*files: str, keys: dict[str, str] | None = None) -> list[str]:
    return [entry.file for entry in in_order(entries(*files, keys=keys))]


def test_order() -> None:
    assert order("a.conf", "b.conf") == ["b.conf", "a.conf"]
    assert order("a-9.conf", "a-10.conf") == ["a-10.conf", "a-9.conf"]
    assert order("a.conf", "b+0-1.conf") == ["a.conf", "b+0-1.conf"]
    assert order("a.conf", "b.conf", keys={"a.conf": "k"}) == ["a.conf", "b.conf"]
    keys = {"a.conf": "1", "b+0.conf": "0"}
    assert order("a.conf", "b+0.conf", keys=keys) == ["a.conf", "b+0.conf"]
    assert order("a+1.conf", "a+2.conf") == ["a+2.conf", "a+1.conf"]


def test_selection() -> None:
    both = entries("a.conf", "b+0-1.conf")
    first = selected(both)
    assert first is not None and first.file == "a.conf"
    forced = selected(both, default="B.conf")
    assert forced is not None and forced.bad, "a default wins over spent tries"
    for options in ({"oneshot": "b.conf", "default": "a.conf"}, {"pattern": "b*"}):
        chosen = selected(both, **options)
        assert chosen is not None and chosen.file == "b+0-1.conf"
    for options in ({"default": "gone.conf"}, {"pattern": "@saved"}, {"oneshot": ""}):
        chosen = selected(both, **options)
        assert chosen is not None and chosen.file == "a.conf"
    assert selected([]) is None
    assert boot_entries.default_of("timeout 3\ndefault bascule-*\n") == "bascule-*"
    assert boot_entries.default_of("timeout 3\n#default x\n") is None


def test_ranks_go_on_and_on() -> None:
    known = entries("a.conf", "b.conf", "other.conf", keys={"other.conf": "arch"})
    for turn in range(6):
        target = known[turn % 2]
        known[turn % 2] = boot_entries.ranked_first(target, known)
        assert in_order(known[:2])[0].id == target.id
    assert known[0].sort_key.startswith("bascule-99999")
