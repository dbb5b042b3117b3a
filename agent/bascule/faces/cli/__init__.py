"""``updatectl``: the operator's command. It speaks D-Bus and knows nothing of the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

TRACE_VARIABLE = "BASCULE_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (`bascule.errors.Exit`).

    Whatever happens, people get a sentence; ``BASCULE_TRACEBACK=1`` shows developers the place.
    """
    from bascule.faces.streams import mend

    try:
        mend()
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        from bascule.errors import Stopped

        return int(Stopped.exit)


def _run(argv: Sequence[str]) -> int:
    from bascule.errors import BasculeError, Exit
    from bascule.faces.cli.session import Session
    from bascule.faces.cli.verbs import handler_of
    from bascule.faces.streams import silence

    session = None
    try:
        args = _parsed(argv)
        if isinstance(args, int):
            return args
        session = Session(as_json=args.json, bus=args.bus)
        return int(handler_of(args)(session, args))
    except BasculeError as error:
        return _tell(session, error)
    except KeyboardInterrupt:
        _tell_terminal("\n")
        return int(Exit.STOPPED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        silence(sys.stdout)
        return int(Exit.DONE)
    except Exception as error:
        if os.environ.get(TRACE_VARIABLE):
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _tell(session, BasculeError(what))
    finally:
        if session is not None:
            session.close()


def _parsed(argv: Sequence[str]) -> argparse.Namespace | int:
    """The arguments, or the exit code where help or a complaint was all."""
    from bascule.faces.cli.verbs import parse
    from bascule.faces.streams import flush

    try:
        return parse(argv)
    except SystemExit as end:
        flush(sys.stdout)
        return end.code if isinstance(end.code, int) else 1


def _tell(session: object, error: object) -> int:
    from bascule.errors import BasculeError, OutputLost
    from bascule.faces.cli.session import Session
    from bascule.faces.streams import silence

    assert isinstance(error, BasculeError)
    teller = session if isinstance(session, Session) else Session(as_json=False, bus="")
    if isinstance(error, OutputLost):
        # Nothing more can go there, and Python's own flush at exit must not complain.
        silence(sys.stdout)
        teller.json = False
    try:
        teller.fail(error)
    except (OSError, OutputLost):
        silence(sys.stdout)
        silence(sys.stderr)
    return int(error.exit)


def _tell_terminal(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass
