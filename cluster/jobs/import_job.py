"""The import job: rows of a published set in, a resumable set of ours out.

    files ─▶ file_rows ─▶ outcomes: record or Dropped ─▶ Shard ─▶ PairWriter

One batch of rows and one shard of records are in memory at a time. A shard's note is the tally up to its end, so a
killed run goes on behind the rows of its last shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.jobs.drop_report import Tally, print_dropped, printable
from cluster.jobs.input_files import Overlaps, choose_split, describe
from cluster.progress import ProgressReport
from common.config.jobs import ImportSettings
from common.data.pair_writer import PairWriter
from common.errors import UserError
from common.importers import load
from common.importers.base import Importer
from common.importers.build import outcomes
from common.reading.hub_cache import snapshot_of
from common.reading.image_intake import ImageIntake
from common.reading.readers import (
    BAD_FILE,
    EMPTY_FILE,
    DataFile,
    file_rows,
    files_of_other_kinds,
    find_files,
)
from common.records import Dropped, PreferencePair, Prompt

SHARD_RECORDS = 1000
SHARD_CHARS = 16_000_000
SHARD_INTERVAL_S = 30.0


def import_set(job: ImportSettings) -> None:
    """Make the set, or what is missing of it, and print how it went.

    Raises:
        UserError: PATH or ROOT is not there, no row can be used, a file breaks off, or DIR holds another set.
    """
    importer = load(job.name)
    made = importer.makes
    if not job.path.exists():
        raise UserError(
            f"{job.path}: expected the files of {job.name}, got none; check PATH"
        )
    job = _in_snapshots(job)
    if not job.image_root.is_dir():
        raise UserError(
            f"--images: expected a folder, got {job.image_root}; check the path"
        )
    choice = choose_split(importer.files(job.path), job.split)
    other_kinds = []
    if importer.files is find_files:
        other_kinds = files_of_other_kinds(job.path)
    for line in describe(choice, other_kinds, job.path):
        print(line)
    files = choice.read
    spec = spec_of(job, importer, files)
    with PairWriter(job.out, spec, made) as writer:
        if writer.complete:
            print(f"{job.out}: already complete, {writer.num_finished} {made}")
            return
        overlaps = Overlaps() if len(_paths(files)) > 1 else None
        try:
            tally = _import(job, importer, files, writer, overlaps)
        except UserError:
            # The folder can take another set once the mistake is mended.
            writer.discard()
            raise
        stats: dict[str, Any] = {
            "num_rows": tally.num_rows,
            f"num_{made}": tally.num_records,
            "dropped": dict(tally.dropped.most_common()),
            "first_dropped": tally.examples,
        }
        if overlaps is not None and overlaps.lines():
            stats["overlaps"] = overlaps.lines()
        if choice.left_out:
            stats["left_out"] = choice.left_out_names(job.path)
        if tally.end_marks:
            stats["num_end_marks"] = tally.end_marks["answers"]
        writer.finish_as_written(stats)
    for line in stats.get("overlaps", []):
        print(f"warning: {printable(line)}")
    print_dropped(f"{job.name}: {tally.num_rows:,} rows", tally)
    if tally.end_marks:
        num_answers = tally.end_marks["answers"]
        print(
            f"took ends of turns that were written out, such as </s>, off {num_answers} answers"
        )
    print(f"{job.out}: {tally.num_records} {made} of {tally.num_rows} rows")


def _in_snapshots(job: ImportSettings) -> ImportSettings:
    """The job with PATH and `--images` behind folders of a hub cache, which is said (UserError where it is unclear)."""
    path = snapshot_of(job.path, "PATH")
    if path != job.path:
        print(f"{job.path} is a hub cache: reading {path}")
    images = job.images
    if images is not None:
        images = snapshot_of(images, "--images")
        if images != job.images:
            print(f"{job.images} is a hub cache: images are below {images}")
    return job.model_copy(update={"path": path, "images": images})


def spec_of(
    job: ImportSettings, importer: Importer, files: Sequence[DataFile | Dropped]
) -> dict[str, Any]:
    """All that decides the content of the set, JSON only."""
    file_specs = []
    for path in _paths(files):
        stat = path.stat()
        modified = stat.st_mtime_ns
        file_specs.append(
            {"name": path.name, "bytes": stat.st_size, "modified": modified}
        )
    return {
        "method": "import",
        "name": importer.name,
        "origin": importer.origin,
        "licence": importer.licence,
        "files": file_specs,
        "images": str(job.image_root.resolve()),
        "strip_prefix": job.strip_prefix,
        "count": job.count,
    }


def _paths(files: Sequence[DataFile | Dropped]) -> list[Path]:
    """The files that can be read."""
    return [file.path for file in files if isinstance(file, DataFile)]


def _import(
    job: ImportSettings,
    importer: Importer,
    files: Sequence[DataFile | Dropped],
    writer: PairWriter,
    overlaps: Overlaps | None,
) -> Tally:
    """Read the rows behind those of the last shard.

    Returns:
        The tally of all rows, with one record at least.

    Raises:
        UserError: a file breaks off, or no row can be used.
    """
    tally = Tally.of(writer.notes[-1]) if writer.notes else Tally()
    num_rows_written = tally.num_rows
    # Hashes, not ids: a set may have millions of records.
    seen: set[int] | None = None
    if importer.own_ids:
        seen = set(map(hash, writer.ids()))
    intake = ImageIntake(job.image_root, writer.store, job.strip_prefix)
    num_bytes = sum(path.stat().st_size for path in _paths(files))
    shard = Shard(writer, tally)
    with ProgressReport(f"{job.name}, kB", num_bytes // 1000) as progress:
        rows = enumerate(_read_files(files, importer.keyed, overlaps))
        for number, (row, position) in islice(rows, job.count):
            # The rows of a resumed import's shards are read once more, for their overlaps.
            if number < num_rows_written:
                continue
            for outcome in outcomes(importer, number, row, intake, tally.end_marks):
                shard.add(_unless_repeated(outcome, seen))
            shard.end_row()
            num_new_kb = position // 1000 - progress.done
            progress.advance(f"{tally.num_records} {importer.makes}", num_new_kb)
        shard.flush()
    if tally.num_records == 0:
        raise UserError(_no_records(job, tally))
    return tally


def _read_files(
    files: Sequence[DataFile | Dropped], keyed: bool, overlaps: Overlaps | None
) -> Iterator[tuple[Any, int]]:
    """(row or Dropped, bytes read so far over all files) for every row.

    Raises:
        UserError: a file breaks off. What is lost behind that place cannot be counted, so the set would be wrong.
    """
    bytes_before = 0
    num_rows = 0
    for file in files:
        if isinstance(file, Dropped):
            yield file, bytes_before
            num_rows += 1
            continue
        for row, position in file_rows(file, keyed):
            if isinstance(row, Dropped) and row.reason == BAD_FILE:
                raise UserError(_broken_file(row, num_rows))
            if overlaps is not None:
                overlaps.add(row, file.path)
            yield row, bytes_before + position
            num_rows += 1
        bytes_before += file.path.stat().st_size


def _broken_file(dropped: Dropped, num_rows: int) -> str:
    message = printable(dropped.detail)
    if num_rows == 0:
        return message
    return (
        f"{message}; or keep the {num_rows:,} rows read so far with --count {num_rows}"
    )


def _unless_repeated(
    outcome: PreferencePair | Prompt | Dropped, seen: set[int] | None
) -> PreferencePair | Prompt | Dropped:
    """Drop a record as `duplicate_id` when an earlier record of this set has its id.

    `seen` holds the hashes of earlier ids; it is None for sets whose ids are made from row numbers.
    """
    if seen is None or isinstance(outcome, Dropped):
        return outcome
    key = hash(outcome.id)
    if key in seen:
        detail = "expected an id of its own, got an earlier row's"
        return Dropped(outcome.id, "duplicate_id", detail)
    seen.add(key)
    return outcome


class Shard:
    """Collects records and writes them between two rows, when they are many, long, or old enough."""

    def __init__(self, writer: PairWriter, tally: Tally) -> None:
        self._writer = writer
        self._tally = tally
        self._records: list[PreferencePair | Prompt] = []
        self._num_chars = 0
        self._written_at = time.monotonic()
        self._num_rows_written = tally.num_rows

    def add(self, outcome: PreferencePair | Prompt | Dropped) -> None:
        """Take one outcome of the row being read."""
        if isinstance(outcome, Dropped):
            self._tally.drop(outcome)
            return
        self._tally.num_records += 1
        self._records.append(outcome)
        if isinstance(outcome, PreferencePair):
            self._num_chars += len(outcome.chosen.text) + len(outcome.rejected.text)
            prompt = outcome.prompt
        else:
            prompt = outcome
        for message in prompt.messages:
            self._num_chars += sum(len(part.text) for part in message.parts)

    def end_row(self) -> None:
        """Count the row that is read to its end. A shard never ends within a row: a resumed import starts behind it."""
        self._tally.num_rows += 1
        is_full = len(self._records) >= SHARD_RECORDS or self._num_chars >= SHARD_CHARS
        age_s = time.monotonic() - self._written_at
        if is_full or age_s > SHARD_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write the records and the tally up to here."""
        if self._tally.num_rows > self._num_rows_written:
            self._writer.append(self._records, [self._tally.note()])
        self._records = []
        self._num_chars = 0
        self._written_at = time.monotonic()
        self._num_rows_written = self._tally.num_rows


def _no_records(job: ImportSettings, tally: Tally) -> str:
    if not tally.dropped.keys() - {EMPTY_FILE}:
        return f"{job.path}: expected rows of {job.name}, got none; check PATH"
    return (
        f"{job.path}: expected rows of {job.name}, got none that can be used of {tally.num_rows}; dropped "
        f"{tally.report()}; check NAME, PATH and --images"
    )
