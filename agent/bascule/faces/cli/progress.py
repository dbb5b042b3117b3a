"""How an update looks while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from bascule.faces.cli.show import STATES
from bascule.faces.cli.text import duration, printable, rate, size
from bascule.faces.streams import flush

__all__ = ["Bar", "Lines", "Silent", "View", "live_line"]

DEFAULT_WIDTH = 80
CLEAR = "\r\x1b[K"
# Phases whose bytes are counted, then those that only take their time.
_MEASURED = {
    "source": ("Checking the running release for", "Checked"),
    "download": ("Downloading", "Downloaded"),
    "verify": ("Verifying", "Verified"),
}
_UNMEASURED = {
    "check": "Asking the update server",
    "plan": "Getting ready for {}",
    "postinstall": "Running the setup of {}",
    "stage": "Letting {} boot next",
}


class View(Protocol):
    """Shows the daemon's properties as they change."""

    def show(self, properties: Mapping[str, Any]) -> None:
        """Called after every change, and about once a second."""
        ...

    def close(self) -> None:
        """Leave the terminal as a command that ended leaves it."""
        ...


class Silent:
    """Shows nothing."""

    def show(self, properties: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def _what(properties: Mapping[str, Any]) -> str:
    """What goes on, in words, with the release that it is about."""
    phase = str(properties.get("Phase", ""))
    version = str(properties.get("NewVersion", ""))
    if phase in _MEASURED:
        return printable(f"{_MEASURED[phase][0]} {version}".strip())
    if phase in _UNMEASURED and version:
        return printable(_UNMEASURED[phase].format(version))
    state = str(properties.get("State", ""))
    text = STATES.get(state, state)
    return text[:1].upper() + text[1:]


def _measured(properties: Mapping[str, Any]) -> bool:
    return properties.get("Phase") in _MEASURED and properties.get("BytesTotal", 0) > 0


def live_line(properties: Mapping[str, Any], width: int) -> str:
    """One line of at most `width` columns; what matters least goes first when it is narrow."""
    if not _measured(properties):
        return f"{_what(properties)} …"[: max(1, width)]
    done, total = int(properties["BytesDone"]), int(properties["BytesTotal"])
    part = min(1.0, done / total)
    speed, left = float(properties.get("Rate", 0.0)), int(properties.get("Eta", -1))
    percent = f"{part:4.0%}"
    amounts = f"{size(done)}/{size(total)}"
    pieces = [percent, amounts]
    pieces += [rate(speed)] if speed > 0 else []
    pieces += [f"{duration(left)} left"] if left >= 0 else []
    what = _what(properties)
    for kept in range(len(pieces), 0, -1):
        tail = "  ".join(pieces[:kept])
        room = width - len(what) - len(tail) - 5
        if room >= 8:
            cells = min(room, 40)
            filled = int(part * cells)
            bar = "#" * filled + "-" * (cells - filled)
            return f"{what}  [{bar}] {tail}"
    line = f"{what} {percent.strip()}"
    return (line if len(line) <= width else percent.strip())[: max(1, width)]


def _goes_on(properties: Mapping[str, Any]) -> bool:
    """Whether an attempt that left one phase is in a later one, or at its good end."""
    phases = ("download", "verify", "postinstall", "stage")
    return properties.get("Phase") in phases or properties.get("State") == "UPDATED_NEED_REBOOT"


class _Phases:
    """Notices the end of a measured phase and words it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase = ""
        self._began = 0.0
        self._last: dict[str, Any] = {}

    def ended(self, properties: Mapping[str, Any]) -> str:
        """A sentence if a phase has ended with this change, else ""."""
        phase = str(properties.get("Phase", "")) if _measured(properties) else ""
        sentence = ""
        if phase != self._phase:
            # A phase that was broken off is not praised. Its last bytes need not have been seen:
            # figures are gathered on their way.
            if self._phase and _goes_on(properties):
                sentence = self._sentence()
            self._phase, self._began = phase, self._clock()
        if phase:
            self._last = dict(properties)
        return sentence

    def _sentence(self) -> str:
        text = f"{_MEASURED[self._phase][1]} {size(self._last['BytesTotal'])}"
        text += f" in {duration(self._clock() - self._began)}"
        if self._phase == "download" and self._last.get("BytesSkipped"):
            text += f"; {size(self._last['BytesSkipped'])} were there already and not written"
        return text + "."


class Bar:
    """The live line; drawn again at every change and after a change of the window's size."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._phases = _Phases(clock)
        self._drawn = ""

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or DEFAULT_WIDTH
        except OSError:
            return DEFAULT_WIDTH

    def show(self, properties: Mapping[str, Any]) -> None:
        sentence = self._phases.ended(properties)
        # The last column stays free: a line that fills it makes some terminals wrap.
        line = live_line(properties, self._width() - 1)
        if sentence:
            flush(self._stream, f"{CLEAR}{sentence}\n")
        if sentence or line != self._drawn:
            flush(self._stream, CLEAR + line)
            self._drawn = line

    def close(self) -> None:
        flush(self._stream, CLEAR)
        self._drawn = ""


class Lines:
    """A line for every change of state and every tenth of a phase."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = ""
        self._tenth = -1

    def show(self, properties: Mapping[str, Any]) -> None:
        what = _what(properties)
        begun = what != self._said
        if begun:
            self._said, self._tenth = what, -1
        if _measured(properties):
            self._show_bytes(what, properties)
        elif begun and properties.get("State") not in ("IDLE", "UPDATED_NEED_REBOOT"):
            self._say(what)

    def _show_bytes(self, what: str, properties: Mapping[str, Any]) -> None:
        done, total = int(properties["BytesDone"]), int(properties["BytesTotal"])
        tenth = min(10, done * 10 // total)
        if tenth > self._tenth:
            self._tenth = tenth
            text = f"{what}: {done * 100 // total} % ({size(done)} of {size(total)})"
            speed = float(properties.get("Rate", 0.0))
            self._say(text + (f", {rate(speed)}" if speed > 0 else ""))

    def close(self) -> None:
        pass
