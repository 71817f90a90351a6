"""Writing a set of pairs (or of prompts) bit by bit, so that a killed run goes on where it stopped.

    begin   spec.json                      what the set is made with; another spec is refused once there is a shard
    go on   shards/00000.parquet, …        pairs, and in the same file's metadata a note per finished prompt
    end     stats.json, pairs.parquet      in this order; `pairs.parquet` exists if and only if the set is complete

Each step is one rename, and pairs and notes of a shard share a file: whatever moment the process dies at, a prompt is
either finished with its pair or not begun. A set of prompts is written the same way under `prompts.parquet`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.datasets import (
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
from common.errors import UserError
from common.images import ImageStore
from common.records import PreferencePair, Prompt
from common.rows import PAIR_SCHEMA, PROMPT_SCHEMA, pair_row, prompt_row

SHARDS = "shards"
_NOTES = b"notes"

Note = Mapping[str, Any]


def spec_of(directory: Path) -> dict[str, Any] | None:
    """What the set in this folder is made with; None when none was begun (UserError when it cannot be read)."""
    path = directory / SPEC
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a JSON object, got: {error}; use another folder"
        ) from error


class PairWriter:
    """Owns a pair set (`kind` "prompts": a set of prompts) while it is made; a context manager, one process at a time.

    `notes` holds the notes of every shard so far, `complete` says that nothing is left to do.

    Raises:
        UserError: the folder holds a set of another spec, is no pair set at all, or another process writes to it.
    """

    def __init__(
        self,
        directory: Path,
        spec: Mapping[str, Any],
        kind: Literal["pairs", "prompts"] = "pairs",
    ) -> None:
        self.directory, self.spec = directory, dict(spec)
        self.path = directory / (PAIRS if kind == "pairs" else PROMPTS)
        self._schema = PAIR_SCHEMA if kind == "pairs" else PROMPT_SCHEMA
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{directory}: expected one writer, got a second one; wait for the first"
            ) from error
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
        return self.path.exists()

    def append(
        self, records: Iterable[PreferencePair | Prompt], notes: Sequence[Note]
    ) -> None:
        """Make these records and notes durable, all or nothing."""
        assert not self.complete, "a complete pair set takes no more pairs"
        rows = [
            prompt_row(record, self.store)
            if isinstance(record, Prompt)
            else pair_row(record, self.store)
            for record in records
        ]
        table = pa.Table.from_pylist(rows, schema=self._schema)
        table = table.replace_schema_metadata({_NOTES: json.dumps(notes).encode()})
        write_table(
            self.directory / SHARDS / f"{len(self._shards()):05d}.parquet", table
        )
        self.notes += notes

    def ids(self) -> Iterator[str]:
        """The ids written so far."""
        for path in self._shards():
            yield from pq.read_table(path, columns=["id"])["id"].to_pylist()

    def discard(self) -> None:
        """Forget what was begun, so that the folder can take another set."""
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)
        (self.directory / SPEC).unlink(missing_ok=True)
        self.notes = []

    def finish_as_written(self, stats: Mapping[str, Any]) -> None:
        """Put the shards together in the order they were written, one shard in memory at a time."""
        write_json(self.directory / STATS, stats)
        tables = (
            read_table(path, self._schema).replace_schema_metadata()
            for path in self._shards()
        )
        write_tables(self.path, self._schema, tables)
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)

    def finish(self, stats: Mapping[str, Any], order: Sequence[str]) -> None:
        """Put the shards together in `order` of prompt ids, pairs of one prompt by id: not by who was done first."""
        place = {prompt_id: number for number, prompt_id in enumerate(order)}
        tables = [
            read_table(path, PAIR_SCHEMA).replace_schema_metadata()
            for path in self._shards()
        ]
        table = pa.concat_tables(tables) if tables else PAIR_SCHEMA.empty_table()
        ids = zip(
            pc.struct_field(table["prompt"], "id").to_pylist(),
            table["id"].to_pylist(),
            strict=True,
        )
        rank = [(place[prompt_id], id) for prompt_id, id in ids]
        table = table.take(
            pa.array(sorted(range(len(rank)), key=rank.__getitem__), pa.int64())
        ).combine_chunks()
        write_json(self.directory / STATS, stats)
        write_table(self.path, table)
        shutil.rmtree(self.directory / SHARDS, ignore_errors=True)

    def _begin(self) -> None:
        found = spec_of(self.directory)
        begun = self.complete or bool(self._shards())
        if found is None or not begun:
            if begun:
                raise UserError(
                    f"{self.directory}: expected a new folder or a set with {SPEC}, got pairs without it; use another"
                )
            write_json(self.directory / SPEC, self.spec)
        elif found != self.spec:
            key = next(
                k
                for k in sorted({*found, *self.spec})
                if found.get(k) != self.spec.get(k)
            )
            raise UserError(
                f"{self.directory}: expected the settings this set was begun with ({key} = {found.get(key)}), got "
                f"{key} = {self.spec.get(key)}; repeat them or choose another folder"
            )

    def _shards(self) -> list[Path]:
        return sorted((self.directory / SHARDS).glob("[0-9]*.parquet"))
