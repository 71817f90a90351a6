"""The rollout side of the loop: admitted prompts become preference pairs in the replay buffer, judged or BDHS's.

Whatever its source, an admitted group id comes to exactly one outcome: it becomes a pair (with RLOO several, all or
none), or is dropped with a reason.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

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
from common.sources import ONLINE_BDHS, RLOO
from cluster.replay import ReplayBuffer
from reward.worker import Paired

log = logging.getLogger("sightline")

Admitted = list[tuple[str, Prompt]]
"""Group ids and their prompts."""


class Outcome(NamedTuple):
    """What became of an admitted group. `group` is None when there is none to show, `scores` without a verdict."""

    id: str
    group: RolloutGroup | None
    result: tuple[PreferencePair, ...] | Dropped
    scores: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        id: str,
        group: RolloutGroup | None,
        result: Paired,
        scores: tuple[float, ...] | None = None,
    ) -> Outcome:
        return cls(
            id,
            group,
            (result,) if isinstance(result, PreferencePair) else result,
            scores,
        )


class Producer:
    """Keeps rollouts in flight as far as admission allows; hands complete online batches to the learner side."""

    def __init__(
        self,
        config: RunConfig,
        reward: Sequence[Handle],
        frontier: Frontier,
        admissions: Mapping[str, Admission],
        buffer: ReplayBuffer,
        journal: Journal,
        pairs: OnlinePairs,
    ) -> None:
        """`admissions` by online source (`RunConfig.online_sources`)."""
        self._config = config
        self._reward = itertools.cycle(reward)
        self.frontier = frontier
        self.admissions = admissions
        self.buffer = buffer
        self._journal = journal
        self._pairs = pairs
        self._unsaved: list[PreferencePair] = []
        self._changed = asyncio.Condition()
        self.drops: Counter[str] = Counter()

    async def work(self, worker: Handle) -> None:
        """Make pairs until cancelled. Several of these may run on one worker to keep its engine busy."""
        while True:
            source, admitted = await self._admit()
            make = self._bdhs if source == ONLINE_BDHS else self._judged
            await self._settle(source, await make(worker, admitted))

    async def _judged(self, worker: Handle, admitted: Admitted) -> list[Outcome]:
        """Sample k completions of each prompt and let a judge rank or score them."""
        limit = self._config.loop.call_timeout_s
        requests = [self._request(group_id, prompt) for group_id, prompt in admitted]
        results = await answer(
            worker.call("generate", requests), limit, "rollout worker"
        )
        groups = [result for result in results if isinstance(result, RolloutGroup)]
        reward = next(self._reward)
        method = "rloo" if self._config.judged_source == RLOO else "rank"
        ranked = (
            await answer(reward.call(method, groups), limit, "reward worker")
            if groups
            else []
        )
        assert len(results) == len(requests) and len(ranked) == len(groups)
        refused = [result for result in results if isinstance(result, Dropped)]
        judged = [
            Outcome.of(group.id, group, *found)
            for group, found in zip(groups, ranked, strict=True)
        ]
        return judged + [Outcome(dropped.id, None, dropped) for dropped in refused]

    async def _bdhs(self, worker: Handle, admitted: Admitted) -> list[Outcome]:
        """Draw rejected answers from the current policy by BDHS; the references are the chosen ones."""
        limit = self._config.loop.call_timeout_s
        results = await answer(
            worker.call("bdhs_pairs", admitted), limit, "rollout worker"
        )
        return [
            Outcome.of(id, None, result)
            for (id, _), result in zip(admitted, results, strict=True)
        ]

    async def take(
        self, wanted: Mapping[str, int], version: int
    ) -> list[PreferencePair]:
        """Wait until these many pairs of each source are fresh enough for learner version `version`, and take them.

        Raises:
            UserError: no pair was accepted for `loop.stall_limit_s`; the message holds the drop histogram.
        """
        loop = self._config.loop
        last_count, last_progress = self._num_accepted, time.monotonic()
        next_beat = last_progress + loop.heartbeat_s
        async with self._changed:
            while True:
                stale = self.buffer.evict(version, loop.max_staleness)
                for pair, dropped in stale:
                    self.discard(dropped, pair.source)
                pairs, _ = self.buffer.take(wanted, version, loop.max_staleness)
                if len(pairs) == sum(wanted.values()):
                    return pairs
                if stale:
                    self._changed.notify_all()
                if self._num_accepted != last_count:
                    last_count, last_progress = self._num_accepted, time.monotonic()
                now = time.monotonic()
                if now - last_progress > loop.stall_limit_s:
                    raise UserError(self._stall_message(wanted, now - last_progress))
                if (
                    now >= next_beat
                ):  # groups that come to nothing wake this up all the time
                    log.warning(self._waiting_message(wanted))
                    next_beat = now + loop.heartbeat_s
                pause = min(next_beat, last_progress + loop.stall_limit_s + 0.01) - now
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._changed.wait()

    def discard(self, dropped: Dropped, source: str) -> None:
        """An accepted online pair is not used after all (stale, or refused by the learner)."""
        self.drops[dropped.reason] += 1
        self._journal.write(
            "discard", id=dropped.id, reason=dropped.reason, detail=dropped.detail
        )
        self.admissions[source].on_discarded()

    def save_pairs(self, step: int) -> None:
        """Write the pairs accepted since the last checkpoint to the run's own pair set."""
        self._pairs.write(step, self._unsaved)
        self._unsaved = []

    async def on_version(self, version: int) -> None:
        """A new version is in the engines: more groups may start."""
        async with self._changed:
            for admission in self.admissions.values():
                admission.on_version(version)
            self._changed.notify_all()

    @property
    def _num_accepted(self) -> int:
        return sum(admission.accepted for admission in self.admissions.values())

    async def _admit(self) -> tuple[str, Admitted]:
        """Wait for places; prompts for the source that has the most."""
        async with self._changed:
            while True:
                source, admission = max(
                    self.admissions.items(), key=lambda item: item[1].free
                )
                if places := admission.admit(self._config.rollout.prompts_per_call):
                    return source, [self.frontier.next() for _ in range(places)]
                await self._changed.wait()

    def _request(self, group_id: str, prompt: Prompt) -> GenerationRequest:
        rollout = self._config.rollout
        seed = (
            derive_seed(self._config.run.seed, "rollout", group_id)
            if rollout.deterministic
            else None
        )
        return GenerationRequest(
            group_id,
            prompt,
            rollout.num_completions,
            rollout.temperature,
            rollout.max_tokens,
            seed,
            rollout.top_p,
        )

    async def _settle(self, source: str, outcomes: Sequence[Outcome]) -> None:
        admission = self.admissions[source]
        async with self._changed:
            for outcome in outcomes:
                self.frontier.finish(outcome.id)
                if isinstance(outcome.result, Dropped):
                    self.drops[outcome.result.reason] += 1
                    admission.on_dropped()
                else:
                    for pair in outcome.result:
                        self.buffer.add(pair)
                    self._unsaved += outcome.result
                    admission.on_accepted()
                self._journal.write(
                    "group", id=outcome.id, source=source, **_outcome_fields(outcome)
                )
            self._changed.notify_all()

    def _waiting_message(self, wanted: Mapping[str, int]) -> str:
        running = sum(admission.running for admission in self.admissions.values())
        return (
            f"waiting for {_counts(wanted)} online pairs: {self.buffer.num_online} buffered, {running} "
            f"groups in flight, dropped so far {dict(self.drops)}"
        )

    def _stall_message(self, wanted: Mapping[str, int], waited: float) -> str:
        return (
            f"loop: expected {_counts(wanted)} online pairs, got no new pair for {waited:.0f} s; dropped "
            f"{dict(self.drops)}; raise rollout.temperature or num_completions if groups tie, or look at the judge"
        )


def _counts(wanted: Mapping[str, int]) -> str:
    """`8`, or with several sources `8 (online 5, online_bdhs 3)`."""
    parts = ", ".join(f"{source} {count}" for source, count in wanted.items())
    return (
        f"{sum(wanted.values())} ({parts})"
        if len(wanted) > 1
        else str(sum(wanted.values()))
    )


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    group, result = outcome.group, outcome.result
    if group is not None:
        fields["completions"] = [completion.text for completion in group.completions]
        fields["weight_versions"] = [
            completion.min_weight_version for completion in group.completions
        ]
    if outcome.scores is not None:
        fields["verdict"] = outcome.scores
    if isinstance(result, Dropped):
        return fields | {"outcome": result.reason, "detail": result.detail}
    if group is None:
        fields["completions"] = [pair.rejected.text for pair in result]
        fields["weight_versions"] = [pair.weight_version for pair in result]
    if len(result) == 1 and result[0].id == outcome.id:
        return fields | {"outcome": "pair", "scores": result[0].scores}
    return fields | {
        "outcome": "pair",
        "pairs": {pair.id: pair.scores for pair in result},
    }
