"""Which proxy an address goes through."""

from __future__ import annotations

import pytest

from bascule.engine.proxy import proxy_for


@pytest.mark.parametrize(
    ("address", "environ", "proxy"),
    [
        ("http://a/", {}, None),
        ("http://a/", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("http://a/", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("http://a/", {"HTTP_PROXY": "http://p:1", "http_proxy": "http://q:2"}, "http://q:2"),
        ("http://a/", {"https_proxy": "http://p:1"}, None),
        ("https://a/", {"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ("https://a/", {"ALL_PROXY": "http://all"}, "http://all"),
        ("https://a/", {"all_proxy": "http://all", "https_proxy": "http://p"}, "http://p"),
        ("https://a/", {"https_proxy": " ", "ALL_PROXY": ""}, None),
        ("https://a/", {"https_proxy": "https://u:p@p"}, "https://u:p@p"),
    ],
)
def test_which(address: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(address, environ) == proxy


@pytest.mark.parametrize(
    ("address", "exceptions", "direct"),
    [
        ("http://host.example/", "host.example", True),
        ("http://host.example/", "example", True),
        ("http://host.example/", ".example", True),
        ("http://host.example/", "*.example", True),
        ("http://HOST.example./", "host.EXAMPLE", True),
        ("http://host.example/", "other.example, host.example", True),
        ("http://host.example/", "other.example host.example", True),
        ("http://nothost.example/", "host.example", False),
        ("http://host.example.evil/", "host.example", False),
        ("http://host.example/", "*", True),
        ("http://host.example/", "host.example:80", True),
        ("http://host.example:8080/", "host.example:80", False),
        ("https://host.example/", "host.example:443", True),
        ("http://10.1.2.3/", "10.0.0.0/8", True),
        ("http://10.1.2.3/", "10.1.2.3", True),
        ("http://10.1.2.3/", "2.3", False),
        ("http://11.1.2.3/", "10.0.0.0/8,,", False),
        ("http://[::1]:90/", "::1", True),
        ("http://[::1]:90/", "[::1]:90", True),
        ("http://[::1]:90/", "[::1]:91", False),
        ("http://[fd00::5]/", "fd00::/8", True),
        ("http://localhost/", "localhost,127.0.0.1", True),
        ("http://a/", ".", False),
    ],
)
def test_exceptions(address: str, exceptions: str, direct: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        environ = {"ALL_PROXY": "http://p", name: exceptions}
        assert (proxy_for(address, environ) is None) is direct


def test_socks_is_named() -> None:
    with pytest.raises(ValueError, match="socks5"):
        proxy_for("http://a/", {"all_proxy": "socks5://p:1080"})
