"""What a processor or a template raises about one row is that row's drop, whatever the class of the exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import Refused

_OUT_OF_MEMORY = ("allocate memory", "out of memory")


@contextmanager
def refused_row(reason: str, row: str, place: str) -> Iterator[None]:
    """Turn an exception of the calls inside into Refused, but for memory that ran out: that is no fault of the row.

    Args:
        reason: the key that the drop is counted under.
        row: names the row, as in "prompt 17".
        place: what refuses it, as in "the processor of /models/llava".
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        what = first_line(error)
        raise Refused(
            reason,
            f"{row}: expected a row that {place} takes, got: {what}; change the row or leave it out",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on the device; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in _OUT_OF_MEMORY
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class when it has none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]
