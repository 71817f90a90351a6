"""CHAIR, POPE and the bootstrap, against numbers worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.shapes.scenes import SHAPES
from reward.suites.bootstrap import (
    Array,
    Columns,
    columns_of,
    estimate,
    intervals,
    ratio,
)
from reward.suites.chair import CHAIR_COUNTS, caption_counts, chair
from reward.suites.pope import (
    POPE_COUNTS,
    Answer,
    answer_counts,
    parse_answer,
    parse_strictly,
    pope,
)


def chair_of(*captions: tuple[list[str], set[str], int]) -> dict[str, float]:
    rows = [caption_counts(*caption) for caption in captions]
    return estimate(columns_of(rows, CHAIR_COUNTS), chair)


def pope_of(**counts: int) -> dict[str, float]:
    return estimate(columns_of([counts], POPE_COUNTS), pope)


def test_chair_by_hand() -> None:
    """Three captions: (circle star ring | circle star), (ring ring | ring cross), (square | circle).

    chair_s = 2 of 3; mentions 3 + 2 + 1 = 6, hallucinated 1 + 0 + 1 = 2: chair_i = 1/3;
    named 2 + 1 + 0 = 3 of 2 + 2 + 1 = 5: recall 0.6; words 10 + 6 + 2 = 18: length 6;
    selection = 2 · 2/3 · 3/5 / (2/3 + 3/5) = 0.8 / (19/15) = 12/19.
    """
    measured = chair_of(
        (["circle", "star", "ring"], {"circle", "star"}, 10),
        (["ring", "ring"], {"ring", "cross"}, 6),
        (["square"], {"circle"}, 2),
    )
    expected = {
        "chair_s": 2 / 3,
        "chair_i": 1 / 3,
        "recall": 0.6,
        "mean_length": 6,
        "selection": 12 / 19,
    }
    assert measured == pytest.approx(expected)


def test_a_mute_model_has_perfect_chair_no_recall_and_is_never_picked() -> None:
    measured = chair_of(([], {"circle"}, 0))
    assert measured == {
        "chair_s": 0,
        "chair_i": 0,
        "recall": 0,
        "mean_length": 0,
        "selection": 0,
    }


def test_naming_everything_is_not_picked_over_the_truth() -> None:
    """Six names for two objects: chair_i 2/3, recall 1, selection 2 · 1/3 / (4/3) = 1/2."""
    assert chair_of((list(SHAPES), {"circle", "star"}, 6))[
        "selection"
    ] == pytest.approx(0.5)


OBJECTS = st.lists(st.sampled_from(SHAPES), max_size=8)


@given(
    st.lists(
        st.tuples(
            OBJECTS, st.sets(st.sampled_from(SHAPES), min_size=1), st.integers(0, 50)
        ),
        min_size=1,
    )
)
def test_chair_stays_between_0_and_1(
    captions: list[tuple[list[str], set[str], int]],
) -> None:
    measured = chair_of(*captions)
    for name in ("chair_s", "chair_i", "recall", "selection"):
        assert 0 <= measured[name] <= 1
    assert (measured["chair_s"] == 0) == (measured["chair_i"] == 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("Yes", "yes"),
        ("No.", "no"),
        ("No, there is no star.", "no"),
        ("There is not a star in the image.", "no"),
        ("Yes. There is no ring.", "yes"),
        ("", "yes"),
        ("Nothing", "yes"),
        ("NO", "yes"),
    ],
)
def test_pope_reads_answers_as_the_official_script(text: str, expected: str) -> None:
    assert parse_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes, there is.", "yes", "yes"),
        ("No.", "no", "no"),
        ("There is no dog", "no", "no"),
        ("No, it isn’t", "no", "no"),
        ("Yes.\nNo.", "yes", "yes"),
        # Here the script looks the other way.
        ("\nNo", "yes", "no"),
        ("Not at all", "yes", "no"),
        ("NO", "yes", "no"),
        ("no!", "yes", "no"),
        ("**No**", "yes", "no"),
        ("There isn’t one", "yes", "no"),
        ("There isn't one", "yes", "no"),
        # It knows "no" in small letters, though.
        ("no.", "no", "no"),
        # Whatever is no denial is a yes in both.
        ("", "yes", "yes"),
        ("Nothing", "yes", "yes"),
        ("A notable knot", "yes", "yes"),
    ],
)
def test_pope_beside_the_official_script_reads_strictly(
    text: str, official: str, strict: str
) -> None:
    assert (parse_answer(text), parse_strictly(text)) == (official, strict)


def test_pope_by_hand() -> None:
    """tp 3, fp 1, tn 4, fn 2: accuracy 7/10, precision 3/4, recall 3/5, f1 = 6/9, yes said 4 of 10 (labels: 5)."""
    assert pope_of(tp=3, fp=1, tn=4, fn=2) == pytest.approx(
        {
            "accuracy": 0.7,
            "precision": 0.75,
            "recall": 0.6,
            "f1": 2 / 3,
            "yes_ratio": 0.4,
        }
    )


def test_pope_of_one_sided_models() -> None:
    """Always yes on a balanced set: accuracy ½, f1 2/3, yes_ratio 1. Always no: f1 0, no division by zero."""
    assert pope_of(tp=5, fp=5) == pytest.approx(
        {
            "accuracy": 0.5,
            "precision": 0.5,
            "recall": 1.0,
            "f1": 2 / 3,
            "yes_ratio": 1.0,
        }
    )
    assert pope_of(tn=5, fn=5) == {
        "accuracy": 0.5,
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "yes_ratio": 0,
    }


@given(
    st.lists(
        st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])),
        min_size=1,
    )
)
def test_flipping_answers_and_labels_keeps_accuracy_and_turns_the_yes_ratio(
    pairs: list[tuple[Answer, Answer]],
) -> None:
    other: dict[Answer, Answer] = {"yes": "no", "no": "yes"}

    def measured(rows: list[tuple[Answer, Answer]]) -> dict[str, float]:
        total: Counter[str] = Counter()
        for row in rows:
            total.update(answer_counts(*row))
        return pope_of(**total)

    flipped_pairs = [(other[predicted], other[true]) for predicted, true in pairs]
    straight = measured(pairs)
    flipped = measured(flipped_pairs)
    assert straight["accuracy"] == flipped["accuracy"]
    assert straight["yes_ratio"] == pytest.approx(1 - flipped["yes_ratio"])


def mean(totals: Columns) -> dict[str, Array]:
    return {"mean": ratio(totals["hits"], totals["n"])}


def test_bootstrap_interval_of_a_share() -> None:
    """60 of 100: σ = sqrt(0.6 · 0.4 / 100) = 0.049, so the interval is about 0.6 ± 1.96 · 0.049 = 0.504-0.696."""
    columns = {"hits": np.array([1.0] * 60 + [0.0] * 40), "n": np.ones(100)}
    low, high = intervals(columns, mean, 4000, seed=1)["mean"]
    assert (low, high) == pytest.approx((0.504, 0.696), abs=0.015)
    assert estimate(columns, mean) == {"mean": 0.6}


def test_bootstrap_redraws_scenes_as_a_whole() -> None:
    """Ten answers of one scene rise and fall together: intervals do not shrink by repeating the same scene's rows."""
    once = {"hits": np.array([1.0, 0.0] * 20), "n": np.ones(40)}
    tenfold = {name: 10 * values for name, values in once.items()}
    assert intervals(once, mean, 500, seed=3) == intervals(tenfold, mean, 500, seed=3)


def test_bootstrap_is_seeded_and_survives_the_smallest_sets() -> None:
    columns = {"hits": np.array([1.0, 0.0, 1.0, 1.0]), "n": np.ones(4)}
    first = intervals(columns, mean, 100, seed=1)
    assert first == intervals(columns, mean, 100, seed=1)
    many = {"hits": np.linspace(0, 49, 50), "n": np.ones(50)}
    assert intervals(many, mean, 100, seed=1) != intervals(many, mean, 100, seed=2)
    one_scene = {"hits": np.ones(1), "n": np.ones(1)}
    assert intervals(one_scene, mean, 10, seed=0) == {"mean": (1.0, 1.0)}
    no_scene = {"hits": np.ones(0), "n": np.ones(0)}
    assert intervals(no_scene, mean, 10, seed=0) == {}
