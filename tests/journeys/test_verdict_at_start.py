"""What the daemon says of the last update when it starts, for every order of events (design §8).

Each row names what happened between the last daemon and this one: a ledger as one of our own
processes left it, a table as somebody left it, and boots. The firmware is `firmware.py`; the table
is edited by cgpt, as an operator would. Then a real daemon starts, and has to say one true sentence,
quarantine what failed here and nothing else, and tell the server the right events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bascule.updater.intent import Phase
from bus_fixture import private_bus
from node import Node
from publisher import IMAGE_MIB, Site
from story import NEW, OLD, PAYLOAD, Story, image

FIRST_WORD = "3/2"
"""What every host says first: it runs, after a reboot or for the first time ever."""
ROLLED_BACK = "3/0/44"

NOTHING = "No update is pending."
UNFINISHED = f"The installation of {NEW} was interrupted; it goes on at the next check."
WAITING = f"Release {NEW} is staged and starts with the next reboot."
ON_TRIAL = f"Release {NEW} is on trial; {OLD} comes back if it does not prove itself."
UPDATED = f"Updated from {OLD} to {NEW} since …."
BACK = f"Release {NEW} did not boot healthy (%s); back on {OLD} since …; {NEW} will not be tried again."
CHOSEN = f"Release {NEW} was staged, but someone chose {OLD} by hand; nothing is pending."
LEFT = f"Release {NEW} was confirmed, but someone chose {OLD} by hand since."

NEVER_REACHED = BACK % "it never reached its health checks"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that has nothing newer than what every host here runs."""
    site = Site(tmp_path_factory.mktemp("publisher"))
    site.publish(OLD)
    site.start()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    with private_bus() as bus:
        yield bus.address


# ── what happened ────────────────────────────────────────────────────────────────────────────


def cut_while_writing(story: Story) -> None:
    story.installed(phase=Phase.WRITING)
    story.boots("A")


def cut_before_the_flip(story: Story) -> None:
    story.installed(phase=Phase.STAGING)
    story.table("B", 0, 0, 0)
    story.boots("A")


def cut_after_the_flip(story: Story) -> None:
    """The ledger does not say yet that it is staged; the bootloader finds the new slot."""
    story.installed(phase=Phase.STAGING)
    story.boots("B")


def cut_after_the_flip_and_proven(story: Story) -> None:
    cut_after_the_flip(story)
    story.ends_well()


def killed_after_the_flip(story: Story) -> None:
    """Only our processes died: the same boot goes on."""
    story.installed(phase=Phase.STAGING)


def rebooted_as_wished(story: Story) -> None:
    story.installed()
    story.boots("B")
    story.ends_well()


def cut_in_the_first_boot(story: Story) -> None:
    story.installed()
    story.boots("B")
    story.boots("A")


def cut_in_the_first_of_two_boots(story: Story) -> None:
    story.installed(tries=2)
    story.boots("B")
    story.boots("B")


def every_try_cut(story: Story) -> None:
    cut_in_the_first_of_two_boots(story)
    story.boots("A")


def second_try_proven(story: Story) -> None:
    cut_in_the_first_of_two_boots(story)
    story.ends_well()


def judged_unhealthy(story: Story) -> None:
    story.installed("broken")
    story.boots("B")
    story.is_given_up()
    story.boots("A")


def cut_in_the_soak(story: Story) -> None:
    story.installed()
    story.boots("B")
    assert story.node.bascule("health").returncode == 0
    story.boots("A")


def cut_between_table_and_ledger_of_a_blessing(story: Story) -> None:
    story.installed()
    story.boots("B")
    assert story.node.bascule("health").returncode == 0
    story.table("B", 2, 0, 1)
    story.boots("B")


def operator_booted_the_old_slot_by_hand(story: Story) -> None:
    """In the bootloader's menu: no try is spent."""
    story.installed()
    table = story.node.flags("B")
    story.table("B", 0, *table[1:])
    story.boots("A")
    story.table("B", *table)


def operator_booted_the_new_slot_by_hand(story: Story) -> None:
    """In the bootloader's menu: the try is still there while the slot runs."""
    story.installed()
    story.boots("B")
    story.table("B", 2, 1, 0)


def operator_went_back_after_the_blessing(story: Story) -> None:
    rebooted_as_wished(story)
    story.table("A", 3, 0, 1)
    story.boots("A")


def table_edited_other_slot_cleared(story: Story) -> None:
    story.installed()
    story.table("B", 0, 0, 0)
    story.boots("A")


def table_edited_old_slot_preferred(story: Story) -> None:
    story.installed()
    story.table("A", 3, 0, 1)
    story.boots("A")


