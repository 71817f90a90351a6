"""The offline pairs drawn by value: the pairs of a batch one after another, without putting back.

A draw is a function of the seed, of how many pairs were drawn before, and of what is known of pairs by their ids: the
order of the set changes nothing, and a resume draws what the run would have drawn. Margins of the batch before count
for nothing (`value`: its pairs have the age 0), so a draw can be foreseen while the learner trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from cluster.sampling.offline_pool import (
    OfflineState,
    check_not_empty,
    check_size,
    none_usable,
)
from cluster.sampling.prompt_sampler import id_keys
from cluster.sampling.value import Floats, probabilities, values
from common.data.records_on_disk import fetch, id_key
from common.errors import UserError
from common.records import Dropped, PreferencePair
from common.seeding import derive_seed

Record: TypeAlias = tuple[float, int, int]
"""The last margin, the number of uses, and `num_drawn` after the last batch."""


@dataclass(slots=True)
class ValueState:
    """What a checkpoint remembers of the draws.

    Attributes:
        num_drawn: pairs that were drawn so far, those that could not be used included.
        records: key of a pair -> its record, for pairs that were drawn.
        num_effective: pairs that the last draw was as concentrated as, were they equally likely: 1 / Σ probability².
    """

    num_drawn: int = 0
    records: dict[int, Record] = field(default_factory=dict)
    num_effective: float = 0.0


class ValuePool:
    """A fixed pair set; no pair comes twice in a batch. Rows that share an id are one pair."""

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        seed: int,
        size: OfflineState,
        state: ValueState,
    ) -> None:
        """Continue at `state`, which the pool advances in place.

        Raises:
            UserError: the set has another size than when the state was saved.
        """
        check_size(size, pairs)
        self._pairs = pairs
        self._seed = seed
        self._state = state
        self._keys, self._rows = np.unique(
            np.asarray(id_keys(pairs)), return_index=True
        )
        # By place among the sorted keys; a pair that was never drawn has no uses.
        self._margins = np.zeros(len(self._keys))
        self._uses = np.zeros(len(self._keys))
        self._drawn_at = np.zeros(len(self._keys))
        for key, record in state.records.items():
            self._set(key, record)

    def take(
        self,
        num: int,
        dropped: list[Dropped],
    ) -> list[PreferencePair]:
        """Draw `num` pairs.

        Args:
            dropped: collects the pairs that cannot be used; the next ones take their places.

        Raises:
            UserError: the set has no `num` pairs that can be used.
        """
        check_not_empty(self._pairs, num)
        if not num:
            return []
        likely = self._probabilities()
        self._state.num_effective = 1 / float(np.square(likely).sum())
        taken: list[PreferencePair] = []
        drawn: list[int] = []
        unusable: list[Dropped] = []
        for place in self._drawn(likely, num):
            if len(taken) == num:
                break
            drawn.append(place)
            pair = fetch(self._pairs, int(self._rows[place]))
            if isinstance(pair, Dropped):
                unusable.append(pair)
            else:
                taken.append(pair)
        dropped += unusable
        self._check_enough(
            num,
            len(taken),
            unusable,
        )
        self._note_drawn(drawn)
        return taken

    def foresee(self, num: int) -> list[PreferencePair]:
        """What `take` will return; nothing moves."""
        pairs: list[PreferencePair] = []
        if not num or not len(self._pairs):
            return pairs
        for place in self._drawn(self._probabilities(), num):
            if len(pairs) == num:
                break
            pair = fetch(self._pairs, int(self._rows[place]))
            if not isinstance(pair, Dropped):
                pairs.append(pair)
        return pairs

    def note(self, margins: Mapping[str, float]) -> None:
        """The learner has trained on these pairs, and says how large their margins were."""
        for pair_id, margin in margins.items():
            key = id_key(pair_id)
            _, uses, drawn_at = self._state.records[key]
            # What is not a number would make every probability one that is not.
            if math.isfinite(margin):
                self._remember(key, (margin, uses, drawn_at))

    def _probabilities(self) -> Floats:
        num_since = self._state.num_drawn - self._drawn_at
        ages = np.where(
            self._uses > 0,
            num_since / len(self._keys),
            np.inf,
        )
        return probabilities(
            values(
                self._margins,
                ages,
                self._uses,
            )
        )

    def _drawn(
        self,
        likely: Floats,
        num: int,
    ) -> Iterator[int]:
        """Places in the order of the draw."""
        seed = derive_seed(
            self._seed,
            "by_value",
            self._state.num_drawn,
        )
        # The arrival times of independent clocks of rates p: which rings next is a draw in proportion to p.
        times = np.random.default_rng(seed).exponential(size=len(likely)) / likely
        begin, end = 0, min(num, len(times))
        # Only as many are sorted as are looked at.
        while begin < end:
            first = np.argpartition(times, end - 1)[:end]
            in_order = first[np.argsort(times[first])]
            yield from in_order[begin:].tolist()
            begin, end = end, min(2 * end, len(times))

    def _check_enough(
        self,
        num: int,
        num_taken: int,
        unusable: list[Dropped],
    ) -> None:
        if num_taken == num:
            return
        if not num_taken:
            raise none_usable(len(unusable), unusable[-1])
        raise UserError(
            f'mixture.offline_draw = "by_value": expected at least {num} usable offline pairs, as many as a batch '
            f'takes, got {num_taken}; generate more, or set it to "epochs"'
        )

    def _note_drawn(self, places: Sequence[int]) -> None:
        self._state.num_drawn += len(places)
        for place in places:
            key = int(self._keys[place])
            margin, uses, _ = self._state.records.get(key, (0.0, 0, 0))
            self._remember(key, (margin, uses + 1, self._state.num_drawn))

    def _remember(
        self,
        key: int,
        record: Record,
    ) -> None:
        self._state.records[key] = record
        self._set(key, record)

    def _set(
        self,
        key: int,
        record: Record,
    ) -> None:
        place = int(np.searchsorted(self._keys, key))
        # One that has left the set is remembered: it may come back.
        if place < len(self._keys) and self._keys[place] == key:
            self._margins[place], self._uses[place], self._drawn_at[place] = record


def offline_metrics(state: ValueState) -> dict[str, float]:
    """How many offline pairs were seen, how often one of them was used, and how many a draw is spread over."""
    num_seen = len(state.records)
    if not num_seen:
        return {}
    return {
        "offline/seen": float(num_seen),
        "offline/uses": state.num_drawn / num_seen,
        "offline/effective": state.num_effective,
    }
