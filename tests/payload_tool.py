"""Runs ``bascule payload …`` in this process and takes its answer apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bascule.__main__ import main


class Tool:
    """`bascule payload`, with what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        """Exit code."""
        self._capsys.readouterr()
        code = main(["payload", *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code and the JSON document."""
        code = self(*arguments, "--json")
        assert self.err == ""
        answer = json.loads(self.out)
        assert isinstance(answer, dict)
        return code, answer


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    """``bascule payload``."""
    return Tool(capsys)
