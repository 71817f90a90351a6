"""The online pairs of a run as a pair set, so that another run can take them as its offline data (`RUN_DIR/pairs`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from common.datasets import IMAGES, PAIRS, pair_table, read_table, write_table
from common.images import ImageStore
from common.records import PreferencePair
from common.rows import PAIR_SCHEMA


class OnlinePairs:
    """One file per checkpoint, named by its step, so that a resumed run writes the same names again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = ImageStore(directory / IMAGES)

    def write(self, step: int, pairs: Sequence[PreferencePair]) -> None:
        """The pairs accepted since the checkpoint before `step`."""
        write_table(
            self._directory / f"step_{step:06d}.parquet", pair_table(pairs, self.store)
        )

    def finish(self) -> None:
        """Put all steps into `pairs.parquet`."""
        parts = [
            read_table(path, PAIR_SCHEMA)
            for path in sorted(self._directory.glob("step_*.parquet"))
        ]
        write_table(
            self._directory / PAIRS,
            pa.concat_tables(parts) if parts else PAIR_SCHEMA.empty_table(),
        )
