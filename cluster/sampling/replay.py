"""The replay buffer: an offline pool read in seeded epochs and an online pool read first in, first out.

It never blocks: `take` returns every online pair that is wanted, or none. Whoever has to wait does so outside.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from cluster.sampling.staleness import is_stale, staleness
from common.data.pairs_on_disk import PairsOnDisk
from common.data.records_on_disk import fetch
from common.errors import UserError
from common.records import Dropped, PreferencePair
from common.row_faults import such_as
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
        self._pairs = pairs
        self._seed = seed
        self._state = state
        self._units = _shuffle_units(pairs) if by_prompt else None
        self._order = self._shuffled(state.epoch)
        # Made when it is first looked at, and then kept for `take`.
        self._next_order: array[int] | None = None

    def take(self, num: int, dropped: list[Dropped]) -> list[PreferencePair]:
        """The next `num` pairs; a batch may reach over the end of an epoch.

        Args:
            dropped: collects the pairs that cannot be used; the next ones take their places.

        Raises:
            UserError: pairs are wanted and the set is empty, or not one of a whole epoch can be used.
        """
        if num and not len(self._pairs):
            raise UserError(
                f"data.offline: expected at least one pair, got an empty set while a batch wants {num}; "
                "generate pairs or set mixture.online_fraction = 1"
            )
        state = self._state
        taken: list[PreferencePair] = []
        num_unusable = 0
        while len(taken) < num:
            if state.position == len(self._pairs):
                self._order = self._order_of_next_epoch()
                self._next_order = None
                state.epoch += 1
                state.position = 0
            index = self._order[state.position]
            state.position += 1
            pair = fetch(self._pairs, index)
            if isinstance(pair, Dropped):
                dropped.append(pair)
                num_unusable += 1
                self._check_usable(num_unusable, pair)
            else:
                taken.append(pair)
                num_unusable = 0
        return taken

    def foresee(self, num: int) -> list[PreferencePair]:
        """What `take` will return first, up to the end of the next epoch; nothing moves."""
        order = self._order[self._state.position :]
        if len(order) < num:
            order += self._order_of_next_epoch()
        pairs: list[PreferencePair] = []
        for index in order:
            if len(pairs) == num:
                break
            pair = fetch(self._pairs, index)
            # `take` passes over it, too.
            if not isinstance(pair, Dropped):
                pairs.append(pair)
        return pairs

    def _order_of_next_epoch(self) -> array[int]:
        if self._next_order is None:
            self._next_order = self._shuffled(self._state.epoch + 1)
        return self._next_order

    def _check_usable(self, num_in_a_row: int, last: Dropped) -> None:
        if num_in_a_row >= len(self._pairs):
            raise UserError(
                f"data.offline: expected at least one usable pair, got none of {num_in_a_row}"
                f"{such_as([last])}; repair the rows"
            )

    def _shuffled(self, epoch: int) -> array[int]:
        """Pair indices in the order of an epoch: a function of (seed, epoch)."""
        # Shuffled from the set's order each time, so that a resume needs no earlier epoch.
        seed = derive_seed(self._seed, "offline", epoch)
        if self._units is None:
            order = list(range(len(self._pairs)))
            random.Random(seed).shuffle(order)
            return array("q", order)
        units = list(self._units)
        random.Random(seed).shuffle(units)
        return array("q", chain.from_iterable(units))


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
        # Asked after every call that settles: most of the time there are too few.
        if self.num_online < sum(wanted.values()):
            return []
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

    def foresee(
        self, wanted: Mapping[str, int], learner_version: int, max_staleness: int
    ) -> list[PreferencePair]:
        """What `take` will return first when the learner is at this version, as far as it is here; nothing moves."""
        missing = dict(wanted)
        pairs: list[PreferencePair] = []
        for pair in self.state.online:
            is_wanted = missing.get(pair.source, 0) > 0
            if is_wanted and not is_stale(pair, learner_version, max_staleness):
                missing[pair.source] -= 1
                pairs.append(pair)
        return pairs

    def foresee_offline(self, num: int) -> list[PreferencePair]:
        """What `take_offline` will return first, up to the end of the next epoch; nothing moves."""
        return self._offline.foresee(num)

    def take_offline(
        self, num: int, dropped: list[Dropped] | None = None
    ) -> list[PreferencePair]:
        """The next `num` offline pairs of the seeded epochs; those that cannot be used are appended to `dropped`."""
        return self._offline.take(num, [] if dropped is None else dropped)


def _shuffle_units(pairs: Sequence[PreferencePair]) -> list[array[int]]:
    """The indices of the pairs of each prompt."""
    if isinstance(pairs, PairsOnDisk):
        prompts: Iterable[str | int] = pairs.prompt_keys.tolist()
    else:
        prompts = [pair.prompt.id for pair in pairs]
    units: dict[str | int, array[int]] = {}
    for index, prompt in enumerate(prompts):
        # A dict keeps the order in which prompts first come: the shuffle starts from it.
        units.setdefault(prompt, array("q")).append(index)
    return list(units.values())
