"""One catalogue: each error is told alike by journal, bus, docs, commands and history."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from dbus_fast import DBusError

from bascule.daemon import Daemon
from bascule.errors import BasculeError, Exit, catalogue, from_dict, omaha_code
from bascule.faces.bus_values import RefusedCall
from bascule.faces.journal import configure_logging

ROOT = Path(__file__).resolve().parents[1]
CLASSES = list(catalogue())


def entries() -> dict[str, str]:
    """MESSAGE_ID → text of the journal's catalogue file."""
    text = (ROOT / "systemd/catalog/bascule.catalog").read_text()
    parts = re.split(r"^-- ([0-9a-f]{32})$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows() -> dict[str, list[str]]:
    """id → columns of the table in the docs."""
    found = {}
    for line in (ROOT / "docs/errors.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.fullmatch(r"`[a-z0-9-]+`", cells[0].strip()):
            found[cells[0].strip("` ")] = cells
    return found


JOURNAL, DOCS = entries(), rows()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.id))
def test_each_is_told_alike_everywhere(cls: type[BasculeError]) -> None:
    told = JOURNAL[cls.message_id()]
    assert f"Subject: {cls.cause}" in told and cls.remedy in told and f"Error {cls.id}" in told
    _, number, exit_, cause, remedy = DOCS[cls.id]
    assert (int(number), int(exit_), cause, remedy) == (
        cls.number, int(cls.exit), cls.cause, cls.remedy
    )  # fmt: skip
    error = cls("what was seen", n=1)
    refused = RefusedCall(error)
    assert isinstance(refused, DBusError) and refused.type == cls.bus_name()
    tail = refused.type.removeprefix("org.bascule.Update1.Error.")
    assert tail.replace("-", "").lower() == cls.id.replace("-", "")
    again = from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(again) is cls and str(again) == str(error) and again.context == error.context
    assert error.exit is not Exit.DONE
    # A server is told a number that it knows: ours from 3000 on are not among them.
    assert 0 < omaha_code(error, custom_server=False) < 3000


def test_no_entry_without_an_error() -> None:
    assert set(JOURNAL) == {cls.message_id() for cls in CLASSES}
    assert set(DOCS) == {cls.id for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.id))
def test_the_daemon_logs_it_with_its_message_id(
    cls: type[BasculeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An errand's error comes over a pipe, as a dictionary; the journal must still know it."""
    lines: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: Any) -> str:
        lines.append(dict(event))
        return ""

    configure_logging(style="json")
    try:
        processors = structlog.get_config()["processors"]
        structlog.configure(processors=[*processors[:-1], keep], cache_logger_on_first_use=False)
        monkeypatch.setattr("bascule.daemon._log", structlog.get_logger())
        Daemon.tell(SimpleNamespace(), "downloading", error=cls("seen").as_dict(), attempt="a")  # type: ignore[arg-type]
    finally:
        structlog.reset_defaults()
    (line,) = lines
    assert line["MESSAGE_ID"] == cls.message_id()
    assert (line["error_id"], line["error_number"]) == (cls.id, cls("seen").number)
    assert line["remedy"] == cls.remedy and line["error"] == str(cls("seen"))
