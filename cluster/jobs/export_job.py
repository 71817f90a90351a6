"""Exports a pair set as TRL's VLM preference parquet: `OUT/train.parquet` with the images, spec.json and stats.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.jobs.drop_report import Tally, print_dropped
from cluster.progress import ProgressReport
from common.data.datasets import (
    PAIRS,
    PROMPTS,
    SPEC,
    STATS,
    count_pairs,
    iter_pairs,
    write_json,
    write_tables,
)
from common.data.pair_writer import SHARDS, spec_of
from common.data.trl_format import META, TRAIN, TRL_SCHEMA, trl_row
from common.errors import Refused, UserError
from common.machine.folder_lock import FolderLock
from common.records import Dropped, PreferencePair

TABLE_BYTES = 32_000_000


def export_set(directory: Path, out: Path) -> None:
    """Write the export; pairs whose images are gone or changed are counted and left out.

    Raises:
        UserError: `directory` is no complete pair set, none of its pairs can be exported, or OUT holds a set or another
            export, or is written by another process.
    """
    total = count_pairs(directory)
    with FolderLock(out, "--out"):
        _export(directory, out, total)


def _export(directory: Path, out: Path, total: int) -> None:
    for name in (PAIRS, PROMPTS, SHARDS):
        if (out / name).exists():
            raise UserError(
                f"--out: expected a folder without {name}, got {out}, which holds a set; choose another folder"
            )
    stat = (directory / PAIRS).stat()
    # Size and time of the file stand for its content: an export never reads the set to find out that it is done.
    spec = {
        "method": "export",
        "format": "trl",
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
    }
    if (out / TRAIN).exists():
        if spec_of(out) != spec:
            raise UserError(
                f"{out}: expected a new folder, got the export of another set; choose another folder"
            )
        print(f"{out / TRAIN}: already complete")
        return
    tally = Tally()
    with ProgressReport("export", total) as progress:
        write_json(out / SPEC, spec)
        write_tables(out / TRAIN, TRL_SCHEMA, _tables(directory, tally, progress))
    stats = {
        "num_rows": tally.num_rows,
        "num_pairs": tally.num_records,
        "dropped": dict(tally.dropped),
    }
    write_json(out / STATS, stats)
    print_dropped(f"export: {tally.num_rows:,} rows", tally)
    print(f"{out / TRAIN}: {tally.num_records} pairs of {tally.num_rows}")


def _tables(
    directory: Path, tally: Tally, progress: ProgressReport
) -> Iterator[pa.Table]:
    """Tables of about `TABLE_BYTES`, so that a set of any size fits in memory (UserError when no pair is left)."""
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    unreadable: list[Dropped] = []
    for pair in iter_pairs(directory, unreadable):
        tally.num_rows += 1
        progress.advance()
        row = _row(pair)
        if isinstance(row, Dropped):
            tally.drop(row)
            continue
        tally.num_records += 1
        rows.append(row)
        num_bytes += _num_bytes(row)
        if num_bytes >= TABLE_BYTES:
            yield pa.Table.from_pylist(rows, schema=TRL_SCHEMA)
            rows = []
            num_bytes = 0
    for dropped in unreadable:
        tally.num_rows += 1
        tally.drop(dropped)
    if tally.num_records == 0:
        raise UserError(
            f"{directory}: expected pairs that can be exported, got none of {tally.num_rows}; dropped "
            f"{tally.report()}; import the set again"
        )
    if rows:
        yield pa.Table.from_pylist(rows, schema=TRL_SCHEMA)


def _num_bytes(row: dict[str, Any]) -> int:
    """Roughly how much memory a row takes: its texts and images, and 1,000 bytes for the rest."""
    total = 1000 + len(row[META])
    turns = [*row["prompt"], *row["chosen"], *row["rejected"]]
    for turn in turns:
        for part in turn["content"]:
            total += len(part["text"] or "")
    for image in row["images"]:
        total += len(image["bytes"])
    return total


def _row(pair: PreferencePair) -> dict[str, Any] | Dropped:
    """The row of a pair, or the reason why its image cannot be read."""
    try:
        return trl_row(pair)
    except Refused as error:
        return Dropped(pair.id, error.reason, str(error))
