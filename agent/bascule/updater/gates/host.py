"""Gates about this host: slot, space, link, budget, battery, load."""

from __future__ import annotations

from bascule.updater.gates.facts import Facts
from bascule.updater.gates.gate import Blocks, Gate, blocks, passes, unknown
from bascule.updater.gates.when import moment
from bascule.updater.sentences import listed, size_words


def unblessed(facts: Facts, now: float) -> Gate:
    """The last known good slot is never overwritten; not even ``--now`` does."""
    if facts.blessed is None:
        return unknown(Blocks.UPDATE, "unblessed.unknown")
    if not facts.blessed:
        return blocks(Blocks.UPDATE, "unblessed.trial")
    if facts.watched_until > now:
        return blocks(
            Blocks.UPDATE,
            "unblessed.late",
            until=facts.watched_until,
            when=moment(facts, facts.watched_until),
        )
    return passes(Blocks.UPDATE, "unblessed.blessed")


def space(facts: Facts, now: float) -> Gate:
    """Room for what the update writes outside the slot, before the first byte."""
    for room in facts.rooms:
        if room.available is not None and room.available < room.needed:
            return blocks(
                Blocks.UPDATE,
                "space.short",
                path=room.path,
                needed=size_words(room.needed),
                available=size_words(room.available),
            )
    for room in facts.rooms:
        if room.available is None:
            return unknown(Blocks.UPDATE, "space.unknown", path=room.path)
    if not facts.rooms:
        return passes(Blocks.UPDATE, "space.none")
    return passes(Blocks.UPDATE, "space.enough", places=listed([r.path for r in facts.rooms]))


def metered(facts: Facts, now: float) -> Gate:
    """A link that costs by volume."""
    match facts.surroundings.metered:
        case False:
            return passes(Blocks.DOWNLOAD, "metered.no")
        case True if facts.allow_metered:
            return passes(Blocks.DOWNLOAD, "metered.allowed")
        case True:
            return blocks(Blocks.DOWNLOAD, "metered.yes", override=True)
        case _:
            return unknown(Blocks.DOWNLOAD, "metered.unknown")


def budget(facts: Facts, now: float) -> Gate:
    """`download.budget`: data in a calendar month."""
    period = facts.budget
    if period is None or period.limit <= 0:
        return passes(Blocks.DOWNLOAD, "budget.none")
    fresh = period.ends <= now
    used = 0 if fresh else period.used
    left = max(0, period.limit - used)
    told = {
        "limit": size_words(period.limit),
        "used": size_words(used),
        "left": size_words(left),
        "when": moment(facts, period.ends),
        "needed": size_words(facts.needed),
    }
    if left == 0:
        return blocks(Blocks.DOWNLOAD, "budget.spent", until=period.ends, override=True, told=told)
    if facts.needed > left:
        # More than a whole period allows never fits: waiting for the next one would be a lie.
        ends = period.ends if facts.needed <= period.limit and not fresh else None
        return blocks(Blocks.DOWNLOAD, "budget.too-small", until=ends, override=True, told=told)
    return passes(Blocks.DOWNLOAD, "budget.left", told=told)


def battery(facts: Facts, now: float) -> Gate:
    """`policy.battery_floor`. A host that goes dark while it writes helps nobody."""
    found = facts.surroundings.battery
    if facts.battery_floor <= 0:
        return passes(Blocks.UPDATE, "battery.off")
    if found is None:
        if facts.surroundings.has_battery:
            return unknown(Blocks.UPDATE, "battery.unknown")
        return passes(Blocks.UPDATE, "battery.none")
    if found.mains:
        return passes(Blocks.UPDATE, "battery.mains", percent=found.percent)
    low = found.percent < facts.battery_floor
    told = {"percent": found.percent, "floor": facts.battery_floor}
    if low:
        return blocks(Blocks.UPDATE, "battery.low", told=told)
    return passes(Blocks.UPDATE, "battery.enough", told=told)


def load(facts: Facts, now: float) -> Gate:
    """`policy.load_ceiling`: pressure stall information."""
    pressure = facts.surroundings.pressure
    if facts.load_ceiling <= 0:
        return passes(Blocks.UPDATE, "load.off")
    if pressure is None:
        return unknown(Blocks.UPDATE, "load.unknown")
    what, percent = pressure.worst
    told = {"what": what, "percent": f"{percent:.0f}", "ceiling": facts.load_ceiling}
    if percent > facts.load_ceiling:
        return blocks(Blocks.UPDATE, "load.high", override=True, told=told)
    return passes(Blocks.UPDATE, "load.low", told=told)
