"""Man pages and completions, made from the table of verbs, so that they cannot say what the
program does not do. ``python -m bascule.faces.docs`` writes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from bascule.errors import Exit
from bascule.faces.cli.verbs import GROUPS, VERBS, build
from bascule.faces.legacy_client import FLAGS

__all__ = ["FILES", "command_man"]

NOTES = """\
systemd 257 and later has a command of the same name for
.BR systemd\\-sysupdate (8).
Where both are installed, the one that comes first in
.B PATH
is run; the verbs that both have
.RB ( list ", " check ", " update )
mean the same."""


# ── the table, as the parser sees it ─────────────────────────────────────────────────────────


def _parts() -> dict[str, argparse.ArgumentParser]:
    """Each verb's own parser."""
    (actions,) = [
        action for action in build()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(actions.choices)


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.option_strings and a.help != argparse.SUPPRESS]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if not a.option_strings]


_GLOBAL = ("--help", "--json", "--bus")


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in _options(parser) if not set(_GLOBAL) & set(a.option_strings)]


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _takes_file(action: argparse.Action) -> bool:
    return str(action.metavar) == "PATH"


# ── man pages ────────────────────────────────────────────────────────────────────────────────


def _roff(text: str) -> str:
    """`text` as roff prints it: no escapes, no requests, hyphens as they are typed."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _man_option(action: argparse.Action) -> Iterator[str]:
    spelled = ", ".join(f"\\fB{_roff(word)}\\fR" for word in action.option_strings)
    yield ".TP"
    yield spelled + (f" \\fI{_roff(_value(action))}\\fR" if _takes_value(action) else "")
    yield _roff(_sentence(str(action.help).replace("%%", "%")))


def _synopsis(name: str, parser: argparse.ArgumentParser) -> str:
    words = [f"\\fB{name}\\fR"]
    for action in _positionals(parser):
        word = f"\\fI{_roff(_value(action))}\\fR"
        words.append(f"[{word}]" if action.nargs == "?" else word)
    for action in _own(parser):
        word = f"\\fB{_roff(action.option_strings[-1])}\\fR"
        if _takes_value(action):
            word += f" \\fI{_roff(_value(action))}\\fR"
        words.append(f"[{word}]")
    return " ".join(words)


def _exits() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code in Exit:
        yield from (".TP", f"\\fB{int(code)}\\fR", _roff(code.sentence))


def updatectl_man() -> str:
    """updatectl(8)."""
    parts = _parts()
    lines = [
        '.\\" Made by bascule.faces.docs; changes here are lost.',
        '.TH UPDATECTL 8 "" "Bascule" "System administration"',
        ".SH NAME",
        "updatectl \\- update this host, see how it stands, and go back",
        ".SH SYNOPSIS",
        ".B updatectl",
        "[\\fB\\-\\-json\\fR] [\\fB\\-\\-bus\\fR \\fIADDRESS\\fR] \\fIVERB\\fR [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _roff(
            "updatectl asks the Bascule daemon over D-Bus. Whoever may log in may look; to steer, be "
            "root, or be allowed by polkit (actions org.bascule.Update1.*)."
        ),
    ]
    for group, title in GROUPS.items():
        lines.append(f".SH {_roff(title.upper())}")
        for verb in VERBS:
            if verb.group != group:
                continue
            lines += [".TP", _synopsis(verb.name, parts[verb.name]), _roff(_sentence(verb.help))]
            if verb.more:
                lines.append(_roff(verb.more))
            own = _own(parts[verb.name])
            if own:
                lines.append(".RS")
                for action in own:
                    lines += _man_option(action)
                lines.append(".RE")
    lines.append(".SH OPTIONS")
    for action in _options(build()):
        lines += _man_option(action)
    lines += _exits()
    lines += [
        ".SH ENVIRONMENT",
        ".TP",
        "\\fBBASCULE_BUS_ADDRESS\\fR",
        "The D\\-Bus address to use instead of the system bus.",
        ".TP",
        "\\fBNO_COLOR\\fR",
        "If it is set to anything, no colour is used.",
        ".SH NOTES",
        NOTES,
        ".SH SEE ALSO",
        ".BR bascule (8),",
        ".BR update_engine_client (8),",
        ".BR journalctl (1)",
    ]
    return "\n".join(lines) + "\n"


def command_man(parser: argparse.ArgumentParser, description: str) -> str:
    """The page of a command whose parser has commands in commands: each with its options."""
    name = parser.prog
    lines = [
        '.\\" Made by bascule.docs; changes here are lost.',
        f'.TH {name.upper()} 8 "" "Bascule" "System administration"',
        ".SH NAME",
        f"{name} \\- {_roff(description)}",
        ".SH SYNOPSIS",
        f".B {name}",
        "\\fICOMMAND\\fR [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _roff(_sentence(" ".join(str(parser.description).split()))),
        ".SH COMMANDS",
        *_commands(parser, ""),
        *_exits(),
        ".SH SEE ALSO",
        ".BR updatectl (8)",
    ]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help for choice in action._choices_actions}
        for name, part in action.choices.items():
            below = [a for a in part._actions if isinstance(a, argparse._SubParsersAction)]
            if below:
                yield from _commands(part, f"{before}{name} ")
                continue
            yield ".TP"
            yield _synopsis(f"{before}{name}", part)
            yield _roff(_sentence(str(helps.get(name) or part.description or "")))
            yield ".RS"
            for option in _options(part):
                if "--help" not in option.option_strings:
                    yield from _man_option(option)
            yield ".RE"


def client_man() -> str:
    """update_engine_client(8)."""
    lines = [
        '.\\" Made by bascule.faces.docs; changes here are lost.',
        '.TH UPDATE_ENGINE_CLIENT 8 "" "Bascule" "System administration"',
        ".SH NAME",
        "update_engine_client \\- the command of Flatcar\\(aqs update_engine, answered by Bascule",
        ".SH SYNOPSIS",
        ".B update_engine_client",
        "[\\fIFLAG\\fR ...]",
        ".SH DESCRIPTION",
        _roff(
            "For scripts that were written for Flatcar. Flags may be written -flag, --flag, "
            "--flag=true and --noflag. New scripts should use updatectl, whose exit codes tell more."
        ),
        ".SH FLAGS",
    ]
    for flag, text in FLAGS.items():
        lines += [".TP", f"\\fB\\-{_roff(flag)}\\fR", _roff(text)]
    lines += [
        ".SH EXIT STATUS",
        _roff("0 if the request was taken, for -update also if there was no update; 1 otherwise."),
        ".SH SEE ALSO",
        ".BR updatectl (8)",
    ]
    return "\n".join(lines) + "\n"


# ── completions ──────────────────────────────────────────────────────────────────────────────


def _flags(actions: list[argparse.Action]) -> list[str]:
    return [word for action in actions for word in action.option_strings]


def bash() -> str:
    """For bash-completion."""
    parts = _parts()
    cases = []
    for name, parser in parts.items():
        words = _flags(_options(parser))
        for action in _positionals(parser):
            words += [str(choice) for choice in action.choices or ()]
        cases.append(f"        {name}) words='{' '.join(words)}' ;;")
    files = sorted(
        {w for p in parts.values() for a in _options(p) if _takes_file(a) for w in a.option_strings}
    )
    values = sorted(
        {
            w
            for p in (build(), *parts.values())
            for a in _options(p)
            if _takes_value(a) and not _takes_file(a) and a.dest != "version"
            for w in a.option_strings
        }
    )
    return (
        "\n".join(
            [
                "# bash completion for updatectl. Made by bascule.faces.docs.",
                "_updatectl() {",
                "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}",
                "    local verb= word words",
                "    COMPREPLY=()",
                "    case $previous in",
                f"        {'|'.join(files)}) compopt -o filenames 2>/dev/null",
                '            mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;',
                f"        {'|'.join(values)}) return ;;",
                "    esac",
                '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
                "        case $word in",
                f"            {'|'.join(parts)}) verb=$word; break ;;",
                "        esac",
                "    done",
                "    case $verb in",
                *cases,
                f"        *) words='{' '.join([*parts, *_flags(_options(build()))])}' ;;",
                "    esac",
                '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
                "}",
                "complete -F _updatectl updatectl",
            ]
        )
        + "\n"
    )


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")


def _zsh_option(action: argparse.Action) -> Iterator[str]:
    text = _quoted(str(action.help)).replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    for word in action.option_strings:
        spec = f"{word}[{text}]"
        if _takes_value(action):
            spec += f":{_value(action).lower()}:" + ("_files" if _takes_file(action) else " ")
        yield f"'{spec}'"


def zsh() -> str:
    """For zsh's completion system."""
    parts = _parts()
    lines = [
        "#compdef updatectl",
        "# Made by bascule.faces.docs.",
        "_updatectl() {",
        "  local -a verbs",
        "  verbs=(",
        *(f"    '{verb.name}:{_quoted(verb.help)}'" for verb in VERBS),
        "  )",
        "  local context state line",
        "  _arguments -C \\",
        *(f"    {spec} \\" for action in _options(build()) for spec in _zsh_option(action)),
        "    '1: :->verb' '*:: :->rest'",
        "  case $state in",
        "    verb) _describe -t verbs verb verbs ;;",
        "    rest)",
        "      case $line[1] in",
    ]
    for name, parser in parts.items():
        specs = [spec for action in _options(parser) for spec in _zsh_option(action)]
        for action in _positionals(parser):
            choices = f"({' '.join(map(str, action.choices))})" if action.choices else " "
            specs.append(f"':{action.dest}:{choices}'")
        lines.append(f"        {name}) _arguments \\")
        lines += [f"          {spec} \\" for spec in specs[:-1]]
        lines += [f"          {specs[-1]} ;;"]
    return "\n".join([*lines, "      esac ;;", "  esac", "}", '_updatectl "$@"']) + "\n"


