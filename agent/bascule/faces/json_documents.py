"""JSON Schema of the documents that ``updatectl --json`` prints: plan, list, doctor, history, config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["documents"]

_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_STRING = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_TEXTS = {"type": "array", "items": _STRING}
_OBJECT = {"type": "object"}

Object = Callable[..., dict[str, Any]]


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _or_null(shape: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, shape]}


def documents(make: Object, error: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Members of each document, by name.

    Args:
        make: makes the shape of an object of its members and the names of optional ones.
        error: the shape of an error.
    """
    release = make(
        {
            "version": _STRING,
            "source": _STRING,
            "size": _INTEGER,
            "sha256": _STRING,
            "delta": _BOOLEAN,
        }
    )
    part = make({"name": _STRING, "size": _INTEGER, "operations": _INTEGER, "delta": _BOOLEAN})
    metadata = make({"read_bytes": _INTEGER, "proven_by": _STRING, "why": _STRING})
    time = make(
        {
            "download_s": _NUMBER,
            "apply_s": _NUMBER,
            "downtime_s": {"type": ["number", "null"]},
            "updates": _INTEGER,
        }
    )
    gate = make(
        {
            "name": _STRING,
            "blocks": {"enum": ["update", "download", "reboot"]},
            "verdict": {"enum": ["pass", "block", "unknown"]},
            "reason": _STRING,
            "evidence": _STRING,
            "until": _INTEGER,
            "override": _BOOLEAN,
        }
    )
    row = make(
        {
            "version": _STRING,
            "kind": {"enum": ["full", "delta"]},
            "size": _INTEGER,
            "from": _STRING,
            "install": _BOOLEAN,
            "why_not": _STRING,
            "sha256": _STRING,
        }
    )
    finding = make(
        {
            "id": _STRING,
            "severity": {"enum": ["error", "warning", "note"]},
            "sentence": _STRING,
            "remedy": _STRING,
            "repairable": _BOOLEAN,
        }
    )
    record = make(
        {
            "sequence": _INTEGER,
            "previous": _STRING,
            "time": _NUMBER,
            "kind": _STRING,
            "attempt": _STRING,
            "actor": _or_null(_OBJECT),
            "facts": _OBJECT,
        },
        "attempt",
        "actor",
        "facts",
    )
    setting = make({"name": _STRING, "value": {}, "origin": _STRING})
    return {
        "plan": make(
            {
                "sentences": _TEXTS,
                "release": _or_null(release),
                "why": {**_STRING, "description": "Where release is null."},
                "slot": _STRING,
                "resumed_bytes": _INTEGER,
                "image_bytes": {**_INTEGER, "description": "0 where it is not known."},
                "parts": _list(part),
                "metadata": metadata,
                "refused": _or_null(error),
                "time": _or_null(time),
                "gates": _list(gate),
            },
            *("why", "slot", "resumed_bytes", "image_bytes", "parts", "metadata", "refused"),
        ),
        "list": make({"sentence": _STRING, "releases": _list(row), "troubles": _TEXTS}),
        "doctor": make({"sentences": _TEXTS, "findings": _list(finding)}),
        "history": make({"history": _list(record)}),
        "config": make({"settings": _list(setting), "error": _or_null(error)}),
    }
