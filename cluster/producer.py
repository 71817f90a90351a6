"""The rollout side of the loop: admitted prompts become judged preference pairs in the replay buffer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cluster.admission import Admission
from cluster.frontier import Frontier
from cluster.online_pairs import OnlinePairs
from cluster.waiting import answer
from common.config import RunConfig
from common.errors import UserError
from common.journal import Journal
from common.protocols import GenerationRequest, Handle
from common.records import Dropped, PreferencePair, Prompt, RolloutGroup
from common.seeding import derive_seed
from learner.replay import ReplayBuffer

log = logging.getLogger("sightline")


class Producer:
    """Keeps rollouts in flight as far as admission allows; hands complete online batches to the learner side."""

    def __init__(
        self,
        config: RunConfig,
        reward: Sequence[Handle],
        frontier: Frontier,
        admission: Admission,
        buffer: ReplayBuffer,
        journal: Journal,
        pairs: OnlinePairs,
    ) -> None:
        self._config = config
        self._reward = itertools.cycle(reward)
        self.frontier = frontier
        self.admission = admission
        self.buffer = buffer
        self._journal = journal
        self._pairs = pairs
        self._unsaved: list[PreferencePair] = []
        self._changed = asyncio.Condition()
        self.drops: Counter[str] = Counter()

    async def work(self, worker: Handle) -> None:
        """Generate and rank until cancelled. Several of these may run on one worker to keep its engine busy."""
        limit = self._config.loop.call_timeout_s
        while True:
            admitted = await self._admit()
            requests = [self._request(group_id, prompt) for group_id, prompt in admitted]
            results = await answer(worker.call("generate", requests), limit, "rollout worker")
            groups = [result for result in results if isinstance(result, RolloutGroup)]
            reward = next(self._reward)
            ranked = await answer(reward.call("rank", groups), limit, "reward worker") if groups else []
            assert len(results) == len(requests) and len(ranked) == len(groups)
            refused = [result for result in results if isinstance(result, Dropped)]
            await self._settle([*zip(groups, ranked, strict=True), *((None, result) for result in refused)])

    async def take(self, num_online: int, version: int) -> list[PreferencePair]:
        """Wait until `num_online` pairs are fresh enough for learner version `version`, and take them.

        Raises:
            UserError: no pair was accepted for `loop.stall_limit_s`; the message holds the drop histogram.
        """
        loop = self._config.loop
        last_count, last_progress = self.admission.accepted, time.monotonic()
        async with self._changed:
            while True:
                pairs, stale = self.buffer.take(num_online, version, loop.max_staleness)
                for dropped in stale:
                    self.discard(dropped)
                if len(pairs) == num_online:
                    return pairs
                if stale:
                    self._changed.notify_all()
                if self.admission.accepted != last_count:
                    last_count, last_progress = self.admission.accepted, time.monotonic()
                waited = time.monotonic() - last_progress
                if waited > loop.stall_limit_s:
                    raise UserError(self._stall_message(num_online, waited))
                pause = min(loop.heartbeat_s, loop.stall_limit_s - waited + 0.01)
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    log.warning(self._waiting_message(num_online))

    def discard(self, dropped: Dropped) -> None:
        """An accepted online pair is not used after all (stale, or refused by the learner)."""
        self.drops[dropped.reason] += 1
        self._journal.write("discard", id=dropped.id, reason=dropped.reason, detail=dropped.detail)
        self.admission.on_discarded()

    def save_pairs(self, step: int) -> None:
        """Write the pairs accepted since the last checkpoint to the run's own pair set."""
        self._pairs.write(step, self._unsaved)
        self._unsaved = []

    async def on_version(self, version: int) -> None:
        """A new version is in the engines: more groups may start."""
        async with self._changed:
            self.admission.on_version(version)
            self._changed.notify_all()

    async def _admit(self) -> list[tuple[str, Prompt]]:
        async with self._changed:
            while not (places := self.admission.admit(self._config.rollout.prompts_per_call)):
                await self._changed.wait()
        return [self.frontier.next() for _ in range(places)]

    def _request(self, group_id: str, prompt: Prompt) -> GenerationRequest:
        rollout = self._config.rollout
        seed = derive_seed(self._config.run.seed, "rollout", group_id) if rollout.deterministic else None
        return GenerationRequest(
            group_id, prompt, rollout.num_completions, rollout.temperature, rollout.max_tokens, seed, rollout.top_p
        )

    async def _settle(self, outcomes: Sequence[tuple[RolloutGroup | None, PreferencePair | Dropped]]) -> None:
        async with self._changed:
            for group, outcome in outcomes:
                self.frontier.finish(outcome.id)
                if isinstance(outcome, PreferencePair):
                    self.buffer.add(outcome)
                    self._unsaved.append(outcome)
                    self.admission.on_accepted()
                else:
                    self.drops[outcome.reason] += 1
                    self.admission.on_dropped()
                self._journal.write("group", id=outcome.id, **_outcome_fields(group, outcome))
            self._changed.notify_all()

    def _waiting_message(self, num_online: int) -> str:
        return (
            f"waiting for {num_online} online pairs: {self.buffer.num_online} buffered, {self.admission.running} "
            f"groups in flight, dropped so far {dict(self.drops)}"
        )

    def _stall_message(self, num_online: int, waited: float) -> str:
        return (
            f"loop: expected {num_online} online pairs, got no new pair for {waited:.0f} s; dropped "
            f"{dict(self.drops)}; raise rollout.temperature or num_completions if groups tie, or look at the judge"
        )


def _outcome_fields(group: RolloutGroup | None, outcome: PreferencePair | Dropped) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if group is not None:
        fields["completions"] = [completion.text for completion in group.completions]
        fields["weight_versions"] = [completion.min_weight_version for completion in group.completions]
    if isinstance(outcome, PreferencePair):
        return fields | {"outcome": "pair", "scores": outcome.scores}
    return fields | {"outcome": outcome.reason, "detail": outcome.detail}
