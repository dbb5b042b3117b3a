"""How a command of ours that needs no daemon ends: its result or its error, in words or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bascule.errors import BasculeError, Exit


def end(options: argparse.Namespace, work: Callable[[], Mapping[str, Any]]) -> int:
    """Do `work`, print what it returns (``said`` is its sentence), and give the exit code.

    Args:
        options: ``json`` is whether JSON is asked for.
    """
    try:
        result = work()
    except BasculeError as error:
        if options.json:
            sys.stdout.write(
                json.dumps({"schema": 1, "ok": False, "error": error.as_dict()}) + "\n"
            )
        sys.stderr.write(f"bascule: {error}\n  {error.remedy}\n")
        return int(error.exit)
    if options.json:
        sys.stdout.write(json.dumps({"schema": 1, "ok": True, **result}) + "\n")
    elif result.get("said"):
        sys.stdout.write(f"{result['said']}\n")
    return int(Exit.DONE)