def fish() -> str:
    """For fish."""
    lines = [
        "# fish completion for updatectl. Made by bascule.faces.docs.",
        "complete -c updatectl -f",
    ]

    def option(action: argparse.Action, condition: str) -> None:
        line = f"complete -c updatectl {condition}"
        for word in action.option_strings:
            line += f" -l {word[2:]}" if word.startswith("--") else f" -s {word[1:]}"
        if _takes_value(action):
            line += " -rF" if _takes_file(action) else " -x"
        lines.append(f"{line} -d '{_quoted(str(action.help))}'")

    for action in _options(build()):
        option(action, "-n __fish_use_subcommand")
    for verb in VERBS:
        lines.append(
            f"complete -c updatectl -n __fish_use_subcommand -a {verb.name} "
            f"-d '{_quoted(verb.help)}'"
        )
    for name, parser in _parts().items():
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for action in _options(parser):
            option(action, condition)
        for action in _positionals(parser):
            if action.choices:
                lines.append(
                    f"complete -c updatectl {condition} -a '{' '.join(map(str, action.choices))}'"
                )
    return "\n".join(lines) + "\n"


FILES: dict[str, Callable[[], str]] = {
    "docs/man/updatectl.8": updatectl_man,
    "docs/man/update_engine_client.8": client_man,
    "systemd/completions/bash/updatectl": bash,
    "systemd/completions/zsh/_updatectl": zsh,
    "systemd/completions/fish/updatectl.fish": fish,
}
"""Path below the checkout → what belongs there."""
