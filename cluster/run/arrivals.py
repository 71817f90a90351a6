"""Weights on their way to the engines, and what a run notes when they have arrived.

send    the learner's weights go to all engines                the learner waits until they are sent
then    the engines load and prove them                        the learner takes its next step
wait    they hold them: `publish` in the journal, new groups   before the step is accounted for
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from cluster.run.producer import Producer
from cluster.run.recorder import Recorder
from cluster.run.state import RunState
from cluster.weights.engine_weights import EngineWeights
from common.command_line.log_lines import note_version
from common.errors import UserError
from common.records import WeightManifest


class Arrivals:
    """The publishes of a loop, one after another."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        weights: EngineWeights,
        producer: Producer,
        state: RunState,
        recorder: Recorder,
        overlaps: bool,
    ) -> None:
        """Nothing is on its way.

        Args:
            tasks: of the run, which all end with an error of a publish.
            overlaps: whether engines may load while the learner takes its next step.
        """
        self._tasks = tasks
        self._weights = weights
        self._producer = producer
        self._state = state
        self._recorder = recorder
        self._overlaps = overlaps
        self._bringing: asyncio.Task[float] | None = None
        # When the learner went on; None where it waits.
        self._overlaps_from: float | None = None

    async def send(self, version: int) -> float:
        """Send the learner's weights to every engine; returns the seconds until the learner can go on.

        Where nothing overlaps the engines hold them when this returns.

        Raises:
            UserError: what arrived are not finite weights, or after training still those of the start policy.
        """
        begun = time.monotonic()
        sent = asyncio.Event()
        bringing = self._tasks.create_task(self._bring(version, sent.set))
        sending = asyncio.create_task(sent.wait())
        self._bringing, self._overlaps_from = bringing, None
        try:
            await asyncio.wait([bringing, sending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
        if not self._overlaps or bringing.done():
            await self.wait()
        else:
            # The learner has these weights already: what it trains on next is as old as they make it.
            self._state.version = version
            self._overlaps_from = time.monotonic()
        return time.monotonic() - begun

    async def wait(self) -> float:
        """Wait until the engines hold what was sent last; returns how many seconds of it the learner went on."""
        bringing, self._bringing = self._bringing, None
        if bringing is None:
            return 0.0
        arrived = await bringing
        if self._overlaps_from is None:
            return 0.0
        return max(0.0, arrived - self._overlaps_from)

    async def _bring(self, version: int, sent: Callable[[], None]) -> float:
        """Deliver weights; returns when they had arrived, of the monotonic clock."""
        delivered = await self._weights.publish(version, sent)
        manifest = delivered.manifest
        self._check_change(manifest)
        self._state.version = version
        self._state.weights = manifest.checksum
        note_version(version)
        await self._producer.on_version(version)
        self._recorder.publish(manifest, delivered.reports)
        return time.monotonic()

    def _check_change(self, manifest: WeightManifest) -> None:
        """Refuse weights that a run cannot mean to sample from."""
        version = manifest.version
        norm = manifest.change_norm
        if not math.isfinite(norm):
            raise UserError(
                f"weight version {version}: expected finite weights, got a change of norm {norm} from "
                "the start policy; lower learner.optimizer.lr, or start from another checkpoint"
            )
        if self._state.trained and norm == 0:
            raise UserError(
                f"weight version {version}: expected trained weights, got exactly those of the start policy; "
                "raise learner.optimizer.lr, or look at what model.tuning trains"
            )
