"""``bascule``: what systemd starts, and the tools that need no daemon."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bascule import __version__, lean
from bascule.errors import Exit, OutputLost

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code. Nothing that an operator can do shows a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        lean.start()
    if arguments[:1] == ["errand"]:
        # The daemon's own child: no parser, and none of what the tools import.
        lean.plain_tracebacks()
        from bascule.errand import main as errand

        return errand()
    from bascule.faces.streams import flush, mend, silence

    mend()
    try:
        try:
            plain = _plain_run(arguments[1:]) if arguments[:1] == ["run"] else None
            if plain is not None:
                return _run(*plain)
            options = _parser(arguments).parse_args(arguments)
            code = int(options.run(options))
        except SystemExit as end:  # help, version, or a wrong command line
            code = int(end.code or 0)
        flush(sys.stdout)
        return code
    except BrokenPipeError:
        silence(sys.stdout)
        return Exit.DONE
    except OSError as error:
        return _lost(OutputLost(error.strerror or str(error)))
    except OutputLost as error:
        return _lost(error)
    except KeyboardInterrupt:
        print("bascule: stopped", file=sys.stderr)
        return Exit.STOPPED


def _lost(error: OutputLost) -> int:
    from bascule.faces.streams import flush, silence

    silence(sys.stdout)
    try:
        flush(sys.stderr, f"bascule: {error}.\n{error.remedy}\n")
    except (OSError, OutputLost):
        silence(sys.stderr)
    return int(error.exit)


def _plain_run(arguments: Sequence[str]) -> tuple[Path, list[Path]] | None:
    """The two options of `run` as systemd gives them, without a parser (6 ms); None: ask one."""
    root, config = Path("/"), []
    if len(arguments) % 2:
        return None
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if value.startswith("-") or option not in ("--root", "--config"):
            return None
        if option == "--root":
            root = Path(value)
        else:
            config.append(Path(value))
    return root, config


def _run(root: Path, config: Sequence[Path]) -> int:
    from bascule.daemon import run

    lean.settled()
    return run(root, config)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="bascule",
        description="On-node A/B update agent. Operators use `updatectl`; this is what systemd starts, "
        "and tools for disks and payloads that need no daemon.",
    )
    parser.add_argument("--version", action="version", version=f"bascule {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Each room is imported only for its own command: `bascule run` must stay small.
    wanted = next((a for a in arguments if not a.startswith("-")), "")
    _add_run(commands)
    if wanted in ("", "bless", "health", "deadman"):
        from bascule import moments

        moments.add_parser(commands)
    if wanted in ("", "lock"):
        from bascule import reboot_lock

        reboot_lock.add_parser(commands)
    if wanted in ("", "disk"):
        from bascule.tools import disk

        disk.add_parser(commands)
    if wanted in ("", "payload"):
        from bascule.tools import payload, payload_inspect

        group = commands.add_parser("payload", help="look into payloads, prove them, apply them")
        verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
        payload_inspect.add_parser(verbs)
        payload.add_parser(verbs)
    if wanted not in ("", "run", "bless", "health", "deadman", "lock", "disk", "payload"):
        return _parser([])
    return parser


def settings_arguments(parser: argparse.ArgumentParser) -> None:
    """The two options by which every command finds its settings."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="read settings below DIR instead of / (tests)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="read FILE after all other settings; may be given again",
    )


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("run", help="run the daemon (started by systemd)")
    settings_arguments(command)

    command.set_defaults(run=lambda options: _run(options.root, options.config))


if __name__ == "__main__":
    sys.exit(main())
