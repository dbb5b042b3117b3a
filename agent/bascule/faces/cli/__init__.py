"""``updatectl``: the operator's command. It speaks D-Bus and knows nothing of the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (`bascule.errors.Exit`)."""
    from bascule.errors import BasculeError, Exit, Stopped
    from bascule.faces.cli.session import Session
    from bascule.faces.cli.verbs import handler_of, parse

    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no word for a character shows another one; it does not end us.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    args = parse(sys.argv[1:] if argv is None else argv)
    session = Session(as_json=args.json, bus=args.bus)
    try:
        return int(handler_of(args)(session, args))
    except BasculeError as error:
        return int(session.fail(error))
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return int(Stopped.exit)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.DONE)
    finally:
        session.close()
