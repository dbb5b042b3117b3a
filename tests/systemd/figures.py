"""What `systemd-analyze security` says of our units, as the README's table.

Usage: python tests/systemd/figures.py [--write]

Without ``--write`` the table is printed; with it, the README's region of that name is filled anew.
The figures depend on systemd's version, which the table names.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "systemd" / "system"
README = PROJECT / "README.md"
REGION = re.compile(r"(<!-- figures: sandbox -->\n).*?(<!-- end: sandbox -->)", re.DOTALL)

REASONS = {
    "bascule.service": "the daemon and its errands; every exception has its reason beside it in the unit",
    "bascule-health.service": "runs the operator's and greenboot's checks, which expect the host as it is",
    "bascule-bless.service": "asks the same checks again while a boot soaks",
    "bascule-deadman.service": "runs greenboot's `red.d`, and reboots in every way there is",
    "bascule-giveup.service": "the same, at once",
}


def version() -> str:
    """systemd's, ``252``."""
    done = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=False
    )
    match = re.match(r"systemd (\d+)", done.stdout)
    return match[1] if match else ""


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


def table() -> str:
    """The figures in Markdown."""
    lines = [
        f"| unit | exposure (systemd {version()}) | why not less |",
        "|---|---|---|",
    ]
    for name, reason in REASONS.items():
        figure, word, _ = exposure(UNITS / name)
        lines.append(f"| {name} | {figure} {word.lower()} | {reason} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="fill the README's region anew")
    text = table()
    if parser.parse_args().write:
        before = README.read_text()
        assert REGION.search(before), "README.md has no region for the figures"
        README.write_text(REGION.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", before))
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
