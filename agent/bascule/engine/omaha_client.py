"""Post one Omaha request and bring the answer's bytes home.

Rules source: reference flatcar.md 2.1: ``Content-Type: text/xml``, no User-Agent, no
Accept-Encoding, no password; servers may end header lines with a bare line feed (``flatcar-update``)
and may close the connection instead of announcing a length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from bascule.engine.transport import Answer, Patience, Tls, Transport
from bascule.engine.trouble import ExchangeFailed, Trouble
from bascule.errors import (
    ResponseNotXml,
    ServerError,
    ServerHttpError,
    ServerRedirectRefused,
    ServerUnreachable,
)
from bascule.formats.omaha import server_words

MAX_BODY = 1 << 20
DISABLED = "disabled"
"""Flatcar's conventional `SERVER` value for "no checks"; `flatcar-update -A` leaves it behind."""


async def post_omaha(
    url: str,
    body: bytes,
    *,
    tls: Tls | None = None,
    patience: Patience | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    max_body: int = MAX_BODY,
    deadline: float = 300.0,
) -> bytes:
    """The body of the server's 2xx answer, at most `max_body` bytes.

    A redirect with 301, 302, 307 or 308 is followed with the same method and body: an Omaha service
    has no answer to a GET.

    Args:
        deadline: seconds for the whole answer; a server that trickles does not hold the agent.

    Raises:
        ServerHttpError: any other status; number 2000 + status, the server's words if it has any.
        ServerRedirectRefused: to plain http, in circles, to another scheme.
        ResponseNotXml: longer than `max_body`.
        ServerUnreachable: no answer at all, or it broke off.
        SettingsError: a certificate file cannot be used.
    """
    if url == DISABLED:
        raise ServerUnreachable("the server's address is set to `disabled`", disabled=True)
    try:
        async with Transport(tls=tls, patience=patience, environ=environ, clock=clock) as transport:
            async with transport.exchange(
                "POST", url, headers={"Content-Type": "text/xml"}, body=body
            ) as answer:
                return await _body(answer, max_body, clock, clock() + deadline)
    except ExchangeFailed as e:
        raise _server_error(e) from e


async def _body(
    answer: Answer, max_body: int, clock: Callable[[], float], deadline: float
) -> bytes:
    good = 200 <= answer.status < 300
    if good and answer.length is not None and answer.length > max_body:
        raise ResponseNotXml(f"it is longer than {max_body} bytes")
    pieces: list[bytes] = []
    size = 0
    try:
        async for chunk in answer.chunks():
            pieces.append(chunk)
            size += len(chunk)
            if size > max_body:
                break
            if clock() > deadline:
                raise ExchangeFailed(
                    Trouble.STALLED, f"{answer.address} takes too long for its answer"
                )
    except ExchangeFailed:
        if good:
            raise
    if good and size > max_body:
        raise ResponseNotXml(f"it is longer than {max_body} bytes")
    content = b"".join(pieces)
    if not good:
        told = server_words(content)
        detail = f"{answer.address}: {answer.status} {answer.reason}".rstrip()
        raise ServerHttpError(f"{detail}; {told}" if told else detail, status=answer.status)
    return content


def _server_error(failure: ExchangeFailed) -> ServerError:
    if failure.trouble is Trouble.REDIRECT:
        return ServerRedirectRefused(failure.sentence)
    return ServerUnreachable(failure.sentence, trouble=failure.trouble.name.lower())
