"""How many rollout groups may be started: bounded staleness, decided in one object so that nothing can disagree.

The learner step that follows weight version v trains on pairs sampled from versions ≥ v − max_staleness. So with
`version` published, groups may be started for the steps that will be trained up to version + max_staleness:

    running + accepted ≤ Σ need(step)   over steps 1 … (version + max_staleness + 1) · publish_interval

where need(step) is the number of online pairs that step takes (the mixture's coins are known in advance) and
`accepted` counts pairs trained or waiting. A dropped group or a stale pair gives its place back. Every online source
of a run has an admission of its own, so that what one source drops is not made up for by another. Where a resume has
changed the interval, versions are counted from there: see `StalenessWindow`.

A group that becomes g > 1 pairs takes g places. The last group admitted may take up to g - 1 more than are left, which
the next step then has in advance: fewer would leave a step waiting for the rest of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from common.sources import ONLINE


@dataclass(frozen=True, slots=True)
class StalenessWindow:
    """How far ahead of the published weights a run may sample.

    Attributes:
        step: the last one that was trained when the run began or was resumed.
        version: published by then. Steps do not tell it where the interval was another one before the resume.
    """

    num_steps: int
    publish_interval: int
    max_staleness: int
    step: int = 0
    version: int = 0

    def last_step(self, version: int) -> int:
        """The last learner step that groups may be started for while the engines hold `version`."""
        num_intervals = version - self._surplus + self.max_staleness + 1
        return min(num_intervals * self.publish_interval, self.num_steps)

    def version_at(self, step: int) -> int:
        """The version that the engines hold when this step's batch is drawn."""
        return self._surplus + (step - 1) // self.publish_interval

    @property
    def _surplus(self) -> int:
        """Versions that were published beside those of this interval; below 0 when some are missing."""
        return self.version - self.step // self.publish_interval


class Admission:
    """Counts `running` groups and `accepted` ones, both in pairs, and says how many more groups may start."""

    def __init__(
        self,
        need: Callable[[int], int],
        window: StalenessWindow,
        pairs_per_group: int = 1,
        source: str = ONLINE,
        totals: Counter[str] | None = None,
    ) -> None:
        """Admit for version 0.

        Args:
            need: the online pairs of step 1 … num_steps.
            totals: accepted pairs by source; this admission counts in `totals[source]`, so that a resume goes on there.
        """
        self._need = need
        self._window = window
        self._pairs_per_group = pairs_per_group
        self._source = source
        self._totals = Counter() if totals is None else totals
        self._allowed = 0
        self._counted_steps = 0
        self.running = 0
        self.on_version(0)

    @property
    def accepted(self) -> int:
        """Pairs trained or waiting."""
        return self._totals[self._source]

    def on_version(self, version: int) -> None:
        """A new weight version is out: more steps come into reach."""
        last_step = self._window.last_step(version)
        # Never counted down: a resume starts at version 0 and is told the version it goes on from.
        for step in range(self._counted_steps + 1, last_step + 1):
            self._allowed += self._need(step)
        self._counted_steps = max(self._counted_steps, last_step)

    @property
    def free(self) -> int:
        """Groups that may start."""
        places = max(0, self._allowed - self.accepted - self.running)
        # Rounded up: see the module's docstring.
        return -(-places // self._pairs_per_group)

    def admit(self, most: int) -> int:
        """Start up to `most` groups; returns how many."""
        # Asked for and taken in one call: nothing else can be admitted in between.
        granted = min(most, self.free)
        self.running += granted * self._pairs_per_group
        return granted

    def on_short(self, count: int) -> None:
        """A step takes so many pairs more than `need` says: fewer could be used again than was planned."""
        self._allowed += count

    def on_accepted(self) -> None:
        """A running group became its pairs."""
        self._end_group()
        self._totals[self._source] += self._pairs_per_group

    def on_dropped(self) -> None:
        """A running group was dropped."""
        self._end_group()

    def on_discarded(self) -> None:
        """An accepted pair went stale or was refused by the learner."""
        assert self.accepted > 0
        self._totals[self._source] -= 1

    def _end_group(self) -> None:
        assert self.running > 0
        self.running -= self._pairs_per_group
