"""File names and web addresses from hostile documents, checked once and for all."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from bascule.formats.text import printable

MAX_NAME = 1024
MAX_ADDRESS = 8192


def package_name(name: str) -> str:
    """A relative name that is appended to an address or a directory, and that hooks use as a file.

    Folders and a query string are allowed; climbing out, by whatever spelling, is not.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    path = unquote(name.partition("?")[0])
    if not name:
        raise ValueError("a package has no name")
    if (
        len(name) > MAX_NAME
        or not _plain(name)
        or "#" in name
        or not path.isprintable()
        or any(segment in ("", ".", "..") for segment in re.split(r"[/\\]", path))
        or "\\" in path
    ):
        raise ValueError(f"a package's name is not a file name: {clipped(name)!r}")
    return name


def payload_address(codebase: str, name: str) -> str:
    """Codebase + "/" if it lacks one + name, as the original joins them; http and https only.

    Raises:
        ValueError: with a sentence that says what is wrong; it never quotes a password.
    """
    if not codebase:
        raise ValueError("an address to download from is empty")
    if not _plain(codebase) or re.search(r"[#\\]", codebase) or len(codebase) > MAX_ADDRESS:
        raise ValueError("an address to download from is malformed")
    try:
        parts = urlsplit(codebase)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("an address to download from is malformed") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{clipped(codebase)!r} is neither http nor https")
    if not host:
        raise ValueError(f"{clipped(codebase)!r} names no host")
    if "@" in parts.netloc and parts.scheme != "https":
        raise ValueError("an address to download from carries a password over plain http")
    return codebase + ("" if codebase.endswith("/") else "/") + name


def clipped(text: str, limit: int = 120) -> str:
    """Text from outside, fit for a message: printable and short."""
    safe = printable(text)
    return safe if len(safe) <= limit else safe[:limit] + "…"


def _plain(text: str) -> bool:
    return text.isprintable() and not any(c.isspace() for c in text)
