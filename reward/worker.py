"""The reward worker: groups in, pairs or reasons out. A plain class; `cluster` runs it as a Ray actor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)

from common.config import RunConfig
from common.protocols import Judge, JudgeError
from common.records import Dropped, Judged, PreferencePair, RolloutGroup, Verdict
from common.shapes.truth import MissingTruth
from common.sources import RLOO
from reward.judges import make_judge
from reward.ranking import check_verdict, rank
from reward.rloo import rloo_pairs

log = logging.getLogger(__name__)

BACKOFF_S = 0.2
"""Pause before the first retry; doubles with each, up to `MAX_BACKOFF_S`."""

MAX_BACKOFF_S = 5.0


Paired: TypeAlias = PreferencePair | tuple[PreferencePair, ...] | Dropped


class RewardWorker:
    """Judges groups and pairs the best completion with the worst.

    A judge that fails (JudgeError) is asked again up to `reward.max_retries` times, then the group is dropped as
    `judge_failed`: a verdict is never made up. Any other exception is a bug and is raised.
    """

    def __init__(
        self,
        config: RunConfig,
        judge: Judge | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._settings = config.reward
        self._judged_source = config.judged_source
        self._judge = judge or make_judge(config.reward.judge)
        self._backoff_s = backoff_s

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """What becomes of every group, in order."""
        pair: Callable[[RolloutGroup, Verdict], Paired] = rloo_pairs
        if self._judged_source != RLOO:
            pair = partial(rank, min_margin=self._settings.min_margin)
        judged = []
        for group, verdict in zip(groups, await self.judge(groups), strict=True):
            if isinstance(verdict, Dropped):
                judged.append(Judged(group.id, dropped=verdict))
            else:
                judged.append(_judged(group, verdict, pair(group, verdict)))
        return judged

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One checked verdict or reason (`judge_failed`, `bad_verdict`) per group, in order."""
        return [self._judge_one(group) for group in groups]

    def _judge_one(self, group: RolloutGroup) -> Verdict | Dropped:
        attempts = Retrying(
            stop=stop_after_attempt(self._settings.max_retries + 1),
            wait=wait_exponential(multiplier=self._backoff_s, max=MAX_BACKOFF_S),
            retry=retry_if_exception(_can_retry),
            before_sleep=lambda state: _log_retry(group, state),
            reraise=True,
        )
        try:
            verdict: Verdict = attempts(self._judge.judge, group)
        except JudgeError as error:
            return Dropped(
                group.id, "judge_failed", f"judge {self._judge.name}: {error}"
            )
        return check_verdict(group, verdict) or verdict


def _judged(group: RolloutGroup, verdict: Verdict, result: Paired) -> Judged:
    if isinstance(result, Dropped):
        return Judged(group.id, dropped=result, verdict=verdict)
    if isinstance(result, PreferencePair):
        texts = [completion.text for completion in group.completions]
        chosen = texts.index(result.chosen.text)
        rejected = texts.index(result.rejected.text)
        return Judged(group.id, (result,), None, verdict, (chosen,), (rejected,))
    scores = verdict.scores
    sides = []
    for index in range(0, len(scores), 2):
        first_is_better = scores[index] >= scores[index + 1]
        sides.append((index, index + 1) if first_is_better else (index + 1, index))
    return Judged(
        group.id,
        result,
        None,
        verdict,
        tuple(better for better, _ in sides),
        tuple(worse for _, worse in sides),
    )


def _can_retry(error: BaseException) -> bool:
    return isinstance(error, JudgeError) and not isinstance(error, MissingTruth)


def _log_retry(group: RolloutGroup, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "group %s: the judge failed in attempt %d (%s), retrying",
        group.id,
        state.attempt_number,
        error,
    )
