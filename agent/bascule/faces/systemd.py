"""What systemd hears of us: readiness, status line, watchdog (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

__all__ = ["Notifier", "keep_watchdog"]


class Notifier:
    """Sends to ``NOTIFY_SOCKET``; does nothing where there is none.

    Args:
        environment: usually ``os.environ``; tests pass their own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        path = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of the abstract name space; other kinds (vsock) are not
        # for processes on this host.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_interval = _watchdog_interval(environment)
        self._last_status = ""

    @property
    def active(self) -> bool:
        return self._address.startswith(("/", "\0"))

    def notify(self, **fields: str) -> bool:
        """Send ``FIELD=value`` lines; True if somebody was there to take them."""
        if not self.active:
            return False
        lines = (f"{key}={value.translate(_ONE_LINE)}" for key, value in fields.items())
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            # systemd reads this socket with priority; if it is full, a status line may be lost,
            # but the loop must not wait for it.
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
            return True
        return False

    def ready(self, status: str = "") -> bool:
        self._last_status = status
        return self.notify(READY="1", **({"STATUS": status} if status else {}))

    def status(self, sentence: str) -> None:
        """The line that ``systemctl status`` shows; repeated sentences are not sent."""
        if sentence != self._last_status and self.notify(STATUS=sentence):
            self._last_status = sentence

    def stopping(self, status: str = "Stopping") -> bool:
        return self.notify(STOPPING="1", STATUS=status)

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more before systemd loses patience with a start or stop."""
        return self.notify(EXTEND_TIMEOUT_USEC=str(int(seconds * 1_000_000)))

    def watchdog(self) -> bool:
        return self.notify(WATCHDOG="1")


_ONE_LINE = {ord("\n"): " ", ord("\r"): " ", 0: " "}


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Half of ``WATCHDOG_USEC`` in seconds, if it is set and meant for this process."""
    try:
        period = int(environment.get("WATCHDOG_USEC", "0"))
        pid = int(environment.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return period / 2_000_000 if period > 0 and pid == os.getpid() else None


async def keep_watchdog(
    notifier: Notifier,
    *,
    healthy: Callable[[], bool] = lambda: True,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Feed the watchdog from the loop until cancelled; a stuck loop, or `healthy` false, starves it.

    Returns at once where no watchdog is set.
    """
    interval = notifier.watchdog_interval
    if interval is None:
        return
    while True:
        if healthy():
            notifier.watchdog()
        await sleep(interval)
