"""A small JSON client for lock servers: bounded answers, no redirects, one try per endpoint."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bascule.engine.coordination.interface import clean
from bascule.engine.coordination.registry import Credentials
from bascule.errors import SettingsError

if TYPE_CHECKING:
    import aiohttp

_MAX = 256 << 10


class LockTrouble(Exception):
    """A server could not be asked, or its answer cannot be used; the text is for an operator."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status with the JSON object of its body; {} where the body is none."""

    status: int
    body: Mapping[str, Any]
    text: str = ""


class LockServer:
    """Asks the first of `endpoints` that answers, beginning with the one that did last time.

    Args:
        timeout: seconds for one request.
        proxies: follow the proxy variables of the environment.

    Raises SettingsError for an endpoint that is no http(s) URL.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials,
        *,
        timeout: float,
        basic_auth: bool,
        proxies: bool = False,
    ) -> None:
        if not endpoints:
            raise SettingsError("`reboot.endpoints` is empty")
        for endpoint in endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise SettingsError(f"{endpoint[:100]!r} is not an http or https URL")
        self._endpoints = [e.rstrip("/") for e in endpoints]
        self._credentials = credentials
        self._timeout = timeout
        self._basic_auth = basic_auth
        self._proxies = proxies
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. Raises LockTrouble if no endpoint answers."""
        import aiohttp

        trouble = ""
        for endpoint in list(self._endpoints):
            try:
                async with self._open().request(
                    method,
                    endpoint + path,
                    json=body,
                    data=form,
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    raw = await response.content.read(_MAX + 1)
                    while len(raw) <= _MAX and (more := await response.content.read(_MAX)):
                        raw += more
                    status = response.status
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                trouble = f"{endpoint}: {clean(error) or 'timed out'}"
                continue
            if len(raw) > _MAX:
                trouble = f"{endpoint}: its answer is too large"
                continue
            if endpoint != self._endpoints[0]:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
            return Answer(status, _object(raw), clean(raw[:400].decode("utf-8", "replace")))
        raise LockTrouble(trouble)

    async def close(self) -> None:
        """Give back connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            who = self._credentials
            secure = any(e.startswith("https:") for e in self._endpoints)
            headers = {}
            if self._basic_auth and who.user:
                pair = f"{who.user}:{who.password}".encode()
                headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                connector=aiohttp.TCPConnector(ssl=who.tls() if secure else True, limit=2),
                headers=headers,
                trust_env=self._proxies,
            )
        return self._session


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
