"""Which files an import reads, what it says about them, and whether their rows overlap."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.reading.readers import DataFile
from common.reading.splits import ALL, TRAIN, canonical
from common.records import Dropped

LISTED_FILES = 8
"""How many names of files a line gives."""
REMEMBERED_ROWS = 500_000
"""How many rows are compared with those of later files."""

_SHARD = re.compile(r"(.*?)-(\d{5})-of-(\d{5})\.")
# Two copies of a row may differ in these.
_NUMBERS_OF_ROWS = {"id", "idx", "index", "_id", "row_id", "__index_level_0__"}


class Choice(NamedTuple):
    """The files of a data set that are read, and those of other splits."""

    read: list[DataFile | Dropped]
    left_out: list[DataFile]

    def left_out_names(self, folder: Path) -> dict[str, list[str]]:
        """Split -> the names of its files that are not read, relative to `folder`."""
        names: dict[str, list[str]] = {}
        for file in self.left_out:
            name = file.path.relative_to(folder).as_posix()
            names.setdefault(file.split or TRAIN, []).append(name)
        return names


def choose_split(files: Sequence[DataFile | Dropped], wanted: str | None) -> Choice:
    """The files of one split. A file whose name says none is taken for one of `train`.

    Args:
        wanted: the name of a split, `all`, or None for `train` where there are several.

    Raises:
        UserError: no file is of the wanted split, or there are several splits, none is `train` and none is wanted.
    """
    splits = [
        file.split or TRAIN if isinstance(file, DataFile) else None for file in files
    ]
    names = sorted({split for split in splits if split is not None})
    if wanted is None and len(names) > 1:
        wanted = TRAIN
    if wanted in (None, ALL) or not names:
        return Choice(list(files), [])
    split = canonical(wanted)
    if split not in names:
        raise UserError(
            f"--split: expected one of {', '.join(names)} or {ALL}, got {wanted}; choose what to read"
        )
    read: list[DataFile | Dropped] = []
    left_out = []
    for file in files:
        if isinstance(file, DataFile) and (file.split or TRAIN) != split:
            left_out.append(file)
        else:
            read.append(file)
    return Choice(read, left_out)


def describe(
    choice: Choice, other_kinds: Sequence[Path], folder: Path
) -> Iterable[str]:
    """Lines that say which files are read, which are not, and which are missing."""
    paths = [file.path for file in choice.read if isinstance(file, DataFile)]
    yield f"reading {_listed(paths, folder)}"
    splits = sorted({file.split or TRAIN for file in choice.left_out})
    if choice.left_out:
        paths_left = [file.path for file in choice.left_out]
        yield (
            f"not reading {_listed(paths_left, folder)}: of the split {', '.join(splits)}; see --split"
        )
    if other_kinds:
        kind = paths[0].suffix if paths else "other"
        yield (
            f"not reading {_listed(other_kinds, folder)}: PATH holds {kind} files; give such a file as PATH to read it"
        )
    yield from _missing_shards(paths)


def _listed(paths: Sequence[Path], folder: Path) -> str:
    names = []
    for path in paths[:LISTED_FILES]:
        inside = path.is_relative_to(folder) and path != folder
        names.append(str(path.relative_to(folder)) if inside else path.name)
    if len(paths) > LISTED_FILES:
        names.append("…")
    noun = "file" if len(paths) == 1 else "files"
    return f"{len(paths)} {noun} ({', '.join(names)})" if names else f"0 {noun}"


def _missing_shards(paths: Sequence[Path]) -> Iterable[str]:
    """A line for every set of shards that is said to be larger than it is."""
    present = Counter[tuple[Path, str, int]]()
    for path in paths:
        shard = _SHARD.match(path.name)
        if shard is not None:
            present[(path.parent, shard[1], int(shard[3]))] += 1
    for (folder, name, expected), count in present.items():
        if count < expected:
            yield f"warning: {folder / name}: expected {expected} shards, got {count}; fetch the rest"


class Overlaps:
    """Finds rows that several files have in common, whatever they are numbered there."""

    def __init__(self) -> None:
        self._first_file: dict[int, Path] = {}
        self._num_shared = Counter[tuple[Path, Path]]()

    def add(self, row: Any, file: Path) -> None:
        """Take the next row of a file."""
        if not isinstance(row, dict):
            return
        content = {
            key: value for key, value in row.items() if key not in _NUMBERS_OF_ROWS
        }
        try:
            fingerprint = _fingerprint(content)
        except RecursionError:
            return
        first_file = self._first_file.get(fingerprint)
        if first_file is not None and first_file != file:
            self._num_shared[(first_file, file)] += 1
        elif first_file is None and len(self._first_file) < REMEMBERED_ROWS:
            self._first_file[fingerprint] = file

    def lines(self) -> list[str]:
        """A line for every two files with rows in common."""
        return [
            f"{later} repeats {count:,} rows of {first}"
            for (first, later), count in self._num_shared.items()
        ]


def _fingerprint(value: Any) -> int:
    """A hash of nested JSON types and bytes, the same for equal values within this process."""
    if isinstance(value, dict):
        items = [(key, _fingerprint(item)) for key, item in value.items()]
        return hash(frozenset(items))
    if isinstance(value, list):
        return hash(tuple(map(_fingerprint, value)))
    if isinstance(value, str | bytes):
        return hash(value)
    # NaN has a hash of its own every time.
    return hash(repr(value))
