"""A small reader of JSON Schema, so that no test needs a library for it."""

from __future__ import annotations

from typing import Any


def fits(value: Any, shape: dict[str, Any], where: str = "$") -> list[str]:
    """Where `value` is not as `shape` says; knows the words that our schema uses."""
    if "anyOf" in shape:
        tries = [fits(value, branch, where) for branch in shape["anyOf"]]
        return [] if any(not wrong for wrong in tries) else min(tries, key=len)
    if "const" in shape:
        return [] if value == shape["const"] else [f"{where}: not {shape['const']!r}"]
    if "enum" in shape:
        return [] if value in shape["enum"] else [f"{where}: not one of {shape['enum']}"]
    wanted = shape.get("type")
    names = wanted if isinstance(wanted, list) else [wanted]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if wanted and not any(
        isinstance(value, kinds[name]) and (isinstance(value, bool) == (name == "boolean"))
        for name in names
    ):
        return [f"{where}: {value!r} is not {wanted}"]
    wrong = []
    if isinstance(value, dict):
        wrong += [
            f"{where}.{key} is missing" for key in shape.get("required", []) if key not in value
        ]
        for key, item in value.items():
            wrong += fits(item, shape.get("properties", {}).get(key, {}), f"{where}.{key}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            wrong += fits(item, shape.get("items", {}), f"{where}[{number}]")
    if "minimum" in shape and value < shape["minimum"]:
        wrong.append(f"{where}: less than {shape['minimum']}")
    return wrong
