"""The reward worker: groups in, pairs or reasons out. A plain class; `cluster` runs it as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from common.config import RunConfig
from common.protocols import Judge, JudgeError
from common.records import Dropped, Judged, RolloutGroup, Verdict
from common.sources import RLOO
from reward.eyes.factory import EyeTools
from reward.judges.factory import make_judge
from reward.ranking import best_against_worst, check_verdict
from reward.rloo import rloo_pairs

log = logging.getLogger(__name__)

BACKOFF_S = 0.2
"""Pause before the first retry; doubles with each, up to `MAX_BACKOFF_S`."""

MAX_BACKOFF_S = 5.0


class RewardWorker:
    """Judges groups and makes pairs of them: best against worst, or with the RLOO loss all completions two by two.

    A judge that fails (JudgeError) is asked again up to `reward.max_retries` times, then the group is dropped as
    `judge_failed`: a verdict is never made up. Any other exception is a bug and is raised.

    Args:
        judge: takes the place of the configured one.
        tools: what judges that see need, such as clients of engines.
        backoff_s: pause before the first retry.
    """

    def __init__(
        self,
        config: RunConfig,
        judge: Judge | None = None,
        tools: EyeTools | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._settings = config.reward
        self._wants_rloo = config.judged_source == RLOO
        self._judge = judge or make_judge(config.reward.judge, tools)
        self._backoff_s = backoff_s

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """What becomes of every group, in order."""
        verdicts = await self.judge(groups)
        ranked: list[Judged] = []
        for group, verdict in zip(groups, verdicts, strict=True):
            ranked.append(self._rank_group(group, verdict))
        return ranked

    def _rank_group(self, group: RolloutGroup, verdict: Verdict | Dropped) -> Judged:
        if isinstance(verdict, Dropped):
            return Judged(group.id, dropped=verdict)
        if self._wants_rloo:
            return rloo_pairs(group, verdict)
        return best_against_worst(group, verdict, self._settings.min_margin)

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One checked verdict or reason (`judge_failed`, `bad_verdict`) per group, in order."""
        if len(groups) > 1:
            try:
                verdicts = await self._judge.judge(groups)
                return self._checked(groups, verdicts)
            except JudgeError as error:
                # One group may have failed the call for all: ask about each alone.
                log.warning("the judge failed on %d groups (%s)", len(groups), error)
        judgements = [self._judge_alone(group) for group in groups]
        return list(await asyncio.gather(*judgements))

    async def _judge_alone(self, group: RolloutGroup) -> Verdict | Dropped:
        """Ask about one group until the judge answers or the retries are used up."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._settings.max_retries + 1),
            wait=wait_exponential(multiplier=self._backoff_s, max=MAX_BACKOFF_S),
            retry=retry_if_exception_type(JudgeError),
            before_sleep=lambda state: _log_retry(group, state),
            reraise=True,
        )
        try:
            verdicts: list[Verdict | Dropped] = await attempts(
                self._judge.judge, [group]
            )
        except JudgeError as error:
            detail = f"judge {self._judge.name}: {error}"
            return Dropped(group.id, "judge_failed", detail)
        return self._checked([group], verdicts)[0]

    def _checked(
        self, groups: Sequence[RolloutGroup], verdicts: Sequence[Verdict | Dropped]
    ) -> list[Verdict | Dropped]:
        if len(verdicts) != len(groups):
            raise RuntimeError(
                f"judge {self._judge.name}: expected one verdict for each of "
                f"{len(groups)} groups, got {len(verdicts)}; repair the judge"
            )
        checked: list[Verdict | Dropped] = []
        for group, verdict in zip(groups, verdicts, strict=True):
            # The judge's reason to drop a group stands.
            if isinstance(verdict, Dropped):
                checked.append(verdict)
                continue
            dropped = check_verdict(group, verdict)
            checked.append(dropped or verdict)
        return checked


def _log_retry(group: RolloutGroup, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "group %s: the judge failed in attempt %d (%s), retrying",
        group.id,
        state.attempt_number,
        error,
    )
