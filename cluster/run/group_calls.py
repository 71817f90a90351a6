"""The calls to workers that turn admitted prompts into outcomes, a method for each step of a source.

    online        sample (a rollout worker)  ─groups─▶  judge (a reward worker)  ─▶  outcomes
                       ▲───────────── ties, where `rollout.max_completions` allows ─────┘
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
        k = self._config.rollout.num_completions
        requests: list[GenerationRequest] = []
        for group_id, prompt in admitted:
            requests.append(self._request(group_id, prompt, k))
        return await self._generated(worker, requests)

    async def _generated(
        self, worker: RolloutClient, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
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

    async def judge_and_sample_on(
        self, worker: RolloutClient, sampled: Sequence[RolloutGroup | Dropped]
    ) -> list[GroupOutcome]:
        """Judge groups. Those that tie though their answers differ grow and are judged anew, as far as k may grow."""
        outcomes = await self.judge(sampled)
        while ties := self._ties_with_room(outcomes):
            tied_ids = {group.id for group in ties}
            decided = [o for o in outcomes if o.group_id not in tied_ids]
            outcomes = decided + await self.judge(await self._grown(worker, ties))
        return outcomes

    def _ties_with_room(self, outcomes: Sequence[GroupOutcome]) -> list[RolloutGroup]:
        """The groups that tie and have less than `max_completions`."""
        most = self._config.rollout.max_completions or 0
        ties = []
        for outcome in outcomes:
            group = outcome.rollout
            is_tie = outcome.dropped is not None and outcome.dropped.reason == "tie"
            if group is not None and is_tie and len(group.completions) < most:
                ties.append(group)
        return ties

    async def _grown(
        self, worker: RolloutClient, groups: Sequence[RolloutGroup]
    ) -> list[RolloutGroup | Dropped]:
        """The groups with more completions."""
        rollout = self._config.rollout
        requests: list[GenerationRequest] = []
        for group in groups:
            num_before = len(group.completions)
            room = (rollout.max_completions or 0) - num_before
            k = min(rollout.num_completions, room)
            requests.append(self._request(group.id, group.prompt, k, num_before))
        grown: list[RolloutGroup | Dropped] = []
        added = await self._generated(worker, requests)
        for group, more in zip(groups, added, strict=True):
            if isinstance(more, RolloutGroup):
                completions = group.completions + more.completions
                grown.append(replace(group, completions=completions))
            else:
                grown.append(more)
        return grown

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

    def _request(
        self, group_id: str, prompt: Prompt, k: int, num_before: int = 0
    ) -> GenerationRequest:
        """k completions of a group that has `num_before`."""
        rollout = self._config.rollout
        # Seeded per group, not per call: the order of calls is not reproducible.
        seed = None
        if rollout.deterministic:
            names = (group_id, num_before) if num_before else (group_id,)
            seed = derive_seed(self._config.run.seed, "rollout", *names)
        return GenerationRequest(
            group_id,
            prompt,
            k,
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
