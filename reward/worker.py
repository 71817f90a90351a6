"""The reward worker: groups in, pairs or reasons out. A plain class; `cluster` runs it as a Ray actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TypeAlias

from common.config import Reward, RunConfig
from common.config.losses import Grpo, Rloo
from common.protocols import Judge
from common.records import Dropped, Judged, RolloutGroup, Verdict
from reward.eyes.factory import EyeTools
from reward.grpo import grpo_pairs
from reward.judges.factory import judge_identity, make_judge
from reward.judging import BACKOFF_S, Judging
from reward.ranking import best_against_worst
from reward.rloo import rloo_pairs
from reward.verdict_cache import VerdictCache

Pairing: TypeAlias = Callable[[RolloutGroup, Verdict], Judged]
"""What becomes of a group that has a verdict."""


class RewardWorker:
    """Judges groups and makes pairs of them: best against worst, or for a policy gradient all completions two by two.

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
        self._pairs_of = _pairing_of(config)
        self._judge = judge
        self._tools = tools or EyeTools()
        self._backoff_s = backoff_s

    async def start(self) -> None:
        """Make the judge (UserError when it cannot be made). Without this the first call does."""
        # Not in the constructor: of an actor that dies in it, Ray tells no error of ours.
        assert self._judging is not None

    async def usage(self) -> dict[str, float]:
        """What servers have answered this worker and cost, {} for a judge that asks none."""
        return self._tools.usage()

    @cached_property
    def _judging(self) -> Judging:
        settings = self._settings
        return Judging(
            self._judge or make_judge(settings.judge, self._tools),
            settings.max_retries,
            settings.concurrency,
            _cache_of(settings),
            self._backoff_s,
        )

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """What becomes of every group, in order."""
        verdicts = await self.judge(groups)
        ranked: list[Judged] = []
        for group, verdict in zip(groups, verdicts, strict=True):
            ranked.append(self._rank_group(group, verdict))
        return ranked

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One checked verdict or reason (`judge_failed`, `bad_verdict`) per group, in order."""
        return await self._judging.verdicts(groups)

    def _rank_group(self, group: RolloutGroup, verdict: Verdict | Dropped) -> Judged:
        if isinstance(verdict, Dropped):
            return Judged(group.id, dropped=verdict)
        return self._pairs_of(group, verdict)


def _pairing_of(config: RunConfig) -> Pairing:
    loss = config.judged_loss
    if isinstance(loss, Rloo):
        return rloo_pairs
    if isinstance(loss, Grpo):
        return partial(grpo_pairs, normalise=loss.normalise)
    return partial(best_against_worst, min_margin=config.reward.min_margin)


def _cache_of(settings: Reward) -> VerdictCache | None:
    if settings.cache is None:
        return None
    return VerdictCache(settings.cache, judge_identity(settings.judge))
