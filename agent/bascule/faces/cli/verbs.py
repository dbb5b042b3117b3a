"""The table of verbs: names, help, options, and where each is carried out.

The parser, the man page and the shell completions are all made from this table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import bascule
from bascule.errors import Exit, UsageError

if TYPE_CHECKING:
    from bascule.faces.cli.session import Session

__all__ = ["GROUPS", "VERBS", "Verb", "build", "handler_of", "parse"]

Add = Callable[[argparse.ArgumentParser], None]


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


class Verb(NamedTuple):
    """One command of ``updatectl``.

    Attributes:
        name: as it is typed.
        run: ``module:function`` under `bascule.faces.cli`, called with session and arguments.
        help: one line.
        more: what the man page says further.
        group: a heading of `GROUPS`.
        arguments: adds the verb's own options.
    """

    name: str
    run: str
    help: str
    more: str = ""
    group: str = "look"
    arguments: Add = _nothing


GROUPS = {
    "look": "See how things are",
    "update": "Update",
    "back": "Go back",
    "rule": "Set rules",
    "mend": "Find and mend",
}


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with a code other than 0 if the last attempt failed or checks are overdue",
    )
    parser.add_argument(
        "--max-age",
        metavar="DURATION",
        default="7d",
        help="with --check: how old the last successful check may be (default: 7d)",
    )
    parser.add_argument("--short", action="store_true", help="print one line, for a login message")


def _update(parser: argparse.ArgumentParser) -> None:
    _install(parser)
    parser.add_argument("--no-reboot", action="store_true", help="install, and leave the reboot")
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--no-wait", action="store_true", help="start it and return")
    waiting.add_argument(
        "--wait", action="store_true", help="follow it across the reboot, to the verdict"
    )


def _prepare(parser: argparse.ArgumentParser) -> None:
    _install(parser)
    _no_wait(parser)


def _install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", metavar="VERSION", help="only this release")
    parser.add_argument("--file", metavar="PATH", help="this payload, or a directory of releases")
    parser.add_argument("--repository", metavar="URL", help="a static directory of releases")
    parser.add_argument("--full", action="store_true", help="a full payload, no delta")
    parser.add_argument(
        "--now",
        action="store_true",
        help="set aside schedule, hold, window and back-off; says which of them",
    )
    parser.add_argument(
        "--allow-downgrade", action="store_true", help="accept a release below the version floor"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")


def _no_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="start it and return")


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="for the next boot only")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["show", "verify"],
        default="show",
        help="verify: check the chain",
    )
    parser.add_argument("-n", "--last", type=int, metavar="N", help="only the last N entries")


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--history", action="store_true", help="why the last reboot or rollback happened"
    )


def _quarantine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=["list", "clear"], default="list")
    parser.add_argument("release", nargs="?", help="clear: this version or digest (default: all)")


def _hold(parser: argparse.ArgumentParser) -> None:
    span = parser.add_mutually_exclusive_group()
    span.add_argument("--for", dest="span", metavar="DURATION", help="for example 2h or 3d")
    span.add_argument("--until", metavar="TIME", help="for example 2026-12-01 or 2026-12-01T08:00")
    span.add_argument("--indefinite", action="store_true", help="until it is cleared")
    span.add_argument("--clear", action="store_true", help="end the hold")
    parser.add_argument("--reason", metavar="TEXT", help="shown wherever the hold is shown")


def _pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("range", nargs="?", help="a version (3510.2.0) or a range (>=3510,<3600)")
    parser.add_argument("--clear", action="store_true", help="lift the pin")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", metavar="VERSION", help="plan for this release")
    parser.add_argument("--file", metavar="PATH", help="plan for this payload")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", metavar="PATH", help="a directory of releases to look into")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["show", "check"],
        default="show",
        help="check: look for mistakes",
    )


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="repair what can be repaired")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    parser.add_argument("-n", "--lines", type=int, metavar="N", default=50, help="the last N lines")
    parser.add_argument("--attempt", metavar="ID", help="only lines of this attempt")
    parser.add_argument("--since", metavar="TIME", help="as journalctl takes it")
    parser.add_argument("--raw", action="store_true", help="lines as they are in the journal")


VERBS: tuple[Verb, ...] = (
    Verb("status", "show:status", "where this host stands", arguments=_status),
    Verb("slots", "show:slots", "both slots, their flags in words, and what boots next"),
    Verb("watch", "follow:watch", "follow what happens, until interrupted"),
    Verb(
        "explain",
        "read:explain",
        "why there is no update or no reboot now, and when that changes",
        arguments=_explain,
    ),
    Verb("history", "read:history", "what was done on this host", arguments=_history),
    Verb("list", "read:releases", "the releases that could be installed", arguments=_list),
    Verb("logs", "logs:logs", "the daemon's lines in the journal", arguments=_logs),
    Verb(
        "check",
        "follow:check",
        "ask the update server now, install nothing",
        group="update",
        arguments=_no_wait,
    ),
    Verb(
        "plan",
        "read:plan",
        "what an update would fetch, write and wait for",
        group="update",
        arguments=_plan,
    ),
    Verb(
        "update",
        "follow:update",
        "install what the server offers",
        "Shows progress on a terminal and plain lines elsewhere. Ctrl-C leaves the update running "
        "and only ends the command.",
        group="update",
        arguments=_update,
    ),
    Verb(
        "prepare",
        "follow:prepare",
        "download and write, but leave the running slot the next boot",
        group="update",
        arguments=_prepare,
    ),
    Verb("activate", "steer:activate", "let the prepared release boot next", group="update"),
    Verb("deactivate", "steer:deactivate", "keep it, but do not boot it", group="update"),
    Verb("reboot", "steer:reboot", "reboot into the new release", group="update"),
    Verb("cancel", "steer:cancel", "stop what runs, or undo what is staged", group="back"),
    Verb("reset", "steer:reset", "forget a finished update; its slot is not booted", group="back"),
    Verb(
        "rollback",
        "steer:rollback",
        "boot the other slot next",
        group="back",
        arguments=_rollback,
    ),
    Verb(
        "hold",
        "steer:hold",
        "hold updates back for a time",
        "Without an option it shows the hold.",
        group="rule",
        arguments=_hold,
    ),
    Verb("pin", "steer:pin", "stay with a version or range", group="rule", arguments=_pin),
    Verb(
        "quarantine",
        "read:quarantine",
        "releases that failed here and are not tried again",
        group="rule",
        arguments=_quarantine,
    ),
    Verb(
        "config",
        "read:config",
        "every setting, its value and where it comes from",
        group="rule",
        arguments=_config,
    ),
    Verb("doctor", "read:doctor", "look for damage", group="mend", arguments=_doctor),
)


class _Lines(argparse.HelpFormatter):
    """As wide as the window. argparse makes one for each option, to check it, and would ask shutil
    for the width, which loads every decompressor: a twentieth of the time of `status`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


