"""Figures of a preference set: values derived by hand, and the edit distance against the textbook table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.anatomy import Anatomy, anatomy, evenly, histogram, summary
from common.data.datasets import count_pairs, iter_pairs, read_pairs, write_pairs
from common.data.image_conditions import blank_images, shuffled_images, without_images
from common.data.images import ImageStore
from common.data.words import MAX_WORDS, distance, edit_distance, words
from common.errors import UserError
from common.records import (
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)
from common.shapes.render import blank

WORDS = st.lists(st.sampled_from("abcd"), max_size=90)


def pair(
    id: str,
    chosen: str,
    rejected: str,
    images: tuple[ImageRef, ...] = (),
    question: str = "What is there?",
    source: str = "test",
) -> PreferencePair:
    parts = [Part("image")] * len(images)
    parts.append(Part("text", question))
    message = Message("user", tuple(parts))
    prompt = Prompt(f"prompt/{id}", (message,), images)
    return PreferencePair(id, prompt, Response(chosen), Response(rejected), source)


def ref(name: str, path: str = "/nowhere") -> ImageRef:
    return ImageRef(name * 64, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A red ring, and don't forget: 3 rings.",
            ["a", "red", "ring", "and", "don't", "forget", "3", "rings"],
        ),
        ("the 'red' ring", ["the", "red", "ring"]),
        ("红色的圆", ["红", "色", "的", "圆"]),
        ("Straße ÉTÉ e\u0301te\u0301", ["strasse", "été", "e\u0301te\u0301"]),
        ("लाल वृत्त", ["लाल", "वृत्त"]),
        ("كتابٌ أحمر", ["كتابٌ", "أحمر"]),
        ("빨간 원", ["빨간", "원"]),
        ("... – !?", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def table_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """The textbook's table, row by row: `row[j]` is the distance to the first j words of `right`."""
    row = list(range(len(right) + 1))
    for i, left_word in enumerate(left, 1):
        above = row
        row = [i]
        for j, right_word in enumerate(right, 1):
            deleted = above[j] + 1
            inserted = row[j - 1] + 1
            replaced = above[j - 1] + (left_word != right_word)
            row.append(min(deleted, inserted, replaced))
    return row[-1]


@given(WORDS, WORDS)
def test_edit_distance_equals_the_textbook_table_both_ways(
    left: list[str],
    right: list[str],
) -> None:
    expected = table_distance(left, right)
    assert edit_distance(left, right) == expected
    assert edit_distance(right, left) == expected


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(a: list[str], b: list[str], c: list[str]) -> None:
    detour = edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, c) <= detour
    assert (edit_distance(a, b) == 0) == (a == b)


def test_edit_distance_by_hand() -> None:
    """kitten -> sitting: two replacements, one insertion; of seven letters."""
    assert edit_distance("kitten", "sitting") == 3
    assert distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert distance([], []) == 0
    assert distance([], ["a"]) == 1


def test_very_long_answers_take_bounded_time() -> None:
    """10 MB a side without a common word but at the end; the cut leaves what differs, so the distance is 1."""
    left = "left " * 2_000_000 + "end"
    right = "right " * 1_700_000 + "end"
    began = time.monotonic()
    figures = anatomy([pair("long", left, right)])
    assert time.monotonic() - began < 10
    assert figures["length"]["chosen"]["mean"] == 2_000_001
    assert figures["distance"]["words"]["mean"] == 1
    assert figures["distance"]["num_cut"] == 1
    long = [str(number % 977) for number in range(MAX_WORDS)]
    began = time.monotonic()
    distance(long, long[::-1])
    assert time.monotonic() - began < 2


def test_figures_by_hand() -> None:
    """Four pairs. Words: chosen 2, 5, 1, 1; rejected 2, 10, 1, 2. Gaps 0, -5, 0, -1.

    Distances 0 (case and dot aside), 5/10, 1 and 1/2.
    """
    missing = ref("a", "/nowhere")
    there = ref("b", __file__)
    pairs = [
        pair("0", "A ring", "a ring.", (missing,), source="x"),
        pair("1", "a b c d e", "a b c d e f g h i j", (missing, there)),
        pair("2", "Yes.", "No, it", (missing, missing)),
        replace(pair("3", "no", "No, no"), weight_version=3, scores=(1.0, 1.0)),
    ]
    figures = anatomy(pairs)
    length = figures["length"]
    assert length["chosen"]["mean"] == 9 / 4
    assert length["rejected"]["max"] == 10
    assert length["rejected"]["mean"] == (2 + 10 + 2 + 2) / 4
    assert length["gap"]["min"] == -5
    assert length["ratio"] == 9 / 16
    assert length["chosen_longer_frac"] == 0
    assert length["equal_frac"] == 1 / 4
    distances = figures["distance"]
    assert distances["words"]["mean"] == pytest.approx((0 + 0.5 + 1 + 0.5) / 4)
    assert distances["near_duplicate_frac"] == 1 / 4
    assert distances["identical_frac"] == 0
    assert figures["yes_no"] == {
        "frac": 2 / 4,
        "opposed_frac": 1 / 2,
        "chosen_yes_frac": 1 / 2,
    }
    images = figures["images"]
    assert images["reuse"] == {"1": 1, "3": 1}
    assert images["num_images"] == 2
    assert images["num_missing"] == 1
    assert images["num_pairs_missing"] == 3
    assert images["num_pairs_without"] == 1
    assert images["num_pairs_several"] == 2
    assert figures["sources"] == {"test": 3, "x": 1}
    assert figures["weight_versions"] == {"none": 3, "3": 1}
    assert figures["scores"] == {"num_pairs": 1, "not_higher": 1}


