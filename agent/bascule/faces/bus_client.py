"""The bus as commands use it: blocking calls, and signals one after the other.

jeepney, because a command that prints one page and ends should not load an event loop: it
costs a third of the CPU time of dbus-fast at start.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from jeepney import HeaderFields, MessageFlag, MessageType
from jeepney.auth import AuthenticationError
from jeepney.bus import find_system_bus, get_connectable_addresses
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.low_level import Message
from jeepney.wrappers import DBusAddress, DBusErrorResponse, new_method_call

from bascule.errors import (
    AnswerNotUnderstood,
    BasculeError,
    DaemonNotRunning,
    DaemonTooOld,
    NotPermitted,
    UsageError,
    catalogue,
    from_dict,
)

__all__ = ["BusClient", "Signal", "options", "unwrap"]

DRIVER = DBusAddress(
    "/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus"
)
PROPERTIES = "org.freedesktop.DBus.Properties"
ADDRESS_VARIABLE = "BASCULE_BUS_ADDRESS"
ERROR_PREFIX = "org.bascule.Update1.Error."

GREETING_TIMEOUT = 10.0
CALL_TIMEOUT = 60.0
INTERACTIVE_TIMEOUT = 240.0

UPDATE1 = "org.bascule.Update1"
_REFUSAL = new_method_call(
    DBusAddress("/org/bascule/Update1", bus_name=UPDATE1, interface=UPDATE1), "Refusal"
)

_BUS_ERROR = "org.freedesktop.DBus.Error."
_NOBODY = frozenset({"ServiceUnknown", "NameHasNoOwner", "NoServer"})
_WENT_AWAY = frozenset({"NoReply", "Timeout", "TimedOut", "Disconnected"})
_UNKNOWN = frozenset({"UnknownMethod", "UnknownInterface", "UnknownObject", "UnknownProperty"})


# What jeepney raises where bytes are not D-Bus: its own errors are ValueErrors, and it indexes.
_GARBAGE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, struct.error)


def _path(address: str) -> str:
    """The socket of the first address that we can connect to, as `socket.connect` takes it."""
    if address == "SYSTEM":
        return str(find_system_bus())
    try:
        return str(next(iter(get_connectable_addresses(address))))
    except (RuntimeError, ValueError, StopIteration) as error:
        raise UsageError(
            f"{address!r} is not the address of a D-Bus socket such as unix:path=/run/dbus/socket"
        ) from error


class _Connection(DBusConnection):  # type: ignore[misc]
    """A connection that does not wait for the bus's greeting for ever."""

    def receive(self, *, timeout: float | None = None) -> Message:
        return super().receive(timeout=GREETING_TIMEOUT if self.unique_name is None else timeout)


def _connect(path: str) -> DBusConnection:
    sock = prep_socket(path, timeout=GREETING_TIMEOUT)
    try:
        return _Connection(sock)
    except BaseException:
        sock.close()
        raise


def unwrap(signature: str, value: Any) -> Any:
    """Plain values out of jeepney's ``(signature, value)`` variants, for v, a{sv}, av, aa{sv}."""
    if signature == "v":
        return unwrap(*value)
    if signature in ("a{sv}", "a{ss}"):
        return {key: unwrap(signature[3], item) for key, item in value.items()}
    if signature in ("av", "aa{sv}"):
        return [unwrap(signature[1:], item) for item in value]
    return value


