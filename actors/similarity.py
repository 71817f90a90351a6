"""How alike two answers are, for the filter of BDHS: 1 is the same, 0 nothing in common.

The paper takes the cosine of all-mpnet-base-v2 sentence embeddings. `LexicalSimilarity` needs no model and is the
demo's default (ours); its values are *not* comparable with embeddings', so every output names the measure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from common.errors import UserError

PAPER_ENCODER = "sentence-transformers/all-mpnet-base-v2"
_WORD = re.compile(r"\w+")


class Similarity(Protocol):
    """Cosine similarity of each pair of texts, in [-1, 1]. `name` goes into specs and statistics."""

    @property
    def name(self) -> str: ...

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


def make_similarity(name: str) -> Similarity:
    """`lexical`, or a sentence-transformers model by name or folder (UserError when it cannot be had)."""
    return LexicalSimilarity() if name == "lexical" else EmbeddingSimilarity(name)


class LexicalSimilarity:
    """Cosine of the counts of words and neighbouring word pairs, case and punctuation aside."""

    name = "lexical"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [_cosine(_counts(left), _counts(right)) for left, right in pairs]


def _counts(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter([*((word,) for word in words), *pairwise(words)])


def _cosine(left: Counter[tuple[str, ...]], right: Counter[tuple[str, ...]]) -> float:
    if not left or not right:
        return float(left == right)
    dot = sum(count * right[gram] for gram, count in left.items())
    return dot / math.sqrt(
        sum(n * n for n in left.values()) * sum(n * n for n in right.values())
    )


class EmbeddingSimilarity:
    """Cosine of sentence-transformers embeddings, as in the paper with `PAPER_ENCODER`."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"similarity: expected sentence-transformers to be installed for {name!r}, got no such package; "
                "pip install 'sentence-transformers>=5' or use lexical"
            ) from error
        try:
            self._model: Any = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"similarity: expected a sentence-transformers model, got {name!r}: {str(error).splitlines()[0]}; "
                "give a model's name or folder, or lexical"
            ) from error
        self.name = name

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        texts = [text for pair in pairs for text in pair]
        vectors = self._model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        return [float(vectors[i] @ vectors[i + 1]) for i in range(0, len(texts), 2)]
