"""When a host has not heard from its server for too long. Pure."""

from __future__ import annotations

from bascule.updater.duration import words


def is_stale(last_checked: int, begun: int, stale_after: float, now: float) -> bool:
    """Whether no check has succeeded for longer than `stale_after` seconds (0: never stale).

    Args:
        last_checked: unix seconds of the last success, 0 for never.
        begun: unix seconds of the agent's first run, from which a host counts that never succeeded;
            0 where that is not known.
    """
    since = last_checked or begun
    return stale_after > 0 and since > 0 and now - since > stale_after


def warning(last_checked: int, begun: int, now: float) -> str:
    """The sentence about it, for status and the login message."""
    if last_checked:
        return f"No check for updates has succeeded for {words(now - last_checked)}."
    return (
        f"No check for updates has succeeded since this agent first ran, {words(now - begun)} ago."
    )
