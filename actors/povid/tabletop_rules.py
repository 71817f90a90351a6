"""World 2's plug-in of this room: POVID's errors by rule."""

from __future__ import annotations

from common.config.povid import ErrorKind
from common.records import Dropped, Prompt
from common.tabletop.corrupter import corrupt
from common.tabletop.truth import is_tabletop


def tabletop_answer(prompt: Prompt, kind: ErrorKind, seed: int) -> str | Dropped | None:
    """The prompt's reference with an error of this kind, or why there is none; None for a prompt of another world."""
    if not is_tabletop(prompt):
        return None
    return corrupt(prompt, kind, seed)
