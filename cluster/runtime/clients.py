"""Typed calls to the workers: one thin client per kind over a `Handle`.

Method names as strings stand here and nowhere else. Every call that a client awaits has a limit
(`loop.call_timeout_s`); a worker that does not answer in time is named in the error.
"""

from __future__ import annotations

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.runtime.waiting import answer, answers
from cluster.runtime.work_log import WorkLog, noted
from cluster.supervision.seat import Seat, WorkerLost
from common.errors import UserError
from common.machine.address import LOOPBACK
from common.protocols import GenerationRequest, Handle, Sight, Tensors
from common.records import (
    Dropped,
    Judged,
    LoadReport,
    LogprobProbe,
    PreferencePair,
    ProbeAnswer,
    ProbeReading,
    Prompt,
    RolloutGroup,
    StepResult,
    Verdict,
    WeightManifest,
    WriteReport,
)

if TYPE_CHECKING:
    # They import torch.
    from common.push.meeting import EngineSeat, Meeting, Place
    from common.push.plan import PushPlan


async def survey(
    handle: Handle,
    limit_s: float,
    peer: str,
    nonce_file: str,
    paths: Sequence[str],
) -> Sight:
    """What a worker of any kind sees of the run's files."""
    reference = handle.call("survey", nonce_file, paths)
    sight: Sight = await answer(reference, limit_s, peer)
    return sight


@dataclass(frozen=True, slots=True)
class RolloutClient:
    """One rollout worker (`actors.rollout.RolloutWorker`)."""

    handle: Handle
    limit_s: float
    peer: str = "rollout worker"
    work: WorkLog | None = None

    async def start(self) -> dict[str, Any]:
        """Start the engine; returns what it reports of itself."""
        report: dict[str, Any] = await self._call("start")
        _note_start(self.handle)
        return report

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One group or reason per request, in order."""
        groups: list[RolloutGroup | Dropped]
        groups = await self._call("generate", list(requests))
        return groups

    async def bdhs_pairs(
        self, groups: Sequence[tuple[str, Prompt]]
    ) -> list[PreferencePair | Dropped]:
        """One BDHS pair or reason per (group id, prompt), in order."""
        pairs: list[PreferencePair | Dropped]
        pairs = await self._call("bdhs_pairs", list(groups))
        return pairs

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        """Token log-probs (nats) of whole answers, or a reason, in order."""
        scores: list[tuple[float, ...] | Dropped]
        scores = await self._call("score", list(answers))
        return scores

    async def encode(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of whole answers, as `score` scores them."""
        token_ids: list[tuple[int, ...]] = await self._call("encode", list(answers))
        return token_ids

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        """How far engine and learner are apart while both hold the start policy."""
        reading: ProbeReading = await self._call("calibrate", probe, proven)
        return reading

    async def load(
        self, manifest: Awaitable[WeightManifest], tensors: Awaitable[Tensors]
    ) -> LoadReport:
        """Swap the engine's weights for published ones, passed on by reference."""
        report: LoadReport = await self._call("load", manifest, tensors)
        return report

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        """Let the engine refuse a push that is not of its model; returns where it is."""
        seat: EngineSeat = await self._call("check_push", version, plan)
        return seat

    async def receive(
        self,
        version: int,
        plan: PushPlan,
        meeting: Meeting,
        first_rank: int,
    ) -> LoadReport:
        """Take the weights that the learner sends to this meeting."""
        report: LoadReport
        report = await self._call("receive", version, plan, meeting, first_rank)
        return report

    def given_up(self, cause: str) -> Exception:
        """The error of a worker that hangs, as only its caller can tell; its seat gets another one."""
        if isinstance(self.handle, Seat):
            return self.handle.give_up(cause)
        return UserError(f"{self.peer}: {cause}")

    async def break_push(self, meeting: Meeting, reason: str) -> None:
        """Let this engine's worker tell the members of a push that it has fallen apart."""
        await self._call("break_push", meeting, reason)

    async def prove(self, manifest: WeightManifest, received: LoadReport) -> LoadReport:
        """Let the engine prove that it runs the weights that it received."""
        report: LoadReport = await self._call("prove", manifest, received)
        return report

    async def sleep(self, level: int) -> None:
        """Free the engine's GPU memory; nothing may be asked of it until it wakes."""
        await self._call("sleep", level)

    async def wake(self) -> None:
        """Take the GPU memory back, with empty caches."""
        await self._call("wake")

    async def close(self) -> None:
        """Stop the engine."""
        await self._call("close")

    @property
    def is_up(self) -> bool:
        """Whether somebody sits there; always true of a worker that nobody watches."""
        return not isinstance(self.handle, Seat) or self.handle.is_up

    async def _call(self, method: str, *args: Any) -> Any:
        with noted(self.work, _name_of(self.handle, self.peer), method, args):
            return await _asked(self.handle, method, args, self.limit_s, self.peer)


