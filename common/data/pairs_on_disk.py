"""Pair sets of any size: their columns are looked at once, a pair is built when it is used."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.data.datasets import IMAGES, PAIRS, iter_batches, record_of
from common.data.images import ImageStore
from common.data.records_on_disk import Numbers, RecordsOnDisk, id_key
from common.data.rows import PAIR_SCHEMA, pair_of, texts_of
from common.reading.row_store import RowStore, store_batches
from common.records import Dropped, PreferencePair


class PairsOnDisk(RecordsOnDisk[PreferencePair]):
    """The pairs of one set, or of several that follow one another.

    `sources` are those of all pairs; `prompt_keys` has a hash of the prompt's id for each pair.
    """

    sources: frozenset[str] = frozenset()
    prompt_keys: Numbers = np.zeros(0, np.int64)


def open_pairs(
    folders: Sequence[Path],
    cache: Path,
    dropped: list[Dropped],
    name: Callable[[str], str] = str,
) -> PairsOnDisk:
    """The pairs of these folders.

    Args:
        cache: a folder for the rows, in a form of which any row can be read alone.
        dropped: collects the rows whose id an earlier row has, of any of the sets.
        name: the id under which a pair is known, from its own.

    Raises:
        UserError: there is no readable `pairs.parquet`, or it has other columns.
    """
    survey = _Survey(dropped, name)
    sets: list[_Rows] = []
    firsts: list[int] = []
    for folder in folders:
        firsts.append(survey.num_rows)
        path = cache / f"pairs-{len(sets):03d}.arrow"
        batches = survey.looked_at(folder)
        stored = store_batches(path, PAIR_SCHEMA, batches)
        images = ImageStore(folder / IMAGES)
        sets.append(_Rows(stored, images))

    def read(number: int) -> PreferencePair | Dropped:
        index = bisect_right(firsts, number) - 1
        number_in_set = number - firsts[index]
        return sets[index].pair(number_in_set)

    return survey.finish(read)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one set."""

    stored: RowStore
    images: ImageStore

    def pair(self, number: int) -> PreferencePair | Dropped:
        row = self.stored.row(number)
        return record_of(number, row, pair_of, self.images)


class _Survey:
    """Takes down what is known of pairs while their rows pass by."""

    def __init__(
        self,
        dropped: list[Dropped],
        name: Callable[[str], str],
    ) -> None:
        self.num_rows = 0
        self._dropped = dropped
        self._name = name
        self._numbers = array("q")
        self._id_keys = array("q")
        self._prompt_keys = array("q")
        self._seen: set[int] = set()
        self._sources: set[str] = set()

    def looked_at(self, folder: Path) -> Iterator[pa.RecordBatch]:
        """The rows of a set."""
        for batch in iter_batches(folder / PAIRS, PAIR_SCHEMA):
            sources = batch["source"].unique()
            self._sources.update(texts_of(sources))
            ids = texts_of(batch["id"])
            prompts = batch["prompt"]
            prompt_ids = texts_of(prompts.field("id"))
            for id, prompt_id in zip(ids, prompt_ids, strict=True):
                self._add(folder, id, prompt_id)
            yield batch

    def _add(
        self,
        folder: Path,
        id: str,
        prompt_id: str,
    ) -> None:
        number = self.num_rows
        self.num_rows += 1
        key = id_key(self._name(id))
        # The first set that has an id keeps it.
        if key in self._seen:
            detail = f"{folder}: an earlier row has this id"
            repeated = Dropped(id, "duplicate_id", detail)
            self._dropped.append(repeated)
            return
        self._seen.add(key)
        self._numbers.append(number)
        self._id_keys.append(key)
        self._prompt_keys.append(id_key(prompt_id))

    def finish(self, read: Callable[[int], PreferencePair | Dropped]) -> PairsOnDisk:
        """The pairs that were looked at."""
        numbers = np.array(self._numbers, np.int64)
        id_keys = np.array(self._id_keys, np.int64)
        pairs = PairsOnDisk(read, numbers, id_keys)
        pairs.sources = frozenset(self._sources)
        pairs.prompt_keys = np.array(self._prompt_keys, np.int64)
        return pairs
