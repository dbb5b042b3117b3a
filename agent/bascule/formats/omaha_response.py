"""Omaha v3 responses: hostile bytes in, an `Offer` or a typed refusal out.

Format source: reference flatcar.md 2.4–2.5; error numbers are the original's (30, 31, 34, 36).
Server addresses, names and digests are checked here once, so that nothing behind this module
needs to look at them again.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from bascule.errors import (
    DeferredByServer,
    ResponseEmpty,
    ResponseInvalid,
    ResponseNotXml,
    ServerRefused,
)
from bascule.formats.addresses import clipped, package_name, payload_address
from bascule.formats.omaha_offer import DEFAULT_MAX_FAILURES, Offer, Package, Response
from bascule.formats.omaha_words import refusal

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_BODY = 1 << 20
"""Bytes of a response that are looked at at most."""

MAX_URLS = 32
MAX_PACKAGES = 256
MAX_SIZE = 1 << 62

_SMALLEST_RSA_SIGNATURE = 128


def parse_response(body: bytes, *, max_body: int = MAX_BODY) -> Response:
    """Read the answer to an update check.

    Raises:
        ResponseEmpty: 30, no bytes.
        ResponseNotXml: 31, not well-formed, a DTD or an entity, too large, too deep.
        ServerRefused: 34, the server answered with an error status of its own.
        DeferredByServer: 36, the same for a limit or switch of the server's.
        ResponseInvalid: 34, anything that an answer must have is missing or cannot be trusted.

    Refusals carry ``status`` and ``poll_interval`` in their context: the server's wish for the next
    check holds for them too.
    """
    root = _parse(body, max_body)
    if root.tag != "response":
        raise ResponseInvalid(f"the document is <{clipped(root.tag)}>, not <response>")
    apps = root.findall("app")
    found = next(
        ((app, check) for app in apps for check in app.findall("updatecheck")),
        None,
    )
    if found is None:
        refused = next((app.get("status", "ok") for app in apps), "ok")
        if refused != "ok":
            raise _refused(refused, None)
        raise ResponseInvalid("it holds no answer to the update check")
    app, check = found
    poll_interval = _poll_interval(check.get("PollInterval"))
    server = clipped(root.get("server", ""))
    status = check.get("status")
    if status is None:
        raise ResponseInvalid("the update check has no status", poll_interval=poll_interval)
    if status == "noupdate":
        return Response(None, poll_interval, server)
    if status != "ok":
        told = app.get("status", "ok")
        raise _refused(told if told not in ("ok", "") else status, poll_interval)
    return Response(_offer(check), poll_interval, server)


def server_words(body: bytes) -> str:
    """What the body of an HTTP error answer says, in plain words, or "" if it says nothing.

    go-omaha puts an Omaha document into its 400 and 500 answers.
    """
    try:
        root = _parse(body, MAX_BODY)
    except (ResponseEmpty, ResponseNotXml):
        return ""
    if root.tag != "response":
        return ""
    statuses = [app.get("status", "ok") for app in root.findall("app")]
    statuses += [check.get("status", "ok") for check in root.findall("app/updatecheck")]
    bad = next((s for s in statuses if s not in ("ok", "noupdate", "")), None)
    return f"{refusal(bad).sentence} ({clipped(bad)})" if bad is not None else ""


def _refused(status: str, poll_interval: int | None) -> ServerRefused:
    meaning = refusal(status)
    kind = DeferredByServer if meaning.deferred else ServerRefused
    return kind(
        f"{meaning.sentence} ({clipped(status)})",
        status=clipped(status),
        poll_interval=poll_interval,
    )


def _parse(body: bytes, max_body: int) -> Element:
    # The idle daemon needs this module's types and never an XML parser.
    from bascule.formats.omaha_xml import parse_document

    return parse_document(body, max_body)


def _offer(check: Element) -> Offer:
    manifest = check.find("manifest")
    if manifest is None:
        raise ResponseInvalid("it says that there is an update, but holds no manifest")
    codebases = [url.get("codebase", "") for url in check.findall("urls/url")]
    if not codebases:
        raise ResponseInvalid("it names no address to download from")
    if len(codebases) > MAX_URLS:
        raise ResponseInvalid(f"it names more than {MAX_URLS} addresses")
    packages = manifest.findall("packages/package")
    if not packages:
        raise ResponseInvalid("its manifest lists no package")
    if len(packages) > MAX_PACKAGES:
        raise ResponseInvalid(f"its manifest lists more than {MAX_PACKAGES} packages")
    name = _name(packages[0].get("name", ""))
    size = _number(packages[0].get("size"))
    if not size:
        raise ResponseInvalid("the payload's size is missing, zero or not a number")
    action = next(
        (a for a in manifest.findall("actions/action") if a.get("event") == "postinstall"), None
    )
    if action is None:
        raise ResponseInvalid("its manifest has no postinstall action")
    metadata_size, metadata_signature = _metadata(action)
    max_failures = _number(action.get("MaxFailureCountPerUrl"))
    return Offer(
        version=_version(manifest.get("version", "")),
        urls=tuple(_address(codebase, name) for codebase in codebases),
        name=name,
        size=size,
        sha256=_digest(action.get("sha256", "")),
        is_delta=action.get("IsDeltaPayload") == "true",
        max_failures=DEFAULT_MAX_FAILURES if max_failures is None else max(1, max_failures),
        disable_backoff=action.get("DisablePayloadBackoff") == "true",
        metadata_size=metadata_size,
        metadata_signature=metadata_signature,
        packages=tuple(_package(element) for element in packages[1:]),
        attributes={**manifest.attrib, **action.attrib},
    )


def _package(element: Element) -> Package:
    return Package(
        name=_name(element.get("name", "")),
        size=_number(element.get("size")) or 0,
        sha256=_hex_digest(element.get("hash_sha256", "")),
        required=element.get("required") == "true",
    )


def _metadata(action: Element) -> tuple[int | None, bytes | None]:
    """``MetadataSize`` and ``MetadataSignatureRsa``, both or neither.

    The original ignores them, and servers in the field carry placeholders there (six bytes of
    "signature", a size of 190). So what cannot be an RSA signature counts as not said; a host
    that insists on metadata signatures refuses such an offer later, by policy.
    """
    size = _number(action.get("MetadataSize"))
    text = action.get("MetadataSignatureRsa", "")
    try:
        signature = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        return None, None
    if not size or len(signature) < _SMALLEST_RSA_SIGNATURE:
        return None, None
    return size, signature


def _digest(text: str) -> bytes:
    if not text:
        raise ResponseInvalid("the payload's sha256 is missing")
    try:
        raw = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise ResponseInvalid("the payload's sha256 is not base64") from None
    if len(raw) != 32 or base64.b64encode(raw).decode() != text:
        raise ResponseInvalid("the payload's sha256 is not the base64 of 32 bytes")
    return raw


def _hex_digest(text: str) -> bytes | None:
    return bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}", text) else None


def _number(text: str | None) -> int | None:
    """An unsigned decimal number, or None where there is none."""
    if text is None or not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        return None
    value = int(text)
    return value if value <= MAX_SIZE else None


def _poll_interval(text: str | None) -> int | None:
    seconds = _number(text)
    return min(seconds, 10 * 366 * 86400) if seconds else None


def _version(text: str) -> str:
    if len(text) > 128 or not text.isprintable():
        raise ResponseInvalid("the release's version is not a version")
    return text


def _name(name: str) -> str:
    try:
        return package_name(name)
    except ValueError as e:
        raise ResponseInvalid(str(e)) from None


def _address(codebase: str, name: str) -> str:
    try:
        return payload_address(codebase, name)
    except ValueError as e:
        raise ResponseInvalid(str(e)) from None
