"""Which proxy an address goes through: the environment's family, in both spellings, as curl reads it.

``http_proxy``/``HTTP_PROXY``, ``https_proxy``/``HTTPS_PROXY``, ``all_proxy``/``ALL_PROXY`` and the
exceptions in ``no_proxy``/``NO_PROXY``; the lower-case name wins. Flatcar hosts set them in a
drop-in of the service (reference flatcar.md 2.6, 6.3).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def proxy_for(address: str, environ: Mapping[str, str]) -> str | None:
    """The proxy's address for `address`, or None for a direct connection.

    A value without a scheme is an http proxy. Raises ValueError for a proxy of another kind.
    """
    parts = urlsplit(address)
    value = _value(environ, f"{parts.scheme}_proxy") or _value(environ, "all_proxy")
    if not value or _excepted(
        parts.hostname or "",
        parts.port or _PORTS.get(parts.scheme, 0),
        _value(environ, "no_proxy"),
    ):
        return None
    if "://" not in value:
        value = f"http://{value}"
    proxy = urlsplit(value)
    if proxy.scheme not in _PORTS or not proxy.hostname:
        raise ValueError(f"only http and https proxies are supported, not {proxy.scheme}")
    return value


def _value(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip() or environ.get(name.upper(), "").strip()


def _excepted(host: str, port: int, exceptions: str) -> bool:
    return any(_matches(host, port, entry) for entry in re.split(r"[,\s]+", exceptions) if entry)


def _matches(host: str, port: int, entry: str) -> bool:
    if entry == "*":
        return True
    host, entry = host.lower().rstrip("."), entry.lower()
    with_port = re.fullmatch(r"(\[[^\]]*\]|[^:]+):(\d{1,5})", entry)
    if with_port:
        if int(with_port[2]) != port:
            return False
        entry = with_port[1]
    entry = entry.strip("[]")
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return number in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
