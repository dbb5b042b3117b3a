"""Gates of policy and clock: mode, schedule, hold, windows."""

from __future__ import annotations

from bascule.updater.duration import words
from bascule.updater.gates.facts import Facts
from bascule.updater.gates.gate import Blocks, Gate, blocks, passes
from bascule.updater.schedule import Mode
from bascule.updater.zone import clock_words, zone

_DAY = 86400


def moment(facts: Facts, at: float) -> str:
    """A moment in the zone in which this host's operator reads it."""
    return clock_words(at, zone(facts.zone))


def next_check(facts: Facts, now: float) -> str:
    """``it is asked again …``, for the end of a sentence."""
    if not facts.next_check:
        return "no next check is planned"
    if facts.next_check <= now:
        return "the next check is due"
    return f"the next check is {moment(facts, facts.next_check)}"


def mode(facts: Facts, now: float) -> Gate:
    """`policy.mode`; an update that somebody asked for is not the scheduler's."""
    match facts.schedule.mode:
        case Mode.APPLY if facts.stays and facts.staged:
            return blocks(Blocks.REBOOT, "mode.no-reboot", override=True)
        case Mode.APPLY:
            return passes(Blocks.UPDATE, "mode.apply")
        case Mode.STAGE:
            return blocks(Blocks.REBOOT, "mode.stage", override=True)
        case Mode.CHECK:
            return blocks(Blocks.UPDATE, "mode.check", override=True)
        case _:
            return blocks(Blocks.UPDATE, "mode.none", override=True)


def schedule(facts: Facts, now: float) -> Gate:
    """`policy.schedule`, for checks that nobody asked for."""
    if not facts.schedule.checks:
        return passes(Blocks.UPDATE, "schedule.interval", next_check=next_check(facts, now))
    if facts.asked or 0 < facts.next_check <= now:
        return passes(Blocks.UPDATE, "schedule.due")
    comes = facts.schedule.next_check(now)
    if comes is None:
        return blocks(Blocks.UPDATE, "schedule.never", override=True)
    return blocks(
        Blocks.UPDATE, "schedule.waits", until=comes, override=True, when=moment(facts, comes)
    )


def hold(facts: Facts, now: float) -> Gate:
    """The operator's hold. ``--now`` does not lift it: whoever placed it meant it."""
    held = facts.hold
    if held is None:
        return passes(Blocks.UPDATE, "hold.none")
    why = f" ({held.reason})" if held.reason else ""
    since = moment(facts, held.since)
    if not held.active(now):
        return passes(
            Blocks.UPDATE, "hold.over", since=since, when=moment(facts, held.until or now)
        )
    if held.until is None:
        return blocks(
            Blocks.UPDATE, "hold.indefinite", since=since, age=words(now - held.since), why=why
        )
    reason = "hold.ending" if held.warns(now) else "hold.until"
    return blocks(
        Blocks.UPDATE,
        reason,
        until=held.until,
        when=moment(facts, held.until),
        why=why,
        left=words(held.until - now),
    )


def download_window(facts: Facts, now: float) -> Gate:
    """`download.windows`."""
    windows = facts.schedule.downloads
    if windows.always:
        return passes(Blocks.DOWNLOAD, "download-window.always")
    opens = windows.next_open(now)
    if opens is None:
        return blocks(Blocks.DOWNLOAD, "download-window.never", override=True, windows=windows)
    if opens > now + 1:
        return blocks(
            Blocks.DOWNLOAD,
            "download-window.closed",
            until=opens,
            override=True,
            when=moment(facts, opens),
        )
    closes = windows.next_close(now)
    if closes is None:
        return passes(Blocks.DOWNLOAD, "download-window.whole")
    return passes(Blocks.DOWNLOAD, "download-window.open", until=closes, when=moment(facts, closes))


def window(facts: Facts, now: float) -> Gate:
    """`reboot.windows`, and this host's turn in them."""
    windows = facts.schedule.reboots
    if windows.always:
        return passes(Blocks.REBOOT, "window.always")
    turn = facts.schedule.reboot_turn(now)
    if turn is None:
        return blocks(Blocks.REBOOT, "window.never", override=True, windows=windows)
    if turn.open > now:
        return blocks(
            Blocks.REBOOT,
            "window.closed",
            until=turn.at,
            override=True,
            when=moment(facts, turn.open),
            turn=moment(facts, turn.at),
        )
    if turn.at > now + 1:
        return blocks(
            Blocks.REBOOT,
            "window.turn",
            until=turn.at,
            override=True,
            turn=moment(facts, turn.at),
        )
    closes = windows.next_close(now)
    if closes is None:
        return passes(Blocks.REBOOT, "window.whole")
    return passes(Blocks.REBOOT, "window.open", until=closes, when=moment(facts, closes))
