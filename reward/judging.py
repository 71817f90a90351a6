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
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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

    @asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[None]:
        """Hold so many places, which must not be more than there are."""
        num_taken = 0
        try:
            # One taker at a time: two that hold a part of what they need would wait for each other.
            async with self._queue:
                while num_taken < count:
                    await self._free.acquire()
                    num_taken += 1
            yield
        finally:
            for _ in range(num_taken):
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
        self._concurrency = concurrency
        self._places = Places(concurrency)
        self._cache = cache
        self._backoff_s = backoff_s

    async def verdicts(self, groups: Groups) -> list[Verdict | Dropped]:
        """One checked verdict or reason (`judge_failed`, `bad_verdict`) per group, in order."""
        verdicts: dict[int, Verdict | Dropped] = await self._cached(groups)
        unknown = [index for index in range(len(groups)) if index not in verdicts]
        calls = []
        # Together where it is allowed: some judges are faster on many groups.
        for start in range(0, len(unknown), self._concurrency):
            indices = unknown[start : start + self._concurrency]
            calls.append(self._judged([groups[index] for index in indices]))
        judged = [verdict for part in await asyncio.gather(*calls) for verdict in part]
        verdicts.update(zip(unknown, judged, strict=True))
        return [verdicts[index] for index in range(len(groups))]

    async def _cached(self, groups: Groups) -> dict[int, Verdict | Dropped]:
        """The verdicts that are known, by the index of their group."""
        if self._cache is None:
            return {}
        # In a thread: the folder may be on a slow disk.
        return dict(await asyncio.to_thread(self._cache.get_all, groups))

    async def _judged(self, groups: Groups) -> list[Verdict | Dropped]:
        answers = await self._ask(groups)
        calls = []
        for group, answer in zip(groups, answers, strict=True):
            calls.append(self._final(group, answer))
        verdicts = list(await asyncio.gather(*calls))
        if self._cache is not None:
            await asyncio.to_thread(self._cache.put_all, groups, verdicts)
        return verdicts

    async def _final(self, group: RolloutGroup, answer: Answer) -> Verdict | Dropped:
        """Ask about one group until the judge answers or the retries are used up; check the answer."""
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
            (answer,) = await self._ask([group])
        if isinstance(answer, JudgeError):
            return self._dropped(group, "judge_failed", answer)
        # The judge's reason to drop a group stands.
        if isinstance(answer, Dropped):
            return answer
        fault = check_verdict(group, answer)
        if fault is not None:
            return self._dropped(group, fault.reason, fault.detail)
        return answer

    async def _ask(self, groups: Groups) -> Sequence[Answer]:
        """One call of the judge; a failure for all is put in the place of every group."""
        try:
            async with self._places.take(len(groups)):
                answers = await self._judge.judge(groups)
        except JudgeError as error:
            if len(groups) == 1:
                return [error]
            # One group may have failed the call for all: ask about each alone.
            log.warning(
                "judge %s failed on %d groups (%s)",
                self._judge.name,
                len(groups),
                error,
            )
            alone = await asyncio.gather(*[self._ask([group]) for group in groups])
            return [answer for (answer,) in alone]
        if len(answers) != len(groups):
            raise RuntimeError(
                f"judge {self._judge.name}: expected one verdict for each of {len(groups)} groups (prompt "
                f"{groups[0].prompt.id} first), got {len(answers)}; repair the judge"
            )
        return answers

    def _dropped(self, group: RolloutGroup, reason: str, why: object) -> Dropped:
        return Dropped(group.id, reason, f"{self._named(group)}: {why}")

    def _named(self, group: RolloutGroup) -> str:
        return f"judge {self._judge.name}, prompt {group.prompt.id}"
