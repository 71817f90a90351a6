"""The import job: rows of a published set in, a resumable set of ours out.

    files ─▶ read_rows ─▶ outcomes: record or Dropped ─▶ Shard ─▶ PairWriter

One batch of rows and one shard of records are in memory at a time. A shard's note is the tally up to its end, so a
killed run goes on behind the rows of its last shard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from cluster.drop_report import Tally, print_dropped
from cluster.progress import ProgressReport
from common.datasets import STATS
from common.errors import UserError
from common.importers import load
from common.importers.base import Importer
from common.importers.build import outcomes
from common.importers.image_intake import ImageIntake
from common.importers.readers import DataFile, read_rows
from common.job_config import ImportSettings
from common.pair_writer import PairWriter
from common.records import Dropped, PreferencePair, Prompt

SHARD_RECORDS = 1000
SHARD_CHARS = 16_000_000
SHARD_INTERVAL_S = 30.0


def import_set(job: ImportSettings) -> None:
    """Make the set, or what is missing of it, and print how it went.

    Raises:
        UserError: PATH or ROOT is not there, no row can be used, or DIR holds another set.
    """
    importer = load(job.name)
    if not job.path.exists():
        raise UserError(
            f"{job.path}: expected the files of {job.name}, got none; check PATH"
        )
    if not job.image_root.is_dir():
        raise UserError(
            f"--images: expected a folder, got {job.image_root}; check the path"
        )
    files = importer.files(job.path)
    with PairWriter(job.out, spec_of(job, importer, files), importer.makes) as writer:
        if writer.complete:
            stats = json.loads((job.out / STATS).read_text())
            print(
                f"{job.out}: already complete, {stats[f'num_{importer.makes}']} {importer.makes}"
            )
            return
        tally = _import(job, importer, files, writer)
        if tally.num_records == 0:
            writer.discard()
            raise UserError(_nothing(job, tally))
        stats = {
            "num_rows": tally.num_rows,
            f"num_{importer.makes}": tally.num_records,
            "dropped": dict(tally.dropped.most_common()),
            "first_dropped": tally.examples,
        }
        writer.finish_as_written(stats)
    print_dropped(f"{job.name}: {tally.num_rows:,} rows", tally)
    print(f"{job.out}: {tally.num_records} {importer.makes} of {tally.num_rows} rows")


def spec_of(
    job: ImportSettings, importer: Importer, files: Sequence[DataFile | Dropped]
) -> dict[str, Any]:
    """All that decides the content of the set, JSON only."""
    stats = [
        (file.path, file.path.stat()) for file in files if isinstance(file, DataFile)
    ]
    return {
        "method": "import",
        "name": importer.name,
        "origin": importer.origin,
        "licence": importer.licence,
        "files": [
            {"name": path.name, "bytes": stat.st_size, "modified": stat.st_mtime_ns}
            for path, stat in stats
        ],
        "images": str(job.image_root.resolve()),
        "strip_prefix": job.strip_prefix,
        "count": job.count,
    }


def _import(
    job: ImportSettings,
    importer: Importer,
    files: Sequence[DataFile | Dropped],
    writer: PairWriter,
) -> Tally:
    tally = Tally.of(writer.notes[-1]) if writer.notes else Tally()
    seen = {hash(record_id) for record_id in writer.ids()} if importer.own_ids else None
    intake = ImageIntake(job.image_root, writer.store, job.strip_prefix)
    total = sum(
        file.path.stat().st_size for file in files if isinstance(file, DataFile)
    )
    shard = Shard(writer, tally)
    with ProgressReport(f"{job.name}, kB", total // 1000) as progress:
        numbered = enumerate(read_rows(files, importer.keyed))
        for number, (row, position) in islice(numbered, tally.num_rows, job.count):
            for outcome in outcomes(importer, number, row, intake):
                shard.add(_unless_repeated(outcome, seen))
            shard.end_row()
            progress.advance(
                f"{tally.num_records} {importer.makes}",
                position // 1000 - progress.done,
            )
        shard.flush()
    return tally


def _unless_repeated(
    outcome: PreferencePair | Prompt | Dropped, seen: set[int] | None
) -> PreferencePair | Prompt | Dropped:
    """The outcome, or Dropped `duplicate_id` when an earlier record of this set has its id."""
    if seen is None or isinstance(outcome, Dropped):
        return outcome
    key = hash(outcome.id)
    if key in seen:
        return Dropped(
            outcome.id,
            "duplicate_id",
            "expected an id of its own, got an earlier row's",
        )
    seen.add(key)
    return outcome


class Shard:
    """Collects records and makes them durable between two rows, when they are many, long, or old enough."""

    def __init__(self, writer: PairWriter, tally: Tally) -> None:
        self._writer, self._tally = writer, tally
        self._records: list[PreferencePair | Prompt] = []
        self._chars, self._last, self._saved_rows = 0, time.monotonic(), tally.num_rows

    def add(self, outcome: PreferencePair | Prompt | Dropped) -> None:
        """One outcome of the row being read."""
        if isinstance(outcome, Dropped):
            self._tally.drop(outcome)
            return
        self._tally.num_records += 1
        self._records.append(outcome)
        prompt = outcome if isinstance(outcome, Prompt) else outcome.prompt
        self._chars += sum(
            len(part.text) for message in prompt.messages for part in message.parts
        )
        if isinstance(outcome, PreferencePair):
            self._chars += len(outcome.chosen.text) + len(outcome.rejected.text)

    def end_row(self) -> None:
        """The row is read to its end: what there is may be written."""
        self._tally.num_rows += 1
        full = len(self._records) >= SHARD_RECORDS or self._chars >= SHARD_CHARS
        if full or time.monotonic() - self._last > SHARD_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write the records and the tally up to here."""
        if self._tally.num_rows > self._saved_rows:
            self._writer.append(self._records, [self._tally.note()])
        self._records, self._chars = [], 0
        self._last, self._saved_rows = time.monotonic(), self._tally.num_rows


def _nothing(job: ImportSettings, tally: Tally) -> str:
    if not tally.dropped:
        return f"{job.path}: expected rows of {job.name}, got none; check PATH"
    reason, count = tally.dropped.most_common(1)[0]
    detail = tally.examples[reason]["detail"]
    return (
        f"{job.path}: expected rows of {job.name}, got none that can be used of {tally.num_rows}, "
        f"{count} for {reason} ({detail}); check NAME, PATH and --images"
    )
