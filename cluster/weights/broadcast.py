"""Weights in buckets from the learner to the workers of all engines at once.

engines that are there and of the same model   check_push     the others fail here, and cost nobody anything
a place to meet                                meeting_place  of the learner, as far as its engines are away
one group for this push                        push, receive  side by side
a group that fell apart                        again, without the engine that is to blame
proof                                          prove          with the manifest, which is known at the end
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient
from cluster.weights.outcomes import sorted_out
from cluster.weights.transport import Delivered
from common.config import RunConfig
from common.errors import UserError
from common.push.meeting import EngineSeat, Meeting, Place, PushBroken
from common.push.plan import PushPlan
from common.records import LoadReport, WeightManifest

log = logging.getLogger("sightline")

MAX_UNEXPLAINED = 2
"""How often a group may fall apart without anybody to blame."""


@dataclass(slots=True)
class _Engine:
    """An engine of a delivery.

    Attributes:
        seat: what it said of itself.
        outcome: how it ended; None while it has not.
    """

    client: RolloutClient
    seat: EngineSeat | None = None
    outcome: LoadReport | Exception | None = None


class Broadcast:
    """A `WeightTransport`."""

    def __init__(self, config: RunConfig, learner: LearnerClient, turns: Turns) -> None:
        self._by_ipc = config.transport == "ipc"
        self._shares_gpus = config.shares_gpus
        self._wire = config.weights.wire
        self._timeout_s = config.weights.timeout_s
        self._learner = learner
        self._turns = turns

    async def deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
        sent: Callable[[], None] = lambda: None,
    ) -> Delivered:
        await self._turns.wake()
        members = [_Engine(client) for client in engines]
        # By value: it is small, and every engine gets it twice.
        plan = await self._learner.plan_push()
        await _seat_all(version, plan, members)
        num_unexplained = 0
        broken = ""
        while num_unexplained < MAX_UNEXPLAINED:
            num_left = _num_left(members)
            manifest, broken = await self._round(version, plan, members, sent)
            if manifest is not None:
                await self._prove(manifest, members)
                return _delivered(manifest, members)
            # Otherwise an engine that failed is out, and the next round has one engine less.
            num_unexplained += _num_left(members) == num_left
        # With no engine to blame it is the way between them.
        raise UserError(broken)

    async def _round(
        self,
        version: int,
        plan: PushPlan,
        members: Sequence[_Engine],
        sent: Callable[[], None],
    ) -> tuple[WeightManifest | None, str]:
        """Send to all engines that have not failed; no manifest, but a reason, when their group fell apart."""
        present = [member for member in members if member.outcome is None]
        meeting, ranks = await self._meeting(version, present)
        receiving = []
        for member, rank in zip(present, ranks, strict=True):
            call = member.client.receive(version, plan, meeting, rank)
            receiving.append(asyncio.create_task(call))
        telling = asyncio.create_task(_tell_of_losses(present, receiving, meeting))
        try:
            manifest, broken = await self._learner.push(version, meeting)
        except BaseException:
            for task in receiving:
                task.cancel()
            await asyncio.gather(*receiving, return_exceptions=True)
            raise
        finally:
            telling.cancel()
        if manifest is not None:
            sent()
            outcomes = await asyncio.gather(*receiving, return_exceptions=True)
        else:
            log.warning("weights %d: %s", version, broken)
            outcomes = await self._after_a_break(present, receiving)
        for member, outcome in zip(present, outcomes, strict=True):
            # Whoever only says that the group fell apart can join the next one; so can who got all of it.
            is_lost = isinstance(outcome, Exception) and not isinstance(
                outcome, PushBroken
            )
            if manifest is not None or is_lost:
                member.outcome = _checked(outcome)
        return manifest, broken

    async def _meeting(
        self, version: int, present: Sequence[_Engine]
    ) -> tuple[Meeting, list[int]]:
        """Where this round meets, and the first rank of each engine."""
        seats = [member.seat for member in present if member.seat is not None]
        networks = sorted({seat.network for seat in seats})
        place = await self._learner.meeting_place(networks)
        ranks = []
        num_members = 1
        for seat in seats:
            ranks.append(num_members)
            num_members += seat.num_workers
        meeting = Meeting(
            address=place.address,
            port=place.port,
            # Never used before in the learner's store, whoever asks it for pushes.
            key=f"push/{version}/{uuid4().hex}",
            backend=self._backend(place, seats),
            num_members=num_members,
            timeout_s=self._timeout_s,
        )
        return meeting, ranks

    def _backend(self, place: Place, seats: Sequence[EngineSeat]) -> str:
        if self._by_ipc:
            return "ipc"
        if self._wire == "gloo":
            return "gloo"
        devices = {place.device} | {seat.device for seat in seats}
        # NCCL takes a GPU once: where an engine has the learner's, weights go through the host's memory.
        if devices == {"cuda"} and not self._shares_gpus:
            return "nccl"
        memories = {place.memory} | {seat.memory for seat in seats}
        is_shared = len(memories) == 1 and memories != {""}
        return "shm" if is_shared else "gloo"

    async def _after_a_break(
        self,
        present: Sequence[_Engine],
        receiving: Sequence[asyncio.Task[LoadReport]],
    ) -> list[LoadReport | BaseException]:
        """What the engines say of a group that fell apart; who says nothing in time hangs, and is to blame."""
        await asyncio.wait(receiving, timeout=self._timeout_s)
        for task in receiving:
            task.cancel()
        answers = await asyncio.gather(*receiving, return_exceptions=True)
        outcomes: list[LoadReport | BaseException] = []
        for member, outcome in zip(present, answers, strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                outcome = member.client.given_up(
                    f"got no answer within {self._timeout_s:g} s of the end of a weight push; look at its log, or "
                    "raise weights.timeout_s"
                )
            outcomes.append(outcome)
        return outcomes

    async def _prove(
        self, manifest: WeightManifest, members: Sequence[_Engine]
    ) -> None:
        """Let every engine that got the weights prove that it runs them."""
        proving = [
            member for member in members if isinstance(member.outcome, LoadReport)
        ]
        calls = []
        for member in proving:
            assert isinstance(member.outcome, LoadReport)
            calls.append(member.client.prove(manifest, member.outcome))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for member, outcome in zip(proving, outcomes, strict=True):
            member.outcome = _checked(outcome)


def _num_left(members: Sequence[_Engine]) -> int:
    """How many have not failed."""
    return sum(member.outcome is None for member in members)


async def _seat_all(version: int, plan: PushPlan, members: Sequence[_Engine]) -> None:
    """Ask every engine whether it takes the push, and where it is."""
    asked = [member.client.check_push(version, plan) for member in members]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for member, answer in zip(members, answers, strict=True):
        if isinstance(answer, EngineSeat):
            member.seat = answer
        elif isinstance(answer, Exception):
            member.outcome = answer
        else:
            raise answer


async def _tell_of_losses(
    present: Sequence[_Engine],
    receiving: Sequence[asyncio.Task[LoadReport]],
    meeting: Meeting,
) -> None:
    """Let an engine that lives tell the others of one whose whole worker died: it could tell nobody itself."""
    if not receiving:
        return
    await asyncio.wait(receiving, return_when=asyncio.FIRST_EXCEPTION)
    lost = []
    for task in receiving:
        if task.done() and not task.cancelled() and task.exception() is not None:
            lost.append(task)
    living = [
        member.client
        for member, task in zip(present, receiving, strict=True)
        if not task.done()
    ]
    if lost and living:
        reason = f"an engine failed: {lost[0].exception()}"
        with suppress(Exception):
            await living[0].break_push(meeting, reason)


def _checked(outcome: LoadReport | BaseException) -> LoadReport | Exception:
    if isinstance(outcome, LoadReport | Exception):
        return outcome
    raise outcome


def _delivered(manifest: WeightManifest, members: Sequence[_Engine]) -> Delivered:
    engines = [member.client for member in members]
    outcomes = [member.outcome for member in members]
    reports, failures = sorted_out(engines, outcomes)
    return Delivered(manifest, reports, failures)
