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
from bascule.engine.surroundings import Inhibitor, Surroundings
from bascule.errors import NotRebootable
from bascule.updater.explain import explain
from bascule.updater.gates import Facts, Gate
from bascule.updater.rebooting import LOOK_AGAIN, PATIENCE, Rebooting
from bascule.updater.schedule import parse_schedule
from bascule.updater.windows import parse_windows
from etcd_server import serve

NIGHT = 1_711_850_400.0  # Sun 2024-03-31 02:00 UTC
WINDOW = parse_schedule(reboots=parse_windows(["Sun 02:00 2h UTC"]), spread=False)
STAGED = Facts(staged="5.0", blessed=True, schedule=WINDOW, zone="UTC")
INHIBITED = replace(STAGED, surroundings=Surroundings(inhibitors=(Inhibitor("dnf", "installs"),)))


class Lock:
    def __init__(self, log: list[str], name: str = "fleetlock") -> None:
        self.name = name
        self.log = log
        self.answer: Grant | Refused = Grant(name)
        self.trouble = ""
        self.held = False

    async def acquire(self) -> Grant | Refused:
        self.log.append("acquire")
        if isinstance(self.answer, Grant) or self.answer.unsure:
            self.held = True
        return self.answer

    async def release(self) -> str:
        self.log.append("release")
        self.held = self.held and bool(self.trouble)
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
    log: list[str] = field(default_factory=list)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    refusal: NotRebootable | None = None
    during_notice: Callable[[], None] = lambda: None
    due: bool = True
    trial: bool = False

    def __post_init__(self) -> None:
        self.lock = Lock(self.log)
        self.rebooting = self.drive(lambda: self.lock)

    def drive(self, lock: Callable[[], Any]) -> Rebooting:
        return Rebooting(
            facts=self._gather,
            coordinator=lock,
            rebooter=lambda: self,
            due=lambda: self.due,
            on_trial=lambda: self.trial,
            notice=self._notice,
            tell=lambda event, **facts: self.told.append((event, facts)),
            show=self._show,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _gather(self, lock: LockView | None) -> Facts:
        return replace(self.facts, lock=lock)

    async def reboot(self, reason: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.log.append("reboot")

    async def _notice(self, sentence: str) -> None:
        self.log.append("notice")
        self.during_notice()

    def _show(self, gates: list[Gate]) -> None:
        self.shown = [g.name for g in gates]

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.told]


async def test_open_gates_lead_through_the_lock_into_the_reboot() -> None:
    host = Host()
    assert await host.rebooting.step() == PATIENCE
    assert host.log == ["acquire", "notice", "reboot"]
    assert host.events == ["reboot"] and host.shown == []


async def test_no_lock_is_asked_for_while_a_local_gate_is_closed() -> None:
    host = Host(now=NIGHT - 30)
    assert await host.rebooting.step() == 30
    host.now = NIGHT - 7200
    assert await host.rebooting.step() == 3600
    assert host.shown == ["window"]
    host.facts, host.now = INHIBITED, NIGHT
    assert await host.rebooting.step() == LOOK_AGAIN
    assert "acquire" not in host.log


async def test_a_refusal_is_told_once_and_asked_again_ever_later() -> None:
    host = Host()
    host.lock.answer = Refused("fleetlock", "all slots are taken")
    assert [await host.rebooting.step() for _ in range(4)] == [5, 10, 20, 40]
    assert host.events == ["reboot-refused"]
    host.lock.answer = Refused("fleetlock", "never", final=True)
    assert await host.rebooting.step() == PATIENCE
    host.lock.answer = Grant("fleetlock")
    await host.rebooting.step()
    assert host.log[-1] == "reboot"


async def test_the_lock_is_given_back_when_the_window_ends() -> None:
    host = Host()
    host.refusal = NotRebootable("logind: busy")
    await host.rebooting.step()
    assert host.events == ["reboot", "reboot-trouble"]
    host.now = NIGHT + 7200
    await host.rebooting.step()
    assert host.log == ["acquire", "notice", "release"]
    await host.rebooting.step()
    assert host.log == ["acquire", "notice", "release"]
    assert host.events[-1] == "lock-released" and not host.lock.held


async def test_a_lock_that_cannot_be_given_back_is_given_back_later() -> None:
    host = Host()
    host.refusal = NotRebootable("logind: busy")
    await host.rebooting.step()
    host.now, host.lock.trouble = NIGHT + 7200, "connection refused"
    await host.rebooting.step()
    host.lock.trouble = ""
    await host.rebooting.step()
    assert host.log.count("release") == 2
    assert "lock-not-released" in host.events


async def test_who_cancels_during_the_notice_is_heard() -> None:
    host = Host()

    def cancel() -> None:
        host.due = False

    host.during_notice = cancel
    await host.rebooting.step()
    assert host.log == ["acquire", "notice", "release"]


async def rests(host: Host, until: Callable[[], bool]) -> None:
    """Run the loop while `until` is false; its sleeps and changes cost turns of the loop only."""

    async def changed() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(host.rebooting.run(changed))
    for _ in range(200):
        await asyncio.sleep(0)
        if until():
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert until()


@pytest.mark.parametrize("due", [False, True])
async def test_a_lock_that_a_dead_daemon_held_is_given_back(due: bool) -> None:
    """Taken by a process that died before the reboot; the next one knows nothing of it."""
    host = Host(due=due, now=NIGHT + 7200)
    host.lock.held = True
    assert host.rebooting.holds_lock is None
    await rests(host, lambda: not host.lock.held)
    assert host.log == ["release"]
    assert host.rebooting.holds_lock is False


async def test_the_trial_of_an_update_keeps_its_lock_until_it_is_blessed() -> None:
    host = Host(due=False, trial=True)
    host.lock.held = True
    turns = 0

    def patient() -> bool:
        nonlocal turns
        turns += 1
        return turns > 50

    await rests(host, patient)
    assert host.log == [] and host.lock.held
    host.trial = False
    await rests(host, lambda: not host.lock.held)


async def test_a_server_that_is_away_is_asked_to_take_the_lock_back_until_it_does() -> None:
    host = Host(due=False)
    host.lock.held, host.lock.trouble = True, "connection refused"
    began = host.now

    def comes_back() -> bool:
        if host.log.count("release") == 4:
            host.lock.trouble = ""
        return not host.lock.held

    await rests(host, comes_back)
    assert host.log == ["release"] * 5
    assert host.now - began == 5 + 10 + 20 + 40
    assert host.events == ["lock-not-released"], "the same trouble is told once"


async def test_an_answer_that_got_lost_may_have_been_a_yes() -> None:
    host = Host()
    host.lock.answer = Refused("fleetlock", "timed out", unsure=True)
    await host.rebooting.step()
    assert host.rebooting.holds_lock is None and host.lock.held
    host.now = NIGHT + 7200
    await host.rebooting.step()
    assert host.log == ["acquire", "release"] and not host.lock.held

    plain = Host()
    plain.lock.answer = Refused("fleetlock", "all slots are taken")
    await plain.rebooting.step()
    plain.now = NIGHT + 7200
    await plain.rebooting.step()
    assert plain.log == ["acquire"], "who was refused holds nothing"


async def test_a_daemon_that_stops_gives_the_lock_back() -> None:
    host = Host()
    waiting = asyncio.Event()

    async def warn(sentence: str) -> None:
        waiting.set()
        await asyncio.Event().wait()

    host.rebooting._notice = warn
    await rests(host, waiting.is_set)
    assert host.log == ["acquire", "release"] and not host.lock.held


async def test_a_daemon_that_stops_because_the_host_reboots_keeps_the_lock() -> None:
    host = Host()
    await rests(host, lambda: "reboot" in host.log)
    assert host.lock.held


async def test_the_stop_that_cuts_off_the_answer_to_a_reboot_keeps_the_lock() -> None:
    host = Host()
    asked = asyncio.Event()

    async def reboot(reason: str) -> None:
        asked.set()
        await asyncio.Event().wait()

    host.reboot = reboot  # type: ignore[method-assign]
    await rests(host, asked.is_set)
    assert host.log == ["acquire", "notice"] and host.lock.held


async def test_the_window_may_end_during_the_notice() -> None:
    host = Host()

    def late() -> None:
        host.now = NIGHT + 7200

    host.during_notice = late
    assert await host.rebooting.step() == LOOK_AGAIN
    assert host.log == ["acquire", "notice", "release"]


async def test_a_lock_goes_back_to_where_it_was_taken() -> None:
    """The operator changes the strategy while the lock is held."""
    host = Host()
    host.refusal = NotRebootable("logind: busy")
    old = host.lock
    await host.rebooting.step()
    host.lock = Lock(host.log, "etcd-lock")
    host.refusal = None
    await host.rebooting.step()
    assert not old.held and host.lock.held
    free = Host()
    free.refusal = NotRebootable("logind: busy")
    taken = free.lock
    await free.rebooting.step()
    free.lock, free.due = Lock(free.log, "off"), False
    await rests(free, lambda: not taken.held)


async def test_a_boot_that_is_decided_gives_the_lock_back() -> None:
    host = Host()
    await host.rebooting.give_back()
    assert host.log == ["release"]
    free = Host()
    free.lock.name = "reboot"
    await free.rebooting.give_back()
    assert free.log == [] and free.rebooting.holds_lock is False


async def test_a_reboot_by_hand_that_fails_does_not_keep_the_lock() -> None:
    host = Host(due=False)
    host.refusal = NotRebootable("logind: busy")
    with pytest.raises(NotRebootable, match="busy"):
        await host.rebooting.by_hand("an operator asked")
    assert host.lock.held
    await rests(host, lambda: not host.lock.held)
    lost = Host(due=False)
    lost.lock.answer = Refused("fleetlock", "timed out", unsure=True)
    with pytest.raises(NotRebootable, match="timed out"):
        await lost.rebooting.by_hand("an operator asked")
    await rests(lost, lambda: not lost.lock.held)


async def test_a_reboot_by_hand_that_is_under_way_keeps_the_lock_for_a_while() -> None:
    host = Host(due=False)
    await host.rebooting.by_hand("an operator asked")
    began = host.now
    await rests(host, lambda: not host.lock.held)
    assert host.now - began >= PATIENCE


async def test_by_hand_goes_past_the_window_and_not_past_an_inhibitor_or_the_lock() -> None:
    host = Host(now=NIGHT - 7200)
    await host.rebooting.by_hand("an operator asked")
    assert host.log == ["acquire", "reboot"]
    blocked = Host(INHIBITED)
    with pytest.raises(NotRebootable, match="dnf"):
        await blocked.rebooting.by_hand("an operator asked")
    assert blocked.log == ["acquire"]
    blocked.due = False
    await rests(blocked, lambda: not blocked.lock.held)
    refused = Host()
    refused.lock.answer = Refused("fleetlock", "all slots are taken")
    with pytest.raises(NotRebootable, match="all slots are taken"):
        await refused.rebooting.by_hand("an operator asked")


async def test_it_runs_until_it_is_cancelled() -> None:
    host = Host(due=False)
    rounds = 0

    async def changed() -> None:
        nonlocal rounds
        rounds += 1
        host.due = rounds > 1
        if rounds > 3:
            await asyncio.Event().wait()

    task = asyncio.create_task(host.rebooting.run(changed))
    while rounds < 4:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "reboot" in host.log


# ── two hosts and a real etcd


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("etcd") is None:
        pytest.skip("etcd-server is not installed")
    yield from serve(tmp_path_factory.mktemp("etcd-two"))


@pytest.fixture
async def two(etcd_url: str) -> AsyncIterator[list[tuple[Host, EtcdLock, Rebooting]]]:
    found: list[tuple[Host, EtcdLock, Rebooting]] = []
    for letter in "ab":
        host = Host()

        def lock(host: Host = host, letter: str = letter) -> EtcdLock:
            return EtcdLock([etcd_url], letter * 32, clock=lambda: host.now)

        found.append((host, lock(), host.drive(lock)))
    yield found
    for _, own, _ in found:
        await own.close()


async def test_one_of_two_hosts_reboots_at_a_time_and_a_dead_one_is_named(
    two: list[tuple[Host, EtcdLock, Rebooting]],
) -> None:
    (first, first_lock, first_way), (second, second_lock, second_way) = two
    await first_way.step()
    await second_way.step()
    assert first.log == ["notice", "reboot"]
    assert second.log == [] and second.events == ["reboot-refused"]

    # The first host comes back and is blessed.
    await first_way.give_back()
    await second_way.step()
    assert second.log == ["notice", "reboot"]

    # The second host is killed while it holds the lock, and never comes back.
    first.now = NIGHT + 7 * 86400
    await first_way.step()
    assert first.log == ["notice", "reboot"]
    view = await first_lock.view()
    facts = replace(STAGED, strategy="etcd-lock", lock=view)
    told = "\n".join(explain(facts, first.now).lines())
    assert f"The reboot lock is held by {'b' * 32} for 7 d (etcd-lock)" in told
    assert f"release it: bascule lock release {'b' * 32}" in told
    assert await second_lock.evict("b" * 32) == ""
    await first_way.step()
    assert first.log == ["notice", "reboot"] * 2
    await first_way.give_back()
