"""How an update looks while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from bascule.faces.cli.show import STATES
from bascule.faces.cli.text import duration, printable, rate, size

__all__ = ["Bar", "Lines", "Silent", "View", "live_line"]

DEFAULT_WIDTH = 80
_MOVING = ("DOWNLOADING", "VERIFYING", "FINALIZING", "UPDATE_AVAILABLE")
_PHASES = {"download": "Downloading", "verify": "Verifying"}
_DONE = {"download": "Downloaded", "verify": "Verified"}


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
    phase = str(properties.get("Phase", ""))
    version = str(properties.get("NewVersion", ""))
    text = _PHASES.get(phase, phase.capitalize())
    return printable(f"{text} {version}".strip())


def _measured(properties: Mapping[str, Any]) -> bool:
    return properties.get("State") in _MOVING and properties.get("BytesTotal", 0) > 0


def live_line(properties: Mapping[str, Any], width: int) -> str:
    """One line of at most `width` columns; what matters least goes first when it is narrow."""
    if not _measured(properties):
        state = str(properties.get("State", ""))
        return f"{STATES.get(state, state)} …".capitalize()[: max(1, width)]
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
            if self._phase in _DONE and phase:
                sentence = self._sentence()
            self._phase, self._began = phase, self._clock()
        if phase:
            self._last = dict(properties)
        return sentence

    def _sentence(self) -> str:
        text = f"{_DONE[self._phase]} {size(self._last['BytesTotal'])}"
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
            self._clear()
            self._stream.write(sentence + "\n")
        if sentence or line != self._drawn:
            self._stream.write("\r\x1b[K" + line)
            self._stream.flush()
            self._drawn = line

    def _clear(self) -> None:
        self._stream.write("\r\x1b[K")
        self._drawn = ""

    def close(self) -> None:
        self._clear()
        self._stream.flush()


class Lines:
    """A line for every change of state and every tenth of a phase."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._state = ""
        self._phase = ""
        self._tenth = -1

    def show(self, properties: Mapping[str, Any]) -> None:
        if _measured(properties):
            phase = str(properties.get("Phase", ""))
            if phase != self._phase:
                self._phase, self._tenth = phase, -1
            total = int(properties["BytesTotal"])
            tenth = min(10, int(properties["BytesDone"]) * 10 // total)
            if tenth > self._tenth:
                self._tenth = tenth
                done = size(int(properties["BytesDone"]))
                percent = int(properties["BytesDone"]) * 100 // total
                text = f"{_what(properties)}: {percent} % ({done} of {size(total)})"
                speed = float(properties.get("Rate", 0.0))
                self._say(text + (f", {rate(speed)}" if speed > 0 else ""))
        else:
            state = str(properties.get("State", ""))
            if state != self._state and state not in ("IDLE", "UPDATED_NEED_REBOOT"):
                self._say(f"{STATES.get(state, state)}".capitalize())
            self._state = state

    def close(self) -> None:
        pass
