"""The ways of weights from the learner into engines, and which of them a run takes.

ByReference  adapter, object_store   the learner's arrays in Ray's store, which every engine reads
Broadcast    broadcast, ipc          buckets from the learner's memory into that of the engines' workers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient
from common.config import RunConfig
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


class WeightTransport(Protocol):
    """Brings the learner's weights, as they are now, into engines; each proves that it runs them."""

    async def deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
        sent: Callable[[], None] = lambda: None,
    ) -> Delivered:
        """An engine that fails takes no other along.

        Args:
            sent: called when the learner's part is done, and it can go on with its next step.

        Raises:
            Exception: the learner's, which then sent nothing.
        """
        ...


def transport_of(
    config: RunConfig, learner: LearnerClient, turns: Turns
) -> WeightTransport:
    """The transport that `weights.transport` asks for, or the one that `auto` means for this run."""
    from cluster.weights.broadcast import Broadcast
    from cluster.weights.by_reference import ByReference

    if config.transport in ("adapter", "object_store"):
        return ByReference(learner, turns)
    return Broadcast(config, learner, turns)
