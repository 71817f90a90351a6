"""Prompts drawn by what they teach, in rounds (ours; `rollout.draw = "by_worth"`).

    round r   S prompts, drawn one after another without putting back; the next one is prompt i with probability
              chance_i^p / Σ chance_j^p, over the prompts that the round does not have yet; p is `rollout.draw_power`,
              and chance_i is of the groups of rounds 0 … r - LAG, see `worth`

Not more groups are in flight than LAG - 1 rounds have. So where groups end in the order in which they began, as in a
deterministic run, those of earlier rounds have ended, and what is drawn is a function of the seed and of what groups
gave: a resume draws what the run would have drawn. Elsewhere a round with a slow group counts later.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.sampling.prompt_sampler import id_keys
from cluster.sampling.worth import Chances, Records
from common.data.records_on_disk import fetch
from common.records import Dropped, Prompt
from common.seeding import derive_seed

ROUNDS_PER_SET = 16
"""Rounds that together are as large as the set, at least: a round of the whole set would be an epoch."""


@dataclass(slots=True)
class RoundState:
    """How far the rounds have come.

    Attributes:
        num_rounds: drawn so far.
        open: round -> keys of its prompts whose group has not ended, in the order of the draw.
        worths: round -> key -> worth of its group, of rounds that no draw has looked at.
        records: of all rounds before these.
        num_effective: prompts that the last draw was as concentrated as, were they equally likely: 1 / Σ probability².
    """

    num_rounds: int = 0
    open: dict[int, list[int]] = field(default_factory=dict)
    worths: dict[int, dict[int, float]] = field(default_factory=dict)
    records: Records = field(default_factory=Records)
    num_effective: float = 0.0


class WorthSampler:
    """Hands out prompts, with a group id `ROUND:PROMPT_ID` for each time.

    After a resume the groups that had not ended come again, the others do not.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        state: RoundState,
        most_in_flight: int,
        power: float = 3.0,
    ) -> None:
        """Begin, or continue at a saved `state`, which is advanced in place.

        Args:
            most_in_flight: groups that may be handed out and not ended at the same time.
            power: of the chances, p; with 3 a chance that is twice as high comes eight times as often.
        """
        assert len(prompts), "the caller refuses an empty prompt set"
        self.state = state
        self._prompts = prompts
        self._seed = seed
        self._power = power
        # In rising order, whatever the order of the rows.
        self._keys, self._rows = np.unique(
            np.asarray(id_keys(prompts)), return_index=True
        )
        largest = max(1, len(self._keys) // ROUNDS_PER_SET)
        self._round_size = min(largest, -(-most_in_flight // 2))
        self._lag = -(-most_in_flight // self._round_size) + 1
        half_life = len(self._keys) / self._round_size
        sorted_keys = array("q", self._keys.tolist())
        self._chances = Chances(sorted_keys, half_life, state.records)
        # Group in flight -> its round and its prompt's key. A row that cannot be read has no id to make a key of.
        self._in_flight: dict[str, tuple[int, int]] = {}
        self._next: deque[tuple[int, int]] = deque()
        self._forget_prompts_that_left()
        for round, open_keys in state.open.items():
            self._next += [(round, key) for key in open_keys]

    def next(self) -> tuple[str, Prompt | Dropped]:
        """The next group, or why its row cannot be used."""
        while True:
            if not self._next:
                self._draw_round()
            round, key = self._next.popleft()
            row = self._rows[np.searchsorted(self._keys, key)]
            prompt = fetch(self._prompts, int(row))
            group_id = f"{round}:{prompt.id}"
            if group_id not in self._in_flight:
                self._in_flight[group_id] = (round, key)
                return group_id, prompt
            # Two rows that cannot be read share an id, so they share a group.
            self._end(round, key, None)

    def finish(self, group_id: str, worth: float | None = None) -> None:
        """The group became pairs or a counted drop; it will not be handed out again.

        Args:
            worth: what it taught; None where that is not known, as of a group that nobody judged.
        """
        round, key = self._in_flight.pop(group_id)
        self._end(round, key, worth)

    def _end(self, round: int, key: int, worth: float | None) -> None:
        state = self.state
        state.open[round].remove(key)
        if not state.open[round]:
            del state.open[round]
        if worth is not None:
            state.worths.setdefault(round, {})[key] = worth

    def _draw_round(self) -> None:
        state = self.state
        round = state.num_rounds
        self._note_rounds(round - self._lag)
        keys = self._drawn(round)
        state.num_rounds += 1
        state.open[round] = keys
        self._next += [(round, key) for key in keys]

    def _note_rounds(self, last: int) -> None:
        """Let the rounds up to this one count, as far as they have ended."""
        state = self.state
        for round in sorted(state.worths):
            if round <= last and round not in state.open:
                self._chances.note(round, state.worths.pop(round))

    def _drawn(self, round: int) -> list[int]:
        """Keys of the prompts of a round, in the order of the draw."""
        weights = self._chances.at(round) ** self._power
        squares = float(np.square(weights).sum())
        self.state.num_effective = float(weights.sum()) ** 2 / squares
        seed = derive_seed(self._seed, "worth", round)
        # The arrival times of independent clocks of rates w: which rings next is a draw in proportion to w.
        times = np.random.default_rng(seed).exponential(size=len(weights)) / weights
        first = np.argpartition(times, self._round_size - 1)[: self._round_size]
        in_order = first[np.argsort(times[first])]
        keys: list[int] = self._keys[in_order].tolist()
        return keys

    def _forget_prompts_that_left(self) -> None:
        for round, keys in list(self.state.open.items()):
            still_here = np.isin(keys, self._keys)
            kept: list[int] = np.asarray(keys)[still_here].tolist()
            if kept:
                self.state.open[round] = kept
            else:
                del self.state.open[round]


def prompt_metrics(state: RoundState) -> dict[str, float]:
    """How many prompts were asked, what a group is worth whose prompt was not, and how many the draw is spread over."""
    total, weight, _ = state.records.first
    return {
        "prompts/asked": float(len(state.records.by_prompt)),
        "prompts/worth_new": total / weight,
        "prompts/effective": state.num_effective,
    }
