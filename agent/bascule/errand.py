"""``bascule errand``: the child process that asks the server and installs what it offers.

The daemon writes one JSON line (the job) to its standard input and keeps the pipe open; the errand
writes JSON lines back. End of input means the daemon is gone or wants it to stop: it stops at the next
safe point and keeps its checkpoint. Its memory, its GIL and its crashes are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bascule.assembly import LOG_STYLES, Assembly
from bascule.errors import BasculeError, Busy, LedgerError, NoUpdate, SettingsError, Stopped
from bascule.faces.journal import configure_logging
from bascule.settings import Settings

JOB_LIMIT = 4 << 20

INQUIRIES = frozenset({"plan", "list", "config-check", "doctor"})
"""Errands that only look; see `bascule.inquiry`."""
REPAIR = "doctor-repair"
"""Looks too, and mends; while nobody else writes."""
ENDS_WELL = frozenset({"staged", "available", "prepared"})


class Voice:
    """Writes messages to the daemon: one JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self.mute = False

    def say(self, word: str, **fields: Any) -> None:
        """Send one message; a daemon that is gone hears nothing and stops nothing."""
        if self.mute:
            return
        try:
            self._file.write(json.dumps({"say": word, **fields}, default=str) + "\n")
            self._file.flush()
        except (BrokenPipeError, OSError):
            self.mute = True


def main() -> int:
    """Entry of ``bascule errand``; the exit code is 0 if the end was told, whatever it was."""
    # Whatever prints by mistake must not end up between the messages.
    voice = Voice(os.dup(1))
    os.dup2(2, 1)
    try:
        line = sys.stdin.buffer.readline(JOB_LIMIT)
        job = json.loads(line)
        settings = Settings.from_dict(job["settings"])
    except (ValueError, KeyError, TypeError, SettingsError) as error:
        voice.say("end", result="failed", error=BasculeError(f"bad job: {error}").as_dict())
        return 1
    configure_logging(level=settings.log.level, style=LOG_STYLES[settings.log.format])
    error_: BasculeError | None = None
    end: dict[str, Any] = {"result": "failed"}
    try:
        # Who only looks need not wait for who writes.
        looks = job.get("kind") in INQUIRIES
        with contextlib.nullcontext() if looks else _only_one(Path(settings.state.directory)):
            end = asyncio.run(_supervise(job, settings, voice))
    except BasculeError as raised:
        error_ = raised
    except asyncio.CancelledError:
        error_ = Stopped()
    except Exception as raised:
        import structlog

        structlog.get_logger().error("errand-failed", exc_info=True)
        error_ = BasculeError(f"{type(raised).__name__}: {raised}")
    if error_ is not None:
        end["error"] = error_.as_dict()
    voice.say("end", **end)
    return 0


@contextlib.contextmanager
def _only_one(directory: Path) -> Any:
    """Two errands would write one slot: an orphan of a killed daemon may still be at work."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(directory / "errand.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(f"{directory}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy("another errand is still at work") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


async def _supervise(job: Mapping[str, Any], settings: Settings, voice: Voice) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(_work(job, settings, voice))

    def stop() -> None:
        work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    def hear() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop()

    with contextlib.suppress(OSError, PermissionError):
        loop.add_reader(0, hear)
    try:
        return await work
    except asyncio.CancelledError:
        raise Stopped() from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(0)


async def _work(job: Mapping[str, Any], settings: Settings, voice: Voice) -> dict[str, Any]:
    from bascule.hands import RealHands
    from bascule.updater.attempt import Attempt

    kind = str(job["kind"])
    options: Mapping[str, Any] = job.get("options") or {}
    interactive = bool(job.get("interactive"))
    assembly = Assembly(settings)
    attempt_id = str(job["attempt"])
    if kind in INQUIRIES or kind == REPAIR:
        from bascule.inquiry import answer

        return {"result": "done", "outcome": await answer(kind, assembly, voice.say, job)}
    installs = kind in ("update", "prepare", "activate")
    if installs:
        from bascule.healthchecks import checks_of

        # Whatever came next could not be judged, and would be given up for it.
        await asyncio.to_thread(checks_of, settings.health)
    terms = assembly.terms(
        interactive=interactive,
        install=installs,
        options=options,
        on_trial=bool(job.get("on_trial")),
    )
    ledger = assembly.ledger()
    record = await asyncio.to_thread(ledger.read)
    terms = replace(terms, prepare=kind == "prepare")
    hands = RealHands(
        assembly,
        voice.say,
        attempt_id,
        now=terms.now,
        interactive=interactive,
        offline=kind == "activate",
    )
    attempt = Attempt(
        attempt=attempt_id,
        client=assembly.client(record),
        post=hands.post,
        ledger=ledger,
        boot=assembly.boot(),
        hands=hands,
        terms=terms,
        say=voice.say,
        clock=time.time,
        jitter=random.SystemRandom().random,
    )
    if kind == "ping":
        await attempt.ping()
        return {"result": "done"}
    try:
        if kind == "activate":
            outcome = await attempt.activate()
        else:
            outcome = await attempt.run(await hands.local_offer(options))
    except NoUpdate as error:
        return {"result": "no-update", "outcome": {"why": error.detail}}
    return {
        "result": "done" if outcome.result in ENDS_WELL else outcome.result,
        "staged": outcome.result == "staged",
        "outcome": {"what": outcome.result, **outcome.facts},
    }
