"""Who asks over the bus, and whether they may: the caller's credentials and polkit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import structlog
from dbus_fast import MessageFlag, Variant
from dbus_fast.errors import DBusError
from dbus_fast.message import Message

from bascule.errors import BusUnreachable, NotPermitted
from bascule.faces.bus_connection import BusConnection
from bascule.updater.steering import Actor

__all__ = ["ACTIONS", "Authority"]

ACTION_PREFIX = "org.bascule.Update1."
ACTIONS = (
    "check",
    "update",
    "override",
    "cancel",
    "rollback",
    "reboot",
    "configure",
    "repair",
)
"""Tails of the polkit actions in ``systemd/polkit-1/actions/org.bascule.Update1.policy``."""

POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_PATH = "/org/freedesktop/PolicyKit1/Authority"
POLKIT_INTERFACE = "org.freedesktop.PolicyKit1.Authority"

_ALLOW_USER_INTERACTION = 1
_NOBODY_ANSWERS = frozenset(
    {
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.DBus.Error.Spawn.ServiceNotFound",
        "org.freedesktop.systemd1.NoSuchUnit",
        "org.freedesktop.systemd1.LoadFailed",
    }
)

_log = structlog.get_logger("bascule.authority")


@dataclass(frozen=True, slots=True)
class _Answer:
    permitted: bool
    challenge: bool


class Authority:
    """Decides by uid and by polkit.

    Root, and the user that the daemon itself runs as, may do everything (the latter matters on
    a private bus only: on a host the daemon is root). Everybody else may do what polkit says;
    without polkit, nothing.
    """

    def __init__(self, connection: BusConnection) -> None:
        self._connection = connection
        self._trusted = frozenset({0, os.geteuid()})

    async def caller(self, call: Message, via: str) -> Actor:
        """The sender of `call`, as the bus itself vouches for it."""
        uid, pid = -1, -1
        sender = call.sender or ""
        try:
            (credentials,) = await self._connection.call_driver(
                "GetConnectionCredentials", "s", [sender]
            )
        except (DBusError, BusUnreachable):
            return Actor(via=via, sender=sender)
        if "UnixUserID" in credentials:
            uid = int(credentials["UnixUserID"].value)
        if "ProcessID" in credentials:
            pid = int(credentials["ProcessID"].value)
        return Actor(via=via, sender=sender, uid=uid, pid=pid)

    async def require(self, action: str, call: Message, via: str = "bus") -> Actor:
        """Return who asks, if they may do `action` (a tail from `ACTIONS`).

        Raises:
            NotPermitted: polkit says no, or there is no polkit and the caller is not root.
        """
        actor = await self.caller(call, via)
        if actor.uid in self._trusted:
            return actor
        interactive = bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        answer = await self._ask_polkit(ACTION_PREFIX + action, actor.sender, interactive)
        if answer.permitted:
            return actor
        _log.info("Refused", action=action, uid=actor.uid, pid=actor.pid)
        hint = "; it needs authentication" if answer.challenge else ""
        raise NotPermitted(
            f"{ACTION_PREFIX}{action} for user id {actor.uid}{hint}",
            action=ACTION_PREFIX + action,
            uid=actor.uid,
        )

    async def _ask_polkit(self, action: str, sender: str, interactive: bool) -> _Answer:
        body = [
            ["system-bus-name", {"name": Variant("s", sender)}],
            action,
            {},
            _ALLOW_USER_INTERACTION if interactive else 0,
            "",
        ]
        try:
            (answer,) = await self._connection.call(
                POLKIT,
                POLKIT_PATH,
                POLKIT_INTERFACE,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                body,
                # A person types a password in the meantime.
                timeout=180.0 if interactive else 25.0,
            )
        except DBusError as error:
            if error.type not in _NOBODY_ANSWERS:
                _log.warning("polkit could not decide", action=action, reason=str(error))
            return _Answer(False, False)
        except BusUnreachable as error:
            _log.warning("polkit did not answer", action=action, reason=str(error))
            return _Answer(False, False)
        permitted, challenge = bool(answer[0]), bool(answer[1])
        return _Answer(permitted, challenge)
