"""From the learner into engines: one delivery of weights, and what became of it engine by engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient
from cluster.weights.transport import Delivered, transport_of
from common.config import RunConfig

__all__ = ["Delivered", "Delivery"]


class Delivery:
    """Brings weights to any engines of a run, as often as wanted: to all after a step, to one that was restarted."""

    def __init__(self, config: RunConfig, learner: LearnerClient, turns: Turns) -> None:
        self._transport = transport_of(config, learner, turns)

    async def deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
        sent: Callable[[], None] = lambda: None,
    ) -> Delivered:
        """Bring the learner's weights, as they are now, into these engines; each proves that it runs them.

        An engine that fails takes no other along.

        Args:
            sent: called when the learner's part is done, and it can go on with its next step.

        Raises:
            Exception: the learner's, which then sent nothing.
        """
        delivered = await self._transport.deliver(version, engines, sent)
        assert delivered.manifest.version == version
        assert all(report.version == version for report in delivered.reports)
        return delivered
