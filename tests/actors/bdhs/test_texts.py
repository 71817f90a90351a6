"""Sentences, split points, the yes/no flip, similarity: pure text functions."""

from __future__ import annotations

import math
import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.bdhs.sentences import flip_answer, split_point
from actors.bdhs.similarity import LexicalSimilarity, make_similarity
from common.errors import UserError
from common.sentences import split_sentences

TEXTS = st.text("aB1 .!?\n\t\"')é", max_size=40) | st.text(max_size=40)


@given(TEXTS)
def test_sentences_concatenate_to_the_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    # A text of nothing but white space is one sentence.
    if len(sentences) > 1:
        for sentence in sentences:
            assert sentence.strip()


@given(TEXTS, st.integers())
def test_heads_end_before_a_space_and_leave_a_word(text: str, seed: int) -> None:
    for sentence in split_sentences(text):
        cut = split_point(sentence, random.Random(seed))
        head = sentence[:cut]
        tail = sentence[cut:]
        if head:
            assert not head[-1].isspace()
            assert tail[0].isspace()
            assert tail.strip()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A red circle. A star.", ["A red circle.", " A star."]),
        ("It is 3.5 m long. Yes!", ["It is 3.5 m long.", " Yes!"]),
        ("Dr. No met J. R. Smith, e.g. here.", ["Dr. No met J. R. Smith, e.g. here."]),
        ('He said "stop." Then ran.', ['He said "stop."', " Then ran."]),
        ("- a cat\n- a dog\n", ["- a cat", "\n- a dog\n"]),
        ("What?! Really...", ["What?!", " Really..."]),
        ("no point", ["no point"]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_split_points_are_uniform_over_word_boundaries() -> None:
    """ " It sits down." can be cut before It, sits and down: at 0, 3 and 8."""
    rng = random.Random(0)
    cuts = [split_point(" It sits down.", rng) for _ in range(3000)]
    assert set(cuts) == {0, 3, 8}
    for cut in (0, 3, 8):
        assert abs(cuts.count(cut) - 1000) < 120


@pytest.mark.parametrize(
    ("sentence", "flipped"),
    [
        ("Yes.", ("No.", 2)),
        ("No, it is not.", ("Yes, it is not.", 3)),
        (" yes it is", (" no it is", 3)),
        ("YES!", ("NO!", 2)),
        ("Not here.", None),
        ("Now it is.", None),
        ("Nobody is there.", None),
        ("Yesterday.", None),
        ("It says yes.", None),
    ],
)
def test_flip(
    sentence: str,
    flipped: tuple[str, int] | None,
) -> None:
    assert flip_answer(sentence) == flipped


def test_a_flipped_word_stays_in_the_head() -> None:
    cuts = set()
    for seed in range(50):
        cut = split_point(
            "No, it is.",
            random.Random(seed),
            first=2,
        )
        cuts.add(cut)
    assert cuts == {2, 3, 6}


def test_lexical_similarity_by_hand() -> None:
    """a b c: grams a, b, c, ab, bc; a b d: a, b, d, ab, bd. Three shared of five each: 3 / 5.
    a a: a twice and aa; a: a once: 2 / sqrt(4 + 1) = 0.894."""
    expected = {
        ("a b c", "A, b d!"): 0.6,
        ("a a", "a"): 2 / math.sqrt(5),
        ("a", "b"): 0.0,
        ("", ""): 1.0,
        ("", "a"): 0.0,
        ("x y", "X y."): 1.0,
    }
    similarities = LexicalSimilarity()(list(expected))
    assert similarities == pytest.approx(list(expected.values()))


def test_an_encoder_is_taken_by_name_and_named_in_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand-in vectors: (1, 0) for texts with a, (0.6, 0.8) for others; their cosine is 0.6."""

    class Encoder:
        def __init__(self, name: str) -> None:
            if name != "there":
                raise OSError(f"{name} is not a local folder\nand so on")

        def encode(self, texts: list[str], **options: object) -> np.ndarray[Any, Any]:
            assert options["normalize_embeddings"]
            vectors = [(1.0, 0.0) if "a" in text else (0.6, 0.8) for text in texts]
            return np.array(vectors)

    package = SimpleNamespace(SentenceTransformer=Encoder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    similarity = make_similarity("there")
    assert similarity.name == "there"
    pairs = [("a", "b"), ("b", "c"), ("a", "a")]
    assert similarity(pairs) == pytest.approx([0.6, 1.0, 1.0])
    assert similarity([]) == []
    message = r"^similarity: .*'elsewhere'.*local folder; .*lexical$"
    with pytest.raises(UserError, match=message):
        make_similarity("elsewhere")
