"""Checks that are files: greenboot's directories as they are, and Bascule's own.

Greenboot (fedora-iot/greenboot and greenboot-rs): ``check/required.d``, ``check/wanted.d``,
``green.d`` and ``red.d`` below ``/usr/lib/greenboot`` and ``/etc/greenboot``. ``*.sh`` is given to
bash whether or not it has an exec bit; other files are run if they are executable. Names listed in
``DISABLED_HEALTHCHECKS=( "name" … )`` of ``/etc/greenboot/greenboot.conf`` are left out.

Ours: executables below ``/usr/lib/bascule/health.d`` and ``/etc/bascule/health.d``; a name in /etc
replaces the same name in /usr/lib, and a link to /dev/null masks it. Exit status 0 is a pass, 75
(EX_TEMPFAIL, sysexits.h) inconclusive, anything else a failure.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bascule.engine.command import run_command
from bascule.engine.health.check import PASSED, Answer, Attempt, Host, Outcome, Pace
from bascule.formats.text import printable

EX_TEMPFAIL = 75
GREENBOOT_ROOTS = ("usr/lib/greenboot", "etc/greenboot")
GREENBOOT_CONF = "etc/greenboot/greenboot.conf"
OWN_ROOTS = ("usr/lib/bascule/health.d", "etc/bascule/health.d")
_GROUPS = (("required.d", True), ("wanted.d", False))
_OWN = "health.d:"
SCRIPT_NAMES = (*(f"greenboot:{group}/" for group, _ in _GROUPS), _OWN)
"""What the name of every check that is a file begins with, whether or not this release has it."""

_CONF_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Script:
    """A check that is a file.

    Attributes:
        path: the file.
        name: stable name, ``greenboot:required.d/10-db.sh`` or ``health.d:10-db``.
        argv: how it is run.
        required: whether its failure condemns the boot; no setting changes what the folder says.
        tempfail: exit status 75 means inconclusive (our own directories only).
    """

    path: Path
    name: str
    argv: tuple[str, ...]
    required: bool = field(
        default=True,
        metadata={
            "fixed": "its folder decides it: what `required.d` and `health.d` hold is required, what "
            "`wanted.d` holds is not; remove the key, or move the file"
        },
    )
    tempfail: bool = False
    pace: Pace = field(default_factory=Pace)

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """Run it once; the exit status is the answer."""
        short = shown(self.path)
        attempt.doing = f"running {short}"
        try:
            status = await run_command(
                self.argv, environment=host.environment, output=attempt.output.add
            )
        except OSError as error:
            return Answer(Outcome.FAIL, f"{short} could not be run ({error.strerror})")
        if status == 0:
            return PASSED
        if self.tempfail and status == EX_TEMPFAIL:
            return Answer(Outcome.INCONCLUSIVE, f"{short} could not tell yet (exit status 75)")
        if status < 0:
            return Answer(Outcome.FAIL, f"{short} was ended by signal {-status}")
        return Answer(Outcome.FAIL, f"{short} failed with exit status {status}")


@dataclass(frozen=True, slots=True)
class Found:
    """What the directories hold.

    Attributes:
        checks: in the order of their names, required before wanted.
        notes: a sentence for each file that was left out.
    """

    checks: tuple[Script, ...]
    notes: tuple[str, ...]


def greenboot(root: Path = Path("/"), *, pace: Pace | None = None) -> Found:
    """Greenboot's checks below `root`, required before wanted, each group in order of name."""
    disabled = disabled_healthchecks(root)
    checks: list[Script] = []
    notes: list[str] = []
    for group, required in _GROUPS:
        for path in _files(root, GREENBOOT_ROOTS, f"check/{group}"):
            if path.name in disabled:
                notes.append(f"{shown(path)} is disabled in greenboot.conf")
            elif argv := _greenboot_argv(path):
                name = f"greenboot:{group}/{shown(path)}"
                checks.append(Script(path, name, argv, required, pace=pace or Pace()))
            else:
                notes.append(f"{shown(path, whole=True)} is not executable and was not run")
    return Found(tuple(checks), tuple(notes))


