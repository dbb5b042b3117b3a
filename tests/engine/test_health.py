"""The runner and its programs: pace, limit, floods, process groups."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.health import (
    Answer,
    Attempt,
    CheckResult,
    Host,
    Outcome,
    Pace,
    Script,
    run,
)
from bascule.engine.health.check import OUTPUT_LIMIT, Tail

QUICK = Pace(timeout=20, retries=0, interval=0)


@dataclass
class FakeTime:
    """A clock that moves only when everybody waits for it."""

    now: float = 0.0
    sleepers: list[tuple[float, asyncio.Future[None]]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        bell: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now + seconds, bell))
        await bell

    async def drive(self, task: asyncio.Task[list[CheckResult]]) -> list[CheckResult]:
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            self.sleepers = [(t, b) for t, b in self.sleepers if not b.done()]
            if self.sleepers and not task.done():
                at, bell = min(self.sleepers, key=lambda s: s[0])
                self.now = max(self.now, at)
                bell.set_result(None)
        return task.result()


@dataclass
class Told:
    """A check that answers what it is told, each answer after so many seconds."""

    name: str
    answers: list[tuple[float, Outcome]]
    time: FakeTime
    required: bool = True
    pace: Pace = QUICK
    asked: int = 0
    if_cut: Outcome = Outcome.FAIL

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        seconds, outcome = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        attempt.if_cut = self.if_cut
        attempt.doing = "thinking"
        attempt.output.add(f"turn {self.asked}".encode())
        await self.time.sleep(seconds)
        return Answer(outcome, "" if outcome is Outcome.PASS else f"{self.name} said so")


async def driven(
    time: FakeTime, checks: list[Told], limit: float | None = None
) -> list[CheckResult]:
    task = asyncio.create_task(run(checks, clock=time.clock, sleep=time.sleep, limit=limit))
    return await time.drive(task)


async def test_retries_until_it_passes() -> None:
    time = FakeTime()
    check = Told(
        "late",
        [(1, Outcome.FAIL), (1, Outcome.INCONCLUSIVE), (1, Outcome.PASS)],
        time,
        pace=Pace(timeout=10, retries=5, interval=7),
    )
    (result,) = await driven(time, [check])
    assert result.outcome is Outcome.PASS
    assert result.attempts == 3
    assert result.seconds == 1 + 7 + 1 + 7 + 1
    assert result.output == "turn 3"


async def test_gives_up_after_the_last_retry() -> None:
    time = FakeTime()
    check = Told("bad", [(0, Outcome.FAIL)], time, pace=Pace(timeout=5, retries=2, interval=3))
    (result,) = await driven(time, [check])
    assert (result.outcome, result.attempts) == (Outcome.FAIL, 3)
    assert result.reason == "bad said so"


@pytest.mark.parametrize("meaning", [Outcome.FAIL, Outcome.INCONCLUSIVE])
async def test_timeout_means_what_the_check_says(meaning: Outcome) -> None:
    time = FakeTime()
    check = Told("slow", [(99, Outcome.PASS)], time, pace=Pace(timeout=8), if_cut=meaning)
    (result,) = await driven(time, [check])
    assert result.outcome is meaning
    assert result.reason == "slow was still thinking after 8 s"
    assert time.now == 8


async def test_limit_keeps_the_last_answer_and_leaves_the_rest_inconclusive() -> None:
    time = FakeTime()
    failing = Told("failing", [(1, Outcome.FAIL)], time, pace=Pace(5, 100, 10))
    silent = Told("silent", [(500, Outcome.PASS)], time, pace=Pace(1000))
    fine = Told("fine", [(2, Outcome.PASS)], time)
    results = await driven(time, [failing, silent, fine], limit=60)
    assert [r.outcome for r in results] == [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS]
    assert [r.name for r in results] == ["failing", "silent", "fine"]
    assert "had not answered" in results[1].reason
    assert time.now == 60


@pytest.mark.parametrize(
    ("decided", "wanted", "attempts", "ends"),
    [
        (1, [(2, Outcome.FAIL)], 1, 2),
        (1, [(50, Outcome.PASS)], 1, 50),
        (25, [(2, Outcome.FAIL)], 3, 26),
        (25, [(2, Outcome.FAIL), (2, Outcome.PASS)], 2, 25),
    ],
)
async def test_what_is_not_required_holds_nobody_up(
    decided: float, wanted: list[tuple[float, Outcome]], attempts: int, ends: float
) -> None:
    """It is asked again while something required is undecided, and its attempt comes to its end."""
    time = FakeTime()
    required = Told("required", [(decided, Outcome.PASS)], time, pace=Pace(60))
    other = Told("wanted", wanted, time, required=False, pace=Pace(60, 100, 10))
    results = await driven(time, [required, other])
    assert [r.outcome for r in results] == [Outcome.PASS, wanted[-1][1]]
    assert (results[1].attempts, time.now) == (attempts, ends)


async def test_where_nothing_is_required_all_turns_are_taken() -> None:
    time = FakeTime()
    other = Told("wanted", [(2, Outcome.FAIL)], time, required=False, pace=Pace(60, 3, 10))
    (result,) = await driven(time, [other])
    assert result.attempts == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 4), st.integers(1, 30))
async def test_whoever_waits_as_long_as_the_pace_says_hears_the_last_attempt(
    timeout: int, retries: int, interval: int
) -> None:
    time = FakeTime()
    pace = Pace(timeout, retries, interval)
    check = Told("silent", [(10_000, Outcome.PASS)], time, pace=pace)
    (result,) = await driven(time, [check], limit=pace.patience)
    assert (result.outcome, result.attempts) == (Outcome.FAIL, retries + 1)
    assert time.now == pytest.approx(timeout * (retries + 1) + interval * retries)


async def test_all_at_once() -> None:
    time = FakeTime()
    checks = [Told(f"c{n}", [(10, Outcome.PASS)], time) for n in range(50)]
    results = await driven(time, checks)
    assert time.now == 10
    assert all(r.outcome is Outcome.PASS for r in results)


async def test_a_check_that_breaks_is_inconclusive() -> None:
    class Broken:
        name, required, pace = "broken", True, QUICK

        async def ask(self, host: Host, attempt: Attempt) -> Answer:
            raise RuntimeError("oops")

    (result,) = await run([Broken()], clock=FakeTime().clock)
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "oops" in result.reason


async def test_nothing_to_ask() -> None:
    assert await run([], clock=FakeTime().clock) == []


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(list(Outcome))), min_size=1, max_size=5
    ),
    timeout=st.integers(1, 25),
    retries=st.integers(0, 4),
    interval=st.integers(0, 20),
    limit=st.none() | st.integers(0, 120),
)
def test_time_and_attempts_are_bounded(
    answers: list[tuple[float, Outcome]],
    timeout: int,
    retries: int,
    interval: int,
    limit: int | None,
) -> None:
    time = FakeTime()
    check = Told("any", answers, time, pace=Pace(timeout, retries, interval))
    (result,) = asyncio.run(driven(time, [check], limit))
    longest = (retries + 1) * timeout + retries * interval
    assert time.now <= (longest if limit is None else min(longest, limit))
    assert result.attempts <= retries + 1
    if result.outcome is Outcome.PASS:
        seconds, outcome = answers[min(result.attempts - 1, len(answers) - 1)]
        assert outcome is Outcome.PASS
        assert seconds <= timeout


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 400))
def test_tail_is_the_end_of_what_came(chunks: list[bytes], limit: int) -> None:
    tail = Tail(limit)
    for chunk in chunks:
        tail.add(chunk)
    whole = b"".join(chunks)
    assert tail.total == len(whole)
    kept = whole[-limit:].decode("utf-8", "replace")
    assert tail.text().endswith(kept)
    assert (len(whole) > limit) == tail.text().startswith("[") or kept.startswith("[")


def script(tmp_path: Path, name: str, body: str, pace: Pace = QUICK, **more: object) -> Script:
    path = tmp_path / name
    path.write_text(textwrap.dedent(body))
    path.chmod(0o755)
    return Script(path, f"health.d:{name}", (str(path),), pace=pace, **more)  # type: ignore[arg-type]


@pytest.fixture
def host() -> Host:
    return Host(environment={"PATH": os.environ["PATH"], "GREETING": "hello"})


async def asked(check: Script, host: Host) -> CheckResult:
    loop = asyncio.get_running_loop()
    (result,) = await run([check], host=host, clock=loop.time)
    return result


async def test_exit_status_and_output(tmp_path: Path, host: Host) -> None:
    good = await asked(script(tmp_path, "good", "#!/bin/sh\necho $GREETING; echo err >&2\n"), host)
    assert good.outcome is Outcome.PASS
    assert good.output == "hello\nerr\n"
    bad = await asked(script(tmp_path, "bad", "#!/bin/sh\necho no; exit 7\n"), host)
    assert bad.outcome is Outcome.FAIL
    assert bad.reason == "bad failed with exit status 7"
    assert bad.output == "no\n"


async def test_tempfail_only_where_it_is_spoken(tmp_path: Path, host: Host) -> None:
    ours = script(tmp_path, "ours", "#!/bin/sh\nexit 75\n", tempfail=True)
    assert (await asked(ours, host)).outcome is Outcome.INCONCLUSIVE
    theirs = script(tmp_path, "theirs", "#!/bin/sh\nexit 75\n")
    assert (await asked(theirs, host)).outcome is Outcome.FAIL


async def test_no_interpreter_line(tmp_path: Path, host: Host) -> None:
    assert (await asked(script(tmp_path, "plain", "exit 0\n"), host)).outcome is Outcome.PASS
    assert (await asked(script(tmp_path, "plain2", "exit 3\n"), host)).outcome is Outcome.FAIL


async def test_cannot_be_run(tmp_path: Path, host: Host) -> None:
    result = await asked(script(tmp_path, "odd", "#!/no/such/interpreter\n"), host)
    assert result.outcome is Outcome.FAIL
    assert "could not be run" in result.reason


async def test_killed_by_a_signal(tmp_path: Path, host: Host) -> None:
    result = await asked(script(tmp_path, "suicide", "#!/bin/sh\nkill -9 $$\n"), host)
    assert result.outcome is Outcome.FAIL
    assert result.reason == "suicide was ended by signal 9"


async def test_flood_is_bounded_and_its_end_is_kept(tmp_path: Path, host: Host) -> None:
    body = "#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' x\necho the end\nexit 1\n"
    result = await asked(script(tmp_path, "flood", body), host)
    assert result.outcome is Outcome.FAIL
    assert result.output.endswith("the end\n")
    assert len(result.output) <= OUTPUT_LIMIT + 100
    assert result.output.startswith("[")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    while alive(pid):
        await asyncio.sleep(0.01)


async def when(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_timeout_kills_the_whole_group(tmp_path: Path, host: Host) -> None:
    pid_file = tmp_path / "child"
    body = f"#!/bin/sh\ntrap '' TERM\nsleep 1000 & echo $! > {pid_file}.new\nmv {pid_file}.new {pid_file}\nwait\n"
    check = script(tmp_path, "stuck", body, pace=Pace(timeout=1))

    async def until_started(seconds: float) -> None:
        await when(pid_file.exists)

    loop = asyncio.get_running_loop()
    (result,) = await run([check], host=host, clock=loop.time, sleep=until_started)
    assert result.outcome is Outcome.FAIL
    assert result.reason == "health.d:stuck was still running stuck after 1 s"
    await gone(int(pid_file.read_text()))


async def test_endless_flood_is_ended(tmp_path: Path, host: Host) -> None:
    check = script(tmp_path, "yes", "#!/bin/sh\nexec yes endless\n", pace=Pace(timeout=0.3))
    result = await asked(check, host)
    assert result.outcome is Outcome.FAIL
    assert result.output.rstrip().endswith("endless"[-1:]) or "endless" in result.output
    assert len(result.output) <= OUTPUT_LIMIT + 100


async def test_child_left_behind_does_not_hold_the_check(tmp_path: Path, host: Host) -> None:
    pid_file = tmp_path / "left"
    body = f"#!/bin/sh\nsleep 1000 &\necho $! > {pid_file}\nexit 0\n"
    result = await asked(script(tmp_path, "leaver", body), host)
    assert result.outcome is Outcome.PASS
    await gone(int(pid_file.read_text()))


async def test_cancelling_the_run_leaves_nothing(tmp_path: Path, host: Host) -> None:
    pid_file = tmp_path / "pid"
    check = script(tmp_path, "long", f"#!/bin/sh\necho $$ > {pid_file}\nexec sleep 1000\n")
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(run([check], host=host, clock=loop.time))
    await when(lambda: pid_file.exists() and pid_file.read_text().strip() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int(pid_file.read_text()))


def test_result_survives_json() -> None:
    result = CheckResult("x", True, Outcome.FAIL, "x failed", ("a", "b"), "out", 3, 1.5)
    assert CheckResult.from_dict(result.as_dict()) == result
    for broken in ({}, {"name": "x"}, {"name": "x", "required": True, "outcome": "maybe"}):
        with pytest.raises(ValueError):
            CheckResult.from_dict(broken)
