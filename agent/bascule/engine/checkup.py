"""The doctor's look at files: state, leftovers, keys, secrets, clock. Blocking; changes nothing."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.findings import DOCTOR, ERROR, NOTE, WARNING, Finding
from bascule.engine.history import History
from bascule.engine.ledger import Ledger
from bascule.engine.markers import MARKERS, remove_markers
from bascule.errors import BasculeError


def state_directory(folder: Path) -> Iterator[Finding]:
    """Whether it is there, and only root may write it."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        yield Finding(
            "state-missing",
            NOTE,
            f"{folder} does not exist yet.",
            "Nothing needs doing: it is made with the first thing to remember.",
        )
        return
    except OSError as error:
        yield Finding(
            "state-unreadable",
            ERROR,
            f"{folder}: {error.strerror}.",
            "Mend the directory that the `state.directory` setting names.",
        )
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "state-writable",
            ERROR,
            f"{folder} may be written by others than its owner.",
            DOCTOR,
            partial(_chmod, folder, stat.S_IMODE(mode) & ~0o022),
        )
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    except OSError:
        return
    for path in sorted(files):
        mode = path.stat().st_mode
        if mode & 0o077:
            yield Finding(
                "state-file-mode",
                WARNING,
                f"{path} has the permissions {stat.S_IMODE(mode):04o}; others need none.",
                DOCTOR,
                partial(_chmod, path, 0o600),
            )


def leftovers(folders: Iterable[Path]) -> Iterator[Finding]:
    """Files that an interrupted write left; call it only while nobody writes."""
    for folder in folders:
        try:
            found = sorted(folder.glob("*.partial"))
        except OSError:
            continue
        for path in found:
            yield Finding(
                "leftover",
                WARNING,
                f"{path} was left over by an interrupted write.",
                DOCTOR,
                partial(_unlink, path),
            )


def ledger(kept: Ledger) -> Iterator[Finding]:
    """Whether the ledger can be read."""
    try:
        kept.read()
    except BasculeError as error:
        yield Finding("ledger-unreadable", ERROR, str(error), error.remedy)
        return
    if kept.damage:
        yield Finding(
            "ledger-damaged",
            ERROR,
            f"{kept.path}: {kept.damage}.",
            DOCTOR,
            partial(_renew_ledger, kept),
        )
    damaged = kept.path.with_suffix(".damaged")
    if damaged.exists():
        yield Finding(
            "ledger-was-damaged",
            NOTE,
            f"{damaged} is what was left of a ledger that was damaged once.",
            "Find out why (`journalctl -k`, `smartctl`), then remove the file.",
        )


def checkpoint(store: CheckpointStore, wanted: Collection[str]) -> Iterator[Finding]:
    """A resume record that nothing is going to take up.

    Args:
        wanted: identities of the payloads that may still be installed.
    """
    if not (store.folder / "record").exists():
        return
    if any(store.load(identity) is not None for identity in wanted):
        return
    yield Finding(
        "checkpoint-orphan",
        WARNING,
        f"{store.folder} holds the beginning of an installation that nothing goes on with.",
        DOCTOR,
        partial(_clear_checkpoint, store),
    )


def history(told: History) -> Iterator[Finding]:
    """Whether its chain holds."""
    try:
        found = told.verify()
    except BasculeError as error:
        yield Finding("history-unreadable", WARNING, str(error), error.remedy)
        return
    if found.flaw is not None:
        yield Finding(
            "history-chain",
            WARNING,
            f"{found.flaw.file}, line {found.flaw.line}: {found.flaw.why}.",
            "Somebody, or a failing disk, changed it: compare it with a copy kept elsewhere. "
            "`updatectl history verify` tells more.",
        )


def markers(folder: Path, *, staged: bool) -> Iterator[Finding]:
    """Markers for a reboot that nothing needs; ``reboot-required`` alone may be somebody else's."""
    if staged or not all((folder / name).exists() for name in MARKERS):
        return
    yield Finding(
        "markers-stale",
        WARNING,
        f"{folder} says that a reboot is wanted, but nothing is staged: kured may reboot for nothing.",
        DOCTOR,
        partial(_remove_markers, folder),
    )


def keys(path: Path) -> Iterator[Finding]:
    """Whether payloads could be proven."""
    from bascule.engine.trust import read_keyring

    found = read_keyring(path)
    remedy = "Install the publisher's public key (PEM) where the `trust.keys` setting says."
    if not found.keys:
        why = "; ".join(found.faults) or f"{path} has no file named *.pem or *.pub"
        yield Finding(
            "keys-missing", ERROR, f"No payload can be proven, so none is installed: {why}.", remedy
        )
        return
    for fault in found.faults:
        yield Finding("key-unusable", WARNING, f"A key is passed over: {fault}.", remedy)


def readable(path: Path, what: str, setting: str) -> Iterator[Finding]:
    """Whether a file that a setting names can be read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        yield Finding(
            "file-unreadable",
            ERROR,
            f"{what} {path}: {error.strerror}.",
            f"Install it there, or correct the `{setting}` setting.",
        )


def secret(path: Path, what: str) -> Iterator[Finding]:
    """Whether only its owner may read a file with a secret in it."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISREG(mode) and mode & 0o077:
        yield Finding(
            "secret-readable",
            WARNING,
            f"{path} holds {what}, and others may read it ({stat.S_IMODE(mode):04o}).",
            DOCTOR,
            partial(_chmod, path, 0o600),
        )


def clock(now: float, references: Iterable[Path], last_checked: int) -> Iterator[Finding]:
    """Whether the clock can be right.

    Args:
        references: files no older than this system: its own build is in the past.
        last_checked: unix seconds of the last successful check.
    """
    built = 0.0
    for path in references:
        try:
            built = max(built, path.stat().st_mtime)
        except OSError:
            continue
    remedy = "Set it (`timedatectl`), or see that time is synchronised: schedules, windows and certificates hang on it."
    if now < built:
        yield Finding(
            "clock-before-build",
            ERROR,
            f"The clock says {_day(now)}, but this system was built on {_day(built)}.",
            remedy,
        )
    elif now < last_checked - 86400:
        yield Finding(
            "clock-went-back",
            WARNING,
            f"The clock says {_day(now)}, but a check succeeded on {_day(last_checked)}.",
            remedy,
        )


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


# ── repairs ──────────────────────────────────────────────────────────────────────────────────


def _chmod(path: Path, mode: int) -> str:
    path.chmod(mode)
    return f"{path} has the permissions {mode:04o} now."


def _unlink(path: Path) -> str:
    path.unlink(missing_ok=True)
    return f"{path} is removed."


def _renew_ledger(kept: Ledger) -> str:
    kept.update(lambda record: record)
    return f"{kept.path.name} is begun afresh; the old bytes are kept beside it."


def _clear_checkpoint(store: CheckpointStore) -> str:
    store.clear()
    return f"{store.folder} is emptied; the next installation starts at its first byte."


def _remove_markers(folder: Path) -> str:
    remove_markers(folder)
    return f"The markers in {folder} are removed."


Check = Callable[[], Iterable[Finding]]


def gather(checks: Iterable[Check]) -> list[Finding]:
    """Every finding; a check that itself fails is one, and hides no other."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except BasculeError as error:
            found.append(Finding(error.id, ERROR, str(error), error.remedy))
        except OSError as error:
            found.append(
                Finding(
                    "not-examined",
                    WARNING,
                    f"{error.filename or 'A file'}: {error.strerror}.",
                    "See whether the disk and its permissions are in order.",
                )
            )
    return found
