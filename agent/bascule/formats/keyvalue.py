"""Flatcar's ``KEY=value`` files (``update.conf``, ``release``, ``oem-release``).

Format source: update_engine ``simple_key_value_store.cc`` (reference flatcar.md 6.1): lines end at
``\\n``; the key ends at the first ``=``; nothing is trimmed; there are no comments and no
``export``; one matching pair of quotes around the value is taken off; the last duplicate wins.
"""

from __future__ import annotations


def parse_key_value(data: bytes) -> dict[str, str]:
    """All pairs of a file. A line without ``=`` says nothing; bytes that are not UTF-8 become U+FFFD."""
    pairs: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals:
            pairs[key] = _unquoted(value)
    return pairs


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value
