"""Prompt sets of ours, which were checked when they were made: only their columns are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.datasets import IMAGES, PROMPTS, iter_batches, record_of
from common.data.images import ImageStore
from common.data.rows import PROMPT_SCHEMA, prompt_of, texts_of
from common.errors import Refused
from common.prompts.survey import PromptSet, Survey
from common.reading.picture_keys import key_of_file, key_of_name
from common.reading.row_store import store_batches
from common.records import Dropped, Prompt


def folder_of_set(path: Path) -> Path | None:
    """The folder of a prompt set of ours that a path leads to; None when it leads to other files."""
    if (path / PROMPTS).is_file():
        return path
    if path.name == PROMPTS and (path.parent / IMAGES).is_dir():
        return path.parent
    return None


def open_set(folder: Path, rows: int | None, with_keys: bool, cache: Path) -> PromptSet:
    """The prompts of a folder.

    Args:
        rows: how many rows are read, None for all.
        with_keys: whether pictures must be told apart.
        cache: a folder for the rows, in a form of which any row can be read alone.

    Raises:
        UserError: `prompts.parquet` cannot be read, or has other columns.
    """
    survey = Survey()
    store = ImageStore(folder / IMAGES)

    def surveyed() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in iter_batches(folder / PROMPTS, PROMPT_SCHEMA, rows):
            _survey_columns(batch, first, survey, store if with_keys else None)
            first += len(batch)
            yield batch

    stored = store_batches(cache / "rows.arrow", PROMPT_SCHEMA, surveyed())

    def read(number: int) -> Prompt | Dropped:
        return record_of(number, stored.row(number), prompt_of, store)

    return survey.finish(read)


def _survey_columns(
    batch: pa.RecordBatch, first: int, survey: Survey, store: ImageStore | None
) -> None:
    """Look at some rows; `store` is None where pictures need not be told apart."""
    references = batch["reference"].is_valid().to_pylist()
    truths = batch["truth"].is_valid().to_pylist()
    images: list[Any] = [()] * len(batch)
    if store is not None:
        images = batch["images"].to_pylist()
    for offset, id in enumerate(texts_of(batch["id"])):
        number = first + offset
        keys: list[int] = []
        if store is not None:
            keys = _keys_of(images[offset], store)
        survey.add(number, id, references[offset], truths[offset], keys)


def _keys_of(images: Sequence[Any] | None, store: ImageStore) -> list[int]:
    keys = []
    for ref in images or ():
        try:
            path = store.resolve(ref["sha256"], ref["path"]).path
            keys.append(key_of_file(Path(path)))
        # Its row is dropped when it is read.
        except (Refused, OSError, TypeError):
            keys.append(key_of_name(str(ref)))
    return keys