def table_edited_try_taken(story: Story) -> None:
    """In the boot that staged it: nobody can have tried it."""
    story.installed()
    story.table("B", 2, 0, 0)


def table_edited_blessed_beforehand(story: Story) -> None:
    story.installed()
    story.table("B", 2, 0, 1)
    story.boots("B")


def ledger_lost_on_trial(story: Story) -> None:
    story.installed()
    (story.node.state / "ledger.json").write_bytes(b'{"schema": 1, "int')
    story.boots("B")
    story.ends_well()


@dataclass
class Row:
    """One order of events and what must be said of it.

    Attributes:
        sentence: what `updatectl status` says; "…" stands for the time of day.
        events: what the server is told at the next check, type/result/error.
        leads: the slot that boots next.
    """

    happened: Callable[[Story], None]
    booted: str
    verdict: str
    sentence: str
    events: tuple[str, ...] = (FIRST_WORD,)
    quarantined: bool = False
    leads: str = "A"


ROWS = [
    # The power went …
    Row(cut_while_writing, "A", "UNFINISHED", UNFINISHED),
    Row(cut_before_the_flip, "A", "UNFINISHED", UNFINISHED),
    Row(killed_after_the_flip, "A", "WAITING", WAITING, (), leads="B"),
    Row(cut_after_the_flip, "B", "ON_TRIAL", ON_TRIAL, ()),
    Row(cut_after_the_flip_and_proven, "B", "UPDATED", UPDATED, leads="B"),
    Row(cut_in_the_first_boot, "A", "ROLLED_BACK", NEVER_REACHED, (ROLLED_BACK,), True),
    Row(cut_in_the_first_of_two_boots, "B", "ON_TRIAL", ON_TRIAL, ()),
    Row(second_try_proven, "B", "UPDATED", UPDATED, leads="B"),
    Row(every_try_cut, "A", "ROLLED_BACK", NEVER_REACHED, (ROLLED_BACK,), True),
    Row(
        cut_in_the_soak, "A", "ROLLED_BACK", BACK % "it went down before it was confirmed",
        (ROLLED_BACK,), True,
    ),
    Row(cut_between_table_and_ledger_of_a_blessing, "B", "UPDATED", UPDATED, leads="B"),
    # It stayed …
    Row(rebooted_as_wished, "B", "UPDATED", UPDATED, leads="B"),
    Row(
        judged_unhealthy, "A", "ROLLED_BACK", BACK % "10-application failed with exit status 1",
        (ROLLED_BACK,), True,
    ),
    # An operator in the bootloader's menu …
    Row(operator_booted_the_old_slot_by_hand, "A", "WAITING", WAITING, (), leads="B"),
    Row(operator_booted_the_new_slot_by_hand, "B", "ON_TRIAL", ON_TRIAL, (), leads="B"),
    # The original says 44 of every return to the version before (reference 2.3), and so do we.
    Row(operator_went_back_after_the_blessing, "A", "UPDATED", LEFT, (ROLLED_BACK,)),
    # Somebody else's hand in the table …
    Row(table_edited_other_slot_cleared, "A", "WITHDRAWN", CHOSEN),
    Row(table_edited_old_slot_preferred, "A", "WITHDRAWN", CHOSEN),
    Row(table_edited_try_taken, "A", "WITHDRAWN", CHOSEN),
    Row(table_edited_blessed_beforehand, "B", "UPDATED", UPDATED, leads="B"),
    # What was known is gone …
    Row(ledger_lost_on_trial, "B", "NOTHING_PENDING", NOTHING, leads="B"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.happened.__name__ for row in ROWS])
def test_what_is_said(row: Row, site: Site, bus: str, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", site.url, bus, site.keys, slot_mib=IMAGE_MIB + 2)
    first = tmp_path / "first.img"
    first.write_bytes(image(OLD))
    story = Story(node.make(first))
    requests = site.served / "requests.jsonl"
    heard = len(site.events()) if requests.exists() else 0
    row.happened(story)
    try:
        node.start_daemon()
        status = node.status()
        node.updatectl("check")
    finally:
        node.power_off()
    assert node.slot == row.booted
    said = re.sub(r"\bsince \d\d:\d\d", "since …", str(status["sentence"]))
    assert (status["verdict"], said) == (row.verdict, row.sentence)
    assert status["quarantine"] == int(row.quarantined)
    assert (PAYLOAD in story.ledger.read().quarantine) is row.quarantined
    told = [
        "/".join(e[k] for k in ("eventtype", "eventresult", "errorcode") if e.get(k))
        for e in site.events()[heard:]
    ]
    assert tuple(told) == row.events
    assert node.power_on(daemon=False) == row.leads