class _RawLines(_Lines, argparse.RawDescriptionHelpFormatter):
    """The same, and leaves the lines of a description as they are."""


def _columns() -> int:
    """What `shutil.get_terminal_size` finds."""
    with contextlib.suppress(ValueError):
        if (wished := int(os.environ.get("COLUMNS", ""))) > 0:
            return wished
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


class _Parser(argparse.ArgumentParser):
    """Errors as every other error of ours, in JSON too."""

    def error(self, message: str) -> NoReturn:
        if "--json" in sys.argv:
            import json

            error = UsageError(message)
            sys.stdout.write(
                json.dumps({"schema": 1, "ok": False, "error": error.as_dict()}, indent=2) + "\n"
            )
        else:
            self.print_usage(sys.stderr)
            sys.stderr.write(f"{self.prog}: {message}\n")
        raise SystemExit(int(Exit.USAGE))


def _global_options(parser: argparse.ArgumentParser, *, default: bool) -> None:
    # A verb's parser must not overwrite with its defaults what stood before the verb.
    absent: Any = argparse.SUPPRESS
    parser.add_argument(
        "--json",
        action="store_true",
        default=False if default else absent,
        help="answer as JSON (schema 1)",
    )
    parser.add_argument(
        "--bus",
        metavar="ADDRESS",
        default="" if default else absent,
        help="D-Bus address (default: $BASCULE_BUS_ADDRESS, then the system bus)",
    )


def build(only: str = "") -> argparse.ArgumentParser:
    """The parser; with `only`, just that verb's part of it, which is quicker."""
    parser = _Parser(
        prog="updatectl",
        description="Update this host, see how it stands, and go back.",
        epilog="updatectl VERB --help tells more of a verb. Exit codes: man updatectl.",
        formatter_class=_RawLines,
    )
    parser.add_argument("--version", action="version", version=f"updatectl {bascule.__version__}")
    _global_options(parser, default=True)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=parser.prog)
    for verb in VERBS:
        if only and verb.name != only:
            continue
        part = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}. {verb.more}".strip(),
            formatter_class=_Lines,
        )
        verb.arguments(part)
        _global_options(part, default=False)
        part.set_defaults(run=verb.run)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one run. Ends the process with `Exit.USAGE` where they are wrong."""
    names = {verb.name for verb in VERBS}
    first = next((word for word in argv if word in names), "")
    # Only a plain beginning is worth the shortcut: help must list every verb.
    only = first if argv and argv[0] == first else ""
    return build(only).parse_args(list(argv))


def handler_of(args: argparse.Namespace) -> Callable[[Session, argparse.Namespace], int]:
    """The function that carries the verb out."""
    module, _, name = args.run.partition(":")
    handler: Callable[[Session, argparse.Namespace], int] = getattr(
        importlib.import_module(f"bascule.faces.cli.{module}"), name
    )
    return handler
