"""The two traps of dbus-fast 5.2 (see `bascule.faces.bus_connection`) stay closed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dbus_fast.annotations import DBusInt32, DBusStr
from dbus_fast.service import ServiceInterface, dbus_method, dbus_signal

from bascule.faces.bus_connection import BusConnection, current_call
from bus_fixture import PrivateBus
from bus_listener import Listener

BURST = 5000


class Chatter(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("test.Chatter")
        self.gate = asyncio.Event()
        self.waiting = 0

    @dbus_signal()
    def Said(self, number: int) -> DBusInt32:
        return number

    @dbus_method()
    async def Sender(self, echo: DBusInt32) -> DBusStr:
        before = current_call().sender
        self.waiting += 1
        await self.gate.wait()
        await asyncio.sleep(0)
        after = current_call().sender
        return f"{before} {after} {echo}"

    @dbus_method()
    def SenderNow(self) -> DBusStr:
        return str(current_call().sender)


@contextmanager
def standing_still(bus: PrivateBus) -> Iterator[None]:
    """The bus reads nothing meanwhile, so that the sender's socket fills for certain."""
    assert bus.process is not None
    bus.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        bus.process.send_signal(signal.SIGCONT)


async def test_a_burst_of_signals_survives_a_full_socket(bus: PrivateBus) -> None:
    connection = BusConnection(bus.address)
    chatter = Chatter()
    connection.export("/chatter", chatter)
    await connection.connect(["test.chatter"])
    listener = await Listener.open(bus.address, "type='signal',interface='test.Chatter'")

    with standing_still(bus):
        for number in range(BURST):
            chatter.Said(number)
    await listener.until(lambda: len(listener.named("Said")) == BURST)

    assert [body[0] for body in listener.named("Said")] == list(range(BURST))
    assert connection.connected
    listener.close()
    connection.close()


async def test_the_trap_is_still_there_without_our_writer(bus: PrivateBus) -> None:
    """If this fails, dbus-fast has mended its writer and `_PatientSocket` can go."""
    connection = BusConnection(bus.address)
    chatter = Chatter()
    connection.export("/chatter", chatter)
    await connection.connect(["test.chatter"])
    inner: Any = connection._bus
    inner._writer.sock = inner._sock
    with standing_still(bus), suppress(RuntimeError, OSError):
        for number in range(BURST):
            if not connection.connected:
                break
            chatter.Said(number)
    assert not connection.connected


async def test_a_bus_that_dies_under_a_signal_is_no_business_of_the_speaker(
    bus: PrivateBus,
) -> None:
    connection = BusConnection(bus.address)
    chatter = Chatter()
    connection.export("/chatter", chatter)
    await connection.connect(["test.chatter"])
    assert bus.process is not None
    bus.process.kill()
    bus.process.wait()
    # The loop has not run since, so the connection does not know yet that it is dead.
    for number in range(100):
        chatter.Said(number)
    with suppress(OSError, EOFError):
        assert connection._bus is not None
        await connection._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    assert not connection.connected
    chatter.Said(BURST)


async def test_concurrent_callers_keep_their_own_sender(bus_address: str) -> None:
    connection = BusConnection(bus_address)
    chatter = Chatter()
    connection.export("/chatter", chatter)
    await connection.connect(["test.chatter"])
    callers = [await Listener.open(bus_address) for _ in range(24)]

    async def ask(caller: Listener, number: int) -> list[str]:
        reply = await caller.call(
            "test.chatter", "/chatter", "test.Chatter", "Sender", "i", [number]
        )
        return str(reply.body[0]).split()

    asks = [asyncio.ensure_future(ask(caller, number)) for number, caller in enumerate(callers * 4)]
    while chatter.waiting < len(asks):
        await asyncio.sleep(0.001)
    chatter.gate.set()
    answers = await asyncio.gather(*asks)

    for number, (answer, caller) in enumerate(zip(answers, callers * 4, strict=True)):
        assert caller.bus is not None
        assert answer == [caller.bus.unique_name, caller.bus.unique_name, str(number)]
    for caller in callers:
        assert caller.bus is not None
        reply = await caller.call("test.chatter", "/chatter", "test.Chatter", "SenderNow")
        assert reply.body == [caller.bus.unique_name]
        caller.close()
    connection.close()
