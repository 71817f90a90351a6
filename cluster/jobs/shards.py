"""Gathers the results of a generating job into shards, which its PairWriter makes durable."""

from __future__ import annotations

import time

from common.data.pair_writer import Note, PairWriter
from common.records import Dropped, PreferencePair

SHARD_PROMPTS = 256
SHARD_INTERVAL_S = 10.0
"""What a kill may cost at most, besides what is in flight: so many prompts, or so many seconds, are done again."""


class Shards:
    """Collects results and writes a shard every `SHARD_PROMPTS` results or `SHARD_INTERVAL_S` seconds.

    Leaving the context writes what is left, also after an error. `num_new_pairs` counts the pairs of this process.
    """

    def __init__(self, writer: PairWriter) -> None:
        self._writer = writer
        self._pairs: list[PreferencePair] = []
        self._notes: list[Note] = []
        self._written_at = time.monotonic()
        self.num_new_pairs = 0

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, result: PreferencePair | Dropped, note: Note) -> None:
        """Take the result of one prompt and its note."""
        # Every result has a note, a drop as well: it says that the prompt is done.
        self._notes.append(note)
        if isinstance(result, PreferencePair):
            self._pairs.append(result)
            self.num_new_pairs += 1
        age_s = time.monotonic() - self._written_at
        if len(self._notes) >= SHARD_PROMPTS or age_s > SHARD_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write a shard of what is collected."""
        if self._notes:
            self._writer.append(self._pairs, self._notes)
            self._pairs = []
            self._notes = []
        self._written_at = time.monotonic()
