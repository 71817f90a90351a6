"""Which prompt comes next: seeded epochs over the prompts, remembered by id so that a resume repeats and skips none."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import PlainSerializer

from common.records import Prompt
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

    After a resume the groups that were not finished come again, the others do not.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        state: SamplerState | None = None,
    ) -> None:
        """Start with the first epoch, or continue at a saved `state`, which is advanced in place."""
        assert prompts, "the caller refuses an empty prompt set"
        self.state = state or SamplerState()
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._seed = seed
        # Epochs handed out beyond `state.epoch`.
        self._num_ahead = 0
        self._queue: deque[str] = deque()
        self._enqueue(self.state.epoch)

    def next(self) -> tuple[str, Prompt]:
        """The next group; starts another epoch when this one is handed out."""
        while not self._queue:
            self._num_ahead += 1
            self._enqueue(self.state.epoch + self._num_ahead)
        group_id = self._queue.popleft()
        # The prompt's own id may hold a colon: only the first one separates.
        prompt_id = group_id.partition(":")[2]
        return group_id, self._prompts[prompt_id]

    def finish(self, group_id: str) -> None:
        """The group became pairs or a counted drop; it will not be handed out again."""
        state = self.state
        state.finished.add(group_id)
        # Cheap test first: an epoch is only drawn again when it can be complete.
        while len(state.finished) >= len(self._prompts):
            epoch_ids = set(self._order(state.epoch))
            if not epoch_ids <= state.finished:
                return
            state.finished -= epoch_ids
            state.epoch += 1
            self._num_ahead -= 1

    def _enqueue(self, epoch: int) -> None:
        for group_id in self._order(epoch):
            if group_id not in self.state.finished:
                self._queue.append(group_id)

    def _order(self, epoch: int) -> list[str]:
        """The group ids of an epoch: a function of (seed, epoch)."""
        # Sorted first, so that the order of the data set's rows does not matter.
        prompt_ids = sorted(self._prompts)
        seed = derive_seed(self._seed, "frontier", epoch)
        random.Random(seed).shuffle(prompt_ids)
        return [f"{epoch}:{prompt_id}" for prompt_id in prompt_ids]
