"""A pin: the releases that this host may go to.

``3510.2.0`` or ``=3510.2.0`` (that one), ``>=3.0,<4`` (all must hold), ``3.1.*``, ``!=3.1.2``, and
``a || b`` (any). Versions compare as in `bascule.formats.version`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bascule.errors import UsageError
from bascule.formats.version import Key, key

_CLAUSE = re.compile(r"(==|=|!=|>=|<=|>|<)?\s*(v?[0-9A-Za-z.+\-]+?)(\.\*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Clause:
    """One comparison; `prefix` for a trailing ``.*``."""

    operator: str
    version: str
    prefix: bool

    def allows(self, version: str) -> bool:
        """Whether `version` satisfies it; a version that cannot be compared never does."""
        have, want = key(version), key(self.version)
        if have is None or want is None:
            # A release whose name is no version can still be pinned by that very name.
            same = version == self.version
            return same if self.operator == "=" else self.operator == "!=" and not same
        if self.prefix:
            fields = _fields(self.version)
            inside = _padded(have, len(fields)) == fields
            return inside == (self.operator == "=")
        match self.operator:
            case "=":
                return have == want
            case "!=":
                return have != want
            case ">":
                return have > want
            case ">=":
                return have >= want
            case "<=":
                return have <= want
            case _:
                # "<4" does not mean 4.0.0-beta, although it sorts before 4.
                return have < want and not (have[0] == want[0] and have[1] == 0 and want[1] == 1)


@dataclass(frozen=True, slots=True)
class Pin:
    """Alternatives, each a list of clauses that must all hold."""

    text: str
    alternatives: tuple[tuple[Clause, ...], ...]

    def allows(self, version: str) -> bool:
        """Whether this host may go to release `version`."""
        return any(all(c.allows(version) for c in clauses) for clauses in self.alternatives)

    @property
    def never_allows(self) -> bool:
        """Whether it is plain that no release satisfies it, such as ``>=4,<3``."""
        return all(_contradict(clauses) for clauses in self.alternatives)

    def __str__(self) -> str:
        return self.text


def parse_pin(text: str) -> Pin:
    """Parse a pin.

    Raises:
        UsageError: not in the grammar.
    """
    if not text.strip() or len(text) > 256:
        raise UsageError("a pin is a version or a range such as '>=3510.2,<4000'")
    alternatives = []
    for choice in text.split("||"):
        clauses = []
        for part in choice.split(","):
            match = _CLAUSE.fullmatch(part.strip())
            if match is None:
                raise UsageError(f"{part.strip()[:64]!r} is not a version or a range")
            operator = (match[1] or "=").replace("==", "=")
            version, prefix = match[2], bool(match[3])
            comparable = key(version) is not None
            if prefix and (operator not in ("=", "!=") or not _fields(version)):
                raise UsageError(f"{part.strip()[:64]!r}: '.*' goes with plain numbers only")
            if not comparable and operator not in ("=", "!="):
                raise UsageError(f"{version[:64]!r} is not a version that can be compared")
            clauses.append(Clause(operator, version, prefix))
        alternatives.append(tuple(clauses))
    return Pin(" ".join(text.split()), tuple(alternatives))


def _fields(version: str) -> tuple[int, ...]:
    numbers = version.removeprefix("v").split(".")
    return tuple(map(int, numbers)) if all(n.isdecimal() for n in numbers) else ()


def _padded(version: Key, length: int) -> tuple[int, ...]:
    return (version[0] + (0,) * length)[:length]


def _contradict(clauses: tuple[Clause, ...]) -> bool:
    lower = [k for c in clauses if c.operator in (">", ">=") and (k := key(c.version))]
    upper = [k for c in clauses if c.operator in ("<", "<=") and (k := key(c.version))]
    strict = any(c.operator in "<>" for c in clauses)
    if lower and upper and (max(lower) > min(upper) or (strict and max(lower) == min(upper))):
        return True
    exact = [c for c in clauses if c.operator == "=" and not c.prefix]
    return any(not c.allows(e.version) for e in exact for c in clauses)
