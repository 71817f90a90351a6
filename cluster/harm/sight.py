"""Detector of a preference that needs no picture, by the figures of the learner's grounding gate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.harm.alert import Alert, Metrics, Said
from cluster.harm.series import lower_bound

NUM_CHECKPOINTS = 4
"""Checkpoints whose pairs are counted together."""
ERRORS = 2.0
CHANCE = 0.5
VIEWS = ("true", "blank")


class Blindness:
    """Warns when most of the implicit rewards' accuracy above chance is there without the picture.

    Args:
        most: the share of it that a blank picture may leave.
        tell: the sentence of the two accuracies, with the picture and with a blank one.
    """

    def __init__(self, most: float, tell: Callable[[float, float], str]) -> None:
        self._most = most
        self._tell = tell
        # Pairs ranked right, and pairs, by view.
        self._right = {view: deque[float](maxlen=NUM_CHECKPOINTS) for view in VIEWS}
        self._pairs = {view: deque[float](maxlen=NUM_CHECKPOINTS) for view in VIEWS}
        self._steps: deque[int] = deque(maxlen=NUM_CHECKPOINTS)
        self._said = Said()

    def step(self, step: int, metrics: Metrics) -> Alert | None:
        """See `Detector`; only steps before a checkpoint have a gate."""
        for view in VIEWS:
            if f"grounding/accuracy_{view}" not in metrics:
                return None
        self._steps.append(step)
        for view in VIEWS:
            num_pairs = metrics[f"grounding/num_pairs_{view}"]
            accuracy = metrics[f"grounding/accuracy_{view}"]
            self._pairs[view].append(num_pairs)
            self._right[view].append(accuracy * num_pairs)
        seeing, blind = (self._accuracy(view) for view in VIEWS)
        if not all(self._is_above_chance(view) for view in VIEWS):
            return None
        left = (blind - CHANCE) / (seeing - CHANCE)
        if left < self._most or not self._said.is_news(left):
            return None
        text = self._tell(seeing, blind)
        return Alert("blind", "grounding/gain", step, self._steps[0], text)

    def _accuracy(self, view: str) -> float:
        return sum(self._right[view]) / sum(self._pairs[view])

    def _is_above_chance(self, view: str) -> bool:
        num_pairs = sum(self._pairs[view])
        return lower_bound(self._accuracy(view), num_pairs, ERRORS) > CHANCE
