"""How alike two answers are, for the filter of BDHS: 1 for the same, 0 for nothing in common.

The paper takes the cosine of all-mpnet-base-v2 sentence embeddings. `LexicalSimilarity` needs no model and is the
demo's default (ours); its values are *not* comparable with those of embeddings, so every output names the measure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

from common.errors import UserError

PAPER_ENCODER = "sentence-transformers/all-mpnet-base-v2"
_WORD = re.compile(r"\w+")
GramCounts: TypeAlias = Counter[tuple[str, ...]]
"""How often each word, and each pair of neighbouring words, occurs."""
TextPairs: TypeAlias = Sequence[tuple[str, str]]


class Similarity(Protocol):
    """Cosine similarity of each pair of texts, in [-1, 1]. `name` goes into specs and statistics."""

    @property
    def name(self) -> str: ...

    def __call__(
        self,
        pairs: TextPairs,
    ) -> list[float]: ...


def make_similarity(name: str) -> Similarity:
    """`lexical`, or a sentence-transformers model by name or folder (UserError when it cannot be loaded)."""
    return LexicalSimilarity() if name == "lexical" else EmbeddingSimilarity(name)


class LexicalSimilarity:
    """Cosine of the counts of words and neighbouring word pairs, ignoring case and punctuation."""

    name = "lexical"

    def __call__(
        self,
        pairs: TextPairs,
    ) -> list[float]:
        similarities = []
        for left, right in pairs:
            similarity = _cosine(_counts(left), _counts(right))
            similarities.append(similarity)
        return similarities


def _counts(text: str) -> GramCounts:
    words = _WORD.findall(text.lower())
    counts: GramCounts = Counter()
    for word in words:
        counts[(word,)] += 1
    counts.update(pairwise(words))
    return counts


def _cosine(
    left: GramCounts,
    right: GramCounts,
) -> float:
    # Two texts without words are the same.
    if not left or not right:
        return float(left == right)
    dot = 0
    for gram, count in left.items():
        dot += count * right[gram]
    squares_left = sum(count * count for count in left.values())
    squares_right = sum(count * count for count in right.values())
    return dot / math.sqrt(squares_left * squares_right)


class EmbeddingSimilarity:
    """Cosine of sentence-transformers embeddings, as in the paper with `PAPER_ENCODER`."""

    def __init__(self, name: str) -> None:
        # An optional package, and with its scikit-learn slow to import.
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
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"similarity: expected a sentence-transformers model, got {name!r}: {first_line}; "
                "give a model's name or folder, or lexical"
            ) from error
        self.name = name

    def __call__(
        self,
        pairs: TextPairs,
    ) -> list[float]:
        texts: list[str] = []
        for pair in pairs:
            texts.extend(pair)
        # Normalised vectors: their dot product is the cosine.
        vectors = self._model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        similarities = []
        for start in range(0, len(texts), 2):
            left, right = vectors[start : start + 2]
            similarities.append(float(left @ right))
        return similarities
