"""What is known of a set of prompts at the start, and the prompts themselves when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from common.data.datasets import duplicate
from common.data.records_on_disk import Numbers, RecordsOnDisk, id_key
from common.records import Dropped, Prompt

ReadPrompt: TypeAlias = Callable[[int], Prompt | Dropped]
"""Builds the prompt of a row number, or says why the row is none."""


def has_facts(prompt: Prompt) -> bool:
    """Whether its truth says something that an answer can be checked against: an id alone does not."""
    return bool(set(prompt.truth or ()) - {"id"})


def _no_numbers() -> Numbers:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class PromptSet:
    """The prompts of one source.

    Attributes:
        read: builds a prompt.
        numbers: the rows that are prompts, as far as that is known.
        id_keys: of each of these, see `records_on_disk.id_key`.
        num_references, num_truths: how many of them have these.
        dropped: the other rows.
        key_rows, keys: a row number and a key (see `picture_keys`) for each picture of each prompt, in the order of
            the rows. Empty where pictures need not be told apart.
    """

    read: ReadPrompt
    numbers: Numbers = field(default_factory=_no_numbers)
    id_keys: Numbers = field(default_factory=_no_numbers)
    num_references: int = 0
    num_truths: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    key_rows: Numbers = field(default_factory=_no_numbers)
    keys: Numbers = field(default_factory=_no_numbers)

    def prompts(self, numbers: Numbers) -> PromptsOnDisk:
        """The prompts of these row numbers, a part of the set's."""
        places = np.searchsorted(self.numbers, numbers)
        prompts = PromptsOnDisk(self.read, numbers, self.id_keys[places])
        prompts.has_reference = self.num_references > 0
        prompts.has_truth = self.num_truths > 0
        return prompts


class PromptsOnDisk(RecordsOnDisk[Prompt]):
    """Prompts of one source. `has_reference` and `has_truth` say whether any prompt of the source has these."""

    has_reference = False
    has_truth = False


class Survey:
    """Takes down what is known of a set while its rows pass by."""

    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        self._numbers = array("q")
        self._key_rows = array("q")
        self._keys = array("q")
        self._num_references = 0
        self._num_truths = 0
        self._id_keys = array("q")
        self._seen: set[int] = set()

    def add(
        self,
        number: int,
        id: str,
        has_reference: bool,
        has_truth: bool,
        keys: Sequence[int],
    ) -> None:
        """Row `number` is a prompt with pictures of these keys; it is dropped when an earlier row has its id."""
        key_of_id = id_key(id)
        if key_of_id in self._seen:
            self.dropped.append(duplicate(number, id))
            return
        self._seen.add(key_of_id)
        self._numbers.append(number)
        self._id_keys.append(key_of_id)
        self._num_references += has_reference
        self._num_truths += has_truth
        for key in keys:
            self._key_rows.append(number)
            self._keys.append(key)

    def finish(self, read: ReadPrompt) -> PromptSet:
        """The set that was looked at."""
        return PromptSet(
            read,
            np.array(self._numbers, np.int64),
            np.array(self._id_keys, np.int64),
            self._num_references,
            self._num_truths,
            self.dropped,
            np.array(self._key_rows, np.int64),
            np.array(self._keys, np.int64),
        )
