"""``bascule disk``: look at a partition table and set boot flags, with no daemon around.

For operators at 3 a.m., image builders and tests. What runs on this host is respected where it
can be seen: the booted slot of a mounted disk is never cleared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bascule.engine.boot.gpt import edited, flags_of
from bascule.engine.layout import FLATCAR_USR, choose_slots, mounted_slot
from bascule.engine.table import DiskTable
from bascule.errors import (
    BasculeError,
    BootedSlotNotBlessed,
    SlotNotBootable,
    WouldTouchBootedSlot,
)
from bascule.formats import gpt_writes, slots
from bascule.formats.gpt import Copies, Copy, PartitionTable
from bascule.formats.slots import BootFlags, Slot

__all__ = ["add_parser", "run"]

SCHEMA = 1

Flags = Mapping[int, BootFlags]


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the ``disk`` command; its namespace has ``run``, a function of the namespace."""
    parser = subparsers.add_parser("disk", help="look at a partition table and its boot flags")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (sentence, action) in _VERBS.items():
        sub = verbs.add_parser(verb, help=sentence, description=sentence)
        sub.add_argument("disk", metavar="DISK", type=Path, help="whole disk or image file")
        sub.add_argument("--json", action="store_true", help="machine-readable answer")
        sub.add_argument(
            "--sector-size", type=int, choices=(512, 4096), help="of an image file, in bytes"
        )
        if verb != "repair":
            sub.add_argument(
                "--type-guid", default=FLATCAR_USR, help="GPT type of the slots (Flatcar's USR)"
            )
            sub.add_argument(
                "--slots", type=_slots, metavar="A=N,B=N", help="partition numbers of the slots"
            )
        if verb in _CHANGES:
            sub.add_argument("--slot", required=True, type=Slot, choices=list(Slot), metavar="A|B")
            sub.add_argument(
                "--booted",
                type=Slot,
                choices=list(Slot),
                metavar="A|B",
                help="the running slot, if this is the running host's disk and it cannot be seen",
            )
        if verb == "stage":
            sub.add_argument("--tries", type=int, default=1, metavar="N", help="1–15, default 1")
        sub.set_defaults(run=run, action=action)


def run(args: argparse.Namespace) -> int:
    """Carry out one ``bascule disk`` command; returns its exit code."""
    answer: dict[str, Any] = {"schema": SCHEMA, "ok": True, "disk": str(args.disk)}
    text = ""
    code = 0
    try:
        text = args.action(args, answer)
    except BasculeError as error:
        code = int(error.exit)
        answer.update({"ok": False, "error": error.as_dict()})
        if not args.json:
            if not all(copy["ok"] for copy in answer.get("copies", {}).values()):
                sys.stdout.write(_describe(answer))
            sys.stderr.write(f"bascule: {error}\n{error.remedy}\n")
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    elif text:
        sys.stdout.write(f"{text}\n")
    return code


# ── verbs ────────────────────────────────────────────────────────────────────────────────────


def _show(args: argparse.Namespace, answer: dict[str, Any]) -> str:
    opened = _Opened(args, answer)
    answer.update(opened.state(opened.table))
    return _describe(answer).rstrip("\n")


def _next(args: argparse.Namespace, answer: dict[str, Any]) -> str:
    opened = _Opened(args, answer)
    answer.update({"next": opened.next(opened.table)})
    if answer["next"] is None:
        raise SlotNotBootable("the bootloader would find nothing to start")
    return _next_words(answer["next"])


def _repair(args: argparse.Namespace, answer: dict[str, Any]) -> str:
    disk = _disk_table(args)
    answer["repaired"] = disk.repair()
    answer.update(_copies_state(disk.examine()))
    if answer["repaired"] is None:
        return "Both copies of the partition table are good; nothing was changed."
    return f"Repaired: {answer['repaired']}."


def _change(args: argparse.Namespace, answer: dict[str, Any]) -> str:
    opened = _Opened(args, answer)
    slot: Slot = args.slot
    booted = args.booted or mounted_slot(args.disk, opened.index)
    number = opened.index[slot]
    keep = opened.index[booted or slot.other]
    verbs: dict[str, Callable[[Flags], dict[int, BootFlags]]] = {
        "clear": lambda flags: slots.clear(flags, number),
        "stage": lambda flags: slots.stage(flags, number, args.tries),
        "bless": lambda flags: slots.bless(flags, number),
        "prefer": lambda flags: slots.prefer(flags, number),
        "cancel": lambda flags: slots.cancel(flags, number, keep),
    }
    if slot is booted and args.verb in ("clear", "stage", "cancel"):
        raise WouldTouchBootedSlot(f"slot {slot.value} is running", slot=slot.value)

    def verb(flags: Flags) -> dict[int, BootFlags]:
        if args.verb == "clear" and booted:
            running = flags[keep]
            if not (running.bootable and running.successful):
                raise BootedSlotNotBlessed(f"slot {booted.value} is {slots.words(running)}")
        return verbs[args.verb](flags)

    before = opened.table.array
    table, answer["repaired"] = opened.disk.change(lambda t: edited(t, opened.index, verb))
    answer["changed"] = table.array != before
    answer.update(_copies_state(opened.disk.examine()) | opened.state(table))
    return _describe(answer).rstrip("\n")


