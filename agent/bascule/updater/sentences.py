"""Every sentence that ``explain`` can say, by a stable id. A test produces each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SENTENCES: Final[Mapping[str, str]] = {
    # ── the server's answer
    "server.offered": "The server offers release {version}{size}.",
    "server.local": "Release {version} is installed from {source}, without the server.",
    "server.current": "The server has nothing newer than {running} for this host{group}.",
    "server.not-asked": "The server has not been asked yet; {next_check}.",
    "server.unreachable": "The server could not be asked: {detail}; {next_check}.",
    "server.deferred": "The server asks this host to wait: {words} ({status}); {next_check}.",
    "server.refused": "The server refuses this host: {words} ({status}); {next_check}.",
    "server.disabled": "Checks are off: the server is set to {server!r}.",
    "busy.idle": "No attempt is under way.",
    "busy.under-way": "An attempt is under way: {phase}.",
    "busy.way-back": "{words}",
    "busy.prepared": "{words}",
    "busy.staged": "Release {version} is staged already; reboot into it, or take it back with `updatectl cancel`.",
    # ── how far to go
    "mode.apply": "Policy lets updates be installed and the host be rebooted.",
    "mode.no-reboot": "The update was asked for with `--no-reboot`: somebody else reboots.",
    "mode.stage": "Policy is `stage`: updates are installed, and somebody else reboots.",
    "mode.check": "Policy is `check`: updates are reported and not installed.",
    "mode.none": "Policy is `none`: nothing is done unless somebody asks for it.",
    # ── when
    "schedule.interval": "Checks are made at intervals; {next_check}.",
    "schedule.due": "A scheduled check is due now.",
    "schedule.waits": "The schedule's next check is {when}.",
    "schedule.never": "The schedule never comes again: no check will be made by itself.",
    "hold.none": "No hold is set.",
    "hold.over": "The hold of {since} ended {when}.",
    "hold.until": "Updates are held until {when}{why}.",
    "hold.ending": "Updates are held until {when}{why}; that is {left} from now.",
    "hold.indefinite": "Updates are held until further notice, since {since} ({age}){why}.",
    "download-window.always": "Payloads may be fetched at any time.",
    "download-window.open": "The download window is open until {when}.",
    "download-window.whole": "The download window is open all week.",
    "download-window.closed": "The download window is closed; it opens {when}.",
    "download-window.never": "The download window never opens ({windows}).",
    "window.always": "This host may reboot at any time.",
    "window.open": "The reboot window is open until {when}.",
    "window.whole": "The reboot window is open all week.",
    "window.closed": "The reboot window is closed; it opens {when}, and this host's turn is {turn}.",
    "window.turn": "The reboot window is open; this host's turn in it is {turn}.",
    "window.never": "The reboot window never opens ({windows}).",
    # ── which release
    "pin.wanted": "Release {wanted} was asked for, and the server offers it.",
    "pin.other": "Release {wanted} was asked for, and the server offers {version}.",
    "pin.none": "No pin is set.",
    "pin.waits": "This host is pinned to {pin}.",
    "pin.allows": "Release {version} is within the pin {pin}.",
    "pin.refuses": "Release {version} is outside the pin {pin}.",
    "floor.none": "There is no version floor yet.",
    "floor.waits": "Releases older than {floor} are refused.",
    "floor.above": "Release {version} is not older than the floor {floor}.",
    "floor.below": "Release {version} is older than the floor {floor}.",
    "floor.lowered": "Release {version} is older than the floor {floor}, which was allowed explicitly.",
    "quarantine.none": "No release is in quarantine.",
    "quarantine.others": "{count} in quarantine, not the one that is offered.",
    "quarantine.this": "Release {version} failed here {since} and is not tried again: {reason}.",
    "quarantine.until": "Release {version} failed here {since} and is left alone until {when}: {reason}.",
    "back-off.none": "No earlier failure makes this host wait.",
    "back-off.until": "Release {version} failed before; it is tried again {when} (failures: {failures}).",
    # ── this host
    "unblessed.blessed": "The running release is confirmed, so the other slot may be written.",
    "unblessed.trial": "The running release is not confirmed yet, so the other slot must be kept.",
    "unblessed.late": "The running release is watched until {when}; the other slot is kept until then.",
    "unblessed.unknown": "Whether the running release is confirmed is not known.",
    "space.enough": "There is room on {places}.",
    "space.none": "No file system needs room for this update.",
    "space.short": "{path} needs {needed} and has {available}.",
    "space.unknown": "The free space on {path} is not known.",
    "metered.no": "The link is not metered.",
    "metered.allowed": "The link is metered, and `download.metered` allows that.",
    "metered.yes": "The link is metered.",
    "metered.unknown": "Whether the link is metered is not known; it is taken as not metered.",
    "budget.none": "There is no data budget.",
    "budget.left": "{left} of the data budget of {limit} are left until {when}.",
    "budget.spent": "The data budget of {limit} is spent ({used} used); the next period begins {when}.",
    "budget.too-small": "{left} of the data budget of {limit} are left, and the update needs {needed}; the next period begins {when}.",
    "battery.off": "The battery's charge does not matter here.",
    "battery.none": "This host has no battery.",
    "battery.mains": "This host runs on mains (battery {percent} %).",
    "battery.enough": "The battery is at {percent} %, at least {floor} %.",
    "battery.low": "The battery is at {percent} %, below {floor} %, and not charging.",
    "battery.unknown": "The battery's charge cannot be read.",
    "load.off": "The host's load does not matter here.",
    "load.low": "The host is not under pressure ({what} {percent} %, ceiling {ceiling} %).",
    "load.high": "The host is under pressure: {what} {percent} %, above {ceiling} %.",
    "load.unknown": "This kernel does not tell its pressure (PSI).",
    # ── the reboot
    "strategy.reboot": "Reboots are made by strategy `{strategy}`.",
    "strategy.off": "`reboot.strategy` is off: somebody else reboots this host.",
    "strategy.locksmith": "locksmithd reboots this host (strategy {strategy}, {state}).",
    "sessions.off": "Logged-in users are given notice and not waited for.",
    "sessions.none": "Nobody is logged in.",
    "sessions.some": "Logged in: {who}.",
    "sessions.unknown": "Who is logged in cannot be read.",
    "inhibitors.off": "Inhibitors are not waited for.",
    "inhibitors.none": "Nothing inhibits a reboot.",
    "inhibitors.some": "A reboot is inhibited by {who}.",
    "inhibitors.unknown": "What inhibits a reboot cannot be read.",
    "lock.none": "No lock is needed to reboot.",
    "lock.held": "This host holds the reboot lock ({strategy}).",
    "lock.free": "The reboot lock is free ({strategy}, {free} of {places}).",
    "lock.ask": "The reboot lock is asked for when everything else is ready ({strategy}).",
    "lock.taken": "The reboot lock is held by {holders} ({strategy}).",
    "lock.stale": "The reboot lock is held by {holders} ({strategy}), longer than a reboot takes; if that host is gone, release it: {release}.",
    "lock.closed": "The reboot lock is closed: it has no place at all ({strategy}).",
    "lock.unreachable": "The reboot lock cannot be asked ({strategy}): {detail}.",
    # ── summaries
    "summary.free": "Nothing holds an update back.",
    "summary.free-reboot": "Nothing holds the reboot into {version} back.",
    "summary.under-way": "An attempt is under way: {phase}.",
    "summary.one": "One gate holds {what} back: {gates}.",
    "summary.several": "{count} gates hold {what} back: {gates}.",
    "summary.at": "As things stand, it goes on {when}.",
    "summary.someone": "It goes on when somebody acts on: {gates}.",
    "summary.unknown": "Not known: {gates}.",
    "now.overrides": "--now overrides: {gates}.",
    "now.keeps": "--now does not override: {gates}.",
    "now.nothing": "--now overrides nothing: no gate that it could override holds anything back.",
    # ── history
    "history.empty": "History knows of no reboot, update or rollback.",
    "history.rebooted": "Rebooted {when} into {version}: {why}.",
    "history.asked-reboot": "Rebooted {when} because {actor} asked for it.",
    "history.asked": "{Actor} asked for {verb} {when}.",
    "history.staged": "Release {version} was written to slot {slot} and staged {when}{cost}.",
    "history.prepared": "Release {version} was written to slot {slot} {when} and waits for `updatectl activate`{cost}.",
    "history.updated": "Updated from {origin} to {version} {when}{cost}.",
    "history.rolled-back": "Rolled back {when}: {version} did not prove itself ({why}); {origin} runs again, and {version} is in quarantine.",
    "history.judged": "The fate of {version} was {verdict} {when}.",
    "history.chosen": "{Actor} chose {version} by hand {when}.",
    "history.once": "{Actor} chose {version} for one boot {when}.",
    "history.once-over": "The one boot of {version} that was asked for was over {when}.",
    "history.late": "Returned to {version} {when}, within the time in which the new release was watched: {why}.",
    "history.withdrawn": "{version} was staged and taken back {when}: {why}.",
    "history.failed": "The update to {version} failed {when}: {why}.",
    "history.booted": "Booted slot {slot} {when}.",
    "history.delta-refused": "The delta to {version} did not do {when} ({why}), so a full payload was asked for.",
    "history.repaired": "What boots next was repaired {when}: {why}.",
    "history.doctor": "{Actor} had this host repaired {when}: {done}.",
    "history.no-way-back": "The release that runs failed {when}, and the old one cannot be booted: {why}.",
    "history.late-trouble": "Whether the running release still does well could not be told {when}: {why}.",
    "history.healthy": "The health checks passed {when}.",
    "history.unhealthy": "The health checks failed {when}: {why}.",
    "history.blessed": "Slot {slot} was confirmed {when}.",
    "history.given-up": "The boot on trial was given up {when}: {why}.",
    "history.stays-up": "The boot on trial was not given up {when}: {why}.",
    "history.ledger": "The ledger was damaged and begun afresh {when}: {why}.",
    "history.held": "{Actor} held updates {when}, {until}{why}.",
    "history.hold-lifted": "{Actor} lifted the hold {when}.",
    "history.pinned": "{Actor} pinned this host to {pin} {when}.",
    "history.pin-lifted": "{Actor} lifted the pin {when}.",
}


def say(key: str, **facts: object) -> str:
    """The sentence of that id with `facts` filled in."""
    return SENTENCES[key].format(**facts)


def size_words(size: float) -> str:
    """Bytes for a sentence: ``482 MB``, ``1.9 GB``."""
    for limit, unit, places in ((10**9, "GB", 1), (10**6, "MB", 0), (10**3, "kB", 0)):
        if size >= limit:
            return f"{size / limit:.{places}f} {unit}"
    return f"{round(size)} B"


def listed(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
