"""Weights as arrays in Ray's store: for adapters, and for machines without a common network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient
from cluster.runtime.waiting import answer
from cluster.weights.outcomes import sorted_out
from cluster.weights.transport import Delivered
from common.records import WeightManifest


class ByReference:
    """A `WeightTransport`."""

    def __init__(self, learner: LearnerClient, turns: Turns) -> None:
        self._learner = learner
        self._turns = turns

    async def deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
        sent: Callable[[], None] = lambda: None,
    ) -> Delivered:
        # References: the weights travel from the learner's node to the engines', not through here.
        manifest_ref, tensors_ref = self._learner.publish(version)
        await self._turns.wake()
        loads = []
        for engine in engines:
            load = engine.load(manifest_ref, tensors_ref)
            loads.append(asyncio.create_task(load))
        try:
            manifest: WeightManifest = await answer(
                manifest_ref, self._learner.limit_s, "learner"
            )
        except BaseException:
            # The engines cannot load what was not sent: the learner's error says more than theirs.
            for task in loads:
                task.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
            raise
        sent()
        assert manifest.version == version
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        reports, failures = sorted_out(engines, outcomes)
        return Delivered(manifest, reports, failures)
