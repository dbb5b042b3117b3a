"""Whoever can reach the bus can send anything, as often as they like."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
from dbus_fast import MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import NotPermitted, UsageError
from bascule.faces.bus import INTERFACE, NAME, PATH, action_of_document
from bascule.faces.bus_wishes import LONGEST, wishes
from bascule.updater.steering import Actor
from bus_listener import Listener

HUGE = "x" * (2 << 20)
PROPERTIES = "org.freedesktop.DBus.Properties"


async def ask(listener: Listener, member: str, signature: str, *body: Any) -> Message:
    return await listener.call(NAME, PATH, INTERFACE, member, signature, list(body))


@pytest.mark.parametrize(
    ("member", "body"),
    [
        ("Update", [{"version": Variant("s", HUGE)}]),
        ("Update", [{"version": Variant("x", 3)}]),
        ("Update", [{"now": Variant("s", "yes")}]),
        ("Update", [{"file": Variant("as", ["/a", "/b"])}]),
        ("Update", [{HUGE: Variant("b", True)}]),
        ("Rollback", [{"once": Variant("x", 1)}]),
        ("Act", ["hold", {"until": Variant("d", float("nan"))}]),
        ("Act", ["hold", {"until": Variant("x", 1 << 62)}]),
        ("Act", ["hold", {"seconds": Variant("d", float("inf"))}]),
        ("Act", ["hold", {"seconds": Variant("x", -1)}]),
        ("Act", ["hold", {"seconds": Variant("x", 10**11)}]),
        ("Act", ["hold", {"reason": Variant("s", HUGE)}]),
        ("Act", ["pin", {"range": Variant("a{sv}", {})}]),
        ("Act", [HUGE, {}]),
        ("Document", ["history", {"last": Variant("s", "ten")}]),
        ("Document", ["history", {"limit": Variant("ai", [1])}]),
        ("Document", [HUGE, {}]),
    ],
    ids=range(17),
)
async def test_a_wish_of_the_wrong_kind_is_the_callers_mistake(
    served: Any, member: str, body: list[Any]
) -> None:
    listener = await Listener.open(served.address)
    signature = {"Update": "a{sv}", "Rollback": "a{sv}", "Act": "sa{sv}", "Document": "sa{sv}"}
    reply = await ask(listener, member, signature[member], *body)
    assert reply.message_type is MessageType.ERROR
    assert reply.error_name == "org.bascule.Update1.Error.Usage", reply.body
    assert len(reply.body[0]) < 1000, "what was sent is not sent back"
    assert not served.steering.asked
    listener.close()


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["version", "now", "until", "limit", "reason", "elsewhere"]) | st.text(),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary()
        | st.lists(st.text()),
    )
)
def test_wishes_are_plain_and_bounded_or_refused(options: dict[str, Any]) -> None:
    try:
        asked = wishes(options)
    except UsageError as error:
        assert str(error)
        return
    for name, value in asked.items():
        assert not isinstance(value, str) or len(value) <= LONGEST
        if name in ("until", "limit"):
            int(value)
        if name == "now":
            assert isinstance(value, bool)


@pytest.mark.parametrize(
    ("name", "options", "action"),
    [
        ("history", {}, ""),
        ("explain", {"version": "3"}, ""),
        ("plan", {}, "check"),
        ("list", {}, "check"),
        ("plan", {"file": "/root/x"}, "update"),
        ("list", {"repository": "http://10.0.0.1/"}, "update"),
        ("history", {"file": "/etc/shadow"}, "update"),
    ],
)
def test_reading_is_open_but_reaching_out_is_not(
    name: str, options: dict[str, Any], action: str
) -> None:
    assert action_of_document(name, options) == action


async def test_a_document_that_reaches_out_needs_leave(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else everybody could have root read a file, or ask a server inside the network."""
    required: list[str] = []

    async def require(action: str, call: Message, via: str = "bus") -> Actor:
        required.append(action)
        raise NotPermitted(action)

    monkeypatch.setattr(served.face.authority, "require", require)
    served.steering.documents |= {"plan": {}, "explain": {}}
    listener = await Listener.open(served.address)
    named = {"repository": Variant("s", "http://169.254.169.254/")}
    for options, verdict in ((named, MessageType.ERROR), ({}, MessageType.ERROR)):
        reply = await ask(listener, "Document", "sa{sv}", "plan", options)
        assert reply.message_type is verdict
    assert required == ["update", "check"]
    assert not served.steering.asked
    reply = await ask(listener, "Document", "sa{sv}", "explain", {})
    assert reply.message_type is MessageType.METHOD_RETURN
    listener.close()


@pytest.mark.parametrize(
    ("member", "signature", "body"),
    [("Update", "s", ["x"]), ("Update", "", []), ("Check", "s", [HUGE]), ("Nothing", "", [])],
)
async def test_a_wrong_signature_is_no_method_of_ours(
    served: Any, member: str, signature: str, body: list[Any]
) -> None:
    listener = await Listener.open(served.address)
    reply = await ask(listener, member, signature, *body)
    assert reply.error_name == "org.freedesktop.DBus.Error.UnknownMethod"
    listener.close()


async def test_no_property_can_be_set_from_outside(served: Any) -> None:
    listener = await Listener.open(served.address)
    reply = await listener.call(
        NAME, PATH, PROPERTIES, "Set", "ssv", [INTERFACE, "State", Variant("s", "IDLE")]
    )
    assert reply.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"
    listener.close()


async def test_many_callers_at_once_get_one_job(served: Any) -> None:
    buses = [await MessageBus(served.address).connect() for _ in range(60)]
    call = {"destination": NAME, "path": PATH, "interface": INTERFACE, "member": "Check"}
    replies = await asyncio.gather(*(bus.call(Message(**call)) for bus in buses))
    kinds = [reply.error_name for reply in replies if reply is not None]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "org.bascule.Update1.Error.Busy"}
    for bus in buses:
        bus.disconnect()


async def test_a_client_that_never_reads_holds_up_nobody(served: Any) -> None:
    """The bus keeps what such a client is sent, up to its limit, and then drops the client."""
    deaf = await asyncio.to_thread(_deaf, served.address)
    listener = await Listener.open(served.address)
    try:
        async with asyncio.timeout(60):
            for done in range(300):
                served.steering.move(bytes_total=300, bytes_done=done)
                reply = await listener.call(
                    NAME, PATH, PROPERTIES, "Get", "ss", [INTERFACE, "State"]
                )
                assert reply.message_type is MessageType.METHOD_RETURN
    finally:
        deaf.close()
        listener.close()


def _deaf(address: str) -> socket.socket:
    """A client that subscribes to everything, asks hundreds of times, and reads nothing."""

    def message(serial: int, member: str, interface: str, signature: str, *body: Any) -> bytes:
        driver = interface == "org.freedesktop.DBus"
        return bytes(
            Message(
                destination=interface if driver else NAME,
                path="/org/freedesktop/DBus" if driver else PATH,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                serial=serial,
            )._marshall(False)
        )

    client = socket.socket(socket.AF_UNIX)
    client.connect(address.split("path=")[1].split(",")[0])
    client.sendall(
        b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n"
    )
    client.sendall(message(1, "Hello", "org.freedesktop.DBus", ""))
    client.sendall(message(2, "AddMatch", "org.freedesktop.DBus", "s", "type='signal'"))
    client.setblocking(False)
    try:
        for serial in range(3, 600):
            client.sendall(message(serial, "GetAll", PROPERTIES, "s", INTERFACE))
    except BlockingIOError:
        pass
    return client
