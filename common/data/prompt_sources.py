"""The prompts of a split: those to train on, and those that are held out for validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from common.config.data import Data, PromptFile
from common.data.datasets import read_prompts
from common.data.images import ImageStore
from common.errors import UserError
from common.records import Dropped, Prompt

Split = Literal["train", "validation", "test"]


def load_split(
    data: Data,
    split: Split,
    store: ImageStore,
    dropped: list[Dropped],
) -> Sequence[Prompt]:
    """The prompts of a split, () when the config names none.

    Args:
        data: the config's section. `train` is `data.prompts` without what the other splits hold out of it.
        store: takes pictures that rows bring along as bytes; pictures in files stay where they are.
        dropped: collects the rows that are no prompt, with the reason.

    Raises:
        UserError: a path leads to no prompts, or more is to be held out than there is.
    """
    source = {"train": data.prompts, "validation": data.validation, "test": data.test}[
        split
    ]
    if source is None:
        return ()
    if isinstance(source, PromptFile):
        return read_prompts(Path(source.path), dropped, source.rows)
    raise UserError(f"data.{split}: not yet")
