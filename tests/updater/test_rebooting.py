"""The way into the staged release: gates before lock, lock before notice, and back again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bascule.engine.coordination import Grant, LockView, Refused
from bascule.engine.coordination.etcd import EtcdLock
from bascule.engine.surroundings import Inhibitor, Session, Surroundings
from bascule.errors import NotRebootable
from bascule.updater.explain import explain
from bascule.updater.gates import Facts
from bascule.updater.rebooting import Rebooting, local_gates
from bascule.updater.schedule import parse_schedule
from bascule.updater.windows import parse_windows
from etcd_server import serve

NIGHT = 1_711_850_400.0  # Sun 2024-03-31 02:00 UTC
WINDOW = parse_schedule(reboots=parse_windows(["Sun 02:00 2h UTC"]), spread=False)
STAGED = Facts(staged="5.0", blessed=True, schedule=WINDOW, zone="UTC")


class Lock:
    name = "fleetlock"

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.answer: Grant | Refused = Grant("fleetlock")
        self.trouble = ""

    async def acquire(self) -> Grant | Refused:
        self.log.append("acquire")
        return self.answer

    async def release(self) -> str:
        self.log.append("release")
        return self.trouble

    async def view(self) -> LockView:
        return LockView(self.name)

    async def close(self) -> None:
        pass


@dataclass
class Host:
    """One host with a clock of its own; `log` is what it did, in order."""

    facts: Facts = STAGED
    now: float = NIGHT
    notice: float = 0.0
    log: list[str] = field(default_factory=list)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusal: NotRebootable | None = None
    during_notice: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.lock = Lock(self.log)
        self.rebooting = self.drive(self.lock)

    def drive(self, lock: Any) -> Rebooting:
        return Rebooting(
            look=self._look,
            coordinator=lock,
            reboot=self._reboot,
            warn=self._warn,
            notice=self.notice,
            tell=lambda event, **facts: self.told.append((event, facts)),
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _look(self) -> Facts:
        return self.facts

    async def _reboot(self, reason: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.log.append(f"reboot {reason}")

    async def _warn(self, seconds: float) -> None:
        self.log.append(f"warn {seconds:.0f}")

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during_notice()

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.told]


async def test_open_gates_lead_through_the_lock_into_the_reboot() -> None:
    host = Host()
    assert await host.rebooting.step() == 600
    assert host.log == ["acquire", "reboot into 5.0 (strategy fleetlock)"]
    assert host.events == ["reboot"]


async def test_no_lock_is_asked_for_while_a_local_gate_is_closed() -> None:
    host = Host(now=NIGHT - 30)
    assert await host.rebooting.step() == 30
    assert host.log == ["release"], "what may be held from before is given back"
    host.now = NIGHT - 7200
    assert await host.rebooting.step() == 60
    assert host.log == ["release"]
    host.facts = replace(
        STAGED, surroundings=Surroundings(inhibitors=(Inhibitor("dnf", "installing"),))
    )
    host.now = NIGHT
    assert await host.rebooting.step() == 60
    assert host.log == ["release"]


async def test_a_refusal_is_told_once_and_asked_again_ever_later() -> None:
    host = Host()
    host.lock.answer = Refused("fleetlock", "all slots are taken")
    assert [await host.rebooting.step() for _ in range(4)] == [5, 10, 20, 40]
    assert host.events == ["reboot-refused"]
    host.lock.answer = Refused("fleetlock", "off", final=True)
    assert await host.rebooting.step() == 60
    host.lock.answer = Grant("fleetlock")
    assert await host.rebooting.step() == 600


async def test_the_lock_is_given_back_when_the_window_ends() -> None:
    host = Host()
    host.refusal = NotRebootable("logind: busy")
    assert await host.rebooting.step() == 60
    assert host.log == ["acquire", "release"]
    host.refusal = None
    host.lock.answer = Refused("fleetlock", "connection lost")
    await host.rebooting.step()
    host.now = NIGHT + 7200
    await host.rebooting.step()
    assert host.log == ["acquire", "release", "acquire", "release"]
    await host.rebooting.step()
    assert host.log[-1] == "release" and len(host.log) == 4
    assert ("lock-released", {"why": "window closed", "strategy": "fleetlock"}) in host.told


async def test_people_are_warned_and_the_gates_looked_at_again_after_it() -> None:
    people = replace(STAGED, surroundings=Surroundings(sessions=(Session("1", "core", 500),)))
    host = Host(people, notice=300)
    await host.rebooting.step()
    assert host.log == ["acquire", "warn 300", "reboot into 5.0 (strategy fleetlock)"]
    late = Host(people, now=NIGHT + 7000, notice=300)
    await late.rebooting.step()
    assert late.log == ["acquire", "warn 300", "release"], "the window ended during the notice"
    cancelled = Host(people, notice=300)

    def cancel() -> None:
        cancelled.facts = replace(people, staged="")

    cancelled.during_notice = cancel
    await cancelled.rebooting.step()
    assert cancelled.log == ["acquire", "warn 300", "release"]
    alone = Host(notice=300)
    await alone.rebooting.step()
    assert alone.log == ["acquire", "reboot into 5.0 (strategy fleetlock)"]


async def test_the_lock_is_kept_on_trial_and_given_back_once_blessed() -> None:
    host = Host(replace(STAGED, staged="", blessed=False))
    assert await host.rebooting.step() == 60
    assert host.log == []
    host.facts = replace(host.facts, blessed=True)
    assert await host.rebooting.step() == 60
    assert await host.rebooting.step() == 60
    assert host.log == ["release"]


async def test_a_release_that_fails_is_tried_again() -> None:
    host = Host(replace(STAGED, staged=""))
    host.lock.trouble = "connection refused"
    assert [await host.rebooting.step() for _ in range(3)] == [5, 10, 20]
    assert host.events == ["lock-not-released"]
    host.lock.trouble = ""
    assert await host.rebooting.step() == 60
    assert host.events == ["lock-not-released", "lock-released"]


async def test_a_reboot_that_does_not_happen_is_told_and_asked_for_again() -> None:
    host = Host()
    host.now += await host.rebooting.step()
    await host.rebooting.step()
    assert host.events == ["reboot", "reboot-overdue", "reboot"]
    assert host.log.count("acquire") == 2


async def test_by_hand_goes_past_the_window_and_not_past_an_inhibitor() -> None:
    host = Host(now=NIGHT - 7200)
    assert await host.rebooting.step(by_hand=True) == 600
    assert host.log[-1].startswith("reboot")
    blocked = Host(
        replace(STAGED, surroundings=Surroundings(inhibitors=(Inhibitor("dnf", ""),))),
        now=NIGHT - 7200,
    )
    await blocked.rebooting.step(by_hand=True)
    assert blocked.log == ["release"]


async def test_withdraw_gives_the_lock_back() -> None:
    host = Host()
    await host.rebooting.step()
    await host.rebooting.withdraw()
    assert host.log[-1] == "release"


async def test_it_runs_until_it_is_cancelled() -> None:
    host = Host(replace(STAGED, staged=""))
    steps = 0

    async def sleep(seconds: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise asyncio.CancelledError

    host._sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await host.drive(host.lock).run()
    assert steps == 3


def test_off_is_a_gate_and_the_lock_is_none_of_the_local_ones() -> None:
    assert [g.name for g in local_gates(replace(STAGED, strategy="off"), NIGHT)] == ["strategy"]
    taken = replace(STAGED, strategy="etcd-lock", lock=LockView("etcd-lock", trouble="down"))
    assert local_gates(taken, NIGHT) == []


# ── two hosts and a real etcd


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("etcd") is None:
        pytest.skip("etcd-server is not installed")
    yield from serve(tmp_path_factory.mktemp("etcd-two"))


@pytest.fixture
async def two(etcd_url: str) -> AsyncIterator[list[tuple[Host, EtcdLock, Rebooting]]]:
    found = []
    for letter in "ab":
        host = Host()
        lock = EtcdLock([etcd_url], letter * 32, clock=lambda host=host: host.now)  # type: ignore[misc]
        found.append((host, lock, host.drive(lock)))
    yield found
    for _, lock, _ in found:
        await lock.close()


async def test_one_of_two_hosts_reboots_at_a_time_and_a_dead_one_is_named(
    two: list[tuple[Host, EtcdLock, Rebooting]],
) -> None:
    (first, first_lock, first_way), (second, second_lock, second_way) = two
    await first_way.step()
    await second_way.step()
    assert first.log == ["reboot into 5.0 (strategy etcd-lock)"]
    assert second.log == [] and second.events == ["reboot-refused"]

    # The first host comes back, is on trial, and is blessed in the end.
    first.facts = replace(STAGED, staged="", blessed=False)
    back = first.drive(first_lock)
    await back.step()
    await second_way.step()
    assert second.log == []
    first.facts = replace(first.facts, blessed=True)
    await back.step()
    await second_way.step()
    assert second.log == ["reboot into 5.0 (strategy etcd-lock)"]

    # The second host is killed while it holds the lock, and never comes back.
    first.facts, first.now = STAGED, NIGHT + 7 * 86400
    await back.step()
    view = await first_lock.view()
    facts = replace(STAGED, strategy="etcd-lock", lock=view)
    told = "\n".join(explain(facts, first.now).lines())
    assert f"The reboot lock is held by {'b' * 32} for 7 d (etcd-lock)" in told
    assert f"release it: updatectl lock release {'b' * 32}" in told
    assert first.log == ["reboot into 5.0 (strategy etcd-lock)"]
    assert await second_lock.evict("b" * 32) == ""
    await back.step()
    assert len(first.log) == 2
    await back.withdraw()
