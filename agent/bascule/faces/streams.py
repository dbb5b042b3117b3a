"""What a command writes to: mended where it is closed, and losses told."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TextIO

from bascule.errors import OutputLost

__all__ = ["flush", "mend", "silence"]


STANDS_IN = "bascule.stands-in"
"""Error handler: a terminal that has no word for a character is given another one."""

_INSTEAD = {"●": "*", "←": "<-", "…": "...", "–": "-", "“": '"', "”": '"', "·": "-"}


def _stands_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    odd = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(letter, "?") for letter in odd), error.end


codecs.register_error(STANDS_IN, _stands_in)


def _plain(stream: TextIO) -> bool:
    """Whether `stream` is a terminal of somebody who asks for ASCII.

    Python writes UTF-8 where the locale is C (PEP 540), which such a terminal shows as rubbish.
    """
    environment = dict(os.environ)
    if not environment.get("LC_ALL") and environment.get("LC_CTYPE") == "C.UTF-8":
        # Python's own doing where LANG is C (PEP 538).
        del environment["LC_CTYPE"]
    named = next((v for k in ("LC_ALL", "LC_CTYPE", "LANG") if (v := environment.get(k))), "")
    return named in ("C", "POSIX") and stream.isatty()


def mend() -> None:
    """A closed descriptor becomes /dev/null, or the connection to the bus would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                spare = os.open(os.devnull, os.O_RDWR)
                if spare != number:
                    os.dup2(spare, number)
                    os.close(spare)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if number and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="ascii" if _plain(stream) else None, errors=STANDS_IN)


def flush(stream: TextIO, text: str = "") -> None:
    """Write `text` and all that waits in `stream`.

    Raises:
        OutputLost: it could not be written.
        BrokenPipeError: the reader went away on purpose.
    """
    try:
        # Not even "" goes to a stream that was not used: the system would be asked to write nothing.
        if text:
            stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(error.strerror or str(error)) from error


def silence(stream: TextIO) -> None:
    """Let nothing more come out of `stream`; what Python writes at its end is lost quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
