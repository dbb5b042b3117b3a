"""The daemon's one connection to the message bus: it knows who calls, and comes back by itself.

Two traps of dbus-fast 5.2 are closed here, each with a regression test
(``tests/faces/test_bus_traps.py``): its writer takes a full socket for a dead one, and its
method handlers are not told who calls. dbus-fast is pinned to 5.2 because the first one is
closed through a private attribute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog
from dbus_fast import BusType, MessageType, NameFlag, RequestNameReply
from dbus_fast.aio import MessageBus
from dbus_fast.aio.message_bus import _MessageWriter
from dbus_fast.errors import DBusError, DBusFastError
from dbus_fast.message import Message
from dbus_fast.service import ServiceInterface

from bascule.errors import BasculeError, BusNameTaken, BusUnreachable

__all__ = ["BusConnection", "current_call"]

BUS_DRIVER = "org.freedesktop.DBus"
BUS_DRIVER_PATH = "/org/freedesktop/DBus"

_log = structlog.get_logger("bascule.bus")
_current: ContextVar[Message] = ContextVar("bascule_bus_call")


def current_call() -> Message:
    """The method call that the running handler (or a task it started) answers.

    Raises:
        LookupError: no bus method is being answered in this context.
    """
    return _current.get()


class _PatientSocket:
    """A socket whose ``send`` reports 0 bytes where it would raise.

    Full: dbus-fast's writer then waits until the socket is writable; it would treat the
    exception as the end of the connection. Dead: the reader sees that too, in a moment when
    nobody is in the middle of a signal.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def send(self, data: Any) -> int:
        try:
            return int(self._sock.send(data))
        except OSError:
            return 0

    def sendmsg(self, *args: Any) -> int:
        return int(self._sock.sendmsg(*args))


class _PatientWriter(_MessageWriter):
    """Never raises into whoever has something to say: a dead bus is the connection's affair."""

    def __init__(self, bus: MessageBus) -> None:
        super().__init__(bus)
        self.sock: Any = _PatientSocket(self.sock)

    def schedule_write(
        self, msg: Message | None = None, future: asyncio.Future[Any] | None = None
    ) -> None:
        if future is not None:
            future.add_done_callback(_mark_as_seen)
        with suppress(OSError, ValueError):
            super().schedule_write(msg, future)


def _mark_as_seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _remember_call(message: Message) -> None:
    if message.message_type is MessageType.METHOD_CALL:
        _current.set(message)


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


