"""Gates before a reboot: strategy, sessions, inhibitors, lock."""

from __future__ import annotations

from bascule.engine.coordination.interface import Holder, LockView
from bascule.updater.duration import words
from bascule.updater.gates.facts import Facts
from bascule.updater.gates.gate import Blocks, Gate, blocks, passes, unknown
from bascule.updater.sentences import listed

_LOCKS = ("etcd-lock", "fleetlock", "command")


def strategy(facts: Facts, now: float) -> Gate:
    """`reboot.strategy`, and locksmithd where it runs beside us."""
    if facts.locksmithd is not None:
        return blocks(
            Blocks.REBOOT,
            "strategy.locksmith",
            override=True,
            strategy=facts.locksmithd.strategy,
            state=facts.locksmithd.state,
        )
    if facts.strategy == "off":
        return blocks(Blocks.REBOOT, "strategy.off", override=True)
    return passes(Blocks.REBOOT, "strategy.reboot", strategy=facts.strategy)


def sessions(facts: Facts, now: float) -> Gate:
    """`reboot.sessions`: wait while people are logged in."""
    found = facts.surroundings.sessions
    if not facts.wait_for_sessions:
        return passes(Blocks.REBOOT, "sessions.off")
    if found is None:
        return unknown(Blocks.REBOOT, "sessions.unknown")
    if not found:
        return passes(Blocks.REBOOT, "sessions.none")
    who = [f"{s.user} ({s.where})" if s.where else s.user for s in found]
    return blocks(Blocks.REBOOT, "sessions.some", override=True, who=listed(who))


def inhibitors(facts: Facts, now: float) -> Gate:
    """`reboot.inhibitors`: systemd's inhibitor locks. logind would refuse, ``--now`` or not."""
    found = facts.surroundings.inhibitors
    if not facts.wait_for_inhibitors:
        return passes(Blocks.REBOOT, "inhibitors.off")
    if found is None:
        return unknown(Blocks.REBOOT, "inhibitors.unknown")
    if not found:
        return passes(Blocks.REBOOT, "inhibitors.none")
    who = [f"{i.who} ({i.why})" if i.why else i.who for i in found]
    return blocks(Blocks.REBOOT, "inhibitors.some", who=listed(who))


def lock(facts: Facts, now: float) -> Gate:
    """The coordinator's lock, its holders and their age."""
    if facts.strategy not in _LOCKS:
        return passes(Blocks.REBOOT, "lock.none")
    view = facts.lock or LockView(facts.strategy)
    told: dict[str, object] = {"strategy": view.strategy}
    if view.trouble:
        return blocks(Blocks.REBOOT, "lock.unreachable", detail=view.trouble, told=told)
    if view.held:
        return passes(Blocks.REBOOT, "lock.held", told=told)
    if view.free is None:
        return passes(Blocks.REBOOT, "lock.ask", told=told)
    if view.free > 0:
        return passes(Blocks.REBOOT, "lock.free", free=view.free, places=view.places, told=told)
    if not view.holders:
        return blocks(Blocks.REBOOT, "lock.closed", told=told)
    told["holders"] = listed([_holder(h, now) for h in view.holders])
    stale = [h for h in view.holders if h.since is not None and now - h.since > facts.stale_after]
    if stale and view.release:
        release = "; ".join(view.release.replace("{id}", h.id) for h in stale)
        return blocks(Blocks.REBOOT, "lock.stale", release=release, told=told)
    return blocks(Blocks.REBOOT, "lock.taken", told=told)


def _holder(holder: Holder, now: float) -> str:
    if holder.since is None:
        return holder.id
    about = "for at least " if holder.at_least else "for "
    return f"{holder.id} {about}{words(now - holder.since)}"