_VERBS: dict[str, tuple[str, Callable[[argparse.Namespace, dict[str, Any]], str]]] = {
    "show": ("Show both copies of the table, and the slots in words.", _show),
    "next": ("Say what the bootloader would start, without spending a try.", _next),
    "clear": ("Make a slot unbootable, as before it is overwritten.", _change),
    "stage": ("Make a slot the next boot, on trial.", _change),
    "bless": ("Mark a slot good and make it the next boot.", _change),
    "prefer": ("Make a slot that can be booted the next boot.", _change),
    "cancel": ("Undo stage or prefer: the other slot is booted next.", _change),
    "repair": ("Mend one bad copy of the table from the other.", _repair),
}
_CHANGES = frozenset(verb for verb, (_, action) in _VERBS.items() if action is _change)


# ── what is there ────────────────────────────────────────────────────────────────────────────


@dataclass(init=False)
class _Opened:
    """A disk with its table read and its slots found; facts go into `answer` as they are found."""

    disk: DiskTable
    table: PartitionTable
    index: dict[Slot, int]

    def __init__(self, args: argparse.Namespace, answer: dict[str, Any]) -> None:
        self.disk = _disk_table(args)
        copies = self.disk.examine()
        answer.update(_copies_state(copies))
        self.table = copies.sound
        self.index = args.slots or choose_slots(self.table, args.type_guid)

    def next(self, table: PartitionTable) -> dict[str, Any] | None:
        number = slots.next_boot(flags_of(table, self.index))
        if number is None:
            return None
        name = next((slot.value for slot, own in self.index.items() if own == number), None)
        return {"partition": number, "slot": name}

    def state(self, table: PartitionTable) -> dict[str, Any]:
        flags = flags_of(table, self.index)
        following = self.next(table)
        rows = []
        for slot, number in self.index.items():
            entry, own = table.entry(number), flags[number]
            rows.append(
                {
                    "slot": slot.value,
                    "partition": number,
                    "label": entry.name,
                    "guid": str(entry.guid),
                    "priority": own.priority,
                    "tries": own.tries,
                    "successful": own.successful,
                    "bootable": own.bootable,
                    "words": slots.words(own),
                    "next": following is not None and following["partition"] == number,
                }
            )
        return {"slots": rows, "next": following}


def _disk_table(args: argparse.Namespace) -> DiskTable:
    return DiskTable(args.disk, args.sector_size)


def _copies_state(copies: Copies) -> dict[str, Any]:
    repair = None
    if not (copies.primary.fault and copies.backup.fault):
        try:
            repair = gpt_writes.repair_reason(copies)
        except BasculeError as error:
            repair = f"it cannot be repaired: {error}"
    return {
        "sector_size": copies.sector_size,
        "sectors": copies.sectors,
        "copies": {copy.name: _copy_state(copy) for copy in (copies.primary, copies.backup)},
        "repair": repair,
    }


def _copy_state(copy: Copy) -> dict[str, Any]:
    return {"ok": copy.fault is None, "sector": copy.lba, "fault": copy.fault}


# ── words ────────────────────────────────────────────────────────────────────────────────────


def _describe(answer: Mapping[str, Any]) -> str:
    lines = []
    for name, copy in answer.get("copies", {}).items():
        lines.append(f"{name:<8} copy at sector {copy['sector']}: {copy['fault'] or 'good'}")
    if answer.get("repair"):
        lines.append(f"wants repair: {answer['repair']}")
    if answer.get("repaired"):
        lines.append(f"repaired: {answer['repaired']}")
    if "slots" in answer:
        lines += ["", *_table(answer["slots"]), "", _next_words(answer["next"])]
    return "".join(f"{line}\n" for line in lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [("slot", "partition", "label", "priority", "state", "")]
    for row in rows:
        mark = "<- boots next" if row["next"] else ""
        values = (row[key] for key in ("slot", "partition", "label", "priority", "words"))
        cells.append((*map(str, values), mark))  # type: ignore[arg-type]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _next_words(following: Mapping[str, Any] | None) -> str:
    if following is None:
        return "nothing can be booted"
    if following["slot"] is None:
        return f"partition {following['partition']}, which is neither slot, boots next"
    return f"slot {following['slot']} (partition {following['partition']}) boots next"


def _slots(text: str) -> dict[Slot, int]:
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        index = {Slot(name.strip()): int(number) for name, number in pairs}
    except ValueError:
        index = {}
    if set(index) != set(Slot) or index[Slot.A] == index[Slot.B]:
        raise argparse.ArgumentTypeError(f"{text!r} is not like A=3,B=4")
    return {slot: index[slot] for slot in Slot}
