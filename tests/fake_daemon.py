"""A daemon whose updater is a `FakeSteering`: ``python fake_daemon.py ADDRESS [STORY] [PACE]``.

Prints ``ready`` when it owns its names. An update or check then tells STORY (``good``, ``none``,
``bad`` or ``stuck``), PACE seconds from step to step.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from bascule.errors import Stopped, TransferStalled
from bascule.faces import bus, legacy_bus
from bascule.faces.bus import BusFace
from bascule.faces.bus_connection import BusConnection
from bascule.faces.journal import configure_logging
from bascule.faces.legacy_bus import LegacyBusFace
from bascule.updater.status import State
from bascule.updater.steering import Job
from fake_steering import FakeSteering

SIZE = 44_404_529
CHECKED = 1_795_257_440


async def tell(steering: FakeSteering, job: Job, story: str = "good", pace: float = 0.0) -> None:
    """Move `steering` through the states of a whole attempt, and end `job`."""

    async def step() -> bool:
        await asyncio.sleep(pace)
        return bool(job.result)

    await step()
    if story == "none":
        steering.move(State.IDLE, last_checked=CHECKED)
        steering.end(job, "no-update")
        return
    steering.move(
        State.UPDATE_AVAILABLE, last_checked=CHECKED, new_version="3602.1.5", new_size=SIZE
    )
    if job.kind == "check":
        steering.end(job, "done", outcome={"version": "3602.1.5", "size": SIZE})
        steering.move(State.IDLE)
        return
    for percent in range(101):
        if await step():
            return
        steering.move(
            State.DOWNLOADING,
            phase="download",
            bytes_total=SIZE,
            bytes_done=SIZE * percent // 100,
            bytes_written=SIZE * percent // 100,
            rate=2_100_000.0,
        )
        if story == "bad" and percent == 40:
            error = TransferStalled("17 s without a byte", url="http://update/payload.gz")
            steering.move(State.REPORTING_ERROR_EVENT, bytes_done=0, bytes_total=0, phase="")
            steering.end(job, "failed", error)
            steering.move(State.IDLE, new_version="", new_size=0)
            return
        while story == "stuck" and percent == 40:
            if await step():
                return
            await asyncio.sleep(0.01)
    steering.move(State.FINALIZING, phase="verify", bytes_done=SIZE // 2, rate=0.0)
    await step()
    a, b = steering.status.slots
    steering.move(
        State.UPDATED_NEED_REBOOT,
        phase="",
        bytes_done=0,
        bytes_total=0,
        verdict="WAITING",
        slots=(
            replace(a, next=False, words="good"),
            replace(
                b, next=True, priority=3, tries=1, version="3602.1.5", words="on trial: 1 try left"
            ),
        ),
    )
    steering.end(job, "done", outcome={"version": "3602.1.5", "slot": "B"})


class Daemon:
    """`FakeSteering` that tells a story by itself whenever a job begins."""

    def __init__(self, steering: FakeSteering, story: str, pace: float) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.steering, self.story, self.pace = steering, story, pace
        steering.on_job(self._begin)
        steering.subscribe(lambda old, new: self._cancelled(new.state))

    def _begin(self, job: Job) -> None:
        if job.result:
            return
        task = asyncio.get_running_loop().create_task(
            tell(self.steering, job, self.story, self.pace)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancelled(self, state: State) -> None:
        if self.steering.asked and self.steering.asked[-1][0] == "cancel" and state is State.IDLE:
            job = self.steering.jobs[-1]
            if not job.result:
                self.steering.end(job, "failed", Stopped())


async def main(address: str, story: str = "good", pace: str = "0.02") -> None:
    configure_logging(style="console")
    steering = FakeSteering()
    connection = BusConnection(address)
    BusFace(steering, connection)
    LegacyBusFace(steering, connection)
    await connection.connect([bus.NAME, legacy_bus.NAME])
    Daemon(steering, story, float(pace))
    print("ready", flush=True)
    await connection.stay()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
