"""A strict reader of Prometheus' text format 0.0.4, for tests."""

from __future__ import annotations

import re

SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\n\"])*\",?)*)\})?"
    r" (-?[0-9.]+(?:e[+-]?[0-9]+)?|NaN|[+-]Inf)"
)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"')

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    """The text format, strictly: HELP and TYPE once in front of their samples, no duplicates."""
    assert text.endswith("\n")
    helped: set[str] = set()
    typed: dict[str, str] = {}
    found: Samples = {}
    family = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in helped, "a family stands together"
            helped.add(family)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family and kind in ("gauge", "counter") and name not in typed
            typed[name] = kind
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1] == family and family in typed
        if typed[family] == "counter":
            assert family.endswith("_total")
        labels = tuple(
            (k, re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], v))
            for k, v in LABEL.findall(match[2] or "")
        )
        assert (family, labels) not in found, "no sample twice"
        found[family, labels] = float(match[3])
    return found
