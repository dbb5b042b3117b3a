"""XML from a hostile server: a small tree, or a typed refusal."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from bascule.errors import ResponseEmpty, ResponseNotXml

MAX_DEPTH = 16
MAX_ELEMENTS = 4096


def parse_document(body: bytes, max_body: int) -> Element:
    """The root of the document.

    Raises:
        ResponseEmpty: no bytes.
        ResponseNotXml: longer than `max_body` bytes, not well-formed, a DTD or an entity, more than
            `MAX_ELEMENTS` elements or nested deeper than `MAX_DEPTH`.
    """
    if not body:
        raise ResponseEmpty()
    if len(body) > max_body:
        raise ResponseNotXml(f"it is longer than {max_body} bytes")
    flat = body.replace(b"\0", b"")
    for forbidden in (b"<!DOCTYPE", b"<!ENTITY"):
        if forbidden in flat:
            raise ResponseNotXml(f"it contains {forbidden.decode()}, which no Omaha server sends")
    parser = DefusedXMLParser(target=_BoundedBuilder(), forbid_dtd=True)
    try:
        parser.feed(body)
        root = parser.close()
    except ParseError as e:
        page = "; it looks like a web page" if b"<html" in body[:4096].lower() else ""
        raise ResponseNotXml(f"{e}{page}") from None
    except (DefusedXmlException, ValueError, LookupError) as e:
        raise ResponseNotXml(str(e)[:200]) from None
    if not isinstance(root, Element):
        raise ResponseNotXml("it holds no element")
    return root


class _BoundedBuilder(TreeBuilder):
    """Builds the tree until it gets too deep or too large."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._elements = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise ResponseNotXml(f"its elements are nested more than {MAX_DEPTH} deep")
        if self._elements > MAX_ELEMENTS:
            raise ResponseNotXml(f"it has more than {MAX_ELEMENTS} elements")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Element:
        self._depth -= 1
        return super().end(tag)
