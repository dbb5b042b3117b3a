"""A look at protobuf bytes before they are handed to the parser.

Two bytes of input can make an operation or an extent of a hundred bytes in the parser's memory, so
the messages are counted first, on the bytes. Encoding: protobuf's wire format (varint keys,
wire types 0, 1, 2, 5; the group types 3 and 4 appear in no schema of ours and are refused).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from bascule.errors import ManifestError
from bascule.formats.proto import Schema

__all__ = ["count_messages"]

_FIXED = {1: 8, 5: 4}
_FIELDS = 4_000_000
"""Fields in one manifest: several times what the caps on operations and extents allow."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ManifestError(f"a number at byte {at} of the protobuf is cut short or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def count_messages(
    data: bytes, schema: Schema, root: str, caps: Mapping[str, int], *, rest: int = 65536
) -> Counter[str]:
    """How many messages of each kind `data` holds.

    Args:
        data: a serialized message of kind `root`.
        schema: see `bascule.formats.proto.SCHEMAS`.
        root: a message name of the schema.
        caps: message name → greatest number of them.
        rest: the cap of every kind that `caps` does not name.

    Raises:
        ManifestError: a cap is passed, or the bytes are not protobuf.
    """
    children = {
        message: {
            number: kind.removeprefix("repeated ")
            for number, (kind, _) in fields.items()
            if kind.removeprefix("repeated ") in schema
        }
        for message, fields in schema.items()
    }
    found: Counter[str] = Counter()
    fields = 0
    path = [(0, len(data), root)]
    while path:
        at, end, message = path.pop()
        nested = children[message]
        while at < end:
            fields += 1
            if fields > _FIELDS:
                raise ManifestError(f"more than {_FIELDS} fields")
            key = data[at]
            at += 1
            if key >= 0x80:
                key, at = _varint(data, at - 1, end)
            number, wire = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise ManifestError(f"field number {number} at byte {at} of the protobuf")
            if wire == 0:
                _, at = _varint(data, at, end)
                continue
            if wire == 2:
                length, at = _varint(data, at, end)
            elif wire in _FIXED:
                length = _FIXED[wire]
            else:
                raise ManifestError(f"wire type {wire} at byte {at} of the protobuf")
            if length > end - at:
                raise ManifestError(f"field {number} at byte {at} of the protobuf is cut short")
            kind = nested.get(number) if wire == 2 else None
            if kind is not None:
                found[kind] += 1
                if found[kind] > caps.get(kind, rest):
                    raise ManifestError(f"more than {caps.get(kind, rest)} messages of kind {kind}")
                path.append((at + length, end, message))
                path.append((at, at + length, kind))
                break
            at += length
    return found
