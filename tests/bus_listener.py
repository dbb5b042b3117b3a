"""What a test needs of a client: calls, and every signal that was heard, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dbus_fast import MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.message import Message
from dbus_fast.unpack import unpack_variants


class Listener:
    def __init__(self) -> None:
        self.bus: MessageBus | None = None
        self.signals: list[tuple[str, str, list[Any]]] = []
        self._heard = asyncio.Event()

    @classmethod
    async def open(cls, address: str, *rules: str) -> Listener:
        self = cls()
        self.bus = await MessageBus(address).connect()
        self.bus.add_message_handler(self._hear)
        for rule in rules:
            await self.driver("AddMatch", "s", [rule])
        return self

    def _hear(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            self.signals.append(
                (str(message.path), str(message.member), unpack_variants(message.body))
            )
            self._heard.set()

    async def driver(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        name = "org.freedesktop.DBus"
        reply = await self.call(name, "/org/freedesktop/DBus", name, member, signature, body)
        return list(reply.body)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: list[Any] | None = None,
    ) -> Message:
        assert self.bus is not None
        reply = await self.bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body or [],
            )
        )
        assert reply is not None
        return reply

    def named(self, member: str) -> list[list[Any]]:
        return [body for _, name, body in self.signals if name == member]

    async def until(self, ready: Callable[[], bool], timeout: float = 20.0) -> None:
        """Wait for signals until `ready`."""
        async with asyncio.timeout(timeout):
            while not ready():
                self._heard.clear()
                await self._heard.wait()

    async def settle(self) -> None:
        """Everything that was sent to us before now has been heard after this."""
        await self.driver("GetId", "", [])

    def close(self) -> None:
        assert self.bus is not None
        self.bus.disconnect()
