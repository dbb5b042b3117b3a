"""What a server offers, as values that cross pipes and wait in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_MAX_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Package:
    """A further package of the offer (system extensions), which only the postinstall hook reads.

    Attributes:
        size: bytes, 0 where the server does not say.
        sha256: 32 bytes, or None where the server does not say.
        required: the server marks it as indispensable.
    """

    name: str
    size: int
    sha256: bytes | None
    required: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON form; digests in hexadecimal."""
        return {
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256.hex() if self.sha256 is not None else None,
            "required": self.required,
        }


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server offers: one payload and where it lies.

    Attributes:
        version: informational; may be "".
        urls: complete addresses of the payload, in the server's order, http or https only.
        name: the payload's file name (may have a query string).
        size: bytes of the whole payload file, signature included.
        sha256: of the whole payload file, 32 bytes.
        is_delta: the payload needs the running release as its source.
        max_failures: transient failures per URL before the next one is used, at least 1.
        disable_backoff: the server asks that failed payloads be tried again at once.
        metadata_size: bytes of header and manifest, or None.
        metadata_signature: raw RSA signature over the metadata, or None; never without the size.
        packages: everything but the payload.
        attributes: what the server said on ``manifest`` and on the postinstall action, as it stands.
    """

    version: str
    urls: tuple[str, ...]
    name: str
    size: int
    sha256: bytes
    is_delta: bool = False
    max_failures: int = DEFAULT_MAX_FAILURES
    disable_backoff: bool = False
    metadata_size: int | None = None
    metadata_signature: bytes | None = None
    packages: tuple[Package, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as the errand hands it to the daemon; bytes in hexadecimal."""
        signature = self.metadata_signature
        return {
            "version": self.version,
            "urls": list(self.urls),
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256.hex(),
            "is_delta": self.is_delta,
            "max_failures": self.max_failures,
            "disable_backoff": self.disable_backoff,
            "metadata_size": self.metadata_size,
            "metadata_signature": signature.hex() if signature is not None else None,
            "packages": [package.as_dict() for package in self.packages],
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Offer:
        """Rebuild an offer that crossed a pipe. Raises ValueError, KeyError or TypeError."""
        signature = data["metadata_signature"]
        return cls(
            version=str(data["version"]),
            urls=tuple(str(url) for url in data["urls"]),
            name=str(data["name"]),
            size=int(data["size"]),
            sha256=bytes.fromhex(data["sha256"]),
            is_delta=bool(data["is_delta"]),
            max_failures=int(data["max_failures"]),
            disable_backoff=bool(data["disable_backoff"]),
            metadata_size=data["metadata_size"],
            metadata_signature=bytes.fromhex(signature) if signature is not None else None,
            packages=tuple(
                Package(
                    str(p["name"]),
                    int(p["size"]),
                    bytes.fromhex(p["sha256"]) if p["sha256"] is not None else None,
                    bool(p["required"]),
                )
                for p in data["packages"]
            ),
            attributes={str(k): str(v) for k, v in data["attributes"].items()},
        )


@dataclass(frozen=True, slots=True)
class Response:
    """A response that can be used.

    Attributes:
        offer: None means: nothing newer for this host.
        poll_interval: seconds to the next check as the server wishes, or None.
        server: what the server calls itself.
    """

    offer: Offer | None
    poll_interval: int | None = None
    server: str = ""
