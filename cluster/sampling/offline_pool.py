"""The offline pairs in seeded epochs (`mixture.offline_draw = "epochs"`), and what every draw of them refuses."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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
        check_size(state, pairs)
        self._pairs = pairs
        self._seed = seed
        self._state = state
        self._units = _shuffle_units(pairs) if by_prompt else None
        self._order = self._shuffled(state.epoch)
        # Made when it is first looked at, and then kept for `take`.
        self._next_order: array[int] | None = None

    def take(
        self,
        num: int,
        dropped: list[Dropped],
    ) -> list[PreferencePair]:
        """The next `num` pairs; a batch may reach over the end of an epoch.

        Args:
            dropped: collects the pairs that cannot be used; the next ones take their places.

        Raises:
            UserError: pairs are wanted and the set is empty, or not one of a whole epoch can be used.
        """
        check_not_empty(self._pairs, num)
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
                if num_unusable >= len(self._pairs):
                    raise none_usable(num_unusable, pair)
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

    def note(self, margins: Mapping[str, float]) -> None:
        """Epochs do not look at what the learner says of pairs."""

    def _order_of_next_epoch(self) -> array[int]:
        if self._next_order is None:
            self._next_order = self._shuffled(self._state.epoch + 1)
        return self._next_order

    def _shuffled(self, epoch: int) -> array[int]:
        """Pair indices in the order of an epoch: a function of (seed, epoch)."""
        # Shuffled from the set's order each time, so that a resume needs no earlier epoch.
        seed = derive_seed(
            self._seed,
            "offline",
            epoch,
        )
        if self._units is None:
            order = list(range(len(self._pairs)))
            random.Random(seed).shuffle(order)
            return array("q", order)
        units = list(self._units)
        random.Random(seed).shuffle(units)
        return array("q", chain.from_iterable(units))


def check_size(
    state: OfflineState,
    pairs: Sequence[PreferencePair],
) -> None:
    """Raise UserError when the set has another size than when the state was saved."""
    if state.size != len(pairs):
        raise UserError(
            f"data.offline: expected the {state.size} pairs this run began with, got {len(pairs)}; "
            "restore the pair file or start a new run"
        )


def check_not_empty(
    pairs: Sequence[PreferencePair],
    num_wanted: int,
) -> None:
    """Raise UserError when pairs are wanted and there are none."""
    if num_wanted and not len(pairs):
        raise UserError(
            f"data.offline: expected at least one pair, got an empty set while a batch wants {num_wanted}; "
            "generate pairs or set mixture.online_fraction = 1"
        )


def none_usable(
    num_in_a_row: int,
    last: Dropped,
) -> UserError:
    """What stops a run none of whose offline pairs can be used."""
    return UserError(
        f"data.offline: expected at least one usable pair, got none of {num_in_a_row}"
        f"{such_as([last])}; repair the rows"
    )


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
