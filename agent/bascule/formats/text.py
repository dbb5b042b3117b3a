"""Text of others, fit for a terminal and for one line of a journal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with U+FFFD for every character that does more than print: no escapes, no new lines."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


__all__ = ["printable"]
