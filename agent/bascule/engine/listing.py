"""Fetches the OpenPGP-signed digest list that lies beside a payload, wherever the payload lies."""

from __future__ import annotations

from collections.abc import Sequence

from bascule.engine.fetch import HttpSource
from bascule.engine.local_file import FileSource, url_file
from bascule.engine.transport import Patience, Tls
from bascule.errors import OpenPgpError
from bascule.formats.digest_list import list_address

LIST_LIMIT = 1 << 20
"""Bytes of a digest list."""


async def fetch_list(
    urls: Sequence[str],
    *,
    tls: Tls | None = None,
    patience: Patience | None = None,
    retry_wait: float = 20.0,
) -> bytes:
    """The list of the payload at `urls`: ``file:`` addresses, or http and https ones.

    Raises:
        OpenPgpError: it is longer than `LIST_LIMIT`.
        TransferError: no address has one.
    """
    lists = [list_address(url) for url in urls]
    source: FileSource | HttpSource
    if lists[0].startswith("file:"):
        source = FileSource(url_file(lists[0]), size=None)
    else:
        source = HttpSource(
            lists,
            size=None,
            max_failures=1,
            max_reconnects=2,
            retry_wait=retry_wait,
            tls=tls,
            patience=patience,
        )
    body = bytearray()
    async for chunk in source.stream(0):
        body += chunk
        if len(body) > LIST_LIMIT:
            raise OpenPgpError("the digest list is longer than 1 MiB")
    return bytes(body)


__all__ = ["LIST_LIMIT", "fetch_list"]
