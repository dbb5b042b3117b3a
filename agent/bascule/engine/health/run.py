"""Ask all checks at once, each at its own pace, and never longer than the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from bascule.engine.health.check import Answer, Attempt, Check, CheckResult, Host, Outcome

Sleep = Callable[[float], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Progress:
    started: float
    attempt: Attempt = field(default_factory=Attempt)
    answer: Answer | None = None
    answered: Attempt | None = None
    attempts: int = 0


async def run(
    checks: Sequence[Check],
    *,
    host: Host | None = None,
    clock: Callable[[], float],
    sleep: Sleep = asyncio.sleep,
    limit: float | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run `checks` in parallel; results in the order of the checks.

    Once all that are required have ended, the others are not asked again: they hold nobody up for
    longer than their attempt takes.

    Args:
        host: what checks may use.
        clock: monotonic seconds.
        sleep: how to wait; a test passes a fake that agrees with `clock`.
        limit: seconds for all of it. What has no answer then is inconclusive; what has failed
            before and would have been asked again has failed.
        on_result: called as each one ends, for the journal.
    """
    host = host or Host()
    progress = [_Progress(clock()) for _ in checks]
    decided = asyncio.Event()
    undecided = sum(check.required for check in checks)

    async def pause(check: Check) -> bool:
        """Until it is asked again; False if it need not be."""
        if check.required:
            await sleep(check.pace.interval)
            return True
        both = [
            asyncio.ensure_future(sleep(check.pace.interval)),
            asyncio.ensure_future(decided.wait()),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(both)
        return not decided.is_set()

    async def one(check: Check, at: _Progress) -> CheckResult:
        for turn in range(check.pace.retries + 1):
            if turn and not await pause(check):
                break
            at.attempt = Attempt()
            at.attempts += 1
            at.answer = await _ask(check, host, at.attempt, sleep)
            at.answered = at.attempt
            if at.answer.outcome is Outcome.PASS:
                break
        result = _result(check, at, clock())
        if on_result:
            on_result(result)
        nonlocal undecided
        undecided -= check.required
        if check.required and not undecided:
            decided.set()
        return result

    tasks = [
        asyncio.ensure_future(one(check, at)) for check, at in zip(checks, progress, strict=True)
    ]
    if not tasks:
        return []
    try:
        if limit is None:
            await asyncio.wait(tasks)
        else:
            await _within(limit, tasks, sleep)
        results = []
        for check, at, task in zip(checks, progress, tasks, strict=True):
            if task.done() and not task.cancelled():
                results.append(task.result())
            else:
                result = _result(check, at, clock())
                if on_result:
                    on_result(result)
                results.append(result)
        return results
    finally:
        await _end(tasks)


async def _within(
    seconds: float, tasks: Sequence[asyncio.Future[CheckResult]], sleep: Sleep
) -> None:
    bell = asyncio.ensure_future(sleep(max(0.0, seconds)))
    pending: set[asyncio.Future[CheckResult]] = set(tasks)
    try:
        while pending and not bell.done():
            both: set[asyncio.Future[Any]] = {*pending, bell}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            pending = {t for t in pending if not t.done()}
    finally:
        await _end([bell])
        await _end(list(pending))


async def _ask(check: Check, host: Host, attempt: Attempt, sleep: Sleep) -> Answer:
    asking = asyncio.ensure_future(check.ask(host, attempt))
    bell = asyncio.ensure_future(sleep(check.pace.timeout))
    try:
        both: set[asyncio.Future[Any]] = {asking, bell}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            try:
                return asking.result()
            except Exception as error:
                # A check that breaks says nothing about the release it was to judge.
                return Answer(Outcome.INCONCLUSIVE, f"{check.name} broke ({error!r})")
        return Answer(
            attempt.if_cut,
            f"{check.name} was still {attempt.doing} after {check.pace.timeout:g} s",
        )
    finally:
        await _end([asking, bell])


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _result(check: Check, at: _Progress, now: float) -> CheckResult:
    if at.answer is None:
        answer = Answer(Outcome.INCONCLUSIVE, f"{check.name} had not answered when time was up")
        printed = at.attempt.output
    else:
        answer = at.answer
        printed = (at.answered or at.attempt).output
    return CheckResult(
        name=check.name,
        required=check.required,
        outcome=answer.outcome,
        reason=answer.reason,
        subjects=answer.subjects,
        output=printed.text(),
        attempts=at.attempts,
        seconds=max(0.0, now - at.started),
    )
