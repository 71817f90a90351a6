"""What stands between a judge and those who ask it: a limit, a cache, retries, and a check of what it says.

    groups ──▶ VerdictCache ──known──────────────────────────────▶ Verdict
                   │ unknown                                          ▲
                   ▼                                                  │ put
               Places (reward.concurrency) ──▶ Judge.judge ──▶ check ─┤
                   ▲                               │ JudgeError       ▼
                   └──────── pause, alone ◀────────┘          Dropped(judge_failed, bad_verdict)

A verdict is never made up: a group that the judge has none for is dropped with a reason, in one line that names the
judge and the prompt.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from common.protocols import Judge, JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.ranking import check_verdict
from reward.verdict_cache import VerdictCache

log = logging.getLogger(__name__)

Groups: TypeAlias = Sequence[RolloutGroup]
Answer: TypeAlias = Verdict | Dropped | JudgeError

BACKOFF_S = 0.2
"""Pause before the first retry; doubles with each, up to `MAX_BACKOFF_S`."""
MAX_BACKOFF_S = 5.0


class Places:
    """A limit on how many groups are judged at once. Whoever asks first is served first."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._queue = asyncio.Lock()

    async def take(self, most: int) -> int:
        """Wait for a free place, and take up to so many; returns how many."""
        async with self._queue:
            await self._free.acquire()
            num_taken = 1
            # Not more than are free now: to wait for all would leave these unused.
            while num_taken < most and not self._free.locked():
                await self._free.acquire()
                num_taken += 1
        return num_taken

    def give_back(self, count: int) -> None:
        """Free so many places."""
        for _ in range(count):
            self._free.release()


class Judging:
    """Asks a judge, a limited number of groups at once, and again where it failed.

    Args:
        max_retries: for every group, after a JudgeError. Any other exception is a bug and is raised.
        concurrency: groups that are with the judge at once.
        cache: verdicts of earlier runs and other workers.
    """

    def __init__(
        self,
        judge: Judge,
        max_retries: int,
        concurrency: int,
        cache: VerdictCache | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._judge = judge
        self._max_retries = max_retries
        self._places = Places(concurrency)
        self._cache = cache
        self._backoff_s = backoff_s

    async def verdicts(self, groups: Groups) -> list[Verdict | Dropped]:
        """One checked verdict or reason (`judge_failed`, `bad_verdict`) per group, in order."""
        known = await self._cached(groups)
        unknown: list[RolloutGroup] = []
        for index, group in enumerate(groups):
            if index not in known:
                unknown.append(group)
        answers = await self._ask(unknown)
        calls = []
        for group, answer in zip(unknown, answers, strict=True):
            calls.append(self._final(group, answer))
        judged = await asyncio.gather(*calls)
        if self._cache is not None:
            await asyncio.to_thread(self._cache.put_all, unknown, judged)
        rest = iter(judged)
        verdicts: list[Verdict | Dropped] = []
        for index in range(len(groups)):
            verdicts.append(known[index] if index in known else next(rest))
        return verdicts

    async def _cached(self, groups: Groups) -> dict[int, Verdict]:
        """The verdicts that are known, by the index of their group."""
        if self._cache is None:
            return {}
        # In a thread: the folder may be on a slow disk.
        return await asyncio.to_thread(self._cache.get_all, groups)

    async def _ask(self, groups: Groups) -> list[Answer | None]:
        """An answer for every group, in order; None where it was asked together with others, of which one failed."""
        tasks: list[asyncio.Task[Sequence[Answer | None]]] = []
        try:
            start = 0
            while start < len(groups):
                # As many together as there are places: some judges are faster on many groups.
                count = await self._places.take(len(groups) - start)
                part = groups[start : start + count]
                task = asyncio.create_task(self._ask_together(part))
                # Not in the task itself, which may be cancelled before it begins.
                task.add_done_callback(partial(self._give_back, count))
                tasks.append(task)
                start += count
            parts = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        return list(itertools.chain.from_iterable(parts))

    def _give_back(self, count: int, _: object) -> None:
        self._places.give_back(count)

    async def _ask_together(self, groups: Groups) -> Sequence[Answer | None]:
        try:
            return await self._call(groups)
        except JudgeError as error:
            if len(groups) == 1:
                return [error]
            log.warning(
                "judge %s failed on %d groups (%s)",
                self._judge.name,
                len(groups),
                error,
            )
            return [None] * len(groups)

    async def _ask_alone(self, group: RolloutGroup) -> Answer:
        count = await self._places.take(1)
        try:
            (answer,) = await self._call([group])
            return answer
        except JudgeError as error:
            return error
        finally:
            self._places.give_back(count)

    async def _call(self, groups: Groups) -> Sequence[Answer]:
        answers = await self._judge.judge(groups)
        if len(answers) != len(groups):
            raise RuntimeError(
                f"judge {self._judge.name}: expected one verdict for each of {len(groups)} groups (prompt "
                f"{groups[0].prompt.id} first), got {len(answers)}; repair the judge"
            )
        return answers

    async def _final(
        self, group: RolloutGroup, answer: Answer | None
    ) -> Verdict | Dropped:
        """Ask about one group until the judge answers or the retries are used up; check the answer."""
        if answer is None:
            answer = await self._ask_alone(group)
        pause_s = self._backoff_s
        for attempt in range(1, self._max_retries + 1):
            if not isinstance(answer, JudgeError):
                break
            log.warning(
                "%s failed in attempt %d (%s), retrying",
                self._named(group),
                attempt,
                answer,
            )
            # No place is held: others are judged meanwhile.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_BACKOFF_S)
            answer = await self._ask_alone(group)
        if isinstance(answer, JudgeError):
            return self._dropped(group, "judge_failed", answer)
        # The judge's reason to drop a group stands.
        if isinstance(answer, Dropped):
            return answer
        fault = check_verdict(group, answer)
        if fault is not None:
            return self._dropped(group, fault.reason, fault.detail)
        return answer

    def _dropped(self, group: RolloutGroup, reason: str, why: object) -> Dropped:
        return Dropped(group.id, reason, f"{self._named(group)}: {why}")

    def _named(self, group: RolloutGroup) -> str:
        return f"judge {self._judge.name}, prompt {group.prompt.id}"
