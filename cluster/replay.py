"""The replay buffer: an offline pool read in seeded epochs and an online pool read first in, first out.

It never blocks and never waits: `take` gives every online pair that is wanted, or none. Its whole state is JSON.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from common.errors import UserError
from common.records import Dropped, PreferencePair
from common.seeding import derive_seed
from cluster.staleness import is_stale, staleness

_PAIRS = TypeAdapter(list[PreferencePair])


class OfflinePool:
    """A fixed pair set, shuffled anew in every epoch; no pair comes twice within one. State: epoch and position.

    With `by_prompt` it is prompts that are shuffled: a prompt's pairs come one after the other, in the set's order.
    """

    def __init__(
        self, pairs: Sequence[PreferencePair], seed: int, by_prompt: bool = False
    ) -> None:
        self._pairs = tuple(pairs)
        self._seed = seed
        together: dict[object, list[int]] = {}
        for index, pair in enumerate(self._pairs):
            together.setdefault(pair.prompt.id if by_prompt else index, []).append(
                index
            )
        self._units = list(together.values())
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def __len__(self) -> int:
        return len(self._pairs)

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
        taken: list[PreferencePair] = []
        while len(taken) < num:
            if self._position == len(self._pairs):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled()
            taken.append(self._pairs[self._order[self._position]])
            self._position += 1
        return taken

    def state_dict(self) -> dict[str, int]:
        """Where the pool stands, and how large the set is that this is true for."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "size": len(self._pairs),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved place.

        Raises:
            UserError: the set has another size than when the state was saved.
        """
        if state["size"] != len(self._pairs):
            raise UserError(
                f"data.offline: expected the {state['size']} pairs this run began with, got {len(self._pairs)}; "
                "restore the pair file or start a new run"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        units = list(self._units)
        random.Random(derive_seed(self._seed, "offline", self._epoch)).shuffle(units)
        return [index for unit in units for index in unit]


class ReplayBuffer:
    """Both pools. Online pairs are used once, in order of arrival, unless they are too old by then."""

    def __init__(
        self,
        offline: Sequence[PreferencePair] = (),
        seed: int = 0,
        by_prompt: bool = False,
    ) -> None:
        self._offline = OfflinePool(offline, seed, by_prompt)
        self._online: deque[PreferencePair] = deque()

    @property
    def num_online(self) -> int:
        """Online pairs waiting, stale ones included."""
        return len(self._online)

    def add(self, pair: PreferencePair) -> None:
        """Append an online pair."""
        assert pair.weight_version is not None, (
            f"online pair {pair.id} has no weight version"
        )
        self._online.append(pair)

    def evict(
        self, learner_version: int, max_staleness: int
    ) -> list[tuple[PreferencePair, Dropped]]:
        """Remove the online pairs that are too old (reason `stale`)."""
        fresh: deque[PreferencePair] = deque()
        evicted: list[tuple[PreferencePair, Dropped]] = []
        for pair in self._online:
            if is_stale(pair, learner_version, max_staleness):
                detail = f"{staleness(pair, learner_version)} versions old, at most {max_staleness} allowed"
                evicted.append((pair, Dropped(pair.id, "stale", detail)))
            else:
                fresh.append(pair)
        self._online = fresh
        return evicted

    def take(
        self, wanted: int | Mapping[str, int], learner_version: int, max_staleness: int
    ) -> tuple[list[PreferencePair], list[Dropped]]:
        """Evict every stale pair, then take the wanted online pairs: all of them, or none when some are missing.

        Args:
            wanted: how many, of any source or of each source.

        Returns:
            The pairs, oldest first, and what was evicted (reason `stale`).
        """
        dropped = [drop for _, drop in self.evict(learner_version, max_staleness)]
        missing = Counter(wanted if isinstance(wanted, Mapping) else {"": wanted})
        taken: list[PreferencePair] = []
        left: deque[PreferencePair] = deque()
        for pair in self._online:
            source = pair.source if isinstance(wanted, Mapping) else ""
            (taken if missing[source] > 0 else left).append(pair)
            missing[source] -= 1
        if any(count > 0 for count in missing.values()):
            return [], dropped
        self._online = left
        return taken, dropped

    def take_offline(self, num: int) -> list[PreferencePair]:
        """The next `num` offline pairs of the seeded epochs."""
        return self._offline.take(num)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, ready for `json.dumps`."""
        return {
            "offline": self._offline.state_dict(),
            "online": _PAIRS.dump_python(list(self._online), mode="json"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the buffer where a saved one was (UserError when the offline set has changed)."""
        self._offline.load_state_dict(state["offline"])
        self._online = deque(_PAIRS.validate_python(state["online"], strict=False))
