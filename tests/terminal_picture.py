"""What a program does on a terminal, as an SVG that moves: no other program, font or script needed.

`record` runs a command on a pseudo-terminal and keeps the screens that a person would have seen;
`svg` draws them. Only what our own programs write is understood: text, ``\\r``, ``\\n``, ``CSI K``
and the colours of ``CSI … m``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import pexpect

Cell = tuple[str, str]
"""A character and the class of its looks."""

Line = tuple[Cell, ...]

_TOKEN = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x00-\x1f\x7f])|[\x00-\x1f\x7f]")
_LOOKS = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y"}


class Screen:
    """A terminal of `columns` × `rows` that scrolls."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._lines: list[list[Cell]] = [[]]
        self._at = 0
        self._looks = ""

    def feed(self, text: str) -> None:
        """Write `text`; a sequence must not be cut in two."""
        for found in _TOKEN.finditer(text):
            if found[2] == "K":
                del self._lines[-1][self._at :]
            elif found[2] == "m":
                self._looks = "".join(_LOOKS.get(code, "") for code in found[1].split(";"))
            elif found[3]:
                self._at = 0
            elif found[4]:
                self._lines.append([])
                self._at = 0
            elif found[5]:
                self._put(found[5])

    def _put(self, letter: str) -> None:
        if self._at >= self.columns:
            self._lines.append([])
            self._at = 0
        line = self._lines[-1]
        line.extend((" ", "") for _ in range(self._at - len(line)))
        line[self._at : self._at + 1] = [(letter, self._looks)]
        self._at += 1

    @property
    def shown(self) -> tuple[Line, ...]:
        """The lines that are on the screen now."""
        return tuple(tuple(line) for line in self._lines[-self.rows :])


@dataclass
class Recording:
    """Screens and when they were there.

    Attributes:
        frames: (seconds since the beginning, the screen from then on).
        length: seconds.
    """

    columns: int
    rows: int
    frames: list[tuple[float, tuple[Line, ...]]] = field(default_factory=list)
    length: float = 0.0
    text: str = ""

    def keep(self, at: float, screen: tuple[Line, ...], least: float) -> None:
        """One more screen; one that was there for less than `least` seconds is forgotten."""
        self.length = at
        if self.frames and self.frames[-1][1] == screen:
            return
        if self.frames and at - self.frames[-1][0] < least:
            self.frames[-1] = (self.frames[-1][0], screen)
        else:
            self.frames.append((at, screen))


def record(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    columns: int = 92,
    rows: int = 26,
    least: float = 0.12,
    into: Recording | None = None,
    mask: Callable[[str], str] = lambda text: text,
) -> Recording:
    """Run `command` to its end; `into` goes on with an earlier recording.

    Args:
        least: seconds that a screen must last to be kept.
        mask: changes what was written, line by line, before it is drawn (temporary folders).

    Raises:
        RuntimeError: it ended with another code than 0.
    """
    recording = into or Recording(columns, rows)
    columns, rows = recording.columns, recording.rows
    screen, began = Screen(columns, rows), time.monotonic()
    screen.feed(recording.text)
    offset = recording.length
    child = pexpect.spawn(
        command[0], list(command[1:]), encoding="utf-8", dimensions=(rows, columns), timeout=300,
        env={"PATH": os.environ["PATH"], **environment},  # type: ignore[arg-type]
    )  # fmt: skip
    rest = ""
    while True:
        try:
            rest += child.read_nonblocking(65536, 300)
        except pexpect.EOF:
            break
        # What may be the half of a sequence, or of a line that is to be masked, waits.
        whole, tail = _halves(rest)
        recording.text += mask(whole)
        screen.feed(mask(whole))
        rest = tail
        recording.keep(offset + time.monotonic() - began, screen.shown, least)
    recording.text += mask(rest)
    screen.feed(mask(rest))
    recording.keep(offset + time.monotonic() - began, screen.shown, 0.0)
    child.close()
    if child.exitstatus != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {child.exitstatus}:\n{recording.text}")
    return recording