def options(values: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The a{sv} of `values`; those that are None are left out. Raises UsageError for odd bytes."""
    return {key: _variant(value) for key, value in values.items() if value is not None}


def _variant(value: Any) -> tuple[str, Any]:
    match value:
        case bool():
            return ("b", value)
        case int():
            return ("x", value)
        case float():
            return ("d", value)
        case str():
            if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise UsageError(f"{value!r} is not text in UTF-8, and the bus carries no other")
            return ("s", value)
        case list():
            return ("as", [str(item) for item in value])
    raise TypeError(f"{type(value).__name__} has no D-Bus form here")


class Signal:
    """One signal that was heard: where it came from and its plain values."""

    __slots__ = ("interface", "member", "path", "values")

    def __init__(self, message: Message) -> None:
        fields = message.header.fields
        self.path = str(fields.get(HeaderFields.path, ""))
        self.interface = str(fields.get(HeaderFields.interface, ""))
        self.member = str(fields.get(HeaderFields.member, ""))
        self.values = _body(message)


def _body(message: Message) -> list[Any]:
    signature = str(message.header.fields.get(HeaderFields.signature, ""))
    return [
        unwrap(kind, value)
        for kind, value in zip(_split(signature), message.body or (), strict=True)
    ]


def _split(signature: str) -> list[str]:
    """The complete types of a signature: ``sa{sv}as`` → s, a{sv}, as."""
    types, start, depth = [], 0, 0
    for position, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            types.append(signature[start : position + 1])
            start = position + 1
    return types


class BusClient:
    """One service on one bus.

    Args:
        address: D-Bus address; "" takes ``BASCULE_BUS_ADDRESS``, then the system bus.
        name: the service's well-known name.
        interactive: let polkit ask the person for a password.

    Raises:
        DaemonNotRunning: the bus cannot be reached.
        NotPermitted: it does not let this user in.
        UsageError: `address` is not one of a unix socket.
        AnswerNotUnderstood: what answers there is no message bus.
    """

    def __init__(self, address: str, name: str, *, interactive: bool = False) -> None:
        self.name = name
        self.owner = ""
        self._interactive = interactive
        self._signals: deque[Message] = deque()
        self._rules: set[str] = set()
        address = address or os.environ.get(ADDRESS_VARIABLE, "") or "SYSTEM"
        bus = "the system bus" if address == "SYSTEM" else address
        try:
            self._connection = _connect(_path(address))
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "it closed the connection"
            raise DaemonNotRunning(f"{bus} cannot be reached ({reason})", bus=bus) from error
        except AuthenticationError as error:
            if not bytes(error.data).startswith(b"REJECTED"):
                raise AnswerNotUnderstood(f"{bus} does not speak D-Bus", bus=bus) from error
            raise NotPermitted(f"{bus} does not let user id {os.geteuid()} in", bus=bus) from error
        except DBusErrorResponse as error:
            raise DaemonNotRunning(f"{bus} refuses the connection ({error})", bus=bus) from error
        except _GARBAGE as error:
            raise AnswerNotUnderstood(f"{bus} does not speak D-Bus ({error})", bus=bus) from error

    def close(self) -> None:
        self._connection.close()

    def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float | None = None,
    ) -> list[Any]:
        """Call the service and return the plain values of its answer.

        Raises:
            DaemonNotRunning, NotPermitted, DaemonTooOld: as the bus says.
            BasculeError: whatever the daemon raised, rebuilt.
        """
        message = new_method_call(
            DBusAddress(path, bus_name=self.name, interface=interface),
            member,
            signature or None,
            tuple(body),
        )
        if self._interactive:
            message.header.flags |= MessageFlag.allow_interactive_authorization
        limit = timeout or (INTERACTIVE_TIMEOUT if self._interactive else CALL_TIMEOUT)
        return _body(self._exchange(message, limit))

    def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an interface. Raises AnswerNotUnderstood."""
        values = self.call(path, PROPERTIES, "GetAll", "s", [interface])
        if len(values) != 1 or not isinstance(values[0], dict):
            raise AnswerNotUnderstood(f"the properties of {interface} are {values!r:.80}")
        return dict(values[0])

    def listen(self, path: str = "", *, namespace: str = "", interface: str = "") -> None:
        """Hear signals of the service at `path`, or at and below `namespace`.

        Also hears of the service's end: see `next_signal`.
        """
        if not self.owner:
            self._match("org.freedesktop.DBus", member="NameOwnerChanged", arg0=self.name)
            (self.owner,) = self._driver("GetNameOwner", "s", [self.name])
        where = {"path": path} if path else {"path_namespace": namespace}
        if interface:
            where["interface"] = interface
        self._match(self.name, **where)

    def next_signal(self, timeout: float | None = None) -> Signal | None:
        """The next signal of the service, or None when `timeout` seconds have passed.

        Raises:
            DaemonNotRunning: the service, or the bus, has ended.
        """
        while True:
            if self._signals:
                message = self._signals.popleft()
            else:
                try:
                    message = self._connection.receive(timeout=timeout)
                except TimeoutError:
                    return None
                except (OSError, EOFError) as error:
                    raise DaemonNotRunning("the bus went away") from error
                except _GARBAGE as error:
                    raise AnswerNotUnderstood(f"{type(error).__name__}: {error}") from error
            if message.header.message_type is not MessageType.signal:
                continue
            signal = Signal(message)
            sender = str(message.header.fields.get(HeaderFields.sender, ""))
            if sender == "org.freedesktop.DBus":
                if signal.member == "NameOwnerChanged" and signal.values[0] == self.name:
                    raise DaemonNotRunning("it stopped in the meantime", stopped=True)
                continue
            # The rule lets through whoever owns the name; only the owner we began with counts.
            if sender == self.owner:
                return signal

    def _match(self, sender: str, **parts: str) -> None:
        rule = ",".join(
            f"{key}='{value}'"
            for key, value in {"type": "signal", "sender": sender, **parts}.items()
        )
        if rule not in self._rules:
            self._rules.add(rule)
            self._driver("AddMatch", "s", [rule])

    def _driver(self, member: str, signature: str, body: Sequence[Any]) -> list[Any]:
        return _body(
            self._exchange(new_method_call(DRIVER, member, signature, tuple(body)), CALL_TIMEOUT)
        )

    def _exchange(self, message: Message, timeout: float) -> Message:
        """Send and wait for the answer; signals that come meanwhile are kept."""
        serial = next(self._connection.outgoing_serial)
        # Of the whole exchange: signals that come meanwhile do not prolong it.
        deadline = time.monotonic() + timeout
        try:
            self._connection.send(message, serial=serial)
            while True:
                answer = self._connection.receive(timeout=max(0.0, deadline - time.monotonic()))
                if answer.header.fields.get(HeaderFields.reply_serial, -1) == serial:
                    break
                self._signals.append(answer)
        except TimeoutError as error:
            raise DaemonNotRunning(f"no answer within {timeout:.0f} s") from error
        except (OSError, EOFError) as error:
            raise DaemonNotRunning("the bus went away") from error
        except _GARBAGE as error:
            raise AnswerNotUnderstood(f"{type(error).__name__}: {error}") from error
        if answer.header.message_type is MessageType.error:
            name = str(answer.header.fields.get(HeaderFields.error_name, ""))
            refused = _rebuild(name, _body(answer))
            if isinstance(refused, DaemonNotRunning) and self.owner and not refused.detail:
                refused = DaemonNotRunning("it stopped in the meantime", stopped=True)
            if name.startswith(ERROR_PREFIX) and message is not _REFUSAL:
                refused = self._refusal(refused)
            raise refused
        return answer

    def _refusal(self, error: BasculeError) -> BasculeError:
        """`error` with all that its text cannot carry, if the daemon tells."""
        import json

        try:
            (text,) = _body(self._exchange(_REFUSAL, CALL_TIMEOUT))
            data = json.loads(text)
        except (BasculeError, ValueError):
            return error
        if not isinstance(data, dict) or not data:
            return error
        rebuilt = from_dict(data)
        if type(rebuilt) is BasculeError and data.get("id") != BasculeError.id:
            rebuilt = _foreign(data)
        return rebuilt if rebuilt.id == error.id or type(error) is BasculeError else error


def _rebuild(name: str, body: Sequence[Any]) -> BasculeError:
    """The error that a D-Bus error stands for."""
    text = str(body[0]) if body else ""
    if name.startswith(_BUS_ERROR):
        tail = name.removeprefix(_BUS_ERROR)
        if tail in _NOBODY:
            return DaemonNotRunning()
        if tail in _WENT_AWAY:
            return DaemonNotRunning("it went away during the call")
        if tail == "AccessDenied":
            return NotPermitted(f"the bus says: {text}")
        if tail in _UNKNOWN:
            return DaemonTooOld(text)
    if name.startswith(ERROR_PREFIX):
        known = {cls.bus_name(): cls for cls in catalogue()}
        if name not in known:
            return _foreign({"id": name.removeprefix(ERROR_PREFIX), "message": text})
        error = known[name]()
        # Cause, detail, remedy: the first and last are known, the rest is the detail.
        middle = text.removesuffix(error.remedy).removeprefix(error.cause.rstrip(".")).strip()
        return known[name](middle.removeprefix(":").removesuffix(".").strip())
    return BasculeError(f"{name}: {text}", bus_error=name)


def _foreign(data: Mapping[str, Any]) -> BasculeError:
    """An error that only a newer daemon knows: shown as it came."""
    error: Any = BasculeError(str(data.get("message", "")))
    error.cause = error.detail
    error.detail = ""
    error.id = str(data.get("id", BasculeError.id))
    error.remedy = str(data.get("remedy", BasculeError.remedy))
    if isinstance(data.get("number"), int):
        error.number = data["number"]
    rebuilt: BasculeError = error
    return rebuilt
