"""The calls to workers that turn admitted prompts into outcomes, a method for each step of a source.

    online        sample (a rollout worker)  ─groups─▶  judge (a reward worker)  ─▶  outcomes
    online BDHS   bdhs_pairs (a rollout worker)                                  ─▶  outcomes

What becomes of an outcome is the producer's business.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from cluster.run.outcome import GroupOutcome
from cluster.run.turns import Turns
from cluster.runtime.clients import RewardClient, RolloutClient
from common.config import RunConfig
from common.protocols import GenerationRequest
from common.records import Dropped, Prompt, RolloutGroup
from common.seeding import derive_seed

Admitted: TypeAlias = list[tuple[str, Prompt]]
"""Group ids and their prompts."""


class GroupCalls:
    """Reward workers take turns; of rollout workers the caller names one."""

    def __init__(
        self, config: RunConfig, reward: Sequence[RewardClient], turns: Turns
    ) -> None:
        self._config = config
        self._reward = itertools.cycle(reward)
        self._turns = turns

    async def sample(
        self, worker: RolloutClient, admitted: Admitted
    ) -> list[RolloutGroup | Dropped]:
        """Sample k completions of each prompt."""
        requests: list[GenerationRequest] = []
        for group_id, prompt in admitted:
            requests.append(self._request(group_id, prompt))
        async with self._turns.sampling():
            results = await worker.generate(requests)
        assert len(results) == len(requests)
        return results

    async def judge(
        self, sampled: Sequence[RolloutGroup | Dropped]
    ) -> list[GroupOutcome]:
        """Let a judge rank or score the completions of every group."""
        groups: list[RolloutGroup] = []
        refused: list[GroupOutcome] = []
        for result in sampled:
            if isinstance(result, Dropped):
                refused.append(GroupOutcome(result.id, dropped=result))
            else:
                groups.append(result)
        if not groups:
            return refused
        outcomes = []
        judged_groups = await next(self._reward).rank(groups)
        for group, judged in zip(groups, judged_groups, strict=True):
            outcomes.append(GroupOutcome.of_judged(group, judged))
        return outcomes + refused

    async def bdhs_pairs(
        self, worker: RolloutClient, admitted: Admitted
    ) -> list[GroupOutcome]:
        """Draw rejected answers from the current policy by BDHS; the references are the chosen ones."""
        async with self._turns.sampling():
            results = await worker.bdhs_pairs(admitted)
        outcomes = []
        for (group_id, _), result in zip(admitted, results, strict=True):
            outcomes.append(GroupOutcome.of_bdhs(group_id, result))
        return outcomes

    def _request(self, group_id: str, prompt: Prompt) -> GenerationRequest:
        rollout = self._config.rollout
        # Seeded per group, not per call: the order of calls is not reproducible.
        seed = None
        if rollout.deterministic:
            seed = derive_seed(self._config.run.seed, "rollout", group_id)
        return GenerationRequest(
            group_id,
            prompt,
            rollout.num_completions,
            rollout.temperature,
            rollout.max_tokens,
            seed,
            rollout.top_p,
            logprobs=self._config.judged_loss.reads_sampling,
        )


def usable_part(
    admitted: Sequence[tuple[str, Prompt | Dropped]],
) -> tuple[list[GroupOutcome], Admitted]:
    """What became of the groups whose row cannot be used, and the other groups."""
    outcomes = []
    usable = []
    for group_id, prompt in admitted:
        if isinstance(prompt, Dropped):
            dropped = replace(prompt, id=group_id)
            outcomes.append(GroupOutcome(group_id, dropped=dropped))
        else:
            usable.append((group_id, prompt))
    return outcomes, usable
