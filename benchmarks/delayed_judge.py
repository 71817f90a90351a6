"""The rules of the shapes world behind a delay per group, as a user's own judge (`--reward.judge.kind`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common import config
from common.records import Dropped, RolloutGroup, Verdict
from reward.worlds import rules_judge


class DelayedRules:
    """Waits, as for a server, and then judges by the rules.

    Args:
        delay_s: for every group.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._rules = rules_judge(config.RulesJudge())

    async def judge(self, group: RolloutGroup) -> Verdict | Dropped:
        """The rules' verdict."""
        await asyncio.sleep(self._delay_s)
        groups: Sequence[RolloutGroup] = [group]
        (verdict,) = await self._rules.judge(groups)
        return verdict
