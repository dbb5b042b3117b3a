"""``update_engine_client``, as Flatcar's scripts, ``flatcar-update`` and kola call it.

Source: reference 4.3 and recorded runs. Kept: gflags spellings (``-flag``, ``--flag``,
``--flag=true``, ``--noflag``), exactly five ``KEY=value`` lines on stdout, everything else on
stderr in glog's form, the five-second poll, and exit code 0 of ``-update`` even after a failure.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from bascule.errors import AnswerNotUnderstood, BasculeError, DaemonNotRunning, OutputLost
from bascule.faces.bus_client import BusClient
from bascule.faces.streams import flush, mend, silence

__all__ = ["main"]

NAME = "com.coreos.update1"
PATH = "/com/coreos/update1"
INTERFACE = "com.coreos.update1.Manager"

IDLE = "UPDATE_STATUS_IDLE"
NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"

POLL_SECONDS = 5.0
TRIES = 4
RETRY_SECONDS = 10.0

FLAGS = {
    "check_for_update": "Initiate check for updates.",
    "reset_status": "Sets the status in update_engine to idle.",
    "status": "Print the status to stdout.",
    "update": "Forces an update and waits for its completion. Exit status is 0 if the update "
    "succeeded or there was none.",
    "watch_for_updates": "Listen for status updates and print them to the screen.",
}

Status = tuple[int, float, str, str, int]


# glog names the source line; filters that split at the bracket find something before it.
_SOURCE = "update_engine_client.py:0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    mend()
    try:
        return _run(_flags(list(sys.argv[1:] if argv is None else argv)))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        silence(sys.stdout)
        return 1
    except BasculeError as error:
        if isinstance(error, OutputLost):
            silence(sys.stdout)
        _log("E", f"{error}")
        return 1


def _run(wanted: set[str]) -> int:
    client = _connect()
    # One action, in the original's order of precedence.
    if "status" in wanted:
        _log("I", "Querying Update Engine status...")
        _print(_status(client))
        return 0
    if "reset_status" in wanted:
        _log("I", "Setting Update Engine status to idle ...")
        client.call(PATH, INTERFACE, "ResetStatus")
        _log("I", "ResetStatus succeeded; the staged slot, if there was one, will not boot.")
        return 0
    if "check_for_update" in wanted or "update" in wanted:
        _log("I", "Initiating update check and install.")
        client.call(PATH, INTERFACE, "AttemptUpdate")
        if "update" not in wanted:
            return 0
        _log("I", "Waiting for update to complete.")
        return _wait(client)
    if "watch_for_updates" in wanted:
        _log("I", "Watching for status updates.")
        client.listen(PATH, interface=INTERFACE)
        while True:
            signal = client.next_signal()
            if signal is not None and signal.member == "StatusUpdate":
                _report(tuple(signal.values))
    _log("I", "No flags specified. Exiting.")
    return 0


def _wait(client: BusClient) -> int:
    while True:
        time.sleep(POLL_SECONDS)
        status = _status(client)
        if status[2] == IDLE:
            _log("I", "No update available")
            return 0
        _print(status)
        if status[2] == NEED_REBOOT:
            _log("I", "Update succeeded -- reboot needed.")
            return 0


def _connect() -> BusClient:
    """A client of a daemon that is there; it may still be starting.

    Raises:
        DaemonNotRunning: four tries, ten seconds apart, found nobody.
    """
    for left in reversed(range(TRIES)):
        try:
            client = BusClient("", NAME)
            client.listen(PATH, interface=INTERFACE)
            return client
        except DaemonNotRunning as error:
            if not left:
                raise
            _log("I", f"{error}. Retrying in {RETRY_SECONDS:.0f} s.")
            time.sleep(RETRY_SECONDS)
    raise DaemonNotRunning


def _status(client: BusClient) -> Status:
    match client.call(PATH, INTERFACE, "GetStatus"):
        case [int(checked), float(progress), str(operation), str(version), int(size)]:
            return (checked, progress, operation, version, size)
        case other:
            raise AnswerNotUnderstood(f"GetStatus was answered with {other!r:.80}")


def _print(status: Status) -> None:
    checked, progress, operation, version, size = status
    flush(
        sys.stdout,
        f"LAST_CHECKED_TIME={checked}\n"
        f"PROGRESS={progress:f}\n"
        f"CURRENT_OP={operation}\n"
        f"NEW_VERSION={version}\n"
        f"NEW_SIZE={size}\n",
    )


def _report(values: tuple[object, ...]) -> None:
    if len(values) >= 5:
        checked, progress, operation, version, size = values[:5]
        _log(
            "I",
            f"Got status update: last_checked_time: {checked}, progress: {progress}, "
            f"current_operation: {operation}, new_version: {version}, new_size: {size}",
        )


def _flags(argv: list[str]) -> set[str]:
    """The flags that are set, by the rules of gflags; the last spelling of one counts."""
    wanted: set[str] = set()
    for word in argv:
        if word == "--":
            break
        name, _, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("-") or not name:
            continue
        if name in ("help", "helpshort"):
            _usage()
        off = name.startswith("no") and name[2:] in FLAGS and "=" not in word
        name = name[2:] if off else name
        if name not in FLAGS:
            sys.stderr.write(f"ERROR: unknown command line flag '{name}'\n")
            raise SystemExit(1)
        if value.lower() not in ("", "true", "t", "1", "yes", "y", "false", "f", "0", "no", "n"):
            sys.stderr.write(f"ERROR: illegal value '{value}' specified for bool flag '{name}'\n")
            raise SystemExit(1)
        if off or value.lower() in ("false", "f", "0", "no", "n"):
            wanted.discard(name)
        else:
            wanted.add(name)
    return wanted


def _usage() -> NoReturn:
    lines = ["update_engine_client: A/B updates over D-Bus, compatible with Flatcar's command.", ""]
    for name, text in FLAGS.items():
        lines.append(f"    -{name} ({text}) type: bool default: false")
    flush(sys.stdout, "\n".join(lines) + "\n")
    # gflags ends with 1 after its help.
    raise SystemExit(1)


def _log(level: str, text: str) -> None:
    """glog's form, which people's log filters know."""
    now = time.time()
    stamp = time.strftime("%Y%m%d %H:%M:%S", time.localtime(now))
    micros = int(now % 1 * 1_000_000)
    line = f"{level}{stamp}.{micros:06d} {os.getpid():5d} {_SOURCE}] {text}\n"
    try:
        flush(sys.stderr, line)
    except (BrokenPipeError, OutputLost):
        silence(sys.stderr)
