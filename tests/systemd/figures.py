"""Print what `systemd-analyze` says of our units, as the README's table.

Usage: python tests/systemd/figures.py
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "systemd" / "system"


def exposure(unit: Path) -> tuple[float, str, list[dict[str, str]]]:
    """(exposure 0–10, systemd's word for it, the settings that are not taken)."""
    arguments = ["systemd-analyze", "security", "--no-pager", "--offline=yes", str(unit)]
    text = subprocess.run(arguments, capture_output=True, text=True, check=False).stdout
    match = re.search(r"Overall exposure level for \S+: ([\d.]+) (\w+)", text)
    assert match, text
    table = subprocess.run(
        [*arguments[:-1], "--json=short", arguments[-1]],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    rows = [r for r in json.loads(table) if r["set"] is False]
    return float(match[1]), match[2], rows


def main() -> None:
    print("| unit | exposure | left open |")
    print("|---|---|---|")
    for unit in sorted(UNITS.glob("*.service")):
        figure, word, rows = exposure(unit)
        print(f"| {unit.name} | {figure} {word.lower()} | {len(rows)} of systemd's settings |")


if __name__ == "__main__":
    main()
