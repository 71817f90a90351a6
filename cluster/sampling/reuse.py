"""Online pairs that are trained on more than once (ours; `mixture.online_uses`).

A step that wants n online pairs of a source plans n/uses fresh ones (rounded up), which are waited for and come first.
The others were trained on in earlier steps: pairs that have uses left and are fresh enough, those that arrived last,
which are nearest to the policy. Where there are too few, fresh ones take their places.

So which pairs come again is a function of what the steps before took, not of time: a faster engine changes nothing, and
half the rollouts do with two uses. The price is staleness: a pair grows older from use to use. So rollouts run ahead by
fewer versions (`RunConfig.run_ahead`), and a pair that is taken by consecutive steps gets all of its uses in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.sampling.staleness import is_stale
from common.records import PreferencePair


@dataclass(slots=True)
class UsedPair:
    """A pair, and the batches that it was in."""

    pair: PreferencePair
    num_uses: int


class UsedPairs:
    """Pairs that were trained on and may come again, in order of arrival."""

    def __init__(
        self, uses: int, pairs: list[UsedPair], num_places: Counter[str]
    ) -> None:
        """Go on with `pairs` and the places that they filled so far, by source; both are advanced in place."""
        self._uses = uses
        self._pairs = pairs
        self._num_places = num_places

    def planned(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Of the pairs that a step wants, by source: how many fresh ones it takes at least."""
        planned = {}
        for source, count in wanted.items():
            planned[source] = -(-count // self._uses)
        return planned

    def short(
        self,
        source: str,
        wanted_so_far: Iterable[int],
    ) -> int:
        """How many fresh pairs of a source were taken that were not planned.

        Args:
            wanted_so_far: pairs of the source that every step so far wanted.
        """
        total = 0
        for count in wanted_so_far:
            total += count - self.planned({source: count})[source]
        return total - self._num_places[source]

    def again(
        self, wanted: Mapping[str, int], learner_version: int, max_staleness: int
    ) -> list[PreferencePair]:
        """The pairs that a step takes once more, in order of arrival; nothing moves."""
        planned = self.planned(wanted)
        places = Counter(wanted)
        places.subtract(planned)
        chosen: list[PreferencePair] = []
        for used in reversed(self._pairs):
            pair = used.pair
            is_fit = used.num_uses < self._uses and places[pair.source] > 0
            if is_fit and not is_stale(
                pair,
                learner_version,
                max_staleness,
            ):
                places[pair.source] -= 1
                chosen.append(pair)
        return chosen[::-1]

    def note(
        self,
        fresh: Sequence[PreferencePair],
        again: Sequence[PreferencePair],
        learner_version: int,
        max_staleness: int,
    ) -> None:
        """A batch takes these pairs. Those that cannot come again are forgotten with the batch after their last one."""
        if self._uses == 1:
            return
        ids = {pair.id for pair in again}
        kept: list[UsedPair] = []
        for used in self._pairs:
            is_old = is_stale(
                used.pair,
                learner_version,
                max_staleness,
            )
            if used.num_uses < self._uses and not is_old:
                used.num_uses += used.pair.id in ids
                kept.append(used)
        kept += [UsedPair(pair, num_uses=1) for pair in fresh]
        self._pairs[:] = kept
        self._num_places.update(pair.source for pair in again)

    def counts(self) -> dict[str, int]:
        """Pair -> the batches that it was in, the last one included; {} where no pair comes again."""
        return {used.pair.id: used.num_uses for used in self._pairs}

    def forget(self, pair_id: str) -> None:
        """The pair does not come again."""
        self._pairs[:] = [used for used in self._pairs if used.pair.id != pair_id]


def reuse_metrics(
    batch: Sequence[PreferencePair], uses: Mapping[str, int]
) -> dict[str, float]:
    """How many online pairs of a batch came again, and the mean of the batches that its online pairs were in.

    Args:
        uses: as `UsedPairs.counts` has them after the batch.
    """
    counts: list[int] = []
    for pair in batch:
        # The learner may have refused it.
        if pair.id in uses:
            counts.append(uses[pair.id])
    metrics = {"pairs/reused": float(sum(count > 1 for count in counts))}
    if counts:
        metrics["pairs/uses"] = sum(counts) / len(counts)
    return metrics
