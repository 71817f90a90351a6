"""Writes a set of pairs (or of prompts) step by step, so that a killed run goes on where it stopped.

    begin     spec.json                   what the set is made with; another spec is refused once there is a shard
    append    shards/00000.parquet, …     pairs, and in the file's metadata one note per finished prompt
    finish    stats.json, pairs.parquet   in this order: `pairs.parquet` exists if and only if the set is complete

Each step is one rename, and a shard holds pairs and notes in the same file. So whenever the process dies, a prompt is
either finished with its pair or not begun. A set of prompts is written in the same way, to `prompts.parquet`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.data.datasets import (
    IMAGES,
    PAIRS,
    PROMPTS,
    SPEC,
    STATS,
    read_table,
    write_json,
    write_table,
    write_tables,
)
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA, PROMPT_SCHEMA, pair_row, prompt_row
from common.data.trl_format import TRAIN
from common.errors import UserError
from common.machine.folder_lock import FolderLock
from common.records import PreferencePair, Prompt

SHARDS = "shards"
_NOTES = b"notes"

Note = Mapping[str, Any]
"""What a job remembers about one finished prompt, as JSON: at least its `id`."""


def spec_of(directory: Path) -> dict[str, Any] | None:
    """The spec of the set in this folder; None when no set was begun (UserError when it cannot be read)."""
    path = directory / SPEC
    try:
        spec = json.loads(path.read_text())
        return dict(spec)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: expected a JSON object, got: {error}; use another folder"
        ) from error


class PairWriter:
    """Owns the folder of a data set while it is made. A context manager; one process at a time.

    `notes` holds the notes of all shards so far. `complete` says that nothing is left to do.

    Args:
        spec: what the set is made with, as JSON. A set that was begun goes on only with an equal spec.
        kind: what the rows are.

    Raises:
        UserError: the folder holds a set with another spec, or no data set at all, or another process writes to it.
    """

    def __init__(
        self,
        directory: Path,
        spec: Mapping[str, Any],
        kind: Literal["pairs", "prompts"] = "pairs",
    ) -> None:
        self.directory = directory
        self.spec = dict(spec)
        if kind == "pairs":
            self.path = directory / PAIRS
            self._schema = PAIR_SCHEMA
        else:
            self.path = directory / PROMPTS
            self._schema = PROMPT_SCHEMA
        self._lock = FolderLock(directory, "--out")
        self._begin()
        self.store = ImageStore(directory / IMAGES)
        self.notes: list[Note] = []
        for path in self._shards():
            metadata = read_table(path, self._schema).schema.metadata or {}
            self.notes += json.loads(metadata.get(_NOTES, b"[]"))

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._lock.close()

    @property
    def complete(self) -> bool:
        """Whether the set is finished."""
        return self.path.exists()

    @property
    def num_finished(self) -> int:
        """How many rows a complete set has."""
        return int(pq.read_metadata(self.path).num_rows)

    def append(
        self,
        records: Iterable[PreferencePair | Prompt],
        notes: Sequence[Note],
    ) -> None:
        """Write these records and notes as one shard: durable when this returns, all of them or none."""
        assert not self.complete, "a complete pair set takes no more pairs"
        rows = []
        for record in records:
            if isinstance(record, Prompt):
                rows.append(prompt_row(record, self.store))
            else:
                rows.append(pair_row(record, self.store))
        table = pa.Table.from_pylist(rows, schema=self._schema)
        table = table.replace_schema_metadata({_NOTES: json.dumps(notes).encode()})
        name = f"{len(self._shards()):05d}.parquet"
        write_table(self.directory / SHARDS / name, table)
        self.notes += notes

    def ids(self) -> Iterator[str]:
        """The ids of all records written so far."""
        for path in self._shards():
            yield from pq.read_table(path, columns=["id"])["id"].to_pylist()

    def discard(self) -> None:
        """Delete what was begun, so that the folder can take another set."""
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)
        (self.directory / SPEC).unlink(missing_ok=True)
        self.notes = []

    def finish_as_written(self, stats: Mapping[str, Any]) -> None:
        """Join the shards in the order they were written, with one shard in memory at a time."""
        write_json(self.directory / STATS, stats)
        write_tables(self.path, self._schema, self._tables())
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)

    def finish(self, stats: Mapping[str, Any], order: Sequence[str]) -> None:
        """Join the shards of a pair set, sorted by the place of the prompt in `order`, then by pair id.

        So the file does not depend on which prompt happened to be finished first.

        Args:
            order: the ids of all prompts.
        """
        table = pa.concat_tables([PAIR_SCHEMA.empty_table(), *self._tables()])
        place = {prompt_id: number for number, prompt_id in enumerate(order)}
        prompt_ids = pc.struct_field(table["prompt"], "id").to_pylist()
        pair_ids = table["id"].to_pylist()

        def sort_key(row: int) -> tuple[int, str]:
            return place[prompt_ids[row]], pair_ids[row]

        rows = sorted(range(len(table)), key=sort_key)
        table = table.take(pa.array(rows, pa.int64())).combine_chunks()
        write_json(self.directory / STATS, stats)
        write_table(self.path, table)
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)

    def _begin(self) -> None:
        """Write the spec of a new set, or check that a set that was begun has the same one."""
        begun = self.complete or bool(self._shards())
        spec = spec_of(self.directory)
        is_export = spec is not None and spec.get("method") == "export"
        if is_export and (self.directory / TRAIN).exists():
            raise UserError(
                f"{self.directory}: expected a new folder or a set of ours, got an export; choose another folder"
            )
        if begun and spec is None:
            raise UserError(
                f"{self.directory}: expected a new folder or a set with {SPEC}, got pairs without it; use another"
            )
        if not begun:
            write_json(self.directory / SPEC, self.spec)
        elif spec != self.spec:
            self._refuse_other_spec(spec or {})

    def _refuse_other_spec(self, spec: Mapping[str, Any]) -> None:
        for key in sorted({*spec, *self.spec}):
            begun_with = spec.get(key)
            value = self.spec.get(key)
            if begun_with != value:
                raise UserError(
                    f"{self.directory}: expected the settings this set was begun with ({key} = {begun_with}), got "
                    f"{key} = {value}; repeat them or choose another folder"
                )

    def _tables(self) -> Iterator[pa.Table]:
        """The shards in the order they were written, without their notes."""
        for path in self._shards():
            yield read_table(path, self._schema).replace_schema_metadata()

    def _shards(self) -> list[Path]:
        return sorted((self.directory / SHARDS).glob("[0-9]*.parquet"))
