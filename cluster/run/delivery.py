"""From the learner into engines: one delivery of weights, and what became of it engine by engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient
from cluster.runtime.waiting import answer
from common.records import LoadReport, WeightManifest


@dataclass(frozen=True, slots=True)
class Delivered:
    """One delivery, of which parts may have failed.

    Attributes:
        manifest: of the weights as they were sent.
        reports: of the engines that run them now, in the order of the call.
        failures: the other engines, and why. What such an engine runs is unknown.
    """

    manifest: WeightManifest
    reports: tuple[LoadReport, ...]
    failures: tuple[tuple[RolloutClient, Exception], ...]

    def check(self) -> None:
        """Raise the first engine's failure, if there is one."""
        for _, error in self.failures:
            raise error


class Delivery:
    """Brings weights to any engines of a run, as often as wanted: to all after a step, to one that was restarted."""

    def __init__(self, learner: LearnerClient, turns: Turns) -> None:
        self._learner = learner
        self._turns = turns

    async def deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
    ) -> Delivered:
        """Bring the learner's weights, as they are now, into these engines; each proves that it runs them.

        An engine that fails takes no other along.

        Raises:
            Exception: the learner's, which then sent nothing.
        """
        # References: the weights travel from the learner's node to the engines', not through here.
        manifest_ref, tensors_ref = self._learner.publish(version)
        await self._turns.wake()
        loads = [engine.load(manifest_ref, tensors_ref) for engine in engines]
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        # Before the engines' errors: they cannot load what was not sent.
        manifest: WeightManifest = await answer(
            manifest_ref, self._learner.limit_s, "learner"
        )
        assert manifest.version == version

        reports: list[LoadReport] = []
        failures: list[tuple[RolloutClient, Exception]] = []
        for engine, outcome in zip(engines, outcomes, strict=True):
            if isinstance(outcome, LoadReport):
                assert outcome.version == version
                reports.append(outcome)
            elif isinstance(outcome, Exception):
                failures.append((engine, outcome))
            else:
                raise outcome
        return Delivered(manifest, tuple(reports), tuple(failures))
