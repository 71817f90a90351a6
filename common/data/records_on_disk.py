"""Records that are built from their rows when they are asked for, so that a set of any size needs little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from hashlib import blake2b
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from common.errors import Refused
from common.records import Dropped, PreferencePair, Prompt

Record = TypeVar("Record", Prompt, PreferencePair)
Numbers = npt.NDArray[np.int64]


class RecordsOnDisk(Sequence[Record], Generic[Record]):
    """A sequence whose elements are read when they are used, and may turn out to be unusable then.

    Args:
        read: builds the record of a row number, or says why it cannot be used.
        numbers: the row numbers of the sequence, in order.
        id_keys: a hash of the id of each record, see `id_key`.
    """

    def __init__(
        self,
        read: Callable[[int], Record | Dropped],
        numbers: Numbers,
        id_keys: Numbers,
    ) -> None:
        assert len(numbers) == len(id_keys)
        self._read: Callable[[int], Record | Dropped] = read
        self.numbers = numbers
        self.id_keys = id_keys

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> RecordsOnDisk[Record]: ...

    def __getitem__(self, index: Any) -> Any:
        """One record (Refused when it cannot be used), or a part of the sequence."""
        if isinstance(index, slice):
            return RecordsOnDisk(self._read, self.numbers[index], self.id_keys[index])
        record = self.fetch(index)
        if isinstance(record, Dropped):
            raise Refused(record.reason, record.detail)
        return record

    def changed(self, change: Callable[[Record], Record]) -> Self:
        """The same sequence, whose records are changed as they are read; their ids stay."""
        read = self._read

        def changed_record(number: int) -> Record | Dropped:
            record = read(number)
            return record if isinstance(record, Dropped) else change(record)

        changed = copy(self)
        changed._read = changed_record
        return changed

    def fetch(self, index: int) -> Record | Dropped:
        """One record, or why it cannot be used."""
        record: Record | Dropped = self._read(int(self.numbers[index]))
        return record


def id_key(id: str) -> int:
    """A hash of an id in 63 bits, the same in every process: of a million ids no two are likely to share one."""
    text = id.encode("utf-8", "replace")
    digest = blake2b(text, digest_size=8).digest()
    # One bit less, so that it fits into a signed number of 64 bits.
    return int.from_bytes(digest, "big") >> 1


def fetch(records: Sequence[Record], index: int) -> Record | Dropped:
    """One record of any sequence, or why it cannot be used."""
    if isinstance(records, RecordsOnDisk):
        return records.fetch(index)
    return records[index]


def usable(records: Sequence[Record], dropped: list[Dropped]) -> Iterator[Record]:
    """The records that can be used; the others are appended to `dropped`."""
    for index in range(len(records)):
        record = fetch(records, index)
        if isinstance(record, Dropped):
            dropped.append(record)
        else:
            yield record