@dataclass(frozen=True, slots=True)
class RewardClient:
    """One reward worker (`reward.worker.RewardWorker`)."""

    handle: Handle
    limit_s: float
    work: WorkLog | None = None

    async def start(self) -> None:
        """Make the judge."""
        await self._call("start")
        _note_start(self.handle)

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """What becomes of every group: pairs or a reason, and the verdict."""
        ranked: list[Judged] = await self._call("rank", list(groups))
        return ranked

    async def usage(self) -> dict[str, float]:
        """What servers have answered the judge and cost."""
        usage: dict[str, float] = await self._call("usage")
        return usage

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One checked verdict or reason per group, in order."""
        verdicts: list[Verdict | Dropped] = await self._call("judge", list(groups))
        return verdicts

    async def _call(self, method: str, *args: Any) -> Any:
        peer = "reward worker"
        with noted(self.work, _name_of(self.handle, peer), method, args):
            return await _asked(self.handle, method, args, self.limit_s, peer)


@dataclass(frozen=True, slots=True)
class LearnerClient:
    """All learner ranks. Every rank takes part in every call: their collectives must meet."""

    handles: Sequence[Handle]
    limit_s: float
    work: WorkLog | None = None

    async def start(self) -> list[dict[str, Any]]:
        """Let the ranks meet at rank 0's address and start; returns their reports."""
        # Rank 0 picks the address on its own node; the controller may be on another.
        meetings = await self._call("rendezvous")
        address, port = meetings[0]
        if all(other == address for other, _ in meetings):
            # Ranks of one machine need not be reached from others.
            address = LOOPBACK
        reports = await self._call("start", address, port)
        for handle in self.handles:
            _note_start(handle)
        return reports

    async def prepare(self, step: int, rows: Mapping[int, PreferencePair]) -> None:
        """Let the ranks begin with pictures of a coming step, whose batch has these pairs at these places."""
        await self._call("prepare", step, dict(rows))

    async def step(
        self, step: int, pairs: Sequence[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        """One update on a global batch: rank 0's result and the refused pairs."""
        results = await self._call("step", step, list(pairs))
        result: tuple[StepResult, list[Dropped]] = results[0]
        return result

    async def set_probe(self, answers: Sequence[ProbeAnswer]) -> LogprobProbe:
        """The answers whose log-probs every manifest carries from now on; theirs under the start policy."""
        probes = await self._call("set_probe", list(answers))
        probe: LogprobProbe = probes[0]
        return probe

    def publish(
        self, version: int
    ) -> tuple[Awaitable[WeightManifest], Awaitable[Tensors]]:
        """References to the manifest and the weights of rank 0, to be passed on to engines."""
        # Gathering sharded weights is a collective: all ranks are called, rank 0 answers.
        by_rank: list[Sequence[Awaitable[Any]]] = []
        for handle in self.handles:
            by_rank.append(handle.call_split("publish", 2, version))
        manifest, tensors = by_rank[0]
        return manifest, tensors

    async def plan_push(self) -> PushPlan:
        """What streamed pushes consist of."""
        rank_0 = self.handles[0]
        plan: PushPlan = await _asked(rank_0, "plan_push", (), self.limit_s, "learner")
        return plan

    async def meeting_place(self, networks: Sequence[str]) -> Place:
        """Where engines of these networks find rank 0."""
        rank_0 = self.handles[0]
        args = (list(networks),)
        place: Place
        place = await _asked(rank_0, "meeting_place", args, self.limit_s, "learner")
        return place

    async def push(
        self, version: int, meeting: Meeting
    ) -> tuple[WeightManifest | None, str]:
        """Send the weights to all members of the meeting; the manifest, or why the group fell apart."""
        results = await self._call("push", version, meeting)
        result: tuple[WeightManifest | None, str] = results[0]
        return result

    async def rest(self) -> None:
        """Wait for what the ranks were asked before, and let them free the GPU memory that nothing holds."""
        await self._call("rest")

    async def checkpoint_bytes(self, with_policy: bool) -> int:
        """What `save` writes over all ranks, and with the policy `export`."""
        of_ranks: list[int] = await self._call("checkpoint_bytes", with_policy)
        return sum(of_ranks)

    async def save(self, directory: Path) -> None:
        """Copy every rank's part of a checkpoint; it is written beside the next steps, see `written`."""
        await self._call("save", str(directory))

    async def export(self, directory: Path) -> None:
        """Copy the policy, which becomes a Hugging Face directory beside the next steps, see `written`."""
        await self._call("export", str(directory))

    async def written(self) -> WriteReport | None:
        """What became of the files since the last `save`; None while a rank is still writing."""
        faults: list[str] = []
        reports: list[WriteReport | None] = await self._call("written")
        for report in reports:
            if report is None:
                return None
            if report.fault is not None:
                faults.append(report.fault)
        return WriteReport(faults[0] if faults else None)

    async def load(self, directory: Path) -> list[str]:
        """Go on from what `save` wrote; returns lines about what could not be restored."""
        of_ranks: list[list[str]] = await self._call("load", str(directory))
        return [note for notes in of_ranks for note in notes]

    async def until_lost(self) -> NoReturn:
        """Wait until a rank is lost, and raise WorkerLost; for ever where nobody watches them."""
        seats = [handle for handle in self.handles if isinstance(handle, Seat)]
        waits = [asyncio.create_task(seat.until_down()) for seat in seats]
        try:
            await asyncio.wait(waits or [asyncio.Future()], return_when=FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        raise WorkerLost(next(seat for seat in seats if not seat.is_up))

    async def _call(self, method: str, *args: Any) -> list[Any]:
        references: list[Awaitable[Any]] = []
        # All before the first is awaited: a rank alone would wait for the others.
        for handle in self.handles:
            references.append(handle.call(method, *args))
        with noted(self.work, "learner", method, args):
            return await answers(references, self.limit_s, "learner")


@dataclass(frozen=True, slots=True)
class Workers:
    """The actors of a run."""

    rollout: Sequence[RolloutClient]
    reward: Sequence[RewardClient]
    learner: LearnerClient

    async def start(self) -> list[dict[str, Any]]:
        """Start learner ranks, engines and judges side by side; returns reports of the first two, ranks first."""
        # All may take long to load a model.
        engines = asyncio.gather(*[client.start() for client in self.rollout])
        judges = asyncio.gather(*[client.start() for client in self.reward])
        ranks, reports, _ = await asyncio.gather(self.learner.start(), engines, judges)
        return [*ranks, *reports]

    async def start_in_turns(self) -> list[dict[str, Any]]:
        """The same where engines and ranks share GPUs: an engine measures how much is free as it starts.

        The engines start first, and sleep while the ranks do. Their weights are not dropped: no push follows.
        """
        judges = asyncio.gather(*[client.start() for client in self.reward])
        reports = await asyncio.gather(*[client.start() for client in self.rollout])
        await asyncio.gather(*[client.sleep(1) for client in self.rollout])
        ranks = await self.learner.start()
        await self.learner.rest()
        await asyncio.gather(*[client.wake() for client in self.rollout])
        await judges
        return [*ranks, *reports]


def _name_of(handle: Handle, peer: str) -> str:
    """`rollout/3` of a seat."""
    return handle.name if isinstance(handle, Seat) else peer


def _note_start(handle: Handle) -> None:
    if isinstance(handle, Seat):
        handle.note_start()


async def _asked(
    handle: Handle, method: str, args: Sequence[Any], limit_s: float, peer: str
) -> Any:
    """The answer of a worker; that of a seat may come from another one than was there first."""
    if isinstance(handle, Seat):
        return await handle.ask(method, args, limit_s, peer)
    return await answer(handle.call(method, *args), limit_s, peer)
