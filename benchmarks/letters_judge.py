"""A judge for answers of a random model, of which none is better: it scores their letters, so that they differ."""

from __future__ import annotations

from collections.abc import Sequence


def score(prompt: str, completions: Sequence[str], **_: object) -> list[float]:
    """The mean code of an answer's characters; an empty answer gets 0."""
    scores = []
    for text in completions:
        codes = [ord(character) for character in text]
        scores.append(sum(codes) / max(1, len(codes)))
    return scores
