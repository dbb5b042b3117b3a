"""A host whose last update is told as a story: the ledger and the table as events left them, and boots.

The ledger is written as one of our own processes would have; the table is edited by cgpt, as an
operator would.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import replace

from bascule.engine.ledger import Ledger, Record
from bascule.formats.slots import Slot
from bascule.updater.intent import Intent, Phase
from node import Node, release_header, tool

PAYLOAD = "ab" * 32
ATTEMPT = "a1b2c3"
OLD, NEW = "3.0.0", "3.1.0"


def image(version: str, app: str = "ok") -> bytes:
    """A small image of a release; its application works unless `app` says otherwise."""
    return release_header(version, app) + random.Random(version).randbytes(60 << 10)


class Story:
    """A host that runs OLD from A and has installed NEW into B."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ledger = Ledger(node.state)

    @property
    def boot_id(self) -> str:
        return (self.node.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    @property
    def intent(self) -> Intent:
        intent = Intent.from_dict(self.ledger.read().intent)
        assert intent is not None
        return intent

    def installed(self, app: str = "ok", *, phase: Phase = Phase.STAGED, tries: int = 1) -> None:
        """As after `updatectl update`, up to `phase`."""
        assert self.node.power_on(daemon=False) == "A"
        with self.node.disk.open("r+b") as disk:
            disk.seek(self.node.offset("B"))
            disk.write(image(NEW, app))
        intent = Intent(
            attempt=ATTEMPT,
            version=NEW,
            payload=PAYLOAD,
            target=Slot.B,
            origin=Slot.A,
            origin_version=OLD,
            boot_id=self.boot_id,
            phase=phase,
            tries=tries,
            at=1_700_000_000,
        )
        self.change(
            lambda record: replace(
                record,
                aleph_version=OLD,
                previous_version=OLD if phase is Phase.STAGED else None,
                intent=intent.as_dict(),
                releases={"A": OLD},
            )
        )
        if phase is not Phase.WRITING:
            self.table("B", 2, tries, 0)

    def change(self, change: Callable[[Record], Record]) -> None:
        """Change the ledger."""
        self.ledger.update(change)

    def table(self, slot: str, priority: int, tries: int, successful: int) -> None:
        """Somebody edits the partition table."""
        words = ("-P", priority, "-T", tries, "-S", successful)
        number = {"A": 3, "B": 4}[slot]
        subprocess.run(
            [tool("cgpt"), "add", "-i", str(number), *map(str, words), str(self.node.disk)],
            check=True,
        )

    def boots(self, slot: str) -> None:
        """Power on; nothing of ours runs in that boot."""
        assert self.node.power_on(daemon=False) == slot

    def on_trial(self, app: str = "ok") -> None:
        """In the first boot of the new release."""
        self.installed(app)
        self.boots("B")

    def ends_well(self) -> None:
        """Health and blessing."""
        assert self.node.finish_boot()

    def is_given_up(self) -> None:
        """Health, and the deadman."""
        assert not self.node.finish_boot()
