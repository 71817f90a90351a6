"""One row's fault is that row's drop: what is put around the places where others' code meets the content of a row.

Processors, chat templates and tokenizers raise whatever they like about a picture or a text. The place says that a row
is to blame, not the class of the exception, so that the next processor's classes need no list.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from common.errors import Refused, UserError
from common.records import Dropped

_MACHINE_ERRORS = frozenset(
    {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}
)
_MACHINE_WORDS = ("out of memory", "allocate memory", "cuda error")
_MACHINE_CLASSES = frozenset({"OutOfMemoryError", "AcceleratorError"})
_DETAIL_CHARS = 300


@contextmanager
def refusing(reason: str, what: str, remedy: str) -> Iterator[None]:
    """Refuse the row for whatever is raised inside.

    Nothing of ours belongs inside: it would hide our own mistakes as drops.

    Args:
        reason: the key it is counted under.
        what: who was to do what with which row, such as "prompt 7: expected a picture that the processor takes".
        remedy: what the user can do.

    Raises:
        Refused: in place of what was raised; a Refused raised inside keeps its own reason.
        Exception: as it was raised, what no row is to blame for: a wrong set-up (UserError), want of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_machine_fault(error):
            raise
        raise Refused(reason, f"{what}, got {first_line(error)}; {remedy}") from error


def is_machine_fault(error: BaseException) -> bool:
    """Whether memory, disk, files or the device ran out: the next row would fail as well."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return True
    # By name: torch is not loaded in every process that gets here.
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _MACHINE_CLASSES:
        return True
    text = str(error).lower()
    return any(words in text for words in _MACHINE_WORDS)


def first_line(error: BaseException) -> str:
    """What an exception says in one line; its class when it says nothing."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0][:_DETAIL_CHARS]


def outside_embedding(token_ids: Collection[int], num_rows: int) -> int | None:
    """A token id that has no row in an embedding of `num_rows`, None when all have one.

    A forward fails for all rows of its batch when one has such an id, on a GPU without saying why.
    """
    lowest, highest = min(token_ids, default=0), max(token_ids, default=0)
    if lowest < 0:
        return lowest
    return highest if highest >= num_rows else None


def drop_report(dropped: Iterable[Dropped]) -> str:
    """How many fell to each reason, the most frequent first, then the first case of each.

    `{'image_missing': 3, 'prompt_too_long': 1}, such as image_missing (a7: …), prompt_too_long (b1: …)`
    """
    counts: Counter[str] = Counter()
    examples: dict[str, Dropped] = {}
    for drop in dropped:
        counts[drop.reason] += 1
        examples.setdefault(drop.reason, drop)
    return f"{dict(counts.most_common())}{such_as(examples.values())}"


def first_cases(dropped: Iterable[Dropped]) -> dict[str, str]:
    """Reason -> its first case as a line, for a journal."""
    cases: dict[str, str] = {}
    for drop in dropped:
        if drop.reason not in cases:
            cases[drop.reason] = _one_line(drop)
    return cases


def such_as(examples: Iterable[Dropped]) -> str:
    """The end of a sentence about counts: `, such as REASON (ID: DETAIL), …`; empty without examples."""
    cases = [f"{drop.reason} ({_one_line(drop)})" for drop in examples]
    return f", such as {', '.join(cases)}" if cases else ""


def _one_line(drop: Dropped) -> str:
    """What a drop says, safe in a terminal: rows come from untrusted data sets."""
    text = f"{drop.id}: {drop.detail}" if drop.detail else drop.id
    chars = [char if char.isprintable() else " " for char in text[:_DETAIL_CHARS]]
    return "".join(chars)
