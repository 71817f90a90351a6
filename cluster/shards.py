"""Between a generating job and its PairWriter: results come one by one, shards are written now and then."""

from __future__ import annotations

import time

from common.pair_writer import Note, PairWriter
from common.records import Dropped, PreferencePair

SHARD_PROMPTS = 256
SHARD_INTERVAL_S = 10.0


class Shards:
    """Collects results and makes them durable every `SHARD_PROMPTS` results or `SHARD_INTERVAL_S` seconds.

    On any way out, errors included, what was collected is written. `num_new_pairs` counts this process's pairs.
    """

    def __init__(self, writer: PairWriter) -> None:
        self._writer = writer
        self._pairs: list[PreferencePair] = []
        self._notes: list[Note] = []
        self._last = time.monotonic()
        self.num_new_pairs = 0

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, result: PreferencePair | Dropped, note: Note) -> None:
        self._notes.append(note)
        if isinstance(result, PreferencePair):
            self._pairs.append(result)
            self.num_new_pairs += 1
        if (
            len(self._notes) >= SHARD_PROMPTS
            or time.monotonic() - self._last > SHARD_INTERVAL_S
        ):
            self.flush()

    def flush(self) -> None:
        if self._notes:
            self._writer.append(self._pairs, self._notes)
            self._pairs, self._notes = [], []
        self._last = time.monotonic()
