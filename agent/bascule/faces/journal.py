"""How the daemon and its errand log: JSON lines for the journal, readable on a terminal.

Under systemd each line on stderr begins with ``<N>`` (sd-daemon(3)), which the journal turns
into PRIORITY. A line that has a ``MESSAGE_ID`` goes to the journal's own socket
(systemd.journal-fields(7), "Journal Native Protocol"), because only there do MESSAGE_ID and our
fields become fields that ``journalctl`` can filter and explain with its catalogue.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from bascule.errors import BasculeError

__all__ = ["JournalSocket", "configure_logging"]

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "bascule"

_PRIORITIES = {
    "critical": 2,
    "exception": 3,
    "error": 3,
    "warning": 4,
    "notice": 5,
    "info": 6,
    "debug": 7,
}
_LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
_FIRST = ("timestamp", "level", "event")
# A datagram that is larger would need a memory file descriptor; a log line should not.
_LONGEST_DATAGRAM = 128 * 1024

Event = MutableMapping[str, Any]


def _explain(_logger: Any, _method: str, event: Event) -> Event:
    """Spread an ``error=`` that is one of ours: its id, number, remedy and MESSAGE_ID."""
    error = event.get("error")
    if isinstance(error, BasculeError):
        event["error"] = str(error)
        event.setdefault("error_id", error.id)
        event.setdefault("error_number", error.number)
        event.setdefault("remedy", error.remedy)
        event.setdefault("MESSAGE_ID", error.message_id())
    return event


def _without_message_id(_logger: Any, _method: str, event: Event) -> Event:
    event.pop("MESSAGE_ID", None)
    return event


class JournalSocket:
    """Sends entries with fields of their own to systemd-journald."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._sock: socket.socket | None = None

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one entry; False if nobody takes it (then stderr must)."""
        data = b"".join(_field(key, value) for key, value in fields.items())
        if len(data) > _LONGEST_DATAGRAM:
            return False
        try:
            if self._sock is None:
                self._sock = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                )
            self._sock.sendto(data, self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _field(key: str, value: str) -> bytes:
    name, data = key.encode("ascii", "replace"), value.encode("utf-8", "replace")
    if b"\n" in data:
        return name + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name + b"=" + data + b"\n"


def _field_name(key: str) -> str:
    """A journal field's name for our `key`: upper case, ours begin with BASCULE."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key).upper()
    return f"BASCULE_{name}"[:64]


class _JournalRenderer:
    """``<N>{json}``; entries with a MESSAGE_ID go to the journal's socket if there is one."""

    def __init__(self, journal: JournalSocket | None, prefix: bool) -> None:
        self._journal = journal
        self._prefix = prefix

    def __call__(self, _logger: Any, method: str, event: Event) -> str:
        level = str(event.get("level", method))
        priority = _PRIORITIES.get(level, 6)
        ordered = {key: event[key] for key in _FIRST if key in event} | dict(event)
        line = json.dumps(ordered, default=str, ensure_ascii=False)
        if self._journal is not None and "MESSAGE_ID" in event:
            fields = {
                "MESSAGE": line,
                "PRIORITY": str(priority),
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                "MESSAGE_ID": str(event["MESSAGE_ID"]),
            }
            for key, value in event.items():
                if key not in ("MESSAGE_ID", "level", "timestamp"):
                    fields[_field_name(key)] = str(value)
            if self._journal.send(fields):
                raise structlog.DropEvent
        # One entry is one line; JSON has escaped every other line break.
        return f"<{priority}>{line}" if self._prefix else line


def under_journal(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Whether `stream` is connected to the journal (``JOURNAL_STREAM``, systemd.exec(5))."""
    environment = os.environ if environment is None else environment
    try:
        device, inode = environment.get("JOURNAL_STREAM", "").split(":", 1)
        stat = os.fstat(stream.fileno())
        return (stat.st_dev, stat.st_ino) == (int(device), int(inode))
    except (OSError, ValueError, AttributeError):
        return False


def configure_logging(
    *,
    level: str = "info",
    style: str = "auto",
    stream: TextIO | None = None,
    environment: Mapping[str, str] | None = None,
    **bound: Any,
) -> None:
    """Set structlog up for this process.

    Args:
        level: critical, error, warning, info or debug.
        style: ``auto`` (``console`` on a terminal, else ``journal`` under systemd, else
            ``json``), ``console``, ``json`` (one object per line) or ``journal``
            (``<N>`` before the object).
        stream: stderr, unless a test wants it elsewhere.
        bound: facts that every line of this process has, for example ``attempt``.

    Raises:
        ValueError: an unknown level or style.
    """
    stream = sys.stderr if stream is None else stream
    environment = os.environ if environment is None else environment
    if level not in _LEVELS:
        raise ValueError(f"unknown log level {level!r}")
    journalled = under_journal(stream, environment)
    if style == "auto":
        style = "console" if stream.isatty() else "journal" if journalled else "json"
    renderer: Any
    if style == "console":
        # Plain tracebacks: structlog would import rich where it happens to be installed.
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty() and not environment.get("NO_COLOR"),
            exception_formatter=structlog.dev.plain_traceback,
        )
        before: list[Any] = [
            _without_message_id,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        ]
    elif style in ("json", "journal"):
        socket_ = JournalSocket() if journalled and style == "journal" else None
        renderer = _JournalRenderer(socket_, prefix=style == "journal")
        before = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
    else:
        raise ValueError(f"unknown log style {style!r}")
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _explain,
            *before,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    if bound:
        structlog.contextvars.bind_contextvars(**bound)
