"""FleetLock: the HTTP protocol of Zincati (airlock, fleetlock and other servers).

Protocol: POST ``/v1/pre-reboot`` and ``/v1/steady-state``, header ``fleet-lock-protocol: true``,
body ``{"client_params": {"id", "group"}}``; 2xx is yes, any other status is no, with
``{"kind", "value"}`` (coreos.github.io/zincati, development/fleetlock/protocol).
"""

from __future__ import annotations

import re

from bascule.engine.coordination.http import LockServer, LockTrouble
from bascule.engine.coordination.interface import Grant, LockView, Refused, clean
from bascule.engine.coordination.registry import Credentials
from bascule.errors import SettingsError

_GROUP = re.compile(r"[a-zA-Z0-9.-]{1,128}", re.ASCII)
_HEADERS = {"fleet-lock-protocol": "true"}


class FleetLock:
    """One host at a FleetLock server. Both requests are idempotent by the protocol.

    Args:
        base: URL before ``/v1``.
        machine_id: this host's id; servers compare it as it stands.
        group: ``default`` or another reboot group.
    """

    name = "fleetlock"

    def __init__(
        self,
        base: str,
        machine_id: str,
        *,
        group: str = "default",
        credentials: Credentials | None = None,
        timeout: float = 10.0,
    ) -> None:
        if not machine_id:
            raise SettingsError("this host has no machine id, so it cannot hold a lock")
        if _GROUP.fullmatch(group) is None:
            raise SettingsError(
                f"{group[:64]!r} is not a FleetLock group (letters, digits, . and -)"
            )
        self._server = LockServer(
            [base], credentials or Credentials(), timeout=timeout, basic_auth=True, proxies=True
        )
        self._body = {"client_params": {"id": machine_id, "group": group}}
        self._held = False
        self._trouble = ""

    async def acquire(self) -> Grant | Refused:
        """``pre-reboot``."""
        try:
            status, refused = await self._post("/v1/pre-reboot")
        except LockTrouble as trouble:
            self._trouble = str(trouble)
            return Refused(self.name, f"The reboot lock cannot be asked: {trouble}", unsure=True)
        self._trouble = ""
        if refused:
            # A 5xx may come after the lock was taken; 4xx is a plain no.
            unsure = status >= 500
            return Refused(self.name, f"The FleetLock server refuses: {refused}", unsure=unsure)
        self._held = True
        return Grant(self.name, "The FleetLock server allows it.")

    async def release(self) -> str:
        """``steady-state``."""
        try:
            _, refused = await self._post("/v1/steady-state")
        except LockTrouble as trouble:
            self._trouble = str(trouble)
            return str(trouble)
        self._trouble = ""
        if refused:
            return f"the FleetLock server refuses: {refused}"
        self._held = False
        return ""

    async def view(self) -> LockView:
        """What the last answers said: the protocol has no question that changes nothing."""
        return LockView(self.name, held=self._held, trouble=self._trouble)

    async def close(self) -> None:
        """Give back connections."""
        await self._server.close()

    async def _post(self, path: str) -> tuple[int, str]:
        """The status, and "" for yes or why not."""
        answer = await self._server.ask("POST", path, body=self._body, headers=_HEADERS)
        if 200 <= answer.status < 300:
            return answer.status, ""
        kind, value = answer.body.get("kind"), answer.body.get("value")
        if isinstance(kind, str) and isinstance(value, str):
            return answer.status, f"{clean(value)} ({clean(kind, 64)})"
        if answer.status >= 500 or answer.status in (401, 403, 404, 407):
            raise LockTrouble(
                f"the server answered {answer.status}, which no FleetLock server says"
            )
        return answer.status, f"HTTP status {answer.status}"
