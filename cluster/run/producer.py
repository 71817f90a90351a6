"""The rollout side of the loop: admitted prompts become preference pairs, judged or BDHS's, and pairs become batches.

Whatever its source, an admitted group comes to exactly one outcome: it becomes a pair (with a policy gradient several,
all or none), or is dropped with a reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from cluster.run.drop_notes import DropNotes, UsablePrompts, WorkingJudge
from cluster.run.group_calls import GroupCalls, usable_part
from cluster.run.outcome import GroupOutcome
from cluster.run.recorder import Recorder
from cluster.run.state import RunState
from cluster.run.training_data import TrainingData
from cluster.run.turns import Turns
from cluster.runtime.clients import RewardClient, RolloutClient
from cluster.sampling.admission import Admission, StalenessWindow
from cluster.sampling.mixture import build_mixture, online_counts
from cluster.sampling.replay import ReplayBuffer
from cluster.sampling.sampler import build_sampler
from common.config import RunConfig
from common.errors import Halted, UserError
from common.records import Dropped, PreferencePair, Prompt, RolloutGroup
from common.sources import ONLINE_BDHS

log = logging.getLogger("sightline")

ROUNDS_WITHOUT_VERDICT = 4
"""How often all places of the judge may come back without any verdict before the run stops."""


class Producer:
    """Keeps rollouts in flight as far as admission allows; hands whole batches to the learner side."""

    def __init__(
        self,
        config: RunConfig,
        reward: Sequence[RewardClient],
        data: TrainingData,
        state: RunState,
        recorder: Recorder,
        turns: Turns,
    ) -> None:
        """Continue at `state`, which the producer advances in place.

        Raises:
            UserError: the offline set has another size than when the state was saved.
        """
        seed = config.run.seed
        self._config = config
        self._calls = GroupCalls(config, reward, turns)
        self._state = state
        self._recorder = recorder
        self._sampler = build_sampler(config, data.prompts, state.sampler, state.rounds)
        self._buffer = ReplayBuffer(
            data.offline,
            seed,
            config.offline_draw,
            state.buffer,
            config.mixture.online_uses,
        )
        self._mixture = build_mixture(config.mixture, config.learner, seed)
        self._window = StalenessWindow(
            config.learner.num_steps,
            config.loop.publish_interval,
            config.run_ahead,
            state.step,
            state.version,
        )
        self._admissions = self._build_admissions()
        self.drop_notes = DropNotes()
        # By source: what one can use may be refused by another.
        self._usable: dict[str, UsablePrompts] = {}
        for source, admission in self._admissions.items():
            any_usable = admission.accepted > 0
            self._usable[source] = UsablePrompts(data.prompts, any_usable)
        self._num_calls_begun = 0
        self._num_calls_settled = 0
        self._num_judge_places = config.reward.concurrency * config.reward.num_workers
        # Groups that were sampled and are with a judge.
        self._num_judged = 0
        self._working_judge = WorkingJudge(
            ROUNDS_WITHOUT_VERDICT * self._num_judge_places,
            works=state.accepted.total() > 0,
        )
        self._halted: Halted | None = None
        self.next_step = state.step + 1
        # Notified whenever a place or a pair may have become free.
        self._changed = asyncio.Condition()

    def _build_admissions(self) -> dict[str, Admission]:
        """One per online source, with the pairs accepted before a resume."""
        config = self._config
        steps_done = range(1, self._state.step + 1)
        admissions = {}
        for source in config.online_sources:
            admission = Admission(
                partial(self._num_planned, source),
                self._window,
                1 if source == ONLINE_BDHS else config.pairs_per_group,
                source,
                self._state.accepted,
            )
            admission.on_version(self._state.version)
            wanted = [self._wanted(step)[source] for step in steps_done]
            admission.on_short(self._buffer.used.short(source, wanted))
            admissions[source] = admission
        return admissions

    def _wanted(self, step: int) -> dict[str, int]:
        """Online pairs of a step by source."""
        return online_counts(self._mixture, step, self._config.online_sources)

    def _num_planned(self, source: str, step: int) -> int:
        return self._buffer.used.planned(self._wanted(step))[source]

    async def work(self, worker: RolloutClient) -> None:
        """Make pairs until cancelled. Several of these may run on one worker to keep its engine busy.

        The next call is sampled while the judge has the groups of those before it.
        """
        async with asyncio.TaskGroup() as judging:
            while self._halted is None:
                source, admitted = await self._admit()
                turn = self._num_calls_begun
                self._num_calls_begun += 1
                unusable, usable = usable_part(admitted)
                if not usable:
                    await self._settle(source, unusable, turn)
                elif source == ONLINE_BDHS:
                    outcomes = await self._calls.bdhs_pairs(worker, usable)
                    await self._settle(source, unusable + outcomes, turn)
                else:
                    sampled = await self._calls.sample(worker, usable)
                    await self._take_judge_places(len(sampled))
                    judging.create_task(
                        self._judge_and_settle(worker, source, unusable, sampled, turn)
                    )

    async def _judge_and_settle(
        self,
        worker: RolloutClient,
        source: str,
        unusable: list[GroupOutcome],
        sampled: Sequence[RolloutGroup | Dropped],
        turn: int,
    ) -> None:
        try:
            outcomes = await self._calls.judge_and_sample_on(worker, sampled)
        except Halted as reason:
            await self.halt(reason)
            return
        # Before the turn is waited for: an earlier call may still need the places.
        async with self._changed:
            self._num_judged -= len(sampled)
            self._changed.notify_all()
        await self._settle(source, unusable + outcomes, turn)

    async def _take_judge_places(self, count: int) -> None:
        """Wait until the judges are not all busy: behind a slow judge no groups pile up and age."""
        async with self._changed:
            while self._num_judged >= self._num_judge_places:
                await self._changed.wait()
            self._num_judged += count

    async def batch(self, step: int, version: int) -> list[PreferencePair]:
        """Wait for the pairs of a learner step: online ones fresh enough for `version`, then offline ones.

        Online pairs that were trained on before stand behind the others.

        Raises:
            Halted: the judge cannot go on, and too few pairs are left.
            UserError: no pair was accepted for `loop.stall_limit_s`; the message holds the drop histogram.
        """
        online = await self._take_online(step, version)
        num_offline = self._config.learner.global_batch - len(online)
        unusable: list[Dropped] = []
        offline = self._buffer.take_offline(num_offline, unusable)
        for dropped in unusable:
            self._note_unusable(dropped)
        self.next_step = step + 1
        return online + offline

    def foreseen_online(self, step: int) -> list[PreferencePair]:
        """The online pairs that `batch(step)` will begin with, as far as they are here; no batch before it is left."""
        # The learner may refuse a pair that was to come again: then a fresh one takes its place.
        planned = self._buffer.used.planned(self._wanted(step))
        version = self._window.version_at(step)
        return self._buffer.foresee(planned, version, self._config.loop.max_staleness)

    def foreseen_offline(self, step: int) -> dict[int, PreferencePair]:
        """The offline pairs of `batch(step)` by their place in it."""
        num_online = sum(self._wanted(step).values())
        num_offline = self._config.learner.global_batch - num_online
        pairs = self._buffer.foresee_offline(num_offline)
        return dict(enumerate(pairs, start=num_online))

    async def other_count(self, count: int) -> int:
        """Wait until another number of online pairs is accepted than this one; returns it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_accepted != count)
            return self._num_accepted

    def _note_unusable(self, dropped: Dropped) -> None:
        """Count an offline pair whose row cannot be used."""
        self._state.drops[dropped.reason] += 1
        self.drop_notes.add(dropped)
        self._recorder.row(dropped)

    async def on_version(self, version: int) -> None:
        """A new version is in the engines: more groups may start."""
        async with self._changed:
            for admission in self._admissions.values():
                admission.on_version(version)
            self._changed.notify_all()

    async def halt(self, reason: Halted) -> None:
        """Begin no more groups. Steps whose pairs are there are still trained; then `batch` raises."""
        async with self._changed:
            self._halted = reason
            self._changed.notify_all()

    def discard(self, pair: PreferencePair, dropped: Dropped) -> None:
        """A pair is not used after all: it is stale, or the learner refused it."""
        self._state.drops[dropped.reason] += 1
        self.drop_notes.add(dropped)
        num_uses = self.uses.get(pair.id, 1) - 1
        self._recorder.discard(dropped, num_uses)
        self._buffer.used.forget(pair.id)
        # Offline pairs have no version; they never took a place. One that was trained on before has used its place.
        if pair.weight_version is not None and not num_uses:
            self._admissions[pair.source].on_discarded()

    @property
    def uses(self) -> dict[str, int]:
        """Online pair -> the batches that it was in, the last one included; {} where no pair comes again."""
        return self._buffer.used.counts()

    def note_offline(self, margins: Mapping[str, float]) -> None:
        """The implicit reward margins of offline pairs, as the learner said when it trained on them."""
        self._buffer.note_offline(margins)

    async def _take_online(self, step: int, version: int) -> list[PreferencePair]:
        """Wait for the fresh pairs of a step, and take them and those that come again."""
        wanted = self._wanted(step)
        used = self._buffer.used
        limit = self._config.loop.max_staleness
        again = used.again(wanted, version, limit)
        missing = Counter(wanted)
        missing.subtract(pair.source for pair in again)
        planned = used.planned(wanted)
        async with self._changed:
            for source, admission in self._admissions.items():
                admission.on_short(missing[source] - planned[source])
            self._changed.notify_all()
        fresh = await self._take_fresh(missing, version)
        # Not before: a run that ends while it waits has not trained on them once more.
        used.note(fresh, again, version, limit)
        return fresh + again

    async def _take_fresh(
        self, wanted: Mapping[str, int], version: int
    ) -> list[PreferencePair]:
        """Wait until `wanted[source]` pairs of every source are fresh enough, and take them."""
        loop = self._config.loop
        num_wanted = sum(wanted.values())
        num_accepted = self._num_accepted
        last_progress = time.monotonic()
        next_heartbeat = last_progress + loop.heartbeat_s
        async with self._changed:
            while True:
                stale = self._buffer.evict(version, loop.max_staleness)
                for pair, dropped in stale:
                    self.discard(pair, dropped)
                pairs = self._buffer.take(wanted)
                if len(pairs) == num_wanted:
                    return pairs
                if self._halted is not None:
                    raise self._halted
                # Stale pairs gave their places back.
                if stale:
                    self._changed.notify_all()
                now = time.monotonic()
                if self._num_accepted != num_accepted:
                    num_accepted = self._num_accepted
                    last_progress = now
                if now - last_progress > loop.stall_limit_s:
                    raise UserError(self._stall_message(wanted, now - last_progress))
                # Not after every wait: groups that are dropped notify all the time.
                if now >= next_heartbeat:
                    log.warning(self._waiting_message(wanted))
                    next_heartbeat = now + loop.heartbeat_s
                # A moment later than the limit, so that the next turn sees it passed.
                stalls_at = last_progress + loop.stall_limit_s + 0.01
                await self._wait_for_change(min(next_heartbeat, stalls_at) - now)

    async def _wait_for_change(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._changed.wait()

    @property
    def _num_accepted(self) -> int:
        return sum(admission.accepted for admission in self._admissions.values())

    def _waiting_message(self, wanted: Mapping[str, int]) -> str:
        running = sum(admission.running for admission in self._admissions.values())
        return (
            f"waiting for {_counts(wanted)} online pairs: {self._buffer.num_online} buffered, {running} "
            f"groups in flight, dropped so far {self.drop_notes.told(self._state.drops)}"
        )

    def _stall_message(self, wanted: Mapping[str, int], waited_s: float) -> str:
        return (
            f"loop: expected {_counts(wanted)} online pairs, got no new pair for {waited_s:.0f} s; "
            f"dropped {self.drop_notes.told(self._state.drops)}; "
            "raise rollout.temperature, num_completions or max_completions if groups tie, or look at the judge"
        )

    async def _admit(self) -> tuple[str, list[tuple[str, Prompt | Dropped]]]:
        """Wait for places; returns prompts for the source that has the most."""
        async with self._changed:
            while True:
                # The source that lags most goes first: a step waits for all of them.
                source = max(self._admissions, key=lambda s: self._admissions[s].free)
                most = self._config.rollout.prompts_per_call
                num_groups = self._admissions[source].admit(most)
                if num_groups:
                    return source, [self._sampler.next() for _ in range(num_groups)]
                await self._changed.wait()

    async def _settle(
        self, source: str, outcomes: Sequence[GroupOutcome], turn: int
    ) -> None:
        """Account for groups that have come to their outcome (UserError when no prompt or no verdict can be used)."""
        admission = self._admissions[source]
        async with self._changed:
            # Two calls to the judge may come back in either order; a deterministic run keeps that of admission.
            while self._config.rollout.deterministic and turn > self._num_calls_settled:
                await self._changed.wait()
            # Nothing is awaited from here on, so a checkpoint sees a group settled as a whole or not at all.
            self._num_calls_settled += 1
            for outcome in outcomes:
                # What BDHS cannot use may be of worth to a judge.
                worth = None if source == ONLINE_BDHS else outcome.worth
                self._sampler.finish(outcome.group_id, worth)
                if outcome.dropped is not None:
                    self._state.drops[outcome.dropped.reason] += 1
                    self.drop_notes.add(outcome.dropped)
                    admission.on_dropped()
                else:
                    for pair in outcome.pairs:
                        self._buffer.add(pair)
                    admission.on_accepted()
                self._recorder.group(source, outcome)
                self._usable[source].note(outcome)
                self._working_judge.note(outcome)
            self._changed.notify_all()


def _counts(wanted: Mapping[str, int]) -> str:
    """`8`, or with several sources `8 (online 5, online_bdhs 3)`."""
    total = str(sum(wanted.values()))
    if len(wanted) == 1:
        return total
    parts = ", ".join(f"{source} {count}" for source, count in wanted.items())
    return f"{total} ({parts})"
