"""When each step of one installation ran, and a picture of it (SVG) that needs no viewer's help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

LANES = (
    ("download", "download (TLS)"),
    ("hash", "hash"),
    ("decode", "decode"),
    ("write", "write"),
    ("flush", "flush, record"),
    ("verify", "read back"),
)
"""Lane → what stands beside it. Each thread that works in a lane gets a row of its own."""

Span = tuple[str, int, float, float]
"""Lane, thread, begin and end in seconds."""


class Trace:
    """Notes spans by wrapping the engine's own functions, in this process only."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._began = time.perf_counter()
        self._wrap_all()

    def _note(self, lane: str, began: float) -> None:
        self.spans.append(
            (lane, threading.get_ident(), began - self._began, time.perf_counter() - self._began)
        )

    def _timed(self, owner: Any, name: str, lane: str) -> None:
        plain: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                self._note(lane, began)

        setattr(owner, name, timed)

    def _wrap_all(self) -> None:
        from bascule.engine import carry, lane, stream, verify
        from bascule.engine.checkpoint import CheckpointStore
        from bascule.engine.device import Device

        self._timed(lane.HashLane, "_hash", "hash")
        self._timed(Device, "update", "write")
        self._timed(Device, "flush", "flush")
        self._timed(CheckpointStore, "save", "flush")
        produce = carry.produce

        def produced(*args: Any, **kwargs: Any) -> Iterator[Any]:
            pieces = iter(produce(*args, **kwargs))
            while True:
                began = time.perf_counter()
                piece = next(pieces, None)
                self._note("decode", began)
                if piece is None:
                    return
                yield piece

        carry.produce = produced  # type: ignore[assignment]
        chunks = stream._Installation._chunks

        async def watched(installation: Any, offset: int) -> Any:
            began = time.perf_counter()
            async for chunk in chunks(installation, offset):
                self._note("download", began)
                yield chunk
                began = time.perf_counter()

        stream._Installation._chunks = watched  # type: ignore[method-assign]
        read_into = Device.read_into

        def read(device: Device, offset: int, view: memoryview) -> None:
            began = time.perf_counter()
            read_into(device, offset, view)
            if threading.current_thread().name == "bascule-read":
                self._note("verify", began)

        Device.read_into = read  # type: ignore[method-assign]
        assert verify.sha256_of


WIDTH, LEFT, RIGHT, ROW, GAP, TOP, BINS = 960, 150, 20, 22, 8, 64, 240
_STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f} .small{font-size:11px;fill:#57606a}
.title{font-size:15px;font-weight:600} .bed{fill:#8c959f;fill-opacity:.14}
.grid{stroke:#8c959f;stroke-opacity:.4} .download{fill:#0969da} .hash{fill:#8250df}
.decode{fill:#bf8700} .write{fill:#1a7f37} .flush{fill:#cf222e} .verify{fill:#0e8a83}
@media (prefers-color-scheme:dark){text{fill:#e6edf3} .small{fill:#9da7b3}
.download{fill:#58a6ff} .hash{fill:#bc8cff} .decode{fill:#e3b341} .write{fill:#56d364}
.flush{fill:#ff7b72} .verify{fill:#39c5bb}}
"""


def rows_of(spans: Sequence[Span]) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """(lane, label, its spans), a row for each thread that did much in the lane."""
    rows = []
    for lane, label in LANES:
        by_thread: dict[int, list[tuple[float, float]]] = {}
        for found, thread, began, ended in spans:
            if found == lane:
                by_thread.setdefault(thread, []).append((began, ended))
        busiest = sorted(by_thread.values(), key=lambda s: -sum(e - b for b, e in s))
        several = lane in ("decode", "write") and len(busiest) > 1
        for number, each in enumerate(
            busiest if several else [[span for part in busiest for span in part]], 1
        ):
            rows.append((lane, f"{label}, thread {number}" if several else label, each))
    return rows


def busy(spans: Sequence[tuple[float, float]], length: float, bins: int = BINS) -> list[float]:
    """Share of each of `bins` equal stretches of `length` seconds that the spans cover."""
    share = [0.0] * bins
    step = length / bins
    for began, ended in spans:
        first, last = int(began / step), min(bins - 1, int(ended / step))
        for number in range(first, last + 1):
            share[number] += max(0.0, min(ended, (number + 1) * step) - max(began, number * step))
    return [min(1.0, each / step) for each in share]


def picture(spans: Sequence[Span], facts: Mapping[str, str]) -> str:
    """The SVG: a row for each lane and thread, as dark as it was busy; readable light and dark."""
    start = min(began for _, _, began, _ in spans)
    shifted = [(lane, thread, b - start, e - start) for lane, thread, b, e in spans]
    length = max(ended for _, _, _, ended in shifted)
    rows = rows_of(shifted)
    height = TOP + len(rows) * (ROW + GAP) + 40
    inner = WIDTH - LEFT - RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>{facts['title']}</title><style>{_STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{facts["title"]}</text>',
        f'<text class="small" x="{LEFT}" y="44">{facts["subtitle"]}</text>',
    ]
    for number, (lane, label, each) in enumerate(rows):
        y = TOP + number * (ROW + GAP)
        out.append(f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{label}</text>')
        out.append(f'<rect class="bed" x="{LEFT}" y="{y}" width="{inner}" height="{ROW}"/>')
        shares = busy(each, length)
        at = 0
        while at < BINS:
            level = round(shares[at], 1)
            end = at
            while end < BINS and round(shares[end], 1) == level:
                end += 1
            if level:
                x, width = LEFT + at * inner / BINS, (end - at) * inner / BINS
                out.append(
                    f'<rect class="{lane}" x="{x:g}" y="{y}" width="{width:g}" height="{ROW}" '
                    f'fill-opacity="{0.25 + 0.75 * level:.2g}"/>'
                )
            at = end
    bottom = TOP + len(rows) * (ROW + GAP)
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 600) if length / s <= 12)
    for number in range(int(length / step) + 1):
        x = LEFT + number * step / length * inner
        out.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{TOP - 6}" y2="{bottom}"/>')
        out.append(
            f'<text class="small" x="{x:g}" y="{bottom + 16}" text-anchor="middle">'
            f"{number * step:g} s</text>"
        )
    out.append("</svg>")
    return "\n".join(out) + "\n"
