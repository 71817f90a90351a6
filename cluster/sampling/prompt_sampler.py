"""Which prompt comes next: seeded epochs over the prompts, remembered by id so that a resume repeats and skips none."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer

from common.data.records_on_disk import RecordsOnDisk, fetch, id_key
from common.records import Dropped, PreferencePair, Prompt
from common.seeding import derive_seed

SortedIds = Annotated[set[str], PlainSerializer(sorted, return_type=list[str])]
"""A set that is written to disk in the same order every time."""


@dataclass(slots=True)
class SamplerState:
    """How far the first epoch that is not finished has come.

    Attributes:
        epoch: its number.
        position: so many prompts of its order are finished, without a gap.
        finished: groups that are finished beyond it, of this epoch and of later ones already begun.
        prompts: a hash of the set that `position` is true for; "" for any, as long as nothing was finished.
    """

    epoch: int = 0
    position: int = 0
    finished: SortedIds = field(default_factory=set)
    prompts: str = ""


class PromptSampler:
    """Hands out prompts, with a group id `EPOCH:PROMPT_ID` for each time.

    After a resume the groups that were not finished come again, the others do not. Prompts are known by their row and
    by a hash of their id: one is read when its turn comes. What is remembered of finished groups grows with those in
    flight, not with the set.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        state: SamplerState | None = None,
    ) -> None:
        """Start with the first epoch, or continue at a saved `state`, which is advanced in place."""
        assert len(prompts), "the caller refuses an empty prompt set"
        self.state = state or SamplerState()
        self._prompts = prompts
        self._keys = id_keys(prompts)
        self._seed = seed
        assert fits(self.state, self._keys), "the caller restores `finished`"
        self.state.prompts = hash_of(self._keys)
        # By epoch, the key of every finished prompt -> its group.
        self._finished: dict[int, dict[int, str]] = {}
        # Of groups in flight. A row that cannot be read at all has no id that its key could be made of.
        self._handed_out: dict[str, list[int]] = {}
        for group_id in self.state.finished:
            self._note_finished(group_id)
        # Of the epoch that is not finished; the one that is handed out may be a later one.
        self._order_to_finish = self._shuffled(self.state.epoch)
        self._epoch, self._order = self.state.epoch, self._order_to_finish
        # What was in flight may have left the set: then nothing of the saved epoch is left to hand out.
        self._advance()
        self._epoch, self._order = self.state.epoch, self._order_to_finish
        self._next_position = 0

    def next(self) -> tuple[str, Prompt | Dropped]:
        """The next group, or why its row cannot be used; starts another epoch when this one is handed out."""
        while True:
            if self._next_position == len(self._order):
                self._epoch += 1
                self._order = self._shuffled(self._epoch)
                self._next_position = 0
            index = self._order[self._next_position]
            self._next_position += 1
            if self._is_finished(self._next_position - 1):
                continue
            prompt = fetch(self._prompts, index)
            group_id = f"{self._epoch}:{prompt.id}"
            keys = self._handed_out.setdefault(group_id, [])
            keys.append(self._keys[index])
            return group_id, prompt

    def finish(self, group_id: str, worth: float | None = None) -> None:
        """The group became pairs or a counted drop; it will not be handed out again.

        Args:
            worth: what the group taught. Epochs do not look at it.
        """
        self.state.finished.add(group_id)
        self._note_finished(group_id)
        self._advance()

    def _is_finished(self, position: int) -> bool:
        """Whether the prompt at this position of the present order is."""
        if self._epoch == self.state.epoch and position < self.state.position:
            return True
        key = self._keys[self._order[position]]
        return key in self._finished.get(self._epoch, {})

    def _note_finished(self, group_id: str) -> None:
        # The prompt's own id may hold a colon: only the first one separates.
        epoch, _, prompt_id = group_id.partition(":")
        finished = self._finished.setdefault(int(epoch), {})
        for key in self._handed_out.pop(group_id, None) or [id_key(prompt_id)]:
            finished[key] = group_id

    def _advance(self) -> None:
        """Forget the groups in front of the first one that is not finished."""
        state = self.state
        while True:
            finished = self._finished.get(state.epoch, {})
            while state.position < len(self._keys):
                key = self._keys[self._order_to_finish[state.position]]
                if key not in finished:
                    return
                state.finished.discard(finished.pop(key))
                state.position += 1
            # What is left are prompts that the set no longer has.
            state.finished.difference_update(finished.values())
            self._finished.pop(state.epoch, None)
            state.epoch += 1
            state.position = 0
            self._order_to_finish = self._order
            if state.epoch != self._epoch:
                self._order_to_finish = self._shuffled(state.epoch)

    def _shuffled(self, epoch: int) -> array[int]:
        """The indices of an epoch in order: a function of (seed, epoch) and of the ids, not of the order of rows."""
        order = np.argsort(np.asarray(self._keys), kind="stable").tolist()
        seed = derive_seed(self._seed, "frontier", epoch)
        random.Random(seed).shuffle(order)
        return array("q", order)


def restore(
    state: SamplerState,
    prompts: Sequence[Prompt],
    finished: Callable[[], Iterable[str]],
) -> None:
    """Make a saved state fit a set that has gained or lost prompts since then: `position` counts in the old order.

    Args:
        finished: the groups of the whole run that were finished when the state was saved; asked for only when needed.
    """
    if fits(state, id_keys(prompts)):
        return
    state.finished.clear()
    for group_id in finished():
        epoch = int(group_id.partition(":")[0])
        if epoch >= state.epoch:
            state.finished.add(group_id)
    state.position = 0
    state.prompts = ""


def fits(state: SamplerState, keys: array[int]) -> bool:
    """Whether the position of a state is true for these prompts."""
    return not state.prompts or state.prompts == hash_of(keys)


def hash_of(keys: array[int]) -> str:
    """A hash of a set of prompts, whatever their order."""
    in_order = np.sort(np.asarray(keys)).tobytes()
    return blake2b(in_order, digest_size=8).hexdigest()


def id_keys(records: Sequence[Prompt] | Sequence[PreferencePair]) -> array[int]:
    """A hash of the id of each prompt or pair; those on disk know theirs."""
    if isinstance(records, RecordsOnDisk):
        return array("q", records.id_keys.tobytes())
    return array("q", [id_key(record.id) for record in records])
