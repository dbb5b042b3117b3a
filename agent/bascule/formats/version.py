"""Release versions: which of two is newer.

Grammar: Semantic Versioning 2.0.0 §2, §9–§11, with any number of numeric fields, as Flatcar's
``3510.2.0`` or ``4081.0.0+nightly-20240101``; build metadata does not count.
"""

from __future__ import annotations

import re

_SHAPE = re.compile(
    r"v?(\d{1,18}(?:\.\d{1,18}){0,7})(?:-([0-9A-Za-z.-]{1,128}))?(?:\+.{0,128})?", re.ASCII
)

Key = tuple[tuple[int, ...], int, tuple[tuple[int, int, str], ...]]


def key(version: str) -> Key | None:
    """A value that sorts as the version does, or None if `version` is not of the grammar."""
    match = _SHAPE.fullmatch(version.strip())
    if not match:
        return None
    numbers = [int(n) for n in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    parts = tuple(
        (0, int(p), "") if p.isdigit() and len(p) < 19 else (1, 0, p)
        for p in (match[2].split(".") if match[2] else ())
    )
    return tuple(numbers), 0 if parts else 1, parts


def older(version: str, than: str) -> bool:
    """Whether `version` is older than `than`; False where either is not of the grammar."""
    a, b = key(version), key(than)
    return a is not None and b is not None and a < b


def newest(a: str, b: str) -> str:
    """The newer of the two; `a` where they cannot be compared, unless it is empty."""
    if not a:
        return b
    return b if older(a, b) else a
