"""What the daemon's documents say, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

from bascule.documents import chain_sentence
from bascule.engine.history import History


def history(folder: Path, **more: int) -> History:
    ticks = iter(range(1, 10_000))
    return History(folder, clock=lambda: float(next(ticks)), **more)


def test_a_whole_chain_says_so(tmp_path: Path) -> None:
    told = history(tmp_path)
    assert chain_sentence(told.verify()) == "There is no history yet."
    for n in range(3):
        told.append("asked", facts={"n": n})
    assert chain_sentence(told.verify()) == "All 3 records follow from each other."


def test_an_edit_a_gap_and_a_cut_are_named_with_their_line(tmp_path: Path) -> None:
    told = history(tmp_path)
    for n in range(5):
        told.append("asked", facts={"n": n})
    lines = told.path.read_bytes().splitlines(keepends=True)
    edited = json.loads(lines[1])
    edited["facts"]["n"] = 7
    damages = {
        "does not follow": [*lines[:1], json.dumps(edited).encode() + b"\n", *lines[2:]],
        "record 3 is missing": [*lines[:2], *lines[3:]],
        "were cut off": lines[:3],
    }
    for words, body in damages.items():
        told.path.write_bytes(b"".join(body))
        sentence = chain_sentence(told.verify())
        assert words in sentence and "history.jsonl" in sentence, sentence


def test_rotation_bounds_history_and_is_no_gap(tmp_path: Path) -> None:
    told = history(tmp_path, max_size=2000, keep=3)
    for n in range(200):
        told.append("asked", facts={"n": n})
    held = sum(f.stat().st_size for f in tmp_path.glob("history*.jsonl"))
    assert held <= 3 * 2000
    found = told.verify()
    assert found.flaw is None and found.first > 1
    assert f"from record {found.first} on" in chain_sentence(found)
