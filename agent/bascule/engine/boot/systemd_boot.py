"""Boot decisions by systemd-boot's boot counting, on the EFI system partition.

Each slot has one entry, ``NAME-a.conf`` and ``NAME-b.conf``, whose ids never change:

* on trial: ``NAME-b+3.conf``; the loader counts down (``+2-1`` …) and passes over a spent one,
* good: ``NAME-b.conf``, without counters,
* cleared: ``NAME-b.conf.cleared``, which the loader does not list.

What goes first is said by the entry's ``sort-key``, so a trial may have several tries and the
way back needs none of our code. The loader's variables only reinforce it: one-shot at `stage`
(``bootctl set-oneshot``), default at `bless` and `prefer` (``bootctl set-default``). A default
wins over counters, so it is taken away while a trial lasts. Only the file of the slot in question is ever rewritten, never the running one's at `clear`
or `stage`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.engine.boot import CLEARER, ClearedSlot
from bascule.engine.boot.loader_variables import EFIVARS, LoaderVariables
from bascule.engine.device import flush_folder
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
from bascule.formats import boot_entries, slots
from bascule.formats.boot_entries import Entry
from bascule.formats.slots import BootFlags, Slot

if TYPE_CHECKING:
    from bascule.engine.layout import Layout
    from bascule.engine.verify import VerifiedSlot

__all__ = ["SystemdBootBackend", "open_systemd_boot"]

CLEARED = ".cleared"
ONESHOT, DEFAULT = "LoaderEntryOneShot", "LoaderEntryDefault"
_PLACES = ("/efi", "/boot/efi", "/boot")
_BLESSERS = ("/usr/lib/systemd/systemd-bless-boot", "/lib/systemd/systemd-bless-boot")
_LIMIT = 64 << 10
_BLESS_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class _Found:
    """The entry files of the ESP as they are now."""

    listed: tuple[Entry, ...]
    own: Mapping[Slot, Entry]
    cleared: Mapping[Slot, Entry]

    def others(self, slot: Slot) -> list[Entry]:
        return [entry for entry in self.listed if entry != self.own.get(slot)]


class SystemdBootBackend:
    """See `bascule.engine.boot.BootBackend`.

    Args:
        root: mount point of the partition that holds ``loader/entries``.
        booted: the running slot.
        ids: of each slot's entry, with ``.conf`` and without counters; None finds them: the two
            whose names end in ``-a`` and ``-b``.
        variables: the loader's.
        blesser: program that does what `bless` wants of the running entry, if there is one.
    """

    name = "systemd-boot"

    def __init__(
        self,
        root: Path,
        booted: Slot,
        *,
        ids: Mapping[Slot, str] | None = None,
        variables: LoaderVariables | None = None,
        blesser: Sequence[str] = (),
    ) -> None:
        self.booted = booted
        self._root = root
        self._entries = root / "loader" / "entries"
        self._ids = {slot: name.lower() for slot, name in ids.items()} if ids else None
        self._variables = variables or LoaderVariables()
        self._blesser = tuple(blesser)

    def flags(self) -> dict[Slot, BootFlags]:
        """As the protocol. Priority is the rank among the slots that are listed."""
        found = self._find()
        following = self._selected(found.listed)
        ranked = boot_entries.in_order([replace(e, left=None) for e in found.own.values()])
        order = sorted(
            found.own,
            key=lambda slot: (
                found.own[slot] != following,
                [entry.id for entry in ranked].index(found.own[slot].id),
            ),
        )
        result = {slot: BootFlags(0, 0, False) for slot in Slot}
        for rank, slot in enumerate(reversed(order), start=1):
            left = found.own[slot].left
            result[slot] = BootFlags(rank, min(left or 0, slots.HIGHEST), left is None)
        return result

    def next(self) -> Slot | None:
        """As the protocol."""
        found = self._find()
        following = self._selected(found.listed)
        return next((slot for slot, own in found.own.items() if own == following), None)

    def clear(self, slot: Slot) -> ClearedSlot:
        """As the protocol."""
        self._refuse_booted(slot)
        found = self._find()
        running = found.own.get(self.booted)
        if running is None or running.left is not None:
            words = slots.words(self.flags()[self.booted])
            raise BootedSlotNotBlessed(
                f"slot {self.booted.value} is {words}", slot=self.booted.value
            )
        self._forget(slot, found)
        self._take_away(slot, found)
        return ClearedSlot(slot, CLEARER)

    def stage(self, verified: VerifiedSlot, tries: int = 1) -> None:
        """As the protocol."""
        slot = verified.slot
        if slot is None:
            raise SlotNotBootable("what was verified is no slot of this host")
        self._refuse_booted(slot)
        if not 1 <= tries <= slots.HIGHEST:
            raise UsageError(f"a slot can have 1 to 15 tries, not {tries}")
        found = self._find()
        # Kept as a default the running slot would win over every try but the first.
        self._variables.set(DEFAULT, None)
        self._put_first(slot, found, tries)
        self._reinforce(ONESHOT, self._id(slot, found))
        try:
            self._expect(slot)
        except StorageError:
            self._forget(slot, found)
            self._take_away(slot, self._find())
            raise

    def bless(self, slot: Slot) -> None:
        """As the protocol."""
        if slot is not self.booted:
            raise BlessRefused(f"slot {self.booted.value} is running, not slot {slot.value}")
        found = self._find()
        entry = found.own.get(slot)
        if entry is not None and entry.left is not None and self._blesser:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                command = [*self._blesser, "good"]
                subprocess.run(command, check=False, timeout=_BLESS_TIMEOUT, capture_output=True)
            found = self._find()
        self._put_first(slot, found, None)
        self._variables.set(ONESHOT, None)
        self._reinforce(DEFAULT, self._id(slot, found))
        self._expect(slot)

    def prefer(self, slot: Slot) -> None:
        """As the protocol."""
        found = self._find()
        entry = found.own.get(slot)
        if entry is None or entry.bad:
            raise SlotNotBootable(f"slot {slot.value} is {slots.words(self.flags()[slot])}")
        self._variables.set(DEFAULT, None)
        self._put_first(slot, found, entry.left)
        self._reinforce(ONESHOT if entry.left else DEFAULT, entry.id)
        self._expect(slot)

    def cancel(self, slot: Slot) -> None:
        """As the protocol."""
        self._refuse_booted(slot)
        found = self._find()
        running = found.own.get(self.booted)
        if running is None or running.bad:
            raise SlotNotBootable(f"slot {self.booted.value} could not be booted again")
        self._forget(slot, found)
        entry = found.own.get(slot)
        if entry is not None and entry.left is not None:
            self._take_away(slot, found)
            found = self._find()
        if self._selected(found.listed) != running:
            self._put_first(self.booted, found, running.left)
        self._expect(self.booted)

    def once(self, slot: Slot) -> None:
        """As the protocol, by the one-shot variable, which the loader itself forgets (``bootctl
        set-oneshot``); where there are no variables, by one counted try."""
        self._refuse_booted(slot)
        found = self._find()
        for each in Slot:
            entry = found.own.get(each)
            if entry is None or entry.left is not None:
                raise SlotNotBootable(f"slot {each.value} is {slots.words(self.flags()[each])}")
        self._reinforce(ONESHOT, found.own[slot].id)
        if self.next() is slot:
            return
        self._variables.set(DEFAULT, None)
        self._put_first(slot, found, 1)
        try:
            self._expect(slot)
        except StorageError:
            self.reinstate(slot, self.booted)
            raise

    def reinstate(self, slot: Slot, keep: Slot) -> None:
        """As the protocol."""
        found = self._find()
        entry = found.own.get(keep)
        if entry is None or entry.bad:
            raise SlotNotBootable(f"slot {keep.value} could not be booted again")
        self._forget(slot, found)
        other = found.own.get(slot)
        counted = other is not None and other.left is not None
        if counted or self._selected(found.listed) != entry:
            self._put_first(keep, found, entry.left)
        if other is not None and counted:
            # Last: while it is counted and spent, the loader passes over it.
            with self._errors():
                (self._entries / other.file).rename(self._entries / other.named(None))
                flush_folder(self._entries)
        self._expect(keep)

    def damage(self) -> str | None:
        """As the protocol."""
        return "; ".join(f"{name} was left over" for name in self._leftovers()) or None

    def repair(self) -> str | None:
        """As the protocol: leftovers of an interrupted step are removed."""
        names = self._leftovers()
        with self._errors():
            for name in names:
                (self._entries / name).unlink()
            if names:
                flush_folder(self._entries)
        return "; ".join(f"{name} was left over" for name in names) or None

    def _leftovers(self) -> list[str]:
        with self._errors():
            names = [p.name for p in self._entries.iterdir() if p.name.startswith(".bascule-")]
        names.sort()
        found = self._find()
        names += [f"{e.file}{CLEARED}" for slot, e in found.cleared.items() if slot in found.own]
        for own in found.own.values():
            names += [e.file for e in found.listed if e.id == own.id and e != own]
        return names

    # ── files ────────────────────────────────────────────────────────────────────────────────

    def _find(self) -> _Found:
        listed: list[Entry] = []
        cleared: list[Entry] = []
        with self._errors():
            for path in sorted(self._entries.iterdir()):
                away = path.name.endswith(CLEARED)
                name = path.name.removesuffix(CLEARED)
                entry = boot_entries.parse_entry(name, _text(path) if path.is_file() else "")
                if entry is not None:
                    (cleared if away else listed).append(entry)
        ids = self._ids or _ids_by_ending([*listed, *cleared])
        own = {slot: _best(listed, name) for slot, name in ids.items()}
        gone = {slot: _best(cleared, name) for slot, name in ids.items()}
        missing = [ids[slot] for slot in Slot if own[slot] is None and gone[slot] is None]
        if missing:
            raise SlotsNotFound(f"{self._entries} has no entry {' and no '.join(missing)}")
        return _Found(
            tuple(listed),
            {slot: entry for slot, entry in own.items() if entry},
            {slot: entry for slot, entry in gone.items() if entry},
        )

    def _selected(self, listed: Sequence[Entry]) -> Entry | None:
        conf = self._root / "loader" / "loader.conf"
        return boot_entries.selected(
            listed,
            oneshot=self._variables.get(ONESHOT),
            default=self._variables.get(DEFAULT),
            pattern=boot_entries.default_of(_text(conf)) if conf.is_file() else None,
        )

    def _id(self, slot: Slot, found: _Found) -> str:
        return (found.own.get(slot) or found.cleared[slot]).id

    def _put_first(self, slot: Slot, found: _Found, left: int | None) -> None:
        """The entry of `slot`, before all others, with `left` tries or none counted."""
        entry, away = found.own.get(slot), ""
        if entry is None:
            entry, away = found.cleared[slot], CLEARED
        source = self._entries / f"{entry.file}{away}"
        plain = [replace(other, left=None) for other in found.others(slot)]
        first = boot_entries.in_order([*plain, replace(entry, left=None)])[0].id == entry.id
        target = self._entries / (entry.file if left == entry.left else entry.named(left))
        with self._errors():
            if first and not away:
                if source != target:
                    source.rename(target)
                    flush_folder(self._entries)
                return
            ranked = boot_entries.ranked_first(entry, found.listed)
            text = boot_entries.with_sort_key(_text(source), ranked.sort_key)
            _replace(target, text)
            if source != target:
                source.unlink()
                flush_folder(self._entries)

    def _take_away(self, slot: Slot, found: _Found) -> None:
        entry = found.own.get(slot)
        if entry is None:
            return
        with self._errors():
            (self._entries / entry.file).rename(self._entries / f"{entry.named(None)}{CLEARED}")
            flush_folder(self._entries)

    def _forget(self, slot: Slot, found: _Found) -> None:
        """No variable names `slot` any more."""
        name = self._id(slot, found)
        for variable in (ONESHOT, DEFAULT):
            if self._variables.get(variable) == name:
                self._variables.set(variable, None)

    def _reinforce(self, variable: str, value: str) -> None:
        """Set a variable that the order of entries makes needless; `_expect` has the last word."""
        with contextlib.suppress(StorageError, NotPermitted):
            self._variables.set(variable, value)

    def _expect(self, slot: Slot) -> None:
        following = self.next()
        if following is not slot:
            raise StorageError(
                f"slot {slot.value} should boot next, but systemd-boot would take "
                f"{f'slot {following.value}' if following else 'another entry'}; "
                "look at `bootctl list`, loader.conf and the variable LoaderEntryDefault"
            )

    def _refuse_booted(self, slot: Slot) -> None:
        if slot is self.booted:
            raise WouldTouchBootedSlot(f"slot {slot.value} is running", slot=slot.value)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise NotPermitted(f"{self._entries}: {error.strerror}") from error
        except OSError as error:
            raise StorageError(
                f"{error.filename or self._entries}: {error.strerror}", path=str(self._entries)
            ) from error


def open_systemd_boot(layout: Layout, options: Mapping[str, str]) -> SystemdBootBackend:
    """The backend for this host.

    Options: ``esp``, the mount point that holds ``loader/entries`` (found if not given);
    ``entry_a`` and ``entry_b``, the ids; ``efivars``, the folder of the variables.

    Raises:
        SettingsError: no entries folder, or only one of the ids is given.
    """
    places = [options["esp"]] if options.get("esp") else _PLACES
    root = next((Path(p) for p in places if (Path(p) / "loader" / "entries").is_dir()), None)
    if root is None:
        raise SettingsError(f"boot.esp: there is no loader/entries under {', '.join(places)}")
    names = {slot: options.get(f"entry_{slot.value.lower()}", "") for slot in Slot}
    if any(names.values()) and not all(names.values()):
        raise SettingsError("boot: both slots' entries must be named, or neither")
    blesser = next((path for path in _BLESSERS if os.access(path, os.X_OK)), None)
    return SystemdBootBackend(
        root,
        layout.booted,
        ids=names if all(names.values()) else None,
        variables=LoaderVariables(Path(options.get("efivars", str(EFIVARS)))),
        blesser=[blesser] if blesser else (),
    )


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LIMIT).decode("utf-8", "replace")


def _ids_by_ending(entries: Sequence[Entry]) -> dict[Slot, str]:
    ids = {entry.id for entry in entries}
    found = {}
    for slot in Slot:
        ending = f"-{slot.value.lower()}.conf"
        matching = sorted(name for name in ids if name.endswith(ending))
        if len(matching) != 1:
            raise SlotsNotFound(
                f"{len(matching)} boot entries are named like …{ending}; there must be one"
            )
        found[slot] = matching[0]
    return found


def _best(entries: Sequence[Entry], name: str) -> Entry | None:
    """Of several files with one id (an interrupted rename), the one that the loader takes."""
    own = [entry for entry in entries if entry.id == name]
    return boot_entries.in_order(own)[0] if own else None


def _replace(target: Path, text: str) -> None:
    """Put a file in place so that a power cut leaves the old one, the new one or none."""
    aside = target.with_name(f".bascule-{target.name}.tmp")
    with aside.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    aside.rename(target)
    flush_folder(target.parent)
