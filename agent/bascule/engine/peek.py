"""The beginning of a payload and no more: its metadata, by HTTP ranges (RFC 9110, 14) or from a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bascule.engine.local_file import open_regular, url_file
from bascule.engine.thread import in_thread
from bascule.engine.transport import Patience, Tls, Transport, basic
from bascule.engine.trouble import ExchangeFailed
from bascule.errors import TransferError, TransferHttpError
from bascule.formats.payload import Metadata, PayloadParser

FIRST = 64 << 10
"""Bytes of the first request: most manifests lie within."""

DEADLINE = 60.0
"""Seconds for one request."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What the beginning of a payload says.

    Attributes:
        metadata: header and manifest, checked by nobody yet.
        read: bytes that were fetched for it.
    """

    metadata: Metadata
    read: int


async def peek(
    urls: Sequence[str],
    *,
    size: int | None,
    metadata_size: int | None = None,
    user: str = "",
    password: str = "",
    tls: Tls | None = None,
    patience: Patience | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Glimpse:
    """Read a payload's metadata from the first of `urls` that has it.

    Args:
        size: announced bytes of the payload.
        metadata_size: Omaha's ``MetadataSize``, if it was announced.

    Raises:
        TransferError: no address gives it, or the payload ends before its metadata does.
        PayloadError: it is not a payload, or longer than the limits allow.
        SettingsError: a certificate file cannot be used.
    """
    if urls and urls[0].startswith("file:"):
        return await in_thread(lambda: _of_file(urls[0], size, metadata_size))
    fault: TransferError | None = None
    secret = {"Authorization": basic(user, password)} if user else {}
    async with Transport(tls=tls, patience=patience, environ=environ, clock=clock) as transport:
        for url in urls:
            reader = _Reader(transport, url, secret)
            try:
                return await _glimpse(reader, PayloadParser(size=size, metadata_size=metadata_size))
            except TransferError as error:
                fault = fault or error
            except ExchangeFailed as error:
                fault = fault or TransferError(error.sentence)
    raise fault or TransferError("the offer names no address")


async def _glimpse(reader: _Reader, parser: PayloadParser) -> Glimpse:
    end = FIRST
    while True:
        data = await reader.until(end)
        for event in parser.feed(data):
            if isinstance(event, Metadata):
                return Glimpse(event, reader.read)
        if reader.read < end:
            raise TransferError("the payload ends before its metadata do")
        header = parser.header
        end = (
            header.metadata_size + header.signature_size
            if header is not None and header.metadata_size + header.signature_size > reader.read
            else reader.read + FIRST
        )


class _Reader:
    """A payload's bytes from the start, range after range."""

    def __init__(self, transport: Transport, url: str, secret: Mapping[str, str]) -> None:
        self._transport = transport
        self._url = url
        self._secret = secret
        self.read = 0

    async def until(self, end: int) -> bytes:
        """The bytes from those read so far up to `end`; fewer where the payload ends before."""
        start = self.read
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        async with self._transport.exchange(
            "GET", self._url, headers=headers, secret=self._secret
        ) as answer:
            if answer.status == 416:
                return b""
            if answer.status not in (200, 206):
                raise TransferHttpError(
                    f"{answer.address}: {answer.status} {answer.reason}".rstrip(),
                    status=answer.status,
                )
            # Who ignores ranges sends everything: read as far as is needed, then hang up.
            skip = start if answer.status == 200 else 0
            if answer.status == 206 and not _begins_at(answer.headers, start):
                raise TransferError(f"{answer.address} sends another range than was asked for")
            data, _ = await answer.body(end - start + skip, DEADLINE)
        data = data[skip:]
        self.read += len(data)
        return data


def _begins_at(headers: Mapping[str, str], start: int) -> bool:
    return headers.get("Content-Range", "").lower().startswith(f"bytes {start}-")


def _of_file(url: str, size: int | None, metadata_size: int | None) -> Glimpse:
    try:
        path = url_file(url)
    except ValueError as error:
        raise TransferError(str(error)) from None
    parser, read = PayloadParser(size=size, metadata_size=metadata_size), 0
    with contextlib.ExitStack() as stack:
        handle = open_regular(path)
        stack.callback(os.close, handle)
        while True:
            try:
                data = os.pread(handle, FIRST, read)
            except OSError as error:
                raise TransferError(f"{path}: {error.strerror} at byte {read}") from None
            if not data:
                raise TransferError(f"{path}: the payload ends before its metadata do")
            read += len(data)
            for event in parser.feed(data):
                if isinstance(event, Metadata):
                    return Glimpse(event, read)
