"""The replay buffer: an offline pool, an online pool read first in, first out, and online pairs that may come again.

It never blocks: `take` returns every online pair that is wanted, or none. Whoever has to wait does so outside.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from cluster.sampling.offline_pool import OfflinePool, OfflineState
from cluster.sampling.reuse import UsedPair, UsedPairs
from cluster.sampling.staleness import is_stale, staleness
from cluster.sampling.value_pool import ValuePool, ValueState
from common.records import Dropped, PreferencePair

OfflineDraw: TypeAlias = Literal["epochs", "by_prompt", "by_value"]
"""Which offline pair comes next; `by_prompt` are epochs of prompts."""


@dataclass(slots=True)
class BufferState:
    """What a checkpoint remembers of the buffer."""

    offline: OfflineState
    online: deque[PreferencePair] = field(default_factory=deque)
    used: list[UsedPair] = field(default_factory=list)
    """Online pairs that were trained on and may be again."""
    reused: Counter[str] = field(default_factory=Counter)
    """Places of batches that were filled with such pairs, by source."""
    values: ValueState = field(default_factory=ValueState)
    """Of a run that draws offline pairs by value, which has no use for the epochs in `offline`."""


class Pool(Protocol):
    """Offline pairs in one order or another."""

    def take(
        self,
        num: int,
        dropped: list[Dropped],
    ) -> list[PreferencePair]:
        """The next pairs; `dropped` collects those that cannot be used."""
        ...

    def foresee(self, num: int) -> list[PreferencePair]:
        """What `take` will return first; nothing moves."""
        ...

    def note(self, margins: Mapping[str, float]) -> None:
        """The learner has trained on these pairs, and says how large their margins were."""
        ...


class ReplayBuffer:
    """Both pools. Online pairs are taken in order of arrival, unless they are too old by then.

    Attributes:
        used: those that were taken and may come again.
    """

    def __init__(
        self,
        offline: Sequence[PreferencePair] = (),
        seed: int = 0,
        draw: OfflineDraw = "epochs",
        state: BufferState | None = None,
        uses: int = 1,
    ) -> None:
        """Start empty, or continue at a saved `state`.

        Args:
            uses: how often an online pair may be trained on.

        Raises:
            UserError: the offline set has another size than when the state was saved.
        """
        self.state = state or BufferState(OfflineState(len(offline)))
        self.used = UsedPairs(
            uses,
            self.state.used,
            self.state.reused,
        )
        state_of_set = self.state.offline
        self._offline: Pool
        if draw == "by_value":
            self._offline = ValuePool(
                offline,
                seed,
                state_of_set,
                self.state.values,
            )
        else:
            by_prompt = draw == "by_prompt"
            self._offline = OfflinePool(
                offline,
                seed,
                by_prompt,
                state_of_set,
            )

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
            if not is_stale(
                pair,
                learner_version,
                max_staleness,
            ):
                fresh.append(pair)
                continue
            age = staleness(pair, learner_version)
            detail = f"{age} versions old, at most {max_staleness} allowed"
            drop = Dropped(pair.id, "stale", detail)
            evicted.append((pair, drop))
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
            if is_wanted and not is_stale(
                pair,
                learner_version,
                max_staleness,
            ):
                missing[pair.source] -= 1
                pairs.append(pair)
        return pairs

    def foresee_offline(self, num: int) -> list[PreferencePair]:
        """What `take_offline` will return first, up to the end of the next epoch; nothing moves."""
        return self._offline.foresee(num)

    def take_offline(
        self, num: int, dropped: list[Dropped] | None = None
    ) -> list[PreferencePair]:
        """The next `num` offline pairs; those that cannot be used are appended to `dropped`."""
        return self._offline.take(num, [] if dropped is None else dropped)

    def note_offline(self, margins: Mapping[str, float]) -> None:
        """The implicit reward margins of offline pairs, as the learner said when it trained on them."""
        self._offline.note(margins)
