"""``bascule lock``: look at the reboot lock, and free the place of a host that is gone.

Needs no daemon: whoever cleans up after a dead host may sit at any other one.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bascule import endings
from bascule.assembly import Assembly
from bascule.circumstances import Circumstances
from bascule.engine.coordination.interface import Holder, LockView
from bascule.errors import NothingPending, ServerUnreachable, SettingsError, UsageError
from bascule.settings import load
from bascule.updater.duration import words
from bascule.updater.status import Status


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``lock show`` and ``lock release``."""
    from bascule.__main__ import settings_arguments

    group = commands.add_parser("lock", help="look at the reboot lock, or free a place in it")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    show = verbs.add_parser("show", help="who holds the reboot lock, and since when")
    release = verbs.add_parser(
        "release",
        help="free the place of a host that is gone",
        description="Free the place of a host that is gone. A host that is only slow may then "
        "reboot at the same time as another one.",
    )
    release.add_argument("holder", help="its machine id, as `bascule lock show` names it")
    for command, verb in ((show, _show), (release, _release)):
        settings_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.set_defaults(run=_run, verb=verb)


def _run(options: argparse.Namespace) -> int:
    def work() -> dict[str, Any]:
        assembly = Assembly(load(options.root, options.config))
        found: dict[str, Any] = asyncio.run(options.verb(options, assembly))
        return found

    return endings.end(options, work)


async def let_go(
    assembly: Assembly, *, tries: int = 5, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> str:
    """Give back the lock that the boot before took, where no daemon is there to do it.

    A host whose daemon is masked would otherwise keep a whole fleet from rebooting. The network may
    come up late, so a server that does not answer is asked again.

    Returns:
        "" or why the lock may still be held.
    """
    if assembly.settings.reboot.strategy in ("off", "reboot"):
        return ""
    trouble = ""
    for attempt in range(tries):
        if attempt:
            await sleep(2.0**attempt)
        try:
            lock = _circumstances(assembly).coordinator()
            try:
                trouble = await lock.release()
            finally:
                await lock.close()
        except SettingsError as error:
            return str(error)
        if not trouble:
            return ""
    return trouble


def _circumstances(assembly: Assembly) -> Circumstances:
    return Circumstances(lambda: assembly, Status, lambda: None, time.time)


async def _show(options: argparse.Namespace, assembly: Assembly) -> dict[str, Any]:
    lock = _circumstances(assembly).coordinator()
    try:
        view = await lock.view()
    finally:
        await lock.close()
    if view.trouble:
        raise ServerUnreachable(f"reboot lock {view.strategy}: {view.trouble}")
    now = time.time()
    return {
        "said": "\n".join(_lines(view, now)),
        "strategy": view.strategy,
        "held": view.held,
        "free": view.free,
        "places": view.places,
        "holders": [{"id": h.id, "since": h.since, "at_least": h.at_least} for h in view.holders],
    }


def _lines(view: LockView, now: float) -> list[str]:
    if view.free is None:
        mine = "This host holds a place." if view.held else "It does not tell who holds it."
        return [f"Strategy {view.strategy}. {mine}"]
    first = f"Strategy {view.strategy}: {view.free} of {view.places} places are free."
    return [first, *(f"  {_holder(h, now)}" for h in view.holders)]


def _holder(holder: Holder, now: float) -> str:
    if holder.since is None or holder.at_least:
        return f"{holder.id}  (nobody recorded since when)"
    return f"{holder.id}  for {words(now - holder.since)}"


async def _release(options: argparse.Namespace, assembly: Assembly) -> dict[str, Any]:
    from bascule.engine.coordination.etcd import EtcdLock

    lock = _circumstances(assembly).coordinator()
    try:
        if not isinstance(lock, EtcdLock):
            raise UsageError(
                f"with `reboot.strategy` {lock.name}, places are freed at the lock's own server"
            )
        view = await lock.view()
        if not view.trouble and options.holder not in {h.id for h in view.holders}:
            raise NothingPending(f"{options.holder} holds no place in the reboot lock")
        trouble = view.trouble or await lock.evict(options.holder)
    finally:
        await lock.close()
    if trouble:
        raise ServerUnreachable(f"reboot lock: {trouble}")
    return {"said": f"The place of {options.holder} is free.", "released": options.holder}
