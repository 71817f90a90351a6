"""Asking judges and workers in tests, which are not coroutines; and a judge that fails as often as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.protocols import Judge, JudgeError
from common.records import Dropped, RolloutGroup, Verdict

CLEAR = Verdict((1.0, 0.0))


def verdict_of(judge: Judge, group: RolloutGroup) -> Verdict | Dropped:
    """What `judge` makes of one group; raises the JudgeError when that is all it has."""
    (verdict,) = asyncio.run(judge.judge([group]))
    if isinstance(verdict, JudgeError):
        raise verdict
    return verdict


def scores_of(judge: Judge, group: RolloutGroup) -> tuple[float, ...]:
    """The scores of a group that has a verdict."""
    verdict = verdict_of(judge, group)
    assert isinstance(verdict, Verdict), verdict
    return verdict.scores


class FlakyJudge:
    """Fails `failures` times per group, then returns `verdict`. One failing group fails the whole call."""

    name = "flaky"

    def __init__(self, failures: int, verdict: Verdict = CLEAR) -> None:
        self.failures = failures
        self.verdict = verdict
        self.calls: dict[str, int] = {}

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        for group in groups:
            self.calls[group.id] = self.calls.get(group.id, 0) + 1
            if self.calls[group.id] <= self.failures:
                raise JudgeError("server busy")
        return [self.verdict for _ in groups]
