"""Which prompt comes next: seeded epochs over the prompts, remembered by id so that a resume repeats and skips none."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from common.records import Prompt
from common.seeding import derive_seed


class Frontier:
    """Hands out (group id, prompt). A group id is `EPOCH:PROMPT_ID`; unfinished groups come again after a resume."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        assert prompts, "the caller refuses an empty prompt set"
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._seed = seed
        state = state or {"epoch": 0, "finished": []}
        self._epoch = int(state["epoch"])
        self._finished: set[str] = set(state["finished"])
        self._queue = deque(
            group_id
            for group_id in self._order(self._epoch)
            if group_id not in self._finished
        )
        self._ahead = 0

    def next(self) -> tuple[str, Prompt]:
        """The next group; starts another epoch when this one is handed out."""
        while not self._queue:
            self._ahead += 1
            order = self._order(self._epoch + self._ahead)
            self._queue.extend(
                group_id for group_id in order if group_id not in self._finished
            )
        group_id = self._queue.popleft()
        return group_id, self._prompts[group_id.partition(":")[2]]

    def finish(self, group_id: str) -> None:
        """The group came to a pair or a counted drop; it will not be handed out again."""
        self._finished.add(group_id)
        while (
            len(self._finished) >= len(self._prompts)
            and (done := set(self._order(self._epoch))) <= self._finished
        ):
            self._finished -= done
            self._epoch += 1
            self._ahead -= 1

    def state(self) -> dict[str, Any]:
        """JSON-able; `finished` holds ids of the current epoch and of later ones already begun."""
        return {"epoch": self._epoch, "finished": sorted(self._finished)}

    def _order(self, epoch: int) -> list[str]:
        ids = sorted(self._prompts)
        random.Random(derive_seed(self._seed, "frontier", epoch)).shuffle(ids)
        return [f"{epoch}:{prompt_id}" for prompt_id in ids]
