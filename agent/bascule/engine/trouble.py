"""Why an exchange failed: exceptions of aiohttp, ssl and the system in plain words."""

from __future__ import annotations

import enum
import ssl
import time

_CLOCK_FAULTS = {9: "not valid yet", 10: "no longer valid"}
_UNKNOWN_ISSUER = frozenset({2, 18, 19, 20, 21})


class Trouble(enum.Enum):
    """Why an exchange ended without a usable answer."""

    ADDRESS = "an address or a proxy that cannot be used"
    UNREACHABLE = "no connection"
    TLS = "no secure connection"
    REDIRECT = "a redirect that is not followed"
    STALLED = "too slow for too long"
    BROKEN = "the connection ended before the answer did"
    MALFORMED = "not HTTP"


class ExchangeFailed(Exception):
    """Raised by `engine.transport`; its callers turn it into an error of the catalogue.

    Attributes:
        trouble: the kind.
        sentence: what was seen, with the address that was asked.
    """

    def __init__(self, trouble: Trouble, sentence: str) -> None:
        super().__init__(sentence)
        self.trouble = trouble
        self.sentence = sentence


def explain(error: Exception, address: str, proxy: str | None = None) -> ExchangeFailed:
    """Turn an exception of aiohttp, ssl or the system into a kind and a sentence."""
    import aiohttp

    tls = _tls_fault(error)
    if tls is not None:
        return ExchangeFailed(Trouble.TLS, f"{address}: {tls}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ExchangeFailed(Trouble.UNREACHABLE, f"{address}: no connection in time")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ExchangeFailed(
            Trouble.UNREACHABLE, f"{address}: the proxy answers {error.status} {error.message}"
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ExchangeFailed(
            Trouble.UNREACHABLE, f"{address}: the proxy cannot be reached: {error.os_error}"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ExchangeFailed(Trouble.UNREACHABLE, f"{address}: the name is not known")
    if isinstance(error, aiohttp.ClientConnectorError):
        what = str(error.os_error) or "the other side hung up while the connection was being made"
        return ExchangeFailed(Trouble.UNREACHABLE, f"{address}: {what}")
    if isinstance(error, aiohttp.ClientResponseError):
        return ExchangeFailed(Trouble.MALFORMED, f"{address}: the answer is not HTTP")
    if isinstance(error, aiohttp.ClientPayloadError):
        return ExchangeFailed(Trouble.BROKEN, f"{address}: the connection ended too early")
    if isinstance(error, aiohttp.ClientError | OSError):
        return ExchangeFailed(Trouble.BROKEN, f"{address}: {error or 'the connection broke'}")
    return ExchangeFailed(Trouble.MALFORMED, f"{address}: {type(error).__name__}: {error}")


def _tls_fault(error: BaseException) -> str | None:
    """Plain words for a TLS failure anywhere in the chain of causes, or None."""
    import aiohttp

    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        if isinstance(seen, aiohttp.ClientError):
            # Some of aiohttp's classes inherit from ssl.SSLError without being initialised as one.
            inner = getattr(seen, "certificate_error", None) or getattr(seen, "os_error", None)
            seen = inner if isinstance(inner, ssl.SSLError) else seen.__cause__
            continue
        if isinstance(seen, ssl.SSLCertVerificationError):
            return _certificate_words(seen)
        if isinstance(seen, ssl.SSLError):
            return _alert_words(seen)
        seen = seen.__cause__
    if isinstance(error, aiohttp.ClientSSLError):
        return f"no secure connection: {error}"
    return None


def _certificate_words(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in _CLOCK_FAULTS:
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return (
            f"the server's certificate is {_CLOCK_FAULTS[code]}, if this host's clock is right"
            f" ({now}); check the clock first"
        )
    if code in _UNKNOWN_ISSUER:
        return (
            "the server's certificate is signed by an authority that this host does not know;"
            " add it to the CA bundle, or look for a proxy that intercepts TLS"
        )
    if code in (62, 64):
        return f"the server's certificate is for another name: {error.verify_message}"
    return f"the server's certificate is refused: {error.verify_message}"


def _alert_words(error: ssl.SSLError) -> str:
    reason = str(getattr(error, "reason", None) or error).upper()
    if "CERTIFICATE_REQUIRED" in reason:
        return "the server wants a client certificate"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        expired = "EXPIRED" in reason
        return "the server refuses this host's client certificate" + (
            ": it has expired, or one of the two clocks is wrong" if expired else ""
        )
    if "HANDSHAKE_FAILURE" in reason:
        return (
            "the server ends the handshake; it may want a client certificate or other TLS versions"
        )
    if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason:
        return "the server does not speak TLS on this port"
    return f"no secure connection: {error}"
