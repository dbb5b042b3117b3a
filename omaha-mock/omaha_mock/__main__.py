"""``omaha-mock``: exit code 0 done, 1 could not be done, 2 wrong command line or input file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from omaha_mock import __version__, index_command, pack_command, serve_command
from omaha_mock.errors import MockError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code and shows no traceback for what a user can mend."""
    parser = argparse.ArgumentParser(
        prog="omaha-mock",
        description="An Omaha server for tests and labs, and the payload builder.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pack_command.add_commands(commands)
    serve_command.add_commands(commands)
    index_command.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except MockError as error:
        sys.stderr.write(f"omaha-mock: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"omaha-mock: {error.filename or ''}: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
