"""The shapes world's plug-in of this room: POVID's errors by rule."""

from __future__ import annotations

from common.config.povid import ErrorKind
from common.records import Dropped, Prompt
from common.shapes.corrupter import corrupt


def shapes_answer(prompt: Prompt, kind: ErrorKind, seed: int) -> str | Dropped:
    """The prompt's reference with an error of this kind, or why there is none."""
    return corrupt(prompt, kind, seed)