def _halves(text: str) -> tuple[str, str]:
    cut = max(text.rfind("\n"), text.rfind("\r")) + 1
    # A live line ends without a line feed; it is whole when its sequence is.
    if cut < len(text) and not re.search(r"\x1b(\[[0-9;]*)?$", text) and "\x1b[K" in text[cut:]:
        cut = len(text)
    return text[:cut], text[cut:]


_STYLE = """
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#d6deeb;white-space:pre}
.b{font-weight:bold;fill:#fff}.d{fill:#8f9bb3}.r{fill:#ff6b6b}.g{fill:#7fdb8a}.y{fill:#f2c55c}
"""
_WIDTH, _HEIGHT, _EDGE, _BAR = 8.43, 19, 14, 28


def svg(recording: Recording, title: str, *, pause: float = 4.0, moving: bool = True) -> str:
    """The recording as an SVG: moving (and beginning anew after `pause` s), or its last screen."""
    frames = recording.frames if moving else [(0.0, recording.frames[-1][1])]
    rows = recording.rows if moving else max(1, len(frames[-1][1]))
    while not moving and rows > 1 and not frames[-1][1][rows - 1]:
        rows -= 1
    width = round(2 * _EDGE + recording.columns * _WIDTH)
    height = _BAR + 2 * _EDGE + rows * _HEIGHT
    known: dict[Line, str] = {}
    body: list[str] = []
    for number, (_, lines) in enumerate(frames):
        uses = []
        for row, line in enumerate(lines[:rows]):
            if not line:
                continue
            name = known.setdefault(line, f"l{len(known)}")
            uses.append(f'<use href="#{name}" y="{_BAR + _EDGE + 14 + row * _HEIGHT}"/>')
        look = f' class="f" style="animation-name:f{number}"' if moving else ""
        body.append(f"<g{look}>{''.join(uses)}</g>")
    style = _STYLE + (_keyframes(recording, pause) if moving else "")
    drawn = "\n".join(
        f'<text id="{name}" x="{_EDGE}">{_spans(line)}</text>' for line, name in known.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n<defs>\n{drawn}\n</defs>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b2230"/>\n'
        f'<rect width="{width}" height="{_BAR}" rx="8" fill="#2a3346"/>\n'
        f'<text x="{_EDGE}" y="19" class="d">{escape(title)}</text>\n' + "\n".join(body) + "\n</svg>\n"
    )  # fmt: skip


def _keyframes(recording: Recording, pause: float) -> str:
    """Each frame is shown from its time to the next one's; where nothing moves, the last one is."""
    whole = recording.length + pause
    lines = [
        f".f{{visibility:hidden;animation:{whole:.2f}s step-end infinite}}.f:last-of-type{{visibility:visible}}"
    ]
    starts = [at for at, _ in recording.frames]
    for number, start in enumerate(starts):
        begin = 100 * start / whole if number else 0.0
        end = 100 * starts[number + 1] / whole if number + 1 < len(starts) else 100.0
        hidden = "0%{visibility:hidden}" if begin else ""
        after = f"{end:.3f}%{{visibility:hidden}}" if end < 100 else ""
        lines.append(f"@keyframes f{number}{{{hidden}{begin:.3f}%{{visibility:visible}}{after}}}")
    return "\n".join(lines) + "\n@media (prefers-reduced-motion:reduce){.f{animation:none}}\n"


def _spans(line: Line) -> str:
    out, run, looks = [], "", ""
    for letter, look in (*line, ("", "\0")):
        if look != looks:
            if run:
                out.append(f'<tspan class="{" ".join(looks)}">{escape(run)}</tspan>' if looks else escape(run))  # fmt: skip
            run, looks = "", look
        run += letter
    return "".join(out)
