"""``python -m bascule.docs``: regenerates what the documents take from the code; ``--check`` compares.

A document holds a marked region for each: between ``<!-- generated: NAME -->`` and
``<!-- end: NAME -->`` nothing is written by hand. The page bascule(8) is made from the parser.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bascule.errors import Exit, catalogue
from bascule.healthchecks import KINDS, options_of
from bascule.settings import CHECK_OPTIONS, describe
from bascule.updater.machine import diagram

ROOT = Path(__file__).resolve().parents[2]


def states() -> str:
    """The state diagram."""
    return f"```mermaid\n{diagram()}```\n"


def exits() -> str:
    """The exit code table."""
    rows = [f"| {int(code)} | {code.sentence} |" for code in Exit]
    return "\n".join(["| code | meaning |", "|---:|---|", *rows]) + "\n"


def errors() -> str:
    """The error catalogue."""
    rows = [
        f"| `{cls.id}` | {cls.number} | {int(cls.exit)} | {cls.cause} | {cls.remedy} |"
        for cls in sorted(catalogue(), key=lambda c: c.id)
    ]
    head = ["| id | number | exit | cause | what to do |", "|---|---:|---:|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{v}"' for v in value) + "]`"
    if isinstance(value, str):
        return f'`"{value}"`' if value else "(empty)"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`" if value != {} else "(empty)"


def settings() -> str:
    """The settings, a table a section, and one for what a check's own table holds."""
    lines: list[str] = []
    section = ""
    for name, doc, default, unit in describe():
        head, key = name.split(".")
        if head != section:
            section = head
            lines += ["", f"### [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        meaning = f"{doc} In {unit}." if unit else doc
        lines.append(f"| `{key}` | {_shown(default)} | {meaning.replace('|', '/')} |")
    return "\n".join([*lines, "", *_check_options()]).strip() + "\n"


def _check_options() -> Iterator[str]:
    """The table of what `[health.checks."NAME"]` may hold."""
    yield '### [health.checks."NAME"]'
    yield ""
    yield (
        "NAME stands in quotes, as reports show it. `timeout`, `retries` and `interval` are `[health]`'s "
        "where absent. A later file replaces single keys, not the table."
    )
    yield ""
    yield "| key | of which checks | meaning |"
    yield "|---|---|---|"
    for option, (_, doc, unit) in CHECK_OPTIONS.items():
        takers = [name for name, kind in KINDS.items() if option in options_of(kind)]
        whose = "all" if len(takers) == len(KINDS) else ", ".join(f"`{name}`" for name in takers)
        yield f"| `{option}` | {whose} | {doc}{f' In {unit}.' if unit else ''} |"


GENERATORS: Mapping[str, Callable[[], str]] = {
    "states": states,
    "exits": exits,
    "errors": errors,
    "settings": settings,
}


def bascule_man() -> str:
    """bascule(8)."""
    from bascule.__main__ import _parser
    from bascule.faces.cli.docs import command_man

    return command_man(_parser([]), "the update agent, and tools for disks and payloads")


FILES: Mapping[str, Callable[[], str]] = {"docs/man/bascule.8": bascule_man}
"""Path below the checkout → what the whole file holds."""

_REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def renew(text: str) -> str:
    """`text` with every marked region filled anew. Raises KeyError for an unknown name."""
    return _REGION.sub(lambda m: f"{m[1]}\n{GENERATORS[m[2]]()}\n{m[3]}", text)


def documents() -> list[Path]:
    """Every Markdown file that may have marked regions."""
    return [
        ROOT / "README.md",
        ROOT / "agent/DESIGN.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def main() -> int:
    """Entry point; 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m bascule.docs")
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    check = parser.parse_args().check
    stale = []
    for path in documents():
        if not path.exists():
            continue
        before = path.read_text()
        after = renew(before)
        if before != after:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after)
    for name, make in FILES.items():
        path, after = ROOT / name, make()
        if not path.exists() or path.read_text() != after:
            stale.append(name)
            if not check:
                path.write_text(after)
    for name in stale:
        sys.stdout.write(f"{name} {'is stale: run `make docs`' if check else 'renewed'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
