"""The prompts of a split: those to train on, and those that are held out for validation and test."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from common.config.data import Data, HeldOut, PromptFile
from common.data.datasets import PROMPTS
from common.data.images import ImageStore
from common.data.records_on_disk import Numbers, fetch, usable
from common.errors import UserError
from common.prompts.files import OpenFiles, files_of_split
from common.prompts.held_out import held_out, shared
from common.prompts.ours import folder_of_set, open_set
from common.prompts.survey import PromptSet
from common.reading.image_intake import ImageIntake
from common.reading.readers import files_of_other_kinds
from common.records import Dropped, Prompt
from common.row_faults import drop_report

log = logging.getLogger("sightline")

Split = Literal["train", "validation", "test"]
HELD_OUT: tuple[Literal["validation", "test"], ...] = ("validation", "test")


def load_split(
    data: Data,
    split: Split,
    store: ImageStore,
    dropped: list[Dropped],
    cache: Path | None = None,
    limit: int | None = None,
) -> Sequence[Prompt]:
    """The prompts of a split, () when the config names none.

    Those of `train` are read when they are used: `records_on_disk.fetch` says so when one cannot be used then. Those of
    the other splits are read at once, and all are usable.

    Args:
        data: the config's section. `train` is `data.prompts` without what the other splits hold out of it; they must
            be in files, the shapes world makes its own.
        store: takes pictures that rows bring along as bytes; pictures in files stay where they are.
        dropped: collects the rows that are no prompt, with the reason.
        cache: a folder for the rows in a form of which any can be read alone; None is a temporary one.
        limit: of a split that is held out, only the first so many prompts are read.

    Raises:
        UserError: a path leads to no prompts, or more is to be held out than there is.
    """
    splits = _splits(data, store.root, cache, _stamp(data))
    if split == "train":
        return splits.train(dropped)
    return splits.held_out(split, dropped, limit)


def files_of(path: Path, split: Split) -> list[Path]:
    """The files that prompts of a path are read from (UserError as for `load_split`)."""
    if not path.exists():
        raise UserError(
            f"{_key_of(split)}: expected a file or folder of prompts, got {path}, which is not there; check the path"
        )
    folder = folder_of_set(path)
    if folder is not None:
        return [folder / PROMPTS]
    return [file.path for file in files_of_split(path, split)]


@lru_cache(maxsize=2)
def _splits(
    data: Data, store: Path, cache: Path | None, stamp: tuple[int, ...]
) -> _Splits:
    """Kept, since every split of a config wants the same files; `stamp` tells when they have changed."""
    return _Splits(data, ImageStore(store), cache)


def _stamp(data: Data) -> tuple[int, ...]:
    """Times of the paths that a config names."""
    times = []
    for source in (data.prompts, data.validation, data.test):
        if isinstance(source, PromptFile) and Path(source.path).exists():
            times.append(Path(source.path).stat().st_mtime_ns)
    return tuple(times)


class _Splits:
    """The splits of one config."""

    def __init__(self, data: Data, store: ImageStore, cache: Path | None) -> None:
        self._data = data
        self._store = store
        if cache is None:
            # Goes with this object.
            self._temporary = tempfile.TemporaryDirectory(prefix="sightline-rows-")
            cache = Path(self._temporary.name)
        self._cache = cache

    def train(self, dropped: list[Dropped]) -> Sequence[Prompt]:
        """`data.prompts` without what is held out of it; warns of pictures that a held-out file shares with it."""
        whole = self._whole
        numbers = whole.numbers
        for numbers_of_split in self._held_out_numbers.values():
            numbers = np.setdiff1d(numbers, numbers_of_split, assume_unique=True)
        dropped += whole.dropped
        for split in HELD_OUT:
            self._warn_of_overlap(split, numbers)
        return whole.prompts(numbers)

    def held_out(
        self,
        split: Literal["validation", "test"],
        dropped: list[Dropped],
        limit: int | None,
    ) -> Sequence[Prompt]:
        """The prompts of a file, or what is held out of `data.prompts`."""
        source = self._source(split)
        if source is None:
            return ()
        if isinstance(source, HeldOut):
            numbers = self._held_out_numbers[split]
            chosen = self._whole.prompts(numbers)
            return list(islice(usable(chosen, dropped), limit))
        prompts = self._file(split)
        dropped += prompts.dropped
        chosen = prompts.prompts(prompts.numbers)
        usable_prompts = list(islice(usable(chosen, dropped), limit))
        if not usable_prompts:
            raise UserError(
                f"data.{split}: expected at least one usable prompt, got none in {source.path}; dropped "
                f"{drop_report(dropped)}; repair the rows"
            )
        return usable_prompts

    def _source(
        self, split: Literal["validation", "test"]
    ) -> PromptFile | HeldOut | None:
        return self._data.validation if split == "validation" else self._data.test

    @cached_property
    def _whole(self) -> PromptSet:
        source = self._data.prompts
        assert isinstance(source, PromptFile), "the shapes world makes its own"
        prompts = self._open(source, "train")
        if not len(prompts.numbers):
            raise UserError(
                f"data.prompts: expected at least one usable prompt, got none of {len(prompts.dropped)} rows in "
                f"{source.path}; dropped {drop_report(prompts.dropped)}; repair the rows, or give a set that has some"
            )
        return prompts

    @cached_property
    def _held_out_numbers(self) -> dict[str, Numbers]:
        """The rows of `data.prompts` that are held out, by split."""
        numbers: dict[str, Numbers] = {}
        left = self._whole.numbers
        num_prompts = len(left)
        for split in HELD_OUT:
            source = self._source(split)
            if not isinstance(source, HeldOut):
                continue
            count = source.count_of(num_prompts)
            salt = f"{split}:{source.seed}"
            chosen = held_out(self._whole, left, count, salt)
            left = np.setdiff1d(left, chosen, assume_unique=True)
            if not len(chosen) or not len(left):
                raise UserError(
                    f"data.{split}: expected to hold out {count} of {num_prompts} prompts with all prompts about a "
                    f"picture on one side, got {len(chosen)} and {len(left)} left to train on; change the number, or "
                    "give a file of its own"
                )
            numbers[split] = chosen
        return numbers

    def _file(self, split: Literal["validation", "test"]) -> PromptSet:
        source = self._source(split)
        assert isinstance(source, PromptFile), "the caller has looked"
        if split not in self._files:
            self._files[split] = self._open(source, split)
        return self._files[split]

    @cached_property
    def _files(self) -> dict[str, PromptSet]:
        return {}

    def _open(self, source: PromptFile, split: Split) -> PromptSet:
        path = Path(source.path)
        # First of all, whether there are any.
        files_of(path, split)
        cache = self._cache / split
        folder = folder_of_set(path)
        if folder is not None:
            return open_set(folder, source.rows, self._wants_keys, cache)
        others = files_of_other_kinds(path)
        if others:
            log.warning(
                "%s: not reading %d files of %s, such as %s, because it holds files of another kind, too; give such a "
                "file itself to read it",
                _key_of(split),
                len(others),
                path,
                others[0].name,
            )
        root = path if path.is_dir() else path.parent
        if self._data.images is not None:
            root = Path(self._data.images)
        intake = ImageIntake(root, self._store, in_place=True)
        files = OpenFiles(intake, source.rows, self._wants_keys, cache)
        for file in files_of_split(path, split):
            files.add(file)
        return files.finish()

    @property
    def _wants_keys(self) -> bool:
        """Pictures matter only where something is held out."""
        return any(self._source(split) is not None for split in HELD_OUT)

    def _warn_of_overlap(
        self, split: Literal["validation", "test"], numbers: Numbers
    ) -> None:
        """Count the prompts of a held-out file about pictures that are trained on."""
        if not isinstance(self._source(split), PromptFile):
            return
        prompts = self._file(split)
        overlap = shared(prompts, self._whole, numbers)
        if not len(overlap):
            return
        first = fetch(prompts.prompts(overlap), 0)
        log.warning(
            "data.%s: %d of %d prompts are about pictures that are trained on, such as %s; their scores say little "
            "about new pictures",
            split,
            len(overlap),
            len(prompts.numbers),
            first.id,
        )


def _key_of(split: str) -> str:
    return "data.prompts" if split == "train" else f"data.{split}"
