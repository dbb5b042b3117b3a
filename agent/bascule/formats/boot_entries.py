"""Boot Loader Specification entries: names that count boots, and which one systemd-boot takes.

Sources: UAPI.1 Boot Loader Specification (entry files, boot counting ``NAME+LEFT[-DONE].conf``),
UAPI.10 Version Format Specification (order of ids), systemd-boot(7) (what is selected).
Type #1 entries only: unified kernel images in ``EFI/Linux`` are not looked at.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

__all__ = [
    "Entry",
    "default_of",
    "in_order",
    "parse_entry",
    "ranked_first",
    "selected",
    "version_order",
    "with_sort_key",
]

_NAME = re.compile(
    r"(?P<stem>.+?)(?:\+(?P<left>\d{1,9})(?:-(?P<done>\d{1,9}))?)?\.conf", re.IGNORECASE
)
_SORT_KEY = "bascule-"
_SORT_DIGITS = 9
_TOP = 999_999_999


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``loader/entries/*.conf`` file.

    Attributes:
        file: its present name.
        id: the name without counters, lower case, as the loader's variables spell it.
        left: boots that may still be tried; None if boots are not counted (it is good).
        done: boots tried so far.
        sort_key, machine_id, version: what the order goes by; empty if not given.
    """

    file: str
    id: str
    left: int | None = None
    done: int = 0
    sort_key: str = ""
    machine_id: str = ""
    version: str = ""

    @property
    def bad(self) -> bool:
        """Whether its tries are spent: taken only if nothing better is there."""
        return self.left == 0

    def named(self, left: int | None) -> str:
        """The file name with `left` tries and none done, or without counters."""
        match = _NAME.fullmatch(self.file)
        stem = match["stem"] if match else self.file
        return f"{stem}.conf" if left is None else f"{stem}+{left}.conf"


def parse_entry(file: str, text: str = "") -> Entry | None:
    """An entry from its file name and contents; None if systemd-boot would not list it."""
    match = _NAME.fullmatch(file)
    if match is None or file.startswith(".") or file.lower().startswith("auto-"):
        return None
    fields = _fields(text)
    return Entry(
        file=file,
        id=f"{match['stem']}.conf".lower(),
        left=None if match["left"] is None else int(match["left"]),
        done=int(match["done"] or 0),
        sort_key=fields.get("sort-key", ""),
        machine_id=fields.get("machine-id", ""),
        version=fields.get("version", ""),
    )


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """As systemd-boot (250 and later) lists them; entries with spent tries go last."""
    return sorted(entries, key=functools.cmp_to_key(_compare))


def selected(
    entries: Sequence[Entry],
    *,
    oneshot: str | None = None,
    default: str | None = None,
    pattern: str | None = None,
) -> Entry | None:
    """The entry that systemd-boot takes when nobody touches the menu.

    Args:
        oneshot: variable ``LoaderEntryOneShot``.
        default: variable ``LoaderEntryDefault``. Like `oneshot` it wins even over spent tries,
            so an entry on trial must never be named by it.
        pattern: ``default`` of ``loader.conf``.
    """
    ordered = in_order(entries)
    for wanted in (oneshot, default, pattern):
        if wanted and not wanted.startswith("@"):
            for entry in ordered:
                if fnmatch.fnmatchcase(entry.id, wanted.lower()):
                    return entry
    return ordered[0] if ordered else None


def default_of(loader_conf: str) -> str | None:
    """The ``default`` pattern of a ``loader.conf``."""
    return _fields(loader_conf).get("default")


def ranked_first(entry: Entry, others: Iterable[Entry]) -> Entry:
    """`entry` with a sort key that puts it before `others`, which keep theirs.

    Keys count down from ``bascule-999999999``: the specification sorts them upwards, and
    entries without a key come last.
    """
    lowest = min((_rank(other) for other in others), default=_TOP + 1)
    return replace(entry, sort_key=f"{_SORT_KEY}{max(lowest - 1, 0):0{_SORT_DIGITS}d}")


def with_sort_key(text: str, sort_key: str) -> str:
    """An entry's contents with another sort key; every other line as it was."""
    kept = [line for line in text.splitlines() if line.split(None, 1)[:1] != ["sort-key"]]
    return "".join(f"{line}\n" for line in [*kept, f"sort-key {sort_key}"])


def _rank(entry: Entry) -> int:
    digits = entry.sort_key.removeprefix(_SORT_KEY)
    ours = entry.sort_key.startswith(_SORT_KEY) and digits.isdecimal()
    return min(int(digits), _TOP + 1) if ours else _TOP + 1


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key and not key.startswith("#"):
            fields[key] = value.strip()
    return fields


def _compare(a: Entry, b: Entry) -> int:
    if a.bad != b.bad:
        return 1 if a.bad else -1
    if bool(a.sort_key) != bool(b.sort_key):
        return -1 if a.sort_key else 1
    if a.sort_key and b.sort_key:
        if a.sort_key != b.sort_key:
            return -1 if a.sort_key < b.sort_key else 1
        if a.machine_id != b.machine_id:
            return -1 if a.machine_id < b.machine_id else 1
        if order := version_order(b.version, a.version):
            return order
    if order := version_order(b.id, a.id):
        return order
    if a.left is None or b.left is None:
        return 0
    return b.left - a.left or a.done - b.done


_SEGMENT = re.compile(r"[^a-zA-Z0-9~^.-]+")
_DIGITS = re.compile(r"[0-9]*")
_LETTERS = re.compile(r"[a-zA-Z]*")


def version_order(a: str, b: str) -> int:
    """Negative if `a` is older than `b`, 0 if equal, positive if newer (UAPI.10)."""
    while True:
        a, b = (_skip(text) for text in (a, b))
        for mark in "~-^.":
            # The end counts where the letters would begin, but after "~", which is older.
            if mark == "-" and not (a and b):
                return bool(a) - bool(b)
            if mark in (a[:1], b[:1]):
                if a[:1] != b[:1]:
                    return -1 if a[:1] == mark else 1
                a, b = a[1:], b[1:]
        if a[:1].isdecimal() or b[:1].isdecimal():
            left, a = _split(a, _DIGITS)
            right, b = _split(b, _DIGITS)
            # A number is newer than no number, whatever its value.
            order = int(left or -1) - int(right or -1)
        else:
            left, a = _split(a, _LETTERS)
            right, b = _split(b, _LETTERS)
            order = (left > right) - (left < right)
        if order:
            return order


def _skip(text: str) -> str:
    match = _SEGMENT.match(text)
    return text[match.end() :] if match else text


def _split(text: str, segment: re.Pattern[str]) -> tuple[str, str]:
    match = segment.match(text)
    end = match.end() if match else 0
    return text[:end], text[end:]
