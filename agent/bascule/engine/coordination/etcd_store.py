"""Keys in etcd, with compare-and-swap: the v3 JSON gateway and the v2 keys API behind one shape."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from bascule.engine.coordination.http import Answer, LockServer, LockTrouble
from bascule.engine.coordination.interface import clean
from bascule.engine.coordination.registry import Credentials

# etcd 3.4 and later, 3.3, 3.2.
_GATEWAYS = ("/v3", "/v3beta", "/v3alpha")
_UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A value with the revision (v3) or index (v2) at which it was last changed."""

    value: bytes
    revision: int


class Store(Protocol):
    """What the lock needs of etcd. Every method raises LockTrouble."""

    name: str

    async def available(self) -> bool:
        """Whether the server speaks this API at all."""
        ...

    async def get(self, key: str) -> Stored | None:
        """The newest value, read through consensus; None where there is none."""
        ...

    async def swap(
        self, key: str, expected: Stored | None, value: bytes, note: tuple[str, bytes | None]
    ) -> bool:
        """Write `value` if the key is still as `expected` (None: absent); False if it is not.

        Args:
            note: a key that is written (or deleted, for None) along with it.
        """
        ...


class V3:
    """etcd v3 by its JSON gateway (etcd ``Documentation/dev-guide/api_grpc_gateway``)."""

    name = "v3"

    def __init__(self, server: LockServer, credentials: Credentials) -> None:
        self._server = server
        self._credentials = credentials
        self._gateway = ""
        self._token = ""

    async def available(self) -> bool:
        """Finds the gateway's path."""
        if not self._gateway:
            for path in _GATEWAYS:
                answer = await self._server.ask("POST", f"{path}/maintenance/status", body={})
                if answer.status != 404:
                    self._gateway = path
                    break
        return bool(self._gateway)

    async def get(self, key: str) -> Stored | None:
        """A linearizable range over one key."""
        body = await self._call("/kv/range", {"key": _coded(key.encode())})
        pairs = body.get("kvs") or []
        if not isinstance(pairs, list) or not all(isinstance(p, dict) for p in pairs):
            raise LockTrouble("etcd answered something that is no list of keys")
        if not pairs:
            return None
        return Stored(_decoded(pairs[0].get("value", "")), _number(pairs[0].get("mod_revision")))

    async def swap(
        self, key: str, expected: Stored | None, value: bytes, note: tuple[str, bytes | None]
    ) -> bool:
        """One transaction, so that the note never contradicts the lock."""
        coded = _coded(key.encode())
        if expected is None:
            compare: dict[str, Any] = {"target": "CREATE", "create_revision": "0"}
        else:
            compare = {"target": "MOD", "mod_revision": str(expected.revision)}
        name, text = note
        side: dict[str, Any]
        if text is None:
            side = {"request_delete_range": {"key": _coded(name.encode())}}
        else:
            side = {"request_put": {"key": _coded(name.encode()), "value": _coded(text)}}
        body = await self._call(
            "/kv/txn",
            {
                "compare": [{"key": coded, "result": "EQUAL", **compare}],
                "success": [{"request_put": {"key": coded, "value": _coded(value)}}, side],
                "failure": [],
            },
        )
        return body.get("succeeded") is True

    async def _call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._gateway and not await self.available():
            raise LockTrouble("this etcd has no v3 API")
        for attempt in range(2):
            if self._credentials.user and not self._token:
                await self._log_in()
            headers = {"Authorization": self._token} if self._token else None
            answer = await self._server.ask(
                "POST", self._gateway + path, body=body, headers=headers
            )
            if answer.status == 200:
                return answer.body
            expired = answer.status == 401 or answer.body.get("code") == _UNAUTHENTICATED
            if attempt or not (expired and self._credentials.user):
                raise _refusal(answer)
            self._token = ""
        raise AssertionError

    async def _log_in(self) -> None:
        answer = await self._server.ask(
            "POST",
            f"{self._gateway}/auth/authenticate",
            body={"name": self._credentials.user, "password": self._credentials.password},
        )
        token = answer.body.get("token")
        if answer.status == 200 and isinstance(token, str) and token.isascii():
            self._token = token
            return
        # A client certificate can do without a token, where the server has no auth switched on.
        if "authentication is not enabled" not in answer.text:
            raise _refusal(answer)


class V2:
    """etcd's v2 keys API, for clusters where unmodified locksmith runs."""

    name = "v2"

    def __init__(self, server: LockServer) -> None:
        self._server = server

    async def available(self) -> bool:
        """Whether the keys API is switched on."""
        answer = await self._server.ask("GET", "/v2/keys/")
        return answer.status == 200 and isinstance(answer.body.get("node"), dict)

    async def get(self, key: str) -> Stored | None:
        """A quorum read."""
        answer = await self._server.ask("GET", f"/v2/keys/{_path(key)}?quorum=true")
        if answer.status == 404 and answer.body.get("errorCode") == 100:
            return None
        node = answer.body.get("node")
        if answer.status != 200 or not isinstance(node, dict):
            raise _refusal(answer)
        return Stored(str(node.get("value", "")).encode(), _number(node.get("modifiedIndex")))

    async def swap(
        self, key: str, expected: Stored | None, value: bytes, note: tuple[str, bytes | None]
    ) -> bool:
        """Compare-and-swap on the index; the note is written after it and may get lost."""
        when = "prevExist=false" if expected is None else f"prevIndex={expected.revision}"
        answer = await self._server.ask(
            "PUT", f"/v2/keys/{_path(key)}?{when}", form={"value": value.decode()}
        )
        if answer.status in (404, 412) and answer.body.get("errorCode") in (100, 101, 105):
            return False
        if answer.status not in (200, 201):
            raise _refusal(answer)
        name, text = note
        if text is None:
            await self._server.ask("DELETE", f"/v2/keys/{_path(name)}")
        else:
            await self._server.ask("PUT", f"/v2/keys/{_path(name)}", form={"value": text.decode()})
        return True


def _refusal(answer: Answer) -> LockTrouble:
    why = answer.body.get("message") or answer.body.get("error") or answer.text
    return LockTrouble(f"etcd answered {answer.status}: {clean(why)}")


def _path(key: str) -> str:
    # A key of a group holds its name in escaped form; the escapes themselves go into the key.
    return quote(key, safe="/")


def _coded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (ValueError, binascii.Error):
        raise LockTrouble("etcd answered a value that is not base64") from None


def _number(value: object) -> int:
    # The gateway writes 64-bit numbers as text.
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise LockTrouble("etcd answered without a revision")
