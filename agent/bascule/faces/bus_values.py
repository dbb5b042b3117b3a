"""Between the values of this program and those of D-Bus, both ways, errors included."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from dbus_fast import Variant
from dbus_fast.errors import DBusError
from dbus_fast.unpack import unpack_variants

from bascule.errors import BasculeError, Stopped

__all__ = ["RefusedCall", "answered", "as_text", "dictionary", "plain", "told", "variant"]

_log = structlog.get_logger("bascule.bus")

_INT64 = 1 << 63


def variant(value: Any) -> Variant:
    """The D-Bus variant of a plain value: b, x (t above 2⁶³-1), d, s, as, aa{sv}, av or a{sv}.

    Raises:
        TypeError: a value that JSON could not hold either.
    """
    match value:
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x" if -_INT64 <= value < _INT64 else "t", value)
        case float():
            return Variant("d", value)
        case str():
            return Variant("s", as_text(value))
        case Mapping():
            return Variant("a{sv}", dictionary(value))
        case list() | tuple() | set() | frozenset():
            items = list(value)
            if all(isinstance(item, str) for item in items):
                return Variant("as", [as_text(item) for item in items])
            if all(isinstance(item, Mapping) for item in items):
                return Variant("aa{sv}", [dictionary(item) for item in items])
            return Variant("av", [variant(item) for item in items])
    raise TypeError(f"{type(value).__name__} has no D-Bus form")


def dictionary(values: Mapping[Any, Any]) -> dict[str, Variant]:
    """The a{sv} of a mapping; D-Bus has no null, so keys without a value are left out."""
    return {str(key): variant(value) for key, value in values.items() if value is not None}


def as_text(value: str) -> str:
    """`value` as D-Bus accepts it: no NUL, no lone surrogates."""
    return value.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of an a{sv} that came over the bus."""
    result: dict[str, Any] = unpack_variants(dict(options))
    return result


class RefusedCall(DBusError):
    """A `BasculeError` on its way to the caller.

    The name is `BasculeError.bus_name`, the text cause, detail and remedy. It is one string,
    because GLib's clients show no text at all where there is more.

    Attributes:
        error: what was raised.
    """

    def __init__(self, error: BasculeError, name: str | None = None) -> None:
        self.error = error
        super().__init__(name or error.bus_name(), as_text(told(error)))


def told(error: BasculeError) -> str:
    """Cause, detail and remedy as one text; `bus_client` takes it apart again."""
    sentence = str(error)
    return f"{sentence}{'' if sentence.endswith(('.', '!', '?')) else '.'} {error.remedy}"


@contextmanager
def answered() -> Iterator[None]:
    """Turn whatever a bus method raises into an answer; the unforeseen is logged, not shown."""
    try:
        yield
    except DBusError:
        raise
    except BasculeError as error:
        raise RefusedCall(error) from error
    except asyncio.CancelledError as error:
        # Only the end of the daemon cancels a call: see `BusConnection.hang_up`.
        raise RefusedCall(Stopped("the daemon stops")) from error
    except Exception as error:
        _log.exception("A bus method failed in an unforeseen way")
        raise RefusedCall(BasculeError(type(error).__name__)) from error
