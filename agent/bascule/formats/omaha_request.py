"""Omaha v3 requests, byte for byte as Flatcar's update_engine sends them.

Format source: reference flatcar.md 2.2–2.3 and the requests recorded in vectors ``omaha/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_APPID = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"
"""Flatcar's application id, braces included."""

UPDATER = "update_engine-0.4.10"
"""``version`` and ``updaterversion`` of the request: the original's package name and version.

Servers key on it: Nebraska takes a request from ``CoreOSUpdateEngine-0.1.0.0`` with install
source ``scheduler`` for another Nebraska that wants to copy its packages. The original's own
string is the one that every server is known to treat as a plain client.
"""

SCHEDULED = "scheduler"
ON_DEMAND = "ondemandupdate"

INSTALL = 3
DOWNLOAD_STARTED = 13
DOWNLOAD_FINISHED = 14

FAILURE = 0
SUCCESS = 1
SUCCESS_REBOOTED = 2
DEFERRED = 9

ROLLED_BACK_CODE = 44


@dataclass(frozen=True, slots=True)
class Client:
    """What a request says about this host. Values are sent as they stand, XML-escaped.

    Attributes:
        version: the running release; servers want a semantic version.
        track: the group, for example ``stable``.
        machineid: 32 hexadecimal digits, no braces.
        bootid: the kernel's boot id without braces; they are added on the wire.
        board: ``amd64-usr`` or ``arm64-usr``; Nebraska derives the architecture from it.
        machine: ``uname -m``.
        alephversion: the release that this host was installed with.
        delta_okay: the original always says false.
    """

    version: str
    track: str
    machineid: str
    bootid: str
    board: str
    machine: str
    appid: str = DEFAULT_APPID
    oem: str = ""
    oemversion: str = ""
    alephversion: str = ""
    machinealias: str = ""
    delta_okay: bool = False


@dataclass(frozen=True, slots=True)
class OmahaEvent:
    """One ``<event>``.

    Attributes:
        type: 3 install, 13 download started, 14 download finished.
        result: 0 failure, 1 success, 2 success after the reboot, 9 deferred.
        errorcode: sent only where ``result`` is not 1.
        previousversion: sent where not None, even when empty.
    """

    type: int
    result: int
    errorcode: int | None = None
    previousversion: str | None = None

    def attributes(self) -> list[tuple[str, str]]:
        """Attributes in the order on the wire."""
        pairs = [("eventtype", str(self.type)), ("eventresult", str(self.result))]
        if self.errorcode is not None and self.result != SUCCESS:
            pairs.append(("errorcode", str(self.errorcode)))
        if self.previousversion is not None:
            pairs.append(("previousversion", self.previousversion))
        return pairs

    def as_dict(self) -> dict[str, Any]:
        """The event as the ledger's outbox keeps it."""
        return {
            "type": self.type,
            "result": self.result,
            "errorcode": self.errorcode,
            "previousversion": self.previousversion,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OmahaEvent:
        """Rebuild an event from the outbox. Raises ValueError if it is not one."""
        numbers = (data.get("type"), data.get("result"), data.get("errorcode"))
        previous = data.get("previousversion")
        type_, result, errorcode = numbers
        if not isinstance(type_, int) or not isinstance(result, int):
            raise ValueError("an event needs a type and a result")
        if errorcode is not None and not isinstance(errorcode, int):
            raise ValueError("an event's errorcode is a number")
        if previous is not None and not isinstance(previous, str):
            raise ValueError("an event's previousversion is text")
        return cls(type_, result, errorcode, previous)


def check_event(previous_version: str | None, running: str) -> OmahaEvent:
    """The one event inside every update check (reference 2.3).

    Args:
        previous_version: what the last installation left behind: None if there never was a check,
            "" in steady state, the release that was running when the update was installed.
        running: the release that runs now.

    The steady-state event with an empty previous version is not noise: Nebraska uses it to free
    an instance that it believes to be in the middle of an update.
    """
    if previous_version is None:
        return OmahaEvent(INSTALL, SUCCESS_REBOOTED, previousversion="0.0.0.0")
    if previous_version and previous_version == running:
        return OmahaEvent(INSTALL, FAILURE, errorcode=ROLLED_BACK_CODE)
    return OmahaEvent(INSTALL, SUCCESS_REBOOTED, previousversion=previous_version)


def build_request(
    client: Client,
    *,
    ping: bool = False,
    updatecheck: bool = False,
    events: Sequence[OmahaEvent] = (),
    installsource: str = SCHEDULED,
    updater: str = UPDATER,
) -> bytes:
    """The body of one POST, UTF-8.

    A check is ping + updatecheck + exactly one `check_event`; a tick while a reboot is pending is
    a ping alone; milestones and failures are one event each, alone, as the original sends them.
    """
    app = [
        ("appid", client.appid),
        ("version", client.version),
        ("track", client.track),
        ("bootid", "{" + client.bootid + "}"),
        ("oem", client.oem),
        ("oemversion", client.oemversion),
        ("alephversion", client.alephversion),
        ("machineid", client.machineid),
        ("machinealias", client.machinealias),
        ("lang", "en-US"),
        ("board", client.board),
        ("hardware_class", ""),
        ("delta_okay", "true" if client.delta_okay else "false"),
    ]
    request = [
        ("protocol", "3.0"),
        ("version", updater),
        ("updaterversion", updater),
        ("installsource", installsource),
        ("ismachine", "1"),
    ]
    system = [
        ("version", "Chateau"),
        ("platform", "CoreOS"),
        ("sp", f"{client.version}_{client.machine}"),
    ]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<request{_attributes(request)}>",
        f"    <os{_attributes(system)}></os>",
        f"    <app{_attributes(app)} >",
    ]
    if ping:
        lines.append('        <ping active="1"></ping>')
    if updatecheck:
        lines.append("        <updatecheck></updatecheck>")
    lines += [f"        <event{_attributes(event.attributes())}></event>" for event in events]
    lines += ["    </app>", "</request>", ""]
    return "\n".join(lines).encode()


_ESCAPES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&apos;",
    "\t": "&#9;",
    "\n": "&#10;",
    "\r": "&#13;",
}


def _attributes(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f' {name}="{_escape(value)}"' for name, value in pairs)


def _escape(value: str) -> str:
    return "".join(_ESCAPES.get(c, c) if _allowed(c) else "\ufffd" for c in value)


def _allowed(char: str) -> bool:
    """Whether XML 1.0 (section 2.2) has this character at all."""
    code = ord(char)
    return (
        code in (0x9, 0xA, 0xD)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )
