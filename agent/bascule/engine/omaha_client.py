"""Post one Omaha request and bring the answer's bytes home.

Rules source: reference flatcar.md 2.1: ``Content-Type: text/xml``, no User-Agent, no
Accept-Encoding, no password; servers may end header lines with a bare line feed (``flatcar-update``)
and may close the connection instead of announcing a length.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from bascule.engine.answer import Answer
from bascule.engine.transport import Patience, Tls, Transport
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
    retries: int = 0,
    retry_wait: float = 10.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bytes:
    """The body of the server's 2xx answer, at most `max_body` bytes.

    A redirect with 301, 302, 307 or 308 is followed with the same method and body: an Omaha service
    has no answer to a GET.

    Args:
        deadline: seconds for the whole answer; a server that trickles does not hold the agent.
        retries: further tries, `retry_wait` seconds apart, where there was no connection at all; the
            original makes 1 for a check that somebody asked for and 3 for a scheduled one.

    Raises:
        ServerHttpError: any other status; number 2000 + status, the server's words if it has any.
        ServerRedirectRefused: to plain http, in circles, to another scheme.
        ResponseNotXml: longer than `max_body`.
        ServerUnreachable: no answer at all, or it broke off.
        SettingsError: a certificate file cannot be used.
    """
    if url == DISABLED:
        raise ServerUnreachable("the server's address is set to `disabled`", disabled=True)
    for left in range(retries, -1, -1):
        try:
            return await _post(url, body, tls, patience, environ, clock, max_body, deadline)
        except ExchangeFailed as e:
            if left == 0 or e.trouble is not Trouble.UNREACHABLE:
                raise server_error(e) from e
        await sleep(retry_wait)
    raise AssertionError("the last try returns or raises")


async def _post(
    url: str,
    body: bytes,
    tls: Tls | None,
    patience: Patience | None,
    environ: Mapping[str, str] | None,
    clock: Callable[[], float],
    max_body: int,
    deadline: float,
) -> bytes:
    async with Transport(tls=tls, patience=patience, environ=environ, clock=clock) as transport:
        async with transport.exchange(
            "POST", url, headers={"Content-Type": "text/xml"}, body=body
        ) as answer:
            return await _answered(answer, max_body, deadline)


async def _answered(answer: Answer, max_body: int, deadline: float) -> bytes:
    if 200 <= answer.status < 300:
        content, whole = await answer.body(max_body, deadline)
        if not whole:
            raise ResponseNotXml(f"it is longer than {max_body} bytes")
        return content
    content = b""
    with contextlib.suppress(ExchangeFailed):
        content, _ = await answer.body(max_body, deadline)
    raise http_error(answer, server_words(content))


def http_error(answer: Answer, told: str = "") -> ServerHttpError:
    """The error for an answer that is not 2xx; `told` is what the server says in its own words."""
    detail = f"{answer.address}: {answer.status} {answer.reason}".rstrip()
    return ServerHttpError(f"{detail}; {told}" if told else detail, status=answer.status)


def server_error(failure: ExchangeFailed) -> ServerError:
    """The error for an exchange with a server that gave no answer."""
    if failure.trouble is Trouble.REDIRECT:
        return ServerRedirectRefused(failure.sentence)
    return ServerUnreachable(failure.sentence, trouble=failure.trouble.name.lower())
