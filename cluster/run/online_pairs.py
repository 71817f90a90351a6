"""The online pairs of a run as a pair set, so that another run can take them as its offline data (`RUN_DIR/pairs`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from common.data.datasets import IMAGES, PAIRS, pair_table, read_table, write_table
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA
from common.records import PreferencePair


class OnlinePairs:
    """One file per checkpoint, named by its step, so that a resumed run writes the same names again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = ImageStore(directory / IMAGES)

    def write(self, step: int, pairs: Sequence[PreferencePair]) -> None:
        """The pairs accepted since the checkpoint before `step`."""
        path = self._directory / f"step_{step:06d}.parquet"
        write_table(path, pair_table(pairs, self.store))

    def finish(self) -> None:
        """Put all steps into `pairs.parquet`."""
        # The schema alone, when no pair was accepted: a run can still read the set.
        parts = [PAIR_SCHEMA.empty_table()]
        for path in sorted(self._directory.glob("step_*.parquet")):
            part = read_table(path, PAIR_SCHEMA)
            parts.append(part)
        whole = pa.concat_tables(parts)
        write_table(self._directory / PAIRS, whole)
