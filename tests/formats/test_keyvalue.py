"""Flatcar's KEY=value files, with the original's odd rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.formats.keyvalue import parse_key_value


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        (b"", {}),
        (b"GROUP=stable\n", {"GROUP": "stable"}),
        (b"GROUP=stable", {"GROUP": "stable"}),
        (b"GROUP=stable\r\n", {"GROUP": "stable\r"}),
        (b"GROUP=stable  \n", {"GROUP": "stable  "}),
        (b" GROUP = stable\n", {" GROUP ": " stable"}),
        (b"export GROUP=beta\n", {"export GROUP": "beta"}),
        (b"# SERVER=x\nno equals sign\n\n", {"# SERVER": "x"}),
        (b"SERVER=http://a/?b=c\n", {"SERVER": "http://a/?b=c"}),
        (b"GROUP=\n", {"GROUP": ""}),
        (b"A=1\nB=2\nA=3\n", {"A": "3", "B": "2"}),
        (b'A="x y"\nB=\'z\'\nC=""\n', {"A": "x y", "B": "z", "C": ""}),
        (b'A=""x""\nB="x\'\nC="\nD=\'\n', {"A": '"x"', "B": "\"x'", "C": '"', "D": "'"}),
        (b"A=\xff\n", {"A": "\ufffd"}),
    ],
)
def test_rules(data: bytes, pairs: dict[str, str]) -> None:
    assert parse_key_value(data) == pairs


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    for key, value in parse_key_value(data).items():
        assert "=" not in key and "\n" not in value
