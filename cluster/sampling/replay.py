"""The replay buffer: an offline pool read in seeded epochs and an online pool read first in, first out.

It never blocks: `take` returns every online pair that is wanted, or none. Whoever has to wait does so outside.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.sampling.staleness import is_stale, staleness
from common.errors import UserError
from common.records import Dropped, PreferencePair
from common.seeding import derive_seed


@dataclass(slots=True)
class OfflineState:
    """Where the offline pool stands, and the size of the set that this is true for."""

    size: int
    epoch: int = 0
    position: int = 0


@dataclass(slots=True)
class BufferState:
    """What a checkpoint remembers of the buffer."""

    offline: OfflineState
    online: deque[PreferencePair] = field(default_factory=deque)


class OfflinePool:
    """A fixed pair set, shuffled anew in every epoch; no pair comes twice within one.

    With `by_prompt` the prompts are shuffled: the pairs of a prompt follow one another in the set's order.
    """

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        seed: int,
        by_prompt: bool,
        state: OfflineState,
    ) -> None:
        """Continue at `state`, which the pool advances in place.

        Raises:
            UserError: the set has another size than when the state was saved.
        """
        if state.size != len(pairs):
            raise UserError(
                f"data.offline: expected the {state.size} pairs this run began with, got {len(pairs)}; "
                "restore the pair file or start a new run"
            )
        self._pairs = tuple(pairs)
        self._seed = seed
        self._state = state
        self._units = _shuffle_units(pairs, by_prompt)
        self._order = self._shuffled()

    def take(self, num: int) -> list[PreferencePair]:
        """The next `num` pairs; a batch may reach over the end of an epoch.

        Raises:
            UserError: pairs are wanted and the set is empty.
        """
        if num and not self._pairs:
            raise UserError(
                f"data.offline: expected at least one pair, got an empty set while a batch wants {num}; "
                "generate pairs or set mixture.online_fraction = 1"
            )
        state = self._state
        taken: list[PreferencePair] = []
        while len(taken) < num:
            if state.position == len(self._pairs):
                state.epoch += 1
                state.position = 0
                self._order = self._shuffled()
            index = self._order[state.position]
            taken.append(self._pairs[index])
            state.position += 1
        return taken

    def _shuffled(self) -> list[int]:
        """Pair indices in the order of the current epoch: a function of (seed, epoch)."""
        # Shuffled from the set's order each time, so that a resume needs no earlier epoch.
        units = list(self._units)
        seed = derive_seed(self._seed, "offline", self._state.epoch)
        random.Random(seed).shuffle(units)
        order: list[int] = []
        for unit in units:
            order += unit
        return order


class ReplayBuffer:
    """Both pools. Online pairs are used once, in order of arrival, unless they are too old by then."""

    def __init__(
        self,
        offline: Sequence[PreferencePair] = (),
        seed: int = 0,
        by_prompt: bool = False,
        state: BufferState | None = None,
    ) -> None:
        """Start empty, or continue at a saved `state`.

        Raises:
            UserError: the offline set has another size than when the state was saved.
        """
        self.state = state or BufferState(OfflineState(len(offline)))
        self._offline = OfflinePool(offline, seed, by_prompt, self.state.offline)

    @property
    def num_online(self) -> int:
        """Online pairs waiting, stale ones included."""
        return len(self.state.online)

    def add(self, pair: PreferencePair) -> None:
        """Append an online pair."""
        # Without a version its age cannot be told.
        assert pair.weight_version is not None, (
            f"online pair {pair.id} has no weight version"
        )
        self.state.online.append(pair)

    def evict(
        self, learner_version: int, max_staleness: int
    ) -> list[tuple[PreferencePair, Dropped]]:
        """Remove the online pairs that are too old (reason `stale`)."""
        fresh: deque[PreferencePair] = deque()
        evicted: list[tuple[PreferencePair, Dropped]] = []
        for pair in self.state.online:
            if not is_stale(pair, learner_version, max_staleness):
                fresh.append(pair)
                continue
            age = staleness(pair, learner_version)
            detail = f"{age} versions old, at most {max_staleness} allowed"
            evicted.append((pair, Dropped(pair.id, "stale", detail)))
        self.state.online = fresh
        return evicted

    def take(self, wanted: Mapping[str, int]) -> list[PreferencePair]:
        """Remove and return the oldest online pairs, `wanted[source]` of every source.

        Returns:
            All wanted pairs in order of arrival, or an empty list when some are missing; then the buffer is unchanged.
        """
        missing = dict(wanted)
        taken: list[PreferencePair] = []
        left: deque[PreferencePair] = deque()
        for pair in self.state.online:
            if missing.get(pair.source, 0) > 0:
                missing[pair.source] -= 1
                taken.append(pair)
            else:
                left.append(pair)
        # A step takes its whole share at once: a part would wait outside and grow stale there.
        is_short = any(missing.values())
        if is_short:
            return []
        self.state.online = left
        return taken

    def take_offline(self, num: int) -> list[PreferencePair]:
        """The next `num` offline pairs of the seeded epochs."""
        return self._offline.take(num)


def _shuffle_units(pairs: Sequence[PreferencePair], by_prompt: bool) -> list[list[int]]:
    """Pair indices that stay together: those of one prompt, or every pair alone."""
    units: dict[str | int, list[int]] = {}
    for index, pair in enumerate(pairs):
        # A dict keeps the order in which prompts first come: the shuffle starts from it.
        unit = pair.prompt.id if by_prompt else index
        units.setdefault(unit, []).append(index)
    return list(units.values())
