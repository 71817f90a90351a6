"""The online pairs of a run as a pair set, so that another run can take them as its offline data (`RUN_DIR/pairs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.datasets import (
    IMAGES,
    PAIRS,
    read_table,
    write_table,
    write_tables,
)
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA, pair_row
from common.errors import Refused
from common.records import Dropped, PreferencePair


class OnlinePairs:
    """One file per checkpoint, named by its step, so that a resumed run writes the same names again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = ImageStore(directory / IMAGES)

    def write(self, step: int, pairs: Sequence[PreferencePair]) -> list[Dropped]:
        """The pairs accepted since the checkpoint before `step`; returns those whose picture has gone since then."""
        rows: list[dict[str, Any]] = []
        lost: list[Dropped] = []
        for pair in pairs:
            try:
                rows.append(pair_row(pair, self.store))
            except Refused as error:
                lost.append(Dropped(pair.id, error.reason, str(error)))
        write_table(self._path(step), pa.Table.from_pylist(rows, schema=PAIR_SCHEMA))
        return lost

    def forget(self, step: int) -> None:
        """Delete the pairs of a checkpoint that never came to be."""
        self._path(step).unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Delete the pairs of all checkpoints after this step; a resume makes them again."""
        last = self._path(step).name
        for path in self._directory.glob("step_*.parquet"):
            if path.name > last:
                path.unlink()

    def finish(self) -> None:
        """Put all steps into `pairs.parquet`, with one of them in memory at a time."""
        write_tables(self._directory / PAIRS, PAIR_SCHEMA, self._parts())

    def _parts(self) -> Iterator[pa.Table]:
        # The schema alone, when no pair was accepted: a run can still read the set.
        yield PAIR_SCHEMA.empty_table()
        for path in sorted(self._directory.glob("step_*.parquet")):
            yield read_table(path, PAIR_SCHEMA)

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step:06d}.parquet"
