"""What a command writes to: mended where it is closed, and losses told."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from bascule.errors import OutputLost

__all__ = ["flush", "mend", "silence"]


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
            # A terminal that has no word for a character shows another one; it does not end us.
            stream.reconfigure(errors="replace")


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
