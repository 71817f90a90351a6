"""Which prompt comes next: seeded epochs over the prompts, remembered by id so that a resume repeats and skips none."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import PlainSerializer

from common.data.records_on_disk import RecordsOnDisk, fetch, id_key
from common.records import Dropped, Prompt
from common.seeding import derive_seed

SortedIds = Annotated[set[str], PlainSerializer(sorted, return_type=list[str])]
"""A set that is written to disk in the same order every time."""


@dataclass(slots=True)
class SamplerState:
    """The first epoch that is not finished, and the groups that are: of this epoch and of later ones already begun."""

    epoch: int = 0
    finished: SortedIds = field(default_factory=set)


class PromptSampler:
    """Hands out prompts, with a group id `EPOCH:PROMPT_ID` for each time.

    After a resume the groups that were not finished come again, the others do not. Prompts are known by their row and
    by a hash of their id: one is read when its turn comes.
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
        # By epoch, the keys of the prompts whose groups are finished.
        self._finished: dict[int, set[int]] = {}
        # Of groups in flight. A row that cannot be read at all has no id that its key could be made of.
        self._handed_out: dict[str, list[int]] = {}
        for group_id in self.state.finished:
            self._note_finished(group_id)
        self._epoch = self.state.epoch
        self._order = self._shuffled(self._epoch)
        self._position = 0

    def next(self) -> tuple[str, Prompt | Dropped]:
        """The next group, or why its row cannot be used; starts another epoch when this one is handed out."""
        while True:
            if self._position == len(self._order):
                self._epoch += 1
                self._order = self._shuffled(self._epoch)
                self._position = 0
            index = self._order[self._position]
            self._position += 1
            finished = self._finished.get(self._epoch, set())
            if self._keys[index] in finished:
                continue
            prompt = fetch(self._prompts, index)
            group_id = f"{self._epoch}:{prompt.id}"
            keys = self._handed_out.setdefault(group_id, [])
            keys.append(self._keys[index])
            return group_id, prompt

    def finish(self, group_id: str) -> None:
        """The group became pairs or a counted drop; it will not be handed out again."""
        state = self.state
        state.finished.add(group_id)
        self._note_finished(group_id)
        while self._is_finished(state.epoch):
            self._forget(state.epoch)
            state.epoch += 1

    def _forget(self, epoch: int) -> None:
        """Drop what is known of a finished epoch."""
        del self._finished[epoch]
        prefix = f"{epoch}:"
        for group_id in list(self.state.finished):
            if group_id.startswith(prefix):
                self.state.finished.remove(group_id)

    def _note_finished(self, group_id: str) -> None:
        # The prompt's own id may hold a colon: only the first one separates.
        epoch, _, prompt_id = group_id.partition(":")
        finished = self._finished.setdefault(int(epoch), set())
        keys = self._handed_out.pop(group_id, None)
        finished.update(keys or [id_key(prompt_id)])

    def _is_finished(self, epoch: int) -> bool:
        keys = self._finished.get(epoch, set())
        if len(keys) < len(self._keys):
            return False
        # Rows may have gone since the run began, so the number alone does not tell.
        return keys.issuperset(self._keys)

    def _shuffled(self, epoch: int) -> array[int]:
        """The indices of an epoch in order: a function of (seed, epoch) and of the ids, not of the order of rows."""
        indices = range(len(self._keys))
        order = sorted(indices, key=self._keys.__getitem__)
        seed = derive_seed(self._seed, "frontier", epoch)
        random.Random(seed).shuffle(order)
        return array("q", order)


def id_keys(prompts: Sequence[Prompt]) -> array[int]:
    """A hash of each prompt's id; those on disk know theirs."""
    if isinstance(prompts, RecordsOnDisk):
        return array("q", prompts.id_keys.tobytes())
    return array("q", [id_key(prompt.id) for prompt in prompts])
