"""Gathers the results of a generating job into shards, which its PairWriter makes durable."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from common.data.images import read_bytes
from common.data.pair_writer import Note, PairWriter
from common.errors import Refused
from common.records import Dropped, ImageRef, PreferencePair

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
        """Take the result of one prompt and its note; a pair whose picture has gone becomes a drop."""
        if isinstance(result, PreferencePair):
            try:
                result = self._with_kept_images(result)
            except Refused as error:
                note = {**note, "dropped": error.reason, "detail": str(error)}
                result = Dropped(result.id, error.reason, str(error))
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

    def _with_kept_images(self, pair: PreferencePair) -> PreferencePair:
        """The pair with its images in the folder of the set."""
        # Now, not with the whole shard: then one picture would cost all its rows.
        store = self._writer.store
        refs: list[ImageRef] = []
        for ref in pair.prompt.images:
            if not Path(ref.path).is_relative_to(store.root):
                ref = store.add_bytes(read_bytes(ref), ref.path)
            refs.append(ref)
        return replace(pair, prompt=replace(pair.prompt, images=tuple(refs)))
