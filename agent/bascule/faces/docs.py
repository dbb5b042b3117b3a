"""``python -m bascule.faces.docs [ROOT]``: writes what the faces publish of themselves.

Man pages and completions (`cli.docs`), the journal's catalogue, the D-Bus interface description,
and the schema of ``--json``. ``--check`` writes nothing and ends with 1 if a file is not as it
would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bascule.errors import catalogue
from bascule.faces.bus import introspection_xml
from bascule.faces.cli import docs as cli_docs
from bascule.faces.json_schema import schema_text

__all__ = ["FILES", "main"]


def journal_catalogue() -> str:
    """For ``journalctl -x`` (https://systemd.io/CATALOG): each error by its MESSAGE_ID."""
    lines = ["# Made by bascule.faces.docs from the error tree."]
    for cls in sorted(catalogue(), key=lambda cls: cls.id):
        lines += [
            "",
            f"-- {cls.message_id()}",
            f"Subject: {cls.cause}",
            "Defined-By: Bascule",
            "",
            "@BASCULE_ERROR@",
            "",
            cls.remedy,
            "",
            f"Error {cls.id}, number {cls.number}; commands that meet it exit with {int(cls.exit)}.",
        ]
    return "\n".join(lines) + "\n"


FILES: dict[str, Callable[[], str]] = {
    **cli_docs.FILES,
    "systemd/catalog/bascule.catalog": journal_catalogue,
    "systemd/dbus-1/interfaces/org.bascule.Update1.xml": introspection_xml,
    "docs/schema/updatectl-1.schema.json": schema_text,
}
"""Path below the checkout → what belongs there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or check them; 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m bascule.faces.docs")
    parser.add_argument("root", type=Path, nargs="?", default=Path(), help="the checkout")
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    args = parser.parse_args(argv)
    code = 0
    for name, make in FILES.items():
        path, text = args.root / name, make()
        if path.exists() and path.read_text() == text:
            continue
        if args.check:
            sys.stderr.write(f"{name} is not as the code would have it: run `make docs`\n")
            code = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            sys.stderr.write(f"wrote {name}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
