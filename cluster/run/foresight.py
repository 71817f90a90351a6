"""What the learner's next batch will hold, told while it trains: its workers then begin with the pictures.

Nothing is drawn for it, so mixture, staleness and checkpoints know nothing of it. What is told is what `Producer.batch`
will return, place by place, as far as it can be known:

    online pairs    the buffered ones that will be fresh enough; those that arrive later come behind them, and then the
                    ones that were trained on before, of which nothing is told
    offline pairs   the next ones, in the places behind all online ones
"""

from __future__ import annotations

from cluster.run.producer import Producer
from cluster.runtime.clients import LearnerClient
from common.records import PreferencePair


class Foresight:
    """Tells the learner's ranks of every pair of a coming batch once.

    Args:
        num_steps: of the run; behind the last one there is nothing to tell.
    """

    def __init__(
        self, producer: Producer, learner: LearnerClient, num_steps: int
    ) -> None:
        self._producer = producer
        self._learner = learner
        self._num_steps = num_steps
        self._step = 0
        self._places_told: set[int] = set()

    async def tell(self, step: int) -> None:
        """Tell what is known of the batch of this step; all earlier batches must be drawn."""
        if step <= self._num_steps:
            rows = self._producer.foreseen_offline(step)
            await self._tell(step, rows | self._online(step))

    async def follow(self) -> None:
        """Tell of online pairs as they arrive, until cancelled. A rank hears of them when its present work is done."""
        num_pairs = 0
        await self.tell(self._producer.next_step)
        while True:
            num_pairs = await self._producer.other_count(num_pairs)
            step = self._producer.next_step
            if step <= self._num_steps:
                await self._tell(step, self._online(step))

    def _online(self, step: int) -> dict[int, PreferencePair]:
        """By place; online pairs come first in a batch."""
        return dict(enumerate(self._producer.foreseen_online(step)))

    async def _tell(self, step: int, rows: dict[int, PreferencePair]) -> None:
        if step != self._step:
            self._step = step
            self._places_told = set()
        for place in self._places_told:
            rows.pop(place, None)
        if rows:
            self._places_told.update(rows)
            await self._learner.prepare(step, rows)