def shown(path: Path, *, whole: bool = False) -> str:
    """A file's name for ledger, journal and bus: UTF-8 without control characters, whatever it is."""
    text = os.fsencode(str(path) if whole else path.name).decode("utf-8", "replace")
    return printable(text)


def green(root: Path = Path("/"), *, pace: Pace | None = None) -> Found:
    """What greenboot runs after a boot was found healthy."""
    return _actions(root, "green.d", pace)


def red(root: Path = Path("/"), *, pace: Pace | None = None) -> Found:
    """What greenboot runs after a boot was found unhealthy, before the reboot."""
    return _actions(root, "red.d", pace)


def own(root: Path = Path("/"), *, pace: Pace | None = None) -> Found:
    """The executables of Bascule's own directories below `root`."""
    by_name: dict[str, Path] = {}
    for path in _files(root, OWN_ROOTS, "", keep=lambda _: True):
        by_name[path.name] = path
    checks: list[Script] = []
    notes: list[str] = []
    for _, path in sorted(by_name.items()):
        if path.is_symlink() and str(path.readlink()) == os.devnull:
            notes.append(f"{shown(path)} is masked")
        elif not _is_file(path):
            continue
        elif os.access(path, os.X_OK):
            checks.append(
                Script(
                    path,
                    f"{_OWN}{shown(path)}",
                    (str(path),),
                    tempfail=True,
                    pace=pace or Pace(),
                )
            )
        else:
            notes.append(f"{shown(path, whole=True)} is not executable and was not run")
    return Found(tuple(checks), tuple(notes))


def disabled_healthchecks(root: Path = Path("/")) -> frozenset[str]:
    """Names in ``DISABLED_HEALTHCHECKS`` of greenboot.conf; the file is read, never sourced."""
    try:
        with (root / GREENBOOT_CONF).open("rb") as file:
            text = file.read(_CONF_LIMIT).decode("utf-8", "replace")
    except OSError:
        return frozenset()
    found: frozenset[str] = frozenset()
    key = "DISABLED_HEALTHCHECKS="
    rest = text
    while rest:
        line, _, rest = rest.partition("\n")
        line = line.strip()
        if not line.startswith(key):
            continue
        value = line.removeprefix(key)
        if value.startswith("("):
            # An array may run over several lines; what is behind the bracket is not ours.
            while ")" not in value and rest:
                more, _, rest = rest.partition("\n")
                value += "\n" + more
            value = value[1:].partition(")")[0]
        try:
            words = shlex.split(value, comments=True)
        except ValueError:
            words = value.replace('"', " ").replace("'", " ").split()
        found = frozenset(word for item in words for word in item.split())
    return found


def _actions(root: Path, group: str, pace: Pace | None) -> Found:
    checks: list[Script] = []
    notes: list[str] = []
    for path in _files(root, GREENBOOT_ROOTS, group):
        if argv := _greenboot_argv(path):
            name = f"greenboot:{group}/{shown(path)}"
            checks.append(Script(path, name, argv, required=False, pace=pace or Pace()))
        else:
            notes.append(f"{shown(path, whole=True)} is not executable and was not run")
    return Found(tuple(checks), tuple(notes))


def _greenboot_argv(path: Path) -> tuple[str, ...]:
    if path.suffix == ".sh":
        return ("bash", str(path))
    return (str(path),) if os.access(path, os.X_OK) else ()


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _files(
    root: Path,
    below: tuple[str, ...],
    group: str,
    keep: Callable[[Path], bool] = _is_file,
) -> list[Path]:
    found: list[Path] = []
    for base in below:
        try:
            entries = sorted((root / base / group).iterdir())
        except OSError:
            continue
        found += [e for e in entries if not e.name.startswith(".") and keep(e)]
    return found
