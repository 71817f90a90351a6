"""Prompts in files that others made. Every row is checked at the start but for the content of its pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.rows import python_rows
from common.errors import Refused, UserError
from common.importers.build import Unread, unread, with_images
from common.importers.prompts import IMPORTER, prompt_files
from common.prompts.survey import PromptSet, Survey, has_facts
from common.reading.image_intake import ImageIntake
from common.reading.picture_keys import key_of_bytes, key_of_file, key_of_name
from common.reading.readers import BAD_FILE, DataFile, arrow_batches, file_rows
from common.reading.row_store import RowStore, store_batches, store_json
from common.reading.splits import TRAIN
from common.records import Dropped, Prompt


def files_of_split(path: Path, split: str) -> list[DataFile]:
    """The files of a split where names tell of several, else all.

    Raises:
        UserError: there are several splits, and not this one.
    """
    by_split: dict[str, list[DataFile]] = {}
    files: list[DataFile] = []
    for file in prompt_files(path):
        assert isinstance(file, DataFile), "what is no file is refused"
        files.append(file)
        by_split.setdefault(file.split or TRAIN, []).append(file)
    names = sorted(by_split)
    if len(names) == 1:
        return files
    if split not in names:
        raise UserError(
            f"{path}: expected files of the split {split}, got {', '.join(names)}; give the path of the right files"
        )
    return by_split[split]


class OpenFiles:
    """Reads the rows of files once, and then any of them again.

    Args:
        intake: takes the pictures.
        rows: how many rows are read, None for all.
        with_keys: whether pictures must be told apart.
        cache: a folder for the rows, in a form of which any row can be read alone.
    """

    def __init__(
        self,
        intake: ImageIntake,
        rows: int | None,
        with_keys: bool,
        cache: Path,
    ) -> None:
        self._intake = intake
        self._rows = rows
        self._with_keys = with_keys
        self._cache = cache
        self._survey = Survey()
        self._files: list[DataFile] = []
        self._stores: list[RowStore] = []
        # The number of the first row of each file.
        self._firsts: list[int] = []
        self._num_rows = 0

    def add(self, file: DataFile) -> None:
        """Read a file (UserError when it breaks off)."""
        if self._num_left == 0:
            return
        self._firsts.append(self._num_rows)
        self._files.append(file)
        path = self._cache / f"{len(self._files):05d}.arrow"
        if file.path.suffix in (".arrow", ".parquet"):
            with arrow_batches(file.path) as (schema, batches):
                surveyed = self._surveyed(batches, file)
                store = store_batches(path, schema, surveyed)
        else:
            rows = self._surveyed_rows(file)
            store = store_json(path, rows)
        self._stores.append(store)

    @property
    def _num_left(self) -> int | None:
        """How many rows are still to be read, None for all."""
        if self._rows is None:
            return None
        return max(0, self._rows - self._num_rows)

    def finish(self) -> PromptSet:
        """The prompts of all files."""
        return self._survey.finish(self.read)

    def read(self, number: int) -> Prompt | Dropped:
        """The prompt of a row, with its pictures."""
        index = bisect_right(self._firsts, number) - 1
        number_in_file = number - self._firsts[index]
        row = self._stores[index].row(number_in_file)
        result = _draft(number, row, self._files[index])
        if isinstance(result, Dropped):
            return result
        return with_images(result, self._intake)

    def _surveyed(
        self, batches: Iterator[pa.RecordBatch], file: DataFile
    ) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            batch = batch.slice(0, self._num_left)
            for row in python_rows(batch):
                self._look_at(row, file)
            yield batch

    def _surveyed_rows(self, file: DataFile) -> Iterator[Any]:
        for row, _ in file_rows(file):
            if self._num_left == 0:
                return
            if isinstance(row, Dropped) and row.reason == BAD_FILE:
                raise UserError(row.detail)
            self._look_at(row, file)
            # A row that is none is known to be dropped, and never read again.
            yield None if isinstance(row, Dropped) else row

    def _look_at(self, row: Any, file: DataFile) -> None:
        number = self._num_rows
        self._num_rows += 1
        result = _draft(number, row, file)
        if isinstance(result, Dropped):
            self._survey.dropped.append(result)
        else:
            self._take_down(number, result)

    def _take_down(self, number: int, draft: Unread[Prompt]) -> None:
        """Count a prompt if its pictures are there."""
        prompt = draft.record
        keys = []
        try:
            for source in draft.images:
                content = self._intake.locate(source)
                if self._with_keys:
                    keys.append(_key_of(content))
        except Refused as error:
            dropped = Dropped(prompt.id, error.reason, str(error))
            self._survey.dropped.append(dropped)
            return
        has_reference = prompt.reference is not None
        has_truth = has_facts(prompt)
        self._survey.add(number, prompt.id, has_reference, has_truth, keys)


def _draft(number: int, row: Any, file: DataFile) -> Unread[Prompt] | Dropped:
    """The prompt of a row without its pictures, or why there is none."""
    if isinstance(row, dict):
        row = {**row, **file.extra}
    if isinstance(row, Exception):
        detail = f"expected values that Python can hold, got: {row}; repair the row"
        return Dropped(f"{IMPORTER.name}/{number}", "bad_row", detail)
    # The importer makes one prompt of a row, or none.
    (result,) = unread(IMPORTER, number, row)
    return result


def _key_of(content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return key_of_bytes(content)
    try:
        return key_of_file(content)
    except OSError:
        return key_of_name(str(content))
