"""Nothing of others' text moves a cursor, rings a bell or begins a line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bascule.formats.text import printable


@given(st.text())
def test_only_what_prints_is_left(text: str) -> None:
    safe = printable(text)
    assert safe.isprintable()
    assert len(safe) == len(text)
    assert all(
        a == b or (b == "\ufffd" and not a.isprintable()) for a, b in zip(text, safe, strict=True)
    )
