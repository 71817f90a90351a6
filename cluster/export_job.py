"""A pair set as TRL's VLM preference parquet: `OUT/train.parquet`, images inside, with spec.json and stats.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.drop_report import Tally, print_dropped
from cluster.progress import ProgressReport
from common.datasets import (
    PAIRS,
    SPEC,
    STATS,
    count_pairs,
    iter_pairs,
    write_json,
    write_tables,
)
from common.errors import Refused, UserError
from common.pair_writer import spec_of
from common.records import Dropped, PreferencePair
from common.trl_format import META, TRL_SCHEMA, trl_row

TRAIN = "train.parquet"
TABLE_BYTES = 32_000_000


def export_set(directory: Path, out: Path) -> None:
    """Write the export; pairs whose images are gone or changed are counted and left out.

    Raises:
        UserError: `directory` is no complete pair set, none of its pairs can be exported, or OUT holds another export.
    """
    total = count_pairs(directory)
    stat = (directory / PAIRS).stat()
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
    write_json(
        out / STATS,
        {
            "num_rows": tally.num_rows,
            "num_pairs": tally.num_records,
            "dropped": dict(tally.dropped),
        },
    )
    print_dropped(f"export: {tally.num_rows:,} rows", tally)
    print(f"{out / TRAIN}: {tally.num_records} pairs of {tally.num_rows}")


def _tables(
    directory: Path, tally: Tally, progress: ProgressReport
) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    size = 0
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
        size += _num_bytes(row)
        if size >= TABLE_BYTES:
            yield pa.Table.from_pylist(rows, schema=TRL_SCHEMA)
            rows, size = [], 0
    for dropped in unreadable:
        tally.num_rows += 1
        tally.drop(dropped)
    if tally.num_records == 0:
        raise UserError(
            f"{directory}: expected pairs that can be exported, got none of {tally.num_rows}; import again"
        )
    if rows:
        yield pa.Table.from_pylist(rows, schema=TRL_SCHEMA)


def _num_bytes(row: dict[str, Any]) -> int:
    """About what a row takes in memory."""
    parts = [
        part
        for side in ("prompt", "chosen", "rejected")
        for turn in row[side]
        for part in turn["content"]
    ]
    texts = [row[META], *(part["text"] or "" for part in parts)]
    return (
        1000
        + sum(map(len, texts))
        + sum(len(image["bytes"]) for image in row["images"])
    )


def _row(pair: PreferencePair) -> dict[str, Any] | Dropped:
    try:
        return trl_row(pair)
    except Refused as error:
        return Dropped(pair.id, error.reason, str(error))
