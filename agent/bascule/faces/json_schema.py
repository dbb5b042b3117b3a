"""What ``updatectl --json`` prints, as JSON Schema (draft 2020-12), made from what is shown.

The version in it is the ``schema`` member of every answer. Members may be added without a new
version; none is removed or given another meaning.
"""

from __future__ import annotations

import json
from typing import Any

from bascule.faces.bus_shown import JOB_SHOWN, SHOWN
from bascule.faces.cli.session import SCHEMA
from bascule.faces.cli.show import snake
from bascule.faces.json_documents import documents

__all__ = ["schema_text"]

_INTEGER = {"type": "integer"}
_STRING = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_TYPES: dict[str, Any] = {
    "s": _STRING,
    "b": _BOOLEAN,
    "x": _INTEGER,
    "t": {"type": "integer", "minimum": 0},
    "u": {"type": "integer", "minimum": 0},
    "d": {"type": "number"},
    "as": {"type": "array", "items": _STRING},
    "a{sv}": {"type": "object"},
    "aa{sv}": {"type": "array", "items": {"type": "object"}},
}


def _object(members: dict[str, Any], *optional: str, more: bool = True) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name for name in members if name not in optional],
        "properties": members,
        "additionalProperties": more,
    }


def _answer(members: dict[str, Any], *optional: str, ok: bool | None = True) -> dict[str, Any]:
    head: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "ok": _BOOLEAN if ok is None else {"const": ok},
    }
    return _object(head | members, *optional)


def _status_members() -> dict[str, Any]:
    slot = _object(
        {
            "name": _STRING,
            "booted": _BOOLEAN,
            "next": _BOOLEAN,
            "priority": _INTEGER,
            "tries": _INTEGER,
            "successful": _BOOLEAN,
            "version": _STRING,
            "words": _STRING,
        }
    )
    last_error = _object(
        {"id": _STRING, "number": _INTEGER, "message": _STRING, "remedy": _STRING, "at": _INTEGER}
    )
    special: dict[str, Any] = {
        "slots": {"type": "array", "items": slot},
        "last_error": {"anyOf": [{"type": "null"}, last_error]},
        "job": {"type": ["integer", "null"]},
    }
    members: dict[str, Any] = {}
    for entry in SHOWN:
        name = snake(entry.name)
        members[name] = {"description": entry.doc} | (
            special[name] if name in special else _TYPES[entry.signature]
        )
    return members


def _error() -> dict[str, Any]:
    return _object(
        {
            "id": _STRING,
            "number": _INTEGER,
            "message": _STRING,
            "detail": _STRING,
            "remedy": _STRING,
            "exit": _INTEGER,
            "context": {"type": "object"},
        }
    )


def schema() -> dict[str, Any]:
    """One definition for each kind of answer, in ``$defs``."""
    status = _status_members()
    kinds = {entry.name: entry for entry in JOB_SHOWN}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:bascule:updatectl:{SCHEMA}",
        "title": f"Answers of updatectl --json, schema {SCHEMA}",
        "anyOf": [
            {"$ref": f"#/$defs/{name}"}
            for name in ("status", "slots", "job", "started", "sentence", "error", "document")
        ],
        "description": "What each read verb's document holds besides is in $defs: document-plan and so on.",
        "$defs": {
            "status": _answer({**status, "check": _STRING}, "check"),
            "slots": _answer(
                {"slots": status["slots"], "next": {"type": ["string", "null"]}},
            ),
            "job": _answer(
                {
                    "job": _INTEGER,
                    "kind": {**_STRING, "description": kinds["Kind"].doc},
                    "result": {"enum": ["done", "no-update"]},
                    "sentence": _STRING,
                    "outcome": {"type": "object", "description": kinds["Outcome"].doc},
                    "verdict": {
                        "const": "UPDATED",
                        "description": "With --wait: how it ended; another end is an error.",
                    },
                    "status": _object(status),
                },
                "verdict",
            ),
            "started": _answer({"job": _INTEGER, "detached": _BOOLEAN}, "detached"),
            "sentence": _answer({"sentence": _STRING}),
            "error": _answer({"error": _error()}, ok=False),
            "document": _answer({}, ok=None),
            **{f"document-{name}": body for name, body in documents(_object, _error()).items()},
        },
    }


def schema_text() -> str:
    """The schema as it is published in ``docs/schema``."""
    return json.dumps(schema(), indent=2) + "\n"