def test_repeats_by_hand() -> None:
    """Pairs 0 and 1 share the prompt, and what 0 chooses 1 rejects; 3 is 2 again; 4 asks 0's question elsewhere."""
    a = ref("a")
    b = ref("b")
    pairs = [
        pair("0", "left", "right", (a,)),
        pair("1", "other", "left", (a,)),
        pair("2", "p", "q", (b,), "Who?"),
        pair("3", "p", "q", (b,), "Who?"),
        pair("4", "s", "t", (b,)),
    ]
    repeats = anatomy(pairs)["repeats"]
    assert repeats["prompt"] == {"num_distinct": 3, "repeated_frac": 4 / 5}
    assert repeats["question"] == {"num_distinct": 2, "repeated_frac": 1}
    assert repeats["chosen"] == {"num_distinct": 4, "repeated_frac": 2 / 5}
    assert repeats["pair"] == {"num_distinct": 4, "repeated_frac": 2 / 5}
    assert repeats["both_sides_frac"] == 1 / 5


def test_an_empty_set_has_no_shares() -> None:
    figures = Anatomy().figures()
    assert figures["num_pairs"] == 0
    assert figures["length"]["chosen"] is None
    assert figures["distance"]["near_duplicate_frac"] is None
    assert figures["images"]["reuse"] == {}


def test_summary_and_histogram_by_hand() -> None:
    figures = summary([1, 2, 3, 4])
    assert figures is not None
    assert figures["mean"] == 2.5
    assert figures["quantiles"]["0.25"] == 1.75
    whole = histogram({"x": [1, 1, 3], "y": [2]})
    assert whole == {
        "edges": [0.5, 1.5, 2.5, 3.5],
        "counts": {"x": [2, 0, 1], "y": [0, 1, 0]},
    }
    assert histogram({"x": [0, 0.5, 1]}, 2, (0, 1)) == {
        "edges": [0, 0.5, 1],
        "counts": {"x": [1, 2]},
    }


@given(st.lists(st.integers(-5000, 5000), min_size=1, max_size=300))
def test_a_histogram_loses_nothing(values: list[int]) -> None:
    figures = histogram({"x": values})
    assert figures is not None
    counts = figures["counts"]["x"]
    assert sum(counts) == len(values)
    assert len(figures["edges"]) == len(counts) + 1 <= 26


@given(st.integers(0, 500), st.integers(0, 600))
def test_evenly_spread_rows(total: int, count: int) -> None:
    rows = sorted(evenly(total, count))
    assert len(rows) == min(total, count)
    assert set(rows) <= set(range(total))
    gaps = [after - before for before, after in pairwise(rows)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_reading_bit_by_bit_gives_what_reading_at_once_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.data.datasets.BATCH_ROWS", 4)
    pairs = [pair(str(number % 9), f"{number}", "x") for number in range(11)]
    write_pairs(tmp_path, pairs)
    at_once: list[Dropped] = []
    bit_by_bit: list[Dropped] = []
    # The last two have ids of earlier ones.
    assert list(iter_pairs(tmp_path, bit_by_bit)) == pairs[:9]
    assert read_pairs(tmp_path, at_once) == pairs[:9]
    assert bit_by_bit == at_once
    reasons = [drop.reason for drop in at_once]
    assert reasons == ["duplicate_id", "duplicate_id"]
    assert list(iter_pairs(tmp_path, None, {0, 5, 8})) == [pairs[0], pairs[5], pairs[8]]
    assert count_pairs(tmp_path) == 11
    with pytest.raises(UserError, match="got an earlier row's"):
        list(iter_pairs(tmp_path))
    with pytest.raises(UserError, match="got none"):
        count_pairs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="got none"):
        list(iter_pairs(tmp_path / "nowhere"))


def test_image_conditions_of_a_pair(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    a = store.add(blank(1))
    b = store.add(blank(2).resize((30, 40)))
    first = replace(pair("1", "x", "y", (a,)), prompt_token_ids=(1,))
    second = replace(pair("2", "x", "y", (b,)), prompt_token_ids=(2,))
    grey = blank_images(store)(second)
    assert grey is not None
    assert grey.prompt.images[0] not in (a, b)
    assert grey.prompt_token_ids is None
    assert grey.prompt.messages == second.prompt.messages
    shuffled = shuffled_images([first, second, first])
    exchanged = [shuffled(first), shuffled(second)]
    assert [shown.prompt.images for shown in exchanged if shown] == [(b,), (a,)]
    assert shuffled_images([first, first])(first) is None
    bare = without_images(first)
    assert bare.prompt.images == ()
    question = Part("text", "What is there?")
    assert bare.prompt.messages == (Message("user", (question,)),)
