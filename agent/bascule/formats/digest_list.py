"""Reads the text of a ``<payload>.DIGESTS`` list, after its OpenPGP signature was checked.

Format: Gentoo's, which Flatcar's release tools write: sections headed ``# SHA512 HASH``, in each the
lines of ``sha512sum``: digest in hexadecimal, a blank, a blank or an asterisk, the file's base name.
Flatcar's lists have MD5, SHA-1 and SHA-512 sections; ours have SHA-256 and SHA-512. Sections of other
hashes are passed over: nothing is ever proven by MD5 or SHA-1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bascule.errors import OpenPgpError

__all__ = ["DigestList", "list_address", "listed_name", "parse_digest_list"]

SUFFIX = ".DIGESTS.asc"

_MOST = 1 << 20
_SIZES = {"sha256": 32, "sha512": 64}
_SECTION = re.compile(r"#\s*([A-Za-z0-9_-]+)\s+HASH\s*")
_LINE = re.compile(r"([0-9A-Fa-f]+) [ *]([^\\/\x00-\x1f\x7f]+)")


@dataclass(frozen=True, slots=True)
class DigestList:
    """What a list says.

    Attributes:
        digests: file name → ``sha256`` (32 bytes), ``sha512`` (64 bytes), or both.
    """

    digests: Mapping[str, Mapping[str, bytes]]

    def of(self, name: str) -> Mapping[str, bytes]:
        """The digests of one file, at least one of them.

        Raises:
            OpenPgpError: the list does not name it, or only under hashes that prove nothing.
        """
        found = self.digests.get(name)
        if not found:
            raise OpenPgpError(f"the list has no SHA-256 or SHA-512 digest of {name}")
        return found


def list_address(payload: str) -> str:
    """Where the signed list of a payload lies: beside it, the query string kept for both.

    A query is what a presigned address or a load balancer needs; it belongs to the request and not
    to the file's name. In ``file:`` addresses a question mark of the name is written ``%3F``.
    """
    path, mark, query = payload.partition("?")
    return path + SUFFIX + mark + query


def listed_name(payload: str) -> str:
    """The base name under which a list names a payload (Omaha's may have folders and a query)."""
    return payload.partition("?")[0].rpartition("/")[2]


def parse_digest_list(text: bytes) -> DigestList:
    """Read a whole list.

    Raises:
        OpenPgpError: it is over 1 MiB or not UTF-8, a line is none of the format's, or one file has
            two different digests of the same kind.
    """
    if len(text) > _MOST:
        raise OpenPgpError(f"a digest list of {len(text)} bytes")
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise OpenPgpError("the digest list is not text") from None
    digests: dict[str, dict[str, bytes]] = {}
    section: str | None = None
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if heading := _SECTION.fullmatch(line):
            section = heading[1].lower().replace("-", "")
            continue
        if not line or line.startswith("#"):
            continue
        entry = _LINE.fullmatch(line)
        if entry is None or section is None:
            raise OpenPgpError(f"line {number} of the digest list is not understood: {line[:80]!r}")
        size = _SIZES.get(section)
        if size is None:
            continue
        if len(entry[1]) != 2 * size:
            raise OpenPgpError(f"line {number} of the digest list is no {section} digest")
        value = bytes.fromhex(entry[1])
        if digests.setdefault(entry[2], {}).setdefault(section, value) != value:
            raise OpenPgpError(f"the digest list has two {section} digests of {entry[2]}")
    return DigestList(digests)
