"""Omaha v3, the server's side: read requests, write answers.

Source: Flatcar's update_engine as recorded, Nebraska and go-omaha for refusals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import quoteattr

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from omaha_mock.errors import MockError
from omaha_mock.releases import Answer

__all__ = ["App", "Asked", "BadRequest", "answer_document", "parse_request"]

_MAX_APPS = 16


class BadRequest(MockError):
    """The body is not an Omaha v3 request."""


@dataclass(frozen=True, slots=True)
class App:
    """One ``app`` element: its attributes and what it asks or tells."""

    attributes: Mapping[str, str]
    ping: bool
    updatecheck: bool
    events: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: attributes of ``request`` and ``os``, and its apps."""

    attributes: Mapping[str, str]
    os: Mapping[str, str]
    apps: tuple[App, ...]


def parse_request(body: bytes) -> Asked:
    """Raises BadRequest."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise BadRequest("The body is not XML, or has a DTD.") from error
    if root.tag != "request" or root.get("protocol") != "3.0":
        raise BadRequest('The body is not a request of protocol "3.0".')
    apps = root.findall("app")
    if not 0 < len(apps) <= _MAX_APPS:
        raise BadRequest("The request names no app, or too many.")
    system = root.find("os")
    return Asked(
        attributes=dict(root.attrib),
        os=dict(system.attrib) if system is not None else {},
        apps=tuple(
            App(
                attributes=dict(app.attrib),
                ping=app.find("ping") is not None,
                updatecheck=app.find("updatecheck") is not None,
                events=tuple(dict(event.attrib) for event in app.findall("event")),
            )
            for app in apps
        ),
    )


def _element(indent: int, name: str, attributes: Mapping[str, str], *, end: str = "></{}>") -> str:
    text = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    return " " * indent + f"<{name}{text}" + end.format(name)


def _updatecheck(answer: Answer, urls: list[str], poll_interval: int) -> list[str]:
    attributes = {"status": "error-internal" if answer.error else "noupdate"}
    release = answer.release
    if release is not None:
        attributes["status"] = "ok"
    if poll_interval:
        attributes["PollInterval"] = str(poll_interval)
    if release is None:
        return [_element(2, "updatecheck", attributes)]
    package = {
        "name": release.file,
        "hash": release.sha1,
        "size": str(release.size),
        "required": "true",
    }
    action = {"event": "postinstall", "sha256": release.sha256}
    if release.origin:
        action["IsDeltaPayload"] = "true"
    if release.disable_backoff:
        action["DisablePayloadBackoff"] = "true"
    if release.max_failures:
        action["MaxFailureCountPerUrl"] = str(release.max_failures)
    if release.metadata_size:
        action["MetadataSize"] = str(release.metadata_size)
    if release.metadata_signature:
        action["MetadataSignatureRsa"] = release.metadata_signature
    action.update(release.extra)
    codebases = "".join(_element(0, "url", {"codebase": url}) for url in urls)
    return [
        _element(2, "updatecheck", attributes, end=">"),
        f"   <urls>{codebases}</urls>",
        _element(3, "manifest", {"version": release.version}, end=">"),
        f"    <packages>{_element(0, 'package', package)}</packages>",
        f"    <actions>{_element(0, 'action', action)}</actions>",
        "   </manifest>",
        "  </updatecheck>",
    ]


def answer_document(
    asked: Asked, answers: list[Answer | None], urls: list[str], poll_interval: int
) -> bytes:
    """The response to ``asked``; ``answers`` has one entry per app, None without an updatecheck."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<response protocol="3.0" server="omaha-mock">',
        ' <daystart elapsed_seconds="0"></daystart>',
    ]
    for app, answer in zip(asked.apps, answers, strict=True):
        status = answer.error if answer is not None and answer.error else "ok"
        attributes = {"appid": app.attributes.get("appid", ""), "status": status}
        lines.append(_element(1, "app", attributes, end=">"))
        if app.ping:
            lines.append('  <ping status="ok"></ping>')
        lines.extend('  <event status="ok"></event>' for _ in app.events)
        if answer is not None:
            lines.extend(_updatecheck(answer, urls, poll_interval))
        lines.append(" </app>")
    lines.append("</response>")
    return ("\n".join(lines) + "\n").encode()