class BusConnection:
    """Objects and names on one bus, kept there over a restart of the bus.

    Objects are exported before names are asked for, so that whoever sees a name finds the
    object behind it.

    Args:
        address: D-Bus address, or None for the system bus.
        rng: spreads the reconnect attempts of many daemons on one host.
        first_delay, longest_delay: seconds between reconnect attempts, doubling.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        rng: random.Random | None = None,
        first_delay: float = 0.5,
        longest_delay: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.address = address
        self._rng = rng or random.Random()
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._sleep = sleep
        self._bus: MessageBus | None = None
        self._exports: dict[str, list[ServiceInterface]] = {}
        self._names: list[str] = []
        self._on_connect: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        return self._bus is not None and self._bus.connected

    @property
    def bus(self) -> MessageBus | None:
        """The connection itself, for calls of other parts; None while there is none."""
        return self._bus if self.connected else None

    @property
    def unique_name(self) -> str:
        """The connection's own name (``:1.42``), or "" while it is not connected."""
        return (self._bus.unique_name or "") if self._bus is not None and self.connected else ""

    def on_connect(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the connection stands and owns its names."""
        self._on_connect.append(listener)

    def export(self, path: str, interface: ServiceInterface) -> None:
        """Offer `interface` at `path`, now and after every reconnect."""
        self._exports.setdefault(path, []).append(interface)
        if self._bus is not None and self.connected:
            self._bus.export(path, interface)

    def unexport(self, path: str) -> None:
        """Take everything at `path` off the bus."""
        self._exports.pop(path, None)
        if self._bus is not None and self.connected:
            self._bus.unexport(path)

    async def connect(self, names: Sequence[str] = ()) -> None:
        """Connect, export, then own `names` (added to those asked for before).

        Raises:
            BusUnreachable: no bus at the address, or its policy forbids a name.
            BusNameTaken: somebody else owns one of the names.
        """
        self._names += [name for name in names if name not in self._names]
        bus: MessageBus | None = None
        try:
            if self.connected:
                bus = self._bus
            else:
                bus = await self._open()
                self._bus = bus
                for path, interfaces in self._exports.items():
                    for interface in interfaces:
                        bus.export(path, interface)
            assert bus is not None
            for name in self._names:
                await self._own(bus, name)
        except BasculeError:
            self.close()
            raise
        for listener in self._on_connect:
            listener()

    async def _open(self) -> MessageBus:
        try:
            bus = MessageBus(self.address, bus_type=BusType.SYSTEM, auth_timeout=10.0)
            await bus.connect()
        except (OSError, DBusFastError, EOFError) as error:
            where = self.address or "the system bus"
            raise BusUnreachable(f"{where}: {error}", address=where) from error
        bus._writer = _PatientWriter(bus)
        bus.add_message_handler(_remember_call)
        return bus

    async def _own(self, bus: MessageBus, name: str) -> None:
        try:
            reply = await bus.request_name(name, NameFlag.DO_NOT_QUEUE)
        except (DBusError, OSError, EOFError) as error:
            raise BusUnreachable(f"{name} was refused: {error}", name=name) from error
        if reply in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            return
        owner, pid, program = "", -1, ""
        with suppress(DBusError, OSError, EOFError):
            (owner,) = await self.call_driver("GetNameOwner", "s", [name])
            (pid,) = await self.call_driver("GetConnectionUnixProcessID", "s", [owner])
            program = _program(int(pid))
        who = f"{program or 'a program'} (process {pid})" if pid > 0 else owner or "somebody else"
        raise BusNameTaken(f"{name} belongs to {who}", name=name, pid=pid, program=program)

    async def stay(self) -> None:
        """Keep the connection until cancelled; a bus that went away is tried again and again."""
        delay = self._first_delay
        while True:
            if self._bus is not None and self.connected:
                with suppress(OSError, EOFError, DBusFastError):
                    await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
                _log.warning("The bus went away; trying to come back", address=self.address)
            await self._sleep(delay * self._rng.uniform(0.5, 1.0))
            try:
                await self.connect()
            except (BusUnreachable, BusNameTaken) as error:
                _log.debug("The bus is still away", reason=str(error))
                delay = min(delay * 2, self._longest_delay)
            else:
                delay = self._first_delay
                _log.info("Back on the bus", names=self._names, unique_name=self.unique_name)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float = 25.0,
    ) -> list[Any]:
        """Call a method elsewhere and return its answer's body.

        Raises:
            DBusError: the callee answered with an error.
            BusUnreachable: there is no connection, or no answer within `timeout` seconds.
        """
        bus = self._bus
        if bus is None or not self.connected:
            raise BusUnreachable(f"not connected while calling {member}")
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        try:
            async with asyncio.timeout(timeout):
                reply = await bus.call(message)
        except TimeoutError as error:
            raise BusUnreachable(f"{destination} did not answer {member}") from error
        except (OSError, EOFError) as error:
            raise BusUnreachable(f"the bus went away during {member}") from error
        if reply is None:
            raise BusUnreachable(f"the bus went away during {member}")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise DBusError(reply.error_name or "org.freedesktop.DBus.Error.Failed", text, reply)
        return list(reply.body)

    async def call_driver(self, member: str, signature: str, body: Sequence[Any]) -> list[Any]:
        """`call` to the bus itself."""
        return await self.call(
            BUS_DRIVER, BUS_DRIVER_PATH, BUS_DRIVER, member, signature, body, timeout=10.0
        )

    async def hang_up(self) -> None:
        """End the calls that are still being answered: their handlers are cancelled, and the callers
        are told. dbus-fast would leave them to the loop's end, and log each with a traceback."""
        pending = list(self._bus._pending_futures) if self._bus is not None else []
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def close(self) -> None:
        """Leave the bus; what is still queued is dropped."""
        bus, self._bus = self._bus, None
        if bus is not None and bus.connected:
            bus.disconnect()
